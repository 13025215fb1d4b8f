package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenRegularTakesNothingOfTheKernel(t *testing.T) {
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	// /proc/kmsg itself would be read empty.
	for _, name := range []string{"/proc/uptime", "/proc/self/status", "/sys/kernel/uevent_seqnum"} {
		f, err := openRegular(root, name, inRoot)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "the kernel's") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of a device that has no driver it can be told whether somebody has opened it.
func TestOpenRegularOpensNoDevice(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mknod(filepath.Join(dir, "watchdog"), unix.S_IFCHR|0o600, int(unix.Mkdev(4000, 1))); err != nil {
		t.Skip(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, resolve := range []uint64{inRoot, inOneMount} {
		if _, err := openRegular(root, "/watchdog", resolve); err == nil || !strings.Contains(err.Error(), "not a file but") {
			t.Errorf("device: %v", err)
		}
	}
	if _, err := openRegular(root, "/", inRoot); !absent(err) {
		t.Errorf("directory: %v", err)
	}
}
