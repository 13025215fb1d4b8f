package libvz

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// inPrivateMounts runs fn on an OS thread with a mount namespace and a working
// directory of its own, a slave of the host's: what fn mounts is seen by the
// processes that it starts and by nobody else, and is gone with the last of
// them, however vzrun ends. So no mount is ever left behind on the host, where
// a recursive delete could follow it. The thread ends with fn.
func inPrivateMounts(fn func() error) error {
	// The cgroups library opens /sys/fs/cgroup once and keeps it. Opened by
	// the thread below, it would be a mount that dies with the thread. What
	// this call says does not matter.
	if f, err := cgroups.OpenFile("/sys/fs/cgroup", "cgroup.procs", os.O_RDONLY); err == nil {
		f.Close()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			// CLONE_NEWNS implies CLONE_FS (unshare(2)).
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("unshare mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
				return fmt.Errorf("detach mount propagation: %w", err)
			}
			return fn()
		}()
	}()
	return <-done
}

// usernsFile returns a descriptor of a fresh user namespace with the given
// mappings. The namespace lives as long as it is open. It belongs to the host's
// user owner: whatever the kernel counts in it, inotify instances for example,
// it counts against that user's limits on the host, too (include/linux/
// user_namespace.h, struct ucounts).
//
// A namespace needs a process to be born in: a child that is stopped at its
// exec (PTRACE_TRACEME), and killed there, so it never runs an instruction of
// its program.
func usernsFile(uids, gids []specs.LinuxIDMapping, owner uint32) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The tracer is a thread, so it must be the one that waits. Never
		// unlocked, as its user changes.
		runtime.LockOSThread()
		f, err := stoppedInUserns(uids, gids, owner)
		done <- result{f, err}
	}()
	r := <-done
	return r.file, r.err
}

func stoppedInUserns(uids, gids []specs.LinuxIDMapping, owner uint32) (*os.File, error) {
	// The owner is whom the thread acts for when the namespace is born. Its
	// real id stays root's, which has no limit of processes.
	if err := actAs(owner); err != nil {
		return nil, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"vzrun-userns"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Ptrace: true},
	})
	if back := actAs(0); back != nil {
		err = back
	}
	if err != nil {
		return nil, fmt.Errorf("create user namespace: %w", err)
	}
	defer func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != unix.EINTR {
				break
			}
		}
	}()
	for name, maps := range map[string][]specs.LinuxIDMapping{"uid_map": uids, "gid_map": gids} {
		if err := writeIDMap(fmt.Sprintf("/proc/%d/%s", pid, name), maps); err != nil {
			return nil, fmt.Errorf("map ids of user namespace: %w", err)
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return f, nil
}

// actAs sets the effective user id of the calling thread alone.
func actAs(uid uint32) error {
	same := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	return nil
}

// writeIDMap writes all lines at once, as user_namespaces(7) asks for.
func writeIDMap(path string, maps []specs.LinuxIDMapping) error {
	var lines strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&lines, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(lines.String())
	return errors.Join(err, f.Close())
}

// idMapped returns a detached clone of the mount at path in which the owners
// on disk are seen through userns (mount_setattr(2), MOUNT_ATTR_IDMAP): what
// belongs to uid 0 on disk belongs to the namespace's uid 0. The file can be
// opened through /proc/self/fd, or attached with attach. ErrUnsupported is
// returned where the file system cannot (overlay, kernels before 5.12).
func idMapped(path string, userns *os.File) (*os.File, error) {
	f, err := cloneTree(path, 0)
	if err != nil {
		return nil, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr)
	runtime.KeepAlive(userns)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			return nil, withHint("use a directory on ext4, xfs, btrfs or tmpfs, name an overlay's layers in "+annotationOverlay+
				", or take the annotation "+annotationRootfs+" away and shift the owners on disk",
				"map ids of %s: %w: its file system has no id-mapped mounts (%v)", path, ErrUnsupported, err)
		}
		return nil, fmt.Errorf("map ids of %s: %w", path, err)
	}
	return f, nil
}

// cloneTree returns a detached copy of the mount at path; with AT_RECURSIVE, of
// those below it too.
func cloneTree(path string, flags uint) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("open mount %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// attach mounts a detached tree at target in the caller's mount namespace.
func attach(tree *os.File, target string) error {
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// coverRootfs mounts the id-mapped view of rootfs over rootfs itself, for the
// calling thread's mount namespace (see inPrivateMounts).
func coverRootfs(rootfs string, userns *os.File) error {
	tree, err := idMapped(rootfs, userns)
	if err != nil {
		return err
	}
	defer tree.Close()
	return attach(tree, rootfs)
}
