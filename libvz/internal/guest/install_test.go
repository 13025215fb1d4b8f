package guest

import (
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDropIns(t *testing.T) {
	for _, f := range DropIns(Systemd) {
		name, comment := "00-vzrun.conf", "#"
		if path.Ext(f.Path) == ".ini" {
			name, comment = "00-vzrun.ini", ";"
		}
		if !filepath.IsLocal(f.Path) || !strings.HasPrefix(f.Path, "systemd/") || path.Base(f.Path) != name {
			t.Errorf("%s: must be in /run/systemd and sort before an operator's own", f.Path)
		}
		if f.Mode != 0o644 || !strings.HasPrefix(f.Content, comment+" ") || !strings.HasSuffix(f.Content, "\n") {
			t.Errorf("%s: mode %o, content %q", f.Path, f.Mode, f.Content)
		}
		commented := false
		for _, line := range strings.Split(f.Content, "\n") {
			setting := strings.Contains(line, "=") && !strings.HasPrefix(line, comment)
			if setting && !commented {
				t.Errorf("%s: %s has no comment that says why", f.Path, line)
			}
			commented = strings.HasPrefix(line, comment)
		}
	}
	for _, i := range []Init{SysVInit, OpenRC, Runit, Busybox, Unknown, ""} {
		if DropIns(i) != nil {
			t.Errorf("%s has drop-ins", i)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for i, want := range map[Init]syscall.Signal{Systemd: 37, SysVInit: syscall.SIGINT, Busybox: syscall.SIGUSR2, OpenRC: syscall.SIGTERM, Runit: syscall.SIGINT, Unknown: syscall.SIGTERM, "": syscall.SIGTERM} {
		if got := StopSignal(i); got != want {
			t.Errorf("%s: %v, want %v", i, got, want)
		}
	}
}

// inGuest gives f the id of a task whose root is a directory of its own, with a
// tmpfs at /run unless disk is set. prepare runs in the task, before it is ready.
func inGuest(t *testing.T, disk bool, prepare func(root string) error, f func(tid int, root string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a mount namespace")
	}
	root := t.TempDir()
	ready, done := make(chan error), make(chan struct{})
	tid := 0
	go func() {
		// Not unlocked: the thread ends with its namespace.
		runtime.LockOSThread()
		tid = unix.Gettid()
		ready <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
				return err
			}
			if err := os.Mkdir(root+"/run", 0o755); err != nil {
				return err
			}
			if !disk {
				if err := unix.Mount("tmpfs", root+"/run", "tmpfs", 0, "mode=755,uid=4242,gid=4243"); err != nil {
					return err
				}
			}
			if err := prepare(root); err != nil {
				return err
			}
			return unix.Chroot(root)
		}()
		<-done
	}()
	defer close(done)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	f(tid, root)
}

func nothing(string) error { return nil }

func TestInstall(t *testing.T) {
	inGuest(t, false, nothing, func(tid int, root string) {
		files := []File{{Path: "a/b/one.conf", Content: "1\n", Mode: 0o644}, {Path: "two", Content: "2\n", Mode: 0o755}}
		for range 2 {
			if err := Install(tid, 4242, 4243, files); err != nil {
				t.Fatal(err)
			}
		}
		files[0].Content = "changed\n"
		if err := Install(tid, 4242, 4243, files); err != nil {
			t.Fatal(err)
		}
		run, err := openRun(tid)
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		at := "/proc/self/fd/" + strconv.Itoa(int(run.Fd()))
		for name, mode := range map[string]os.FileMode{"a": os.ModeDir | 0o755, "a/b": os.ModeDir | 0o755, "a/b/one.conf": 0o644, "two": 0o755} {
			fi, err := os.Stat(at + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			if fi.Mode() != mode || st.Uid != 4242 || st.Gid != 4243 {
				t.Errorf("%s: %v %d:%d", name, fi.Mode(), st.Uid, st.Gid)
			}
		}
		if got, _ := os.ReadFile(at + "/a/b/one.conf"); string(got) != "changed\n" {
			t.Errorf("content %q", got)
		}
		if left, _ := os.ReadDir(at + "/a/b"); len(left) != 1 {
			t.Errorf("left over: %v", left)
		}
		if onDisk, _ := os.ReadDir(root + "/run"); len(onDisk) != 0 {
			t.Errorf("on the guest's disk: %v", onDisk)
		}
	})
}

func TestInstallStaysInside(t *testing.T) {
	outside := t.TempDir()
	one := []File{{Path: "systemd/one.conf", Content: "1\n", Mode: 0o644}}
	for name, c := range map[string]struct {
		disk    bool
		prepare func(root string) error
	}{
		"run on the disk":        {true, nothing},
		"run is a link":          {true, func(r string) error { os.Remove(r + "/run"); return os.Symlink(outside, r+"/run") }},
		"directory is a link":    {false, func(r string) error { return os.Symlink(outside, r+"/run/systemd") }},
		"directory leads to /":   {false, func(r string) error { return os.Symlink("/", r+"/run/systemd") }},
		"directory is a file":    {false, func(r string) error { return os.WriteFile(r+"/run/systemd", nil, 0o644) }},
		"directory is a mount":   {false, mountedDir},
		"target is a directory":  {false, func(r string) error { return os.MkdirAll(r+"/run/systemd/one.conf", 0o755) }},
		"directory is not guest": {false, func(r string) error { return os.Mkdir(r+"/run/systemd", 0o700) }},
	} {
		t.Run(name, func(t *testing.T) {
			inGuest(t, c.disk, c.prepare, func(tid int, root string) {
				if err := Install(tid, 4242, 4243, one); err == nil {
					t.Error("no error")
				}
				for _, dir := range []string{outside, root} {
					if _, err := os.Lstat(dir + "/one.conf"); err == nil {
						t.Errorf("written to %s", dir)
					}
				}
			})
		})
	}
	t.Run("target is a link", func(t *testing.T) {
		victim := outside + "/victim"
		inGuest(t, false, func(r string) error {
			if err := os.Mkdir(r+"/run/systemd", 0o777); err != nil {
				return err
			}
			if err := os.Chown(r+"/run/systemd", 4242, 4243); err != nil {
				return err
			}
			return os.Symlink(victim, r+"/run/systemd/one.conf")
		}, func(tid int, _ string) {
			if err := Install(tid, 4242, 4243, one); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(victim); err == nil {
				t.Error("written through the link")
			}
		})
	})
	for _, bad := range []string{"", ".", "/etc/x", "../x", "a/../../x", "a//b"} {
		if err := Install(os.Getpid(), 1, 1, []File{{Path: bad}}); err == nil {
			t.Errorf("path %q: no error", bad)
		}
	}
	if err := Install(-1, 1, 1, nil); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
}

func mountedDir(root string) error {
	if err := os.Mkdir(root+"/run/systemd", 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", root+"/run/systemd", "tmpfs", 0, "mode=777")
}

func TestKeepHostname(t *testing.T) {
	inGuest(t, false, func(root string) error {
		if err := os.Mkdir(root+"/etc", 0o755); err != nil {
			return err
		}
		if err := os.Chown(root+"/etc", 4242, 4243); err != nil {
			return err
		}
		// It is replaced, and what it leads to is left alone.
		return os.Symlink("../run/name", root+"/etc/hostname")
	}, func(tid int, root string) {
		for _, c := range []struct {
			init       Init
			name, want string
		}{{Systemd, "web", ""}, {Runit, "", ""}, {SysVInit, "web", "web\n"}, {Unknown, "db", "db\n"}} {
			if err := KeepHostname(c.init, c.name, tid, 4242, 4243); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(root + "/etc/hostname"); string(got) != c.want {
				t.Errorf("%s, %q: /etc/hostname is %q", c.init, c.name, got)
			}
		}
		if left, _ := os.ReadDir(root + "/etc"); len(left) != 1 {
			t.Errorf("left over: %v", left)
		}
	})
}
