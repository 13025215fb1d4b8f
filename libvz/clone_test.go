package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

func savedSystem() *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 20, Size: 65536}}
	return &specs.Spec{
		Version: specs.Version, Hostname: "web", Root: &specs.Root{Path: "/srv/web/rootfs"},
		Process: &specs.Process{
			Args: []string{"/sbin/init", "systemd.hostname=web", "systemd.machine_id=0123456789abcdef0123456789abcdef"},
			Env:  []string{"container=vzrun", "container_uuid=01234567-89ab-cdef-0123-456789abcdef", "NOTIFY_SOCKET=/run/notify/notify.sock"},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"},
			{Destination: "/run/notify", Type: "bind", Source: "/run/vzrun/web/notify"},
			{Destination: "/proc/meminfo", Type: "bind", Source: "/var/lib/lxcfs/proc/meminfo"},
		},
		Annotations: map[string]string{
			annotationRootfs: "idmap", annotationGuest: "systemd", annotationNet: "bridge=br0,ip=10.0.0.2/24",
			annotationLxcfs: "/var/lib/lxcfs", annotationOpen: "true",
		},
		Linux: &specs.Linux{CgroupsPath: "/guests/web", UIDMappings: ids, GIDMappings: slices.Clone(ids)},
	}
}

func TestCloneSpec(t *testing.T) {
	saved := savedSystem()
	saved.Root.Path = t.TempDir()
	before, err := copySpec(saved)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest{ID: "web", Created: time.Unix(1e9, 5), Spec: saved}
	root, err := frozenRootOf(saved)
	if err != nil {
		t.Fatal(err)
	}
	cl := &cloning{machineID: "feedfeedfeedfeedfeedfeedfeedfeed", oldUUID: containerUUID(saved), oldName: saved.Hostname}
	spec, err := cl.spec("c1", m, root, CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := spec.Process.Args[1:]; !slices.Equal(got, []string{"systemd.hostname=c1", "systemd.machine_id=feedfeedfeedfeedfeedfeedfeedfeed"}) {
		t.Errorf("arguments %q", got)
	}
	if got := containerUUID(spec); got != "feedfeed-feed-feed-feed-feedfeedfeed" {
		t.Errorf("container_uuid %q", got)
	}
	if len(spec.Process.Env) != 2 || len(spec.Mounts) != 1 {
		t.Errorf("left of the origin: %q, %v", spec.Process.Env, spec.Mounts)
	}
	if spec.Root.Path != rootfsName || spec.Linux.CgroupsPath != "/guests/c1" || spec.Hostname != "c1" {
		t.Errorf("root %q, cgroup %q, host name %q", spec.Root.Path, spec.Linux.CgroupsPath, spec.Hostname)
	}
	for key, want := range map[string]string{annotationNet: "", annotationOpen: "", annotationOverlay: saved.Root.Path, annotationRootfs: "idmap"} {
		if got := spec.Annotations[key]; got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
	if !strings.HasPrefix(spec.Annotations[annotationClone], "web 2001-09-09T01:46:40.000000005Z") {
		t.Errorf("annotation %q", spec.Annotations[annotationClone])
	}
	if saved.Process.Args[1] != before.Process.Args[1] || len(saved.Mounts) != 3 || saved.Annotations[annotationNet] == "" {
		t.Error("the origin's configuration has changed")
	}
}

func TestFrozenRootOf(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		path        string
		annotations map[string]string
		layers      []string
		owned       string
		err         error
	}{
		{"directory", dir, nil, []string{dir}, dir, nil},
		{"no directory", dir + "/none", nil, nil, "", fs.ErrNotExist},
		{"overlay", "/b/rootfs", map[string]string{annotationOverlay: "/t1:/t2"}, []string{"/b/rootfs/upper", "/t1", "/t2"}, "/b/rootfs/upper", nil},
		{"image", "/b/rootfs", map[string]string{annotationImage: image}, nil, "", nil},
		{"no image", "/b/rootfs", map[string]string{annotationImage: image + "-none"}, nil, "", fs.ErrNotExist},
		{"colon", "/b:c/rootfs", map[string]string{annotationOverlay: "/t"}, nil, "", ErrUnsupported},
		{"relative template", "/b/rootfs", map[string]string{annotationOverlay: "t"}, nil, "", ErrUnsupported},
	} {
		got, err := frozenRootOf(&specs.Spec{Root: &specs.Root{Path: test.path}, Annotations: test.annotations})
		if !errors.Is(err, test.err) {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil && (!slices.Equal(got.layers, test.layers) || got.owned != test.owned) {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

func TestOverlayFlags(t *testing.T) {
	for _, test := range []struct {
		stat  int64
		text  string
		flags uintptr
	}{
		{unix.ST_RELATIME, "relatime", unix.MS_RELATIME},
		{unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOATIME, "nosuid,nodev,noatime", unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOATIME},
		{unix.ST_RDONLY, "strictatime", unix.MS_STRICTATIME},
	} {
		if got := flagsOfMount(test.stat); got != test.text {
			t.Errorf("%#x: %q", test.stat, got)
		}
		got, err := overlayFlags(map[string]string{annotationOverlayFlags: test.text})
		if err != nil || got != test.flags {
			t.Errorf("%q: %#x, %v", test.text, got, err)
		}
	}
	if got, err := overlayFlags(nil); err != nil || got != unix.MS_NODEV {
		t.Errorf("without: %#x, %v", got, err)
	}
	if _, err := overlayFlags(map[string]string{annotationOverlayFlags: "nodev,bind"}); err == nil {
		t.Error("bind was taken")
	}
}

func TestCloneNames(t *testing.T) {
	for _, test := range []struct{ id, wish, had, want string }{
		{"c1", "", "web", "c1"},
		{"c+1", "", "web", "web"}, // no host name
		{"c1", "db", "web", "db"},
		{"c1", "", "", ""},
		{"c1", "-x", "web", "error"},
	} {
		got, err := cloneHostname(test.id, test.wish, test.had)
		if err != nil {
			got = "error"
		}
		if got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
	for _, test := range []struct{ had, want string }{
		{"", ""}, {"/web", "/c1"}, {"/a/web", "/a/c1"}, {"machine.slice:vzrun:web", "machine.slice:vzrun:c1"},
	} {
		if got := cloneCgroup(test.had, "c1"); got != test.want {
			t.Errorf("cgroup %q: %q", test.had, got)
		}
	}
}

func TestChangedSince(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(at("a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/one", "two"} {
		if err := os.WriteFile(at(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel's clock for files advances in steps.
	settle := func() time.Time {
		probe := filepath.Join(t.TempDir(), "probe")
		for begun := time.Now(); ; {
			if err := os.WriteFile(probe, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(probe)
			if err != nil {
				t.Fatal(err)
			}
			if now := st.ModTime(); now.After(begun) {
				return now
			}
			os.Remove(probe)
		}
	}
	ask := func(since time.Time) string {
		changed, err := changedSince(context.Background(), dir, since)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	quiet := settle()
	if got := ask(quiet); got != "" {
		t.Errorf("%s has changed", got)
	}
	for name, change := range map[string]func() error{
		"a/b/one": func() error { return os.Chtimes(at("a/b/one"), time.Unix(1, 0), time.Unix(1, 0)) }, // mtime lies
		"two":     func() error { return os.Chmod(at("two"), 0o644) },
	} {
		since := settle()
		settle()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if got := ask(since); got != at(name) {
			t.Errorf("found %q, want %s", got, name)
		}
	}
	since := settle()
	settle()
	if err := os.Remove(at("a/b/one")); err != nil {
		t.Fatal(err)
	}
	if got := ask(since); got != at("a/b") {
		t.Errorf("found %q after a removal", got)
	}
}

func TestReplaceInMemory(t *testing.T) {
	was, is := "0123456789abcdef0123456789abcdef", "feedfeedfeedfeedfeedfeedfeedfeed"
	cmd := exec.Command("cat")
	cmd.Env = []string{"container_uuid=" + was, "other=kept"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	// That it has answered tells that the kernel has given it its environment;
	// Start may return before.
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	environ := fmt.Sprintf("/proc/%d/environ", cmd.Process.Pid)
	if err := replaceInMemory(cmd.Process.Pid, was, is); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(environ)
	if err != nil || string(got) != "container_uuid="+is+"\x00other=kept\x00" {
		t.Errorf("environment %q, %v", got, err)
	}
	for _, text := range []string{"", "short"} {
		if err := replaceInMemory(cmd.Process.Pid, text, is); err == nil {
			t.Errorf("%q was replaced by a longer text", text)
		}
	}
}

func TestRemoveMade(t *testing.T) {
	bundle := func(owner string, files ...string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "bundle")
		for _, f := range append(files, ".") {
			if err := os.MkdirAll(filepath.Join(dir, f), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if owner != "" {
			if err := os.WriteFile(filepath.Join(dir, ownerName), []byte(owner), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, test := range []struct {
		name string
		dir  string
		gone bool
	}{
		{"its own", bundle("c1", "rootfs/upper/x"), true},
		{"another's", bundle("c2", "rootfs"), false},
		{"nobody's", bundle("", "rootfs"), false},
		{"none", filepath.Join(t.TempDir(), "none"), true},
	} {
		for range 2 {
			if err := removeMade(test.dir, "c1"); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		_, err := os.Stat(test.dir)
		if gone := errors.Is(err, fs.ErrNotExist); gone != test.gone {
			t.Errorf("%s: gone %v", test.name, gone)
		}
		if _, err := os.Stat(filepath.Join(test.dir, "rootfs")); !test.gone && err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// A bundle that was handed over is not removed if somebody may have lived in it.
func TestUndoMade(t *testing.T) {
	h := &Host{opts: Options{IDs: filepath.Join(t.TempDir(), "ids.json")}}
	for _, c := range []struct {
		name string
		kept time.Duration // after now; 0 = it was not
		path string        // of what is written at this moment
		gone bool
	}{
		{"not handed over", 0, "rootfs/x", true},
		{"nothing written", time.Hour, "rootfs/x", true},
		{"a file", -time.Hour, "rootfs/x", false},
		{"a file of an overlay", -time.Hour, "rootfs/upper/x", false},
		{"an image", -time.Hour, imageName, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bundle")
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(c.path)), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{c.path: "", ownerName: "me"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			op := &store.Operation{Made: dir, MadeFor: "me"}
			if c.kept != 0 {
				op.Kept = time.Now().Add(c.kept)
			}
			if err := h.undoMade(context.Background(), &store.Entry{Record: store.Record{Operation: op}}); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) != c.gone {
				t.Errorf("gone: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, ownerName)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("its owner is still written there: %v", err)
			}
		})
	}
}
