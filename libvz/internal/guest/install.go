package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Install writes files into the /run of a guest that is created but not started.
// pid is its first process, uid and gid the host's ids of the guest's root, who
// will own the files and the directories made for them. Files that are there
// are replaced, each at once, so Install can be repeated. A nil or empty files
// does nothing.
//
// /run must be a tmpfs, so that nothing reaches the guest's disk; else the error
// says so. Paths are resolved by openat2(2) inside the guest's root, and
// below /run without following any symlink or leaving the tmpfs: whatever the
// guest's rootfs holds, a write stays in that tmpfs.
func Install(pid, uid, gid int, files []File) error {
	if len(files) == 0 {
		return nil
	}
	for _, f := range files {
		if !filepath.IsLocal(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "." {
			return fmt.Errorf("file %q: not a clean path below /run", f.Path)
		}
	}
	run, err := openRun(pid)
	if err != nil {
		return err
	}
	defer run.Close()
	return asFsUser(uid, gid, func() error {
		for _, f := range files {
			if err := install(run, f); err != nil {
				return fmt.Errorf("write /run/%s of the guest: %w", f.Path, err)
			}
		}
		return nil
	})
}

func openRun(pid int) (*os.File, error) {
	root, err := openRoot(pid)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	run, err := openIn(root, "/run", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(run.Fd()), &st); err != nil {
		run.Close()
		return nil, &os.PathError{Op: "statfs", Path: "/run", Err: err}
	}
	if st.Type != unix.TMPFS_MAGIC {
		run.Close()
		return nil, errors.New("/run of the guest is no tmpfs: what belongs to one run of the guest would stay on its disk")
	}
	return run, nil
}

// openRoot opens the root directory that a process has.
func openRoot(pid int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
}

// asFsUser calls f with the file system ids uid and gid. The tmpfs belongs to the
// guest's user namespace, in which the host's root has no id: as root, the kernel
// would answer EOVERFLOW to every create. These ids are the calling thread's own
// (setfsuid(2)).
func asFsUser(uid, gid int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	oldGid, err := unix.SetfsgidRetGid(gid)
	if err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	defer unix.SetfsgidRetGid(oldGid) //nolint:errcheck // going back to what we had is always permitted
	oldUid, err := unix.SetfsuidRetUid(uid)
	if err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	defer unix.SetfsuidRetUid(oldUid) //nolint:errcheck // see above
	// The calls do not say whether they worked; asking with an invalid id does.
	if nowUid, _ := unix.SetfsuidRetUid(-1); nowUid != uid {
		return fmt.Errorf("setfsuid %d: %w", uid, unix.EPERM)
	}
	if nowGid, _ := unix.SetfsgidRetGid(-1); nowGid != gid {
		return fmt.Errorf("setfsgid %d: %w", gid, unix.EPERM)
	}
	return f()
}

func install(run *os.File, f File) error {
	dir, err := makeDirs(run, path.Dir(f.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	name, temp := path.Base(f.Path), "."+path.Base(f.Path)+".vzrun"
	at := int(dir.Fd())
	// A left-over of an interrupted Install.
	if err := unix.Unlinkat(at, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(at, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), temp)
	_, err = io.WriteString(out, f.Content)
	if err == nil {
		err = out.Chmod(f.Mode.Perm())
	}
	if err == nil {
		err = out.Close()
	}
	if err == nil {
		err = unix.Renameat(at, temp, at, name)
	}
	if err != nil {
		out.Close()
		return errors.Join(err, unix.Unlinkat(at, temp, 0))
	}
	return nil
}

// makeDirs opens the directory rel below dir and makes what is missing of it.
func makeDirs(dir *os.File, rel string) (*os.File, error) {
	at, err := openBelow(dir, ".")
	if err != nil || rel == "." {
		return at, err
	}
	for _, name := range strings.Split(rel, "/") {
		err := unix.Mkdirat(int(at.Fd()), name, 0o755)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			at.Close()
			return nil, err
		}
		made := err == nil
		next, err := openBelow(at, name)
		at.Close()
		if err != nil {
			return nil, err
		}
		// Whatever umask we were started with.
		if made {
			if err := next.Chmod(0o755); err != nil {
				next.Close()
				return nil, err
			}
		}
		at = next
	}
	return at, nil
}

func openBelow(dir *os.File, name string) (*os.File, error) {
	return openHow(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}
