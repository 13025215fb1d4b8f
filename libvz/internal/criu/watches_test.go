package criu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// inotifyOf is an entry of files.img: an inotify with two watches, of "/" and
// of another path.
func inotifyOf(device int, path string, mount int) []byte {
	handle := message(1, 12, 2, 1, 3, 0x1122334455667788, 3, 0x99, 3, 0, 4, []byte(path), 5, mount)
	other := message(1, 8, 2, 1, 3, 7, 4, []byte("/etc"), 5, 3)
	watches := func(device int, handle []byte) []byte {
		return message(1, 9, 2, 2, 3, 0x800, 4, 0, 5, device, 6, 1, 7, handle)
	}
	return message(1, 8, 2, 5, 13, message(1, 5, 2, 0x800, 4, []byte("own"), 5, watches(device, handle), 5, watches(1, other)))
}

func TestMendWatches(t *testing.T) {
	path := filepath.Join(t.TempDir(), "files.img")
	writeImage(t, path, fileOf(4, unix.O_RDONLY), inotifyOf(0x3d, "/", 152), inotifyOf(0x700000, "/", 169))
	var asked []watch
	mended, err := mendFile(path, func(w watch) (place, error) {
		asked = append(asked, w)
		if w.device == 0x3d {
			return place{"/run/systemd", 85}, nil
		}
		return place{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, mended, 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := readImage(path)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i, want := range [][]byte{fileOf(4, unix.O_RDONLY), inotifyOf(0x3d, "/run/systemd", 85), inotifyOf(0x700000, "/", 169)} {
		if !bytes.Equal(entries[i], want) {
			t.Errorf("entry %d is %x, want %x", i, entries[i], want)
		}
	}
	handle := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x99, 0, 0, 0}
	if len(asked) != 2 || asked[0].kind != 1 || !bytes.Equal(asked[0].handle, handle) {
		t.Errorf("asked for %+v", asked)
	}
	if again, err := mendFile(path, func(watch) (place, error) { return place{}, nil }); again != nil || err != nil {
		t.Errorf("mended once more: %x, %v", again, err)
	}
}

func TestMendWatchesRefusesNonsense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "files.img")
	for _, entry := range [][]byte{{0xff}, message(13, []byte{0xff}), message(13, message(5, []byte{0xff}))} {
		writeImage(t, path, entry)
		if _, err := mendFile(path, func(watch) (place, error) { return place{}, nil }); !errors.Is(err, errImage) {
			t.Errorf("%x: %v", entry, err)
		}
	}
}

func FuzzMendWatches(f *testing.F) {
	f.Add(inotifyOf(0x3d, "/", 152))
	f.Add(message(13, message(5, message(7, message(1, 99, 3, 1, 4, []byte("/"))))))
	f.Fuzz(func(t *testing.T, entry []byte) {
		path := filepath.Join(t.TempDir(), "files.img")
		writeImage(t, path, entry)
		mended, err := mendFile(path, func(watch) (place, error) { return place{"/run", 85}, nil })
		if err != nil || mended == nil {
			return
		}
		if err := os.WriteFile(path, mended, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readImage(path); err != nil {
			t.Errorf("mended, it cannot be read: %v", err)
		}
	})
}

// A directory of a tmpfs is found by its handle, whatever mount is asked first.
func TestFindWatched(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	// A thread with mounts of its own; it ends with the test.
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, name := range []string{"/tmp fs", "/bind"} {
		must(t, os.Mkdir(dir+name, 0o755))
	}
	must(t, unix.Mount("none", dir+"/tmp fs", "tmpfs", 0, ""))
	t.Cleanup(func() {
		must(t, unix.Unmount(dir+"/bind", 0))
		must(t, unix.Unmount(dir+"/tmp fs", 0))
	})
	must(t, os.MkdirAll(dir+"/tmp fs/watched", 0o755))
	must(t, os.MkdirAll(dir+"/tmp fs/other", 0o755))
	must(t, unix.Mount(dir+"/tmp fs/other", dir+"/bind", "", unix.MS_BIND, ""))
	handle, id, err := unix.NameToHandleAt(unix.AT_FDCWD, dir+"/tmp fs/watched", 0)
	must(t, err)
	mounts, err := mountsOf(unix.Gettid())
	must(t, err)
	w := watch{kind: handle.Type(), handle: handle.Bytes()}
	for _, m := range mounts {
		if m.id == uint64(id) {
			w.device = m.device
		}
	}
	// The bind mount first.
	for i, j := 0, len(mounts)-1; i < j; i, j = i+1, j-1 {
		mounts[i], mounts[j] = mounts[j], mounts[i]
	}
	got, err := findWatched("/", mounts, w)
	if err != nil || got != (place{dir + "/tmp fs/watched", uint64(id)}) {
		t.Errorf("found %+v, %v; want it through mount %d", got, err, id)
	}
	for _, m := range mounts {
		if m.path == "/" {
			w.device = m.device
		}
	}
	if got, err := findWatched("/", mounts, w); got.path != "" || err != nil {
		t.Errorf("on the root's file system: %+v, %v", got, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
