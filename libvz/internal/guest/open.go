package guest

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// How paths of a guest are resolved: as its own root would, and with inOneMount
// without leaving the file system of the root directory.
const (
	inRoot     = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	inOneMount = inRoot | unix.RESOLVE_NO_XDEV
)

// openIn opens a path of a guest as the guest's own root would resolve it. For
// reading, it is for directories only: see openRegular.
func openIn(root *os.File, name string, flags int) (*os.File, error) {
	return openHow(root, name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: inRoot})
}

// openHow retries while a rename elsewhere makes the kernel unsure whether the
// path stayed inside (EAGAIN, openat2(2)), bounded because a guest can rename for ever.
func openHow(root *os.File, name string, how *unix.OpenHow) (*os.File, error) {
	var fd int
	var err error
	for range 128 {
		fd, err = unix.Openat2(int(root.Fd()), name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openRegular opens a regular file of a guest for reading. The guest chooses what
// lies there, and it is opened with the host's rights: so it is looked at first.
// A device can do something when it is opened (a watchdog begins to count), and what
// the kernel makes up can do something when it is read, or wait (/proc/kmsg).
func openRegular(root *os.File, name string, resolve uint64) (*os.File, error) {
	p, err := openHow(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	refuse := func(err error) error { return &os.PathError{Op: "open", Path: name, Err: err} }
	fi, err := p.Stat()
	switch {
	case err != nil:
		return nil, err
	case fi.IsDir():
		return nil, refuse(unix.EISDIR)
	case !fi.Mode().IsRegular():
		return nil, refuse(fmt.Errorf("not a file but %s", fi.Mode().Type()))
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.Fd()), &st); err != nil {
		return nil, refuse(fmt.Errorf("statfs: %w", err))
	}
	if slices.Contains(madeUp(), st.Type) {
		return nil, refuse(errors.New("not a file of the guest but the kernel's"))
	}
	// Not waiting: there may be a lease on it (fcntl(2)).
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, refuse(err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// madeUp are the file systems (statfs(2)) whose regular files are the kernel's own.
// Those on which systems lie are too many to be named, and one that is missing there
// would be a guest that cannot be used; here it would have to be mounted in the
// guest by its configuration. A FUSE of the guest's own does not let the host in.
func madeUp() []int64 {
	return []int64{
		unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC, unix.BPF_FS_MAGIC,
		unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.NSFS_MAGIC, unix.BINDERFS_SUPER_MAGIC, unix.RDTGROUP_SUPER_MAGIC,
		unix.XENFS_SUPER_MAGIC, unix.USBDEVICE_SUPER_MAGIC, unix.OPENPROM_SUPER_MAGIC,
		0x62656570, // configfs, which has its number in fs/configfs/mount.c only
		0x19800202, // mqueue, likewise in ipc/mqueue.c
	}
}
