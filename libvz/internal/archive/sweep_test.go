package archive

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What others have put into a directory that is everybody's is in nobody's way, and
// is not removed.
func TestSweepLeavesOthers(t *testing.T) {
	parent := t.TempDir()
	at := func(name string) string { return filepath.Join(parent, name) }
	ok(t, os.WriteFile(at("x-file"), nil, 0o600))
	ok(t, unix.Mkfifo(at("x-fifo"), 0o600))
	ok(t, os.Symlink(t.TempDir(), at("x-link")))
	ok(t, os.Mkdir(at("x-own"), 0o700))
	if os.Geteuid() == 0 {
		ok(t, os.Mkdir(at("x-other"), 0o700))
		ok(t, os.Chown(at("x-other"), 1000, 1000))
	}
	var asked []string
	refuse := func(_, name string) error {
		asked = append(asked, name)
		return errors.New("no")
	}
	f, err := NewFolder(parent, "x-", refuse)
	ok(t, err)
	defer f.Release()
	if len(asked) != 1 || asked[0] != "x-own" {
		t.Error(asked)
	}
	ok(t, os.WriteFile(at("y-file"), nil, 0o600))
	ok(t, os.Mkdir(at("y-own"), 0o700))
	asked = nil
	ok(t, sweep(parent, "y-", unix.S_IFREG, refuse))
	if len(asked) != 1 || asked[0] != "y-file" {
		t.Error(asked)
	}
}

// A file system that is mounted there is not asked, even if it says that it is ours.
func TestSweepLeavesMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	parent := t.TempDir()
	mounted := filepath.Join(parent, "x-mounted")
	ok(t, os.Mkdir(mounted, 0o700))
	var asked []string
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", mounted, "tmpfs", 0, "size=64k")
		}
		if err == nil {
			err = sweep(parent, "x-", unix.S_IFDIR, func(_, name string) error {
				asked = append(asked, name)
				return nil
			})
		}
		done <- err
	}()
	if err := <-done; errors.Is(err, unix.EPERM) {
		t.Skip("no mounts here")
	} else if err != nil || len(asked) != 0 {
		t.Error(asked, err)
	}
}

// A sweep may come before the lock at any moment.
func TestSweptBeforeTheLock(t *testing.T) {
	parent := t.TempDir()
	for name, meanwhile := range map[string]func(path string) (*os.File, error){
		"before it is opened": func(path string) (*os.File, error) {
			return nil, errors.Join(os.Remove(path), errSwept)
		},
		"before it is locked": func(path string) (*os.File, error) {
			f, err := os.Open(path)
			return f, errors.Join(err, os.Remove(path))
		},
		"and another is there": func(path string) (*os.File, error) {
			f, err := os.Open(path)
			return f, errors.Join(err, os.Rename(path, path+"-old"), os.Mkdir(path, 0o700))
		},
		"while it is locked": func(path string) (*os.File, error) {
			held, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { held.Close() })
			f, err := os.Open(path)
			return f, errors.Join(err, unix.Flock(int(held.Fd()), unix.LOCK_EX))
		},
	} {
		tries := 0
		path, f, err := makeLocked(parent, "x-", func(path string) (*os.File, error) {
			if tries++; tries > 1 {
				return makeFolder(path)
			}
			ok(t, os.Mkdir(path, 0o700))
			return meanwhile(path)
		})
		if err != nil || tries != 2 {
			t.Errorf("%s: %d tries, %v", name, tries, err)
			continue
		}
		if st, err := os.Stat(path); err != nil || !st.IsDir() {
			t.Error(name, err)
		}
		f.Close()
	}
	if _, _, err := makeLocked(filepath.Join(parent, "none"), "x-", makeFolder); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Many at once do not take each other's.
func TestFoldersAtOnce(t *testing.T) {
	parent := t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 30 {
				f, err := NewFolder(parent, "x-", removeAll)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(f.Path, "image"), nil, 0o600); err != nil {
					t.Error("it was removed:", err)
				}
				if err := f.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
