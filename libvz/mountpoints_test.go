package libvz

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
)

func TestMakeMountPoints(t *testing.T) {
	rootfs, source, outside := t.TempDir(), t.TempDir(), t.TempDir()
	file := filepath.Join(outside, "file")
	if err := os.WriteFile(file, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(rootfs, "link")); err != nil {
		t.Fatal(err)
	}
	mounts := []*configs.Mount{
		{Device: "proc", Destination: "/proc"},
		{Device: "tmpfs", Destination: "/dev"},
		{Device: "devpts", Destination: "/dev/pts"},
		{Device: "cgroup", Destination: "/sys/fs/cgroup"},
		{Device: "bind", Source: file, Destination: "/run/.containerenv"},
		{Device: "bind", Source: source, Destination: "/data"},
		{Device: "bind", Source: file, Destination: "/data/in/file"},
	}
	for range 2 { // what is there is no error
		if err := makeMountPoints(rootfs, mounts); err != nil {
			t.Fatal(err)
		}
	}
	for path, dir := range map[string]bool{
		rootfs + "/proc": true, rootfs + "/dev": true, rootfs + "/data": true,
		rootfs + "/run/.containerenv": false, source + "/in/file": false,
	} {
		if st, err := os.Lstat(path); err != nil || st.IsDir() != dir {
			t.Errorf("%s: %v", path, err)
		}
	}
	// A link out of the rootfs leads nowhere in it.
	if err := makeMountPoints(rootfs, []*configs.Mount{{Device: "bind", Source: file, Destination: "/link/made"}}); err == nil {
		t.Error("a mount point was made beyond a link that leads nowhere")
	}
	for _, path := range []string{rootfs + "/dev/pts", rootfs + "/sys", rootfs + "/data/in", outside + "/made"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
}
