package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openAt2 opens name below dirfd; without links, so that no step of the path
// can lead elsewhere.
func openAt2(dirfd int, name, full string, flags, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(dirfd, name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), full), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: full, Err: err}
		}
	}
}

// openRoot opens the cgroup, v1 or cgroup2, at an absolute path. It refuses
// what is not on a cgroup file system and the root of a mounted hierarchy.
func openRoot(path string) (*os.File, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, fmt.Errorf("%q: not an absolute, clean path: %w", path, ErrNotCgroup)
	}
	d, err := openAt2(unix.AT_FDCWD, path, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(d); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func checkRoot(d *os.File) error {
	v2, err := isV2(d)
	if err != nil {
		return err
	}
	if v2 {
		// cgroup-v2.rst, "Core Interface Files": it exists on non-root
		// cgroups only.
		var st unix.Stat_t
		err := unix.Fstatat(int(d.Fd()), "cgroup.events", &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			if _, err := os.Lstat(d.Name()); errors.Is(err, unix.ENOENT) {
				return err // removed meanwhile
			}
			return fmt.Errorf("%s: %w", d.Name(), ErrNotCgroup)
		}
	}
	// The root of a mount that shows a part of the hierarchy (in a cgroup
	// namespace) is no root for the kernel, yet it is the caller's own.
	var own, up unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &own); err != nil {
		return &os.PathError{Op: "fstat", Path: d.Name(), Err: err}
	}
	if err := unix.Fstatat(int(d.Fd()), "..", &up, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "fstatat", Path: d.Name() + "/..", Err: err}
	}
	if own.Dev != up.Dev {
		return fmt.Errorf("%s: %w", d.Name(), ErrNotCgroup)
	}
	return nil
}

// isV2 tells cgroup2 from v1, and is ErrNotCgroup for anything else.
func isV2(d *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "fstatfs", Path: d.Name(), Err: err}
	}
	switch int64(st.Type) {
	case unix.CGROUP2_SUPER_MAGIC:
		return true, nil
	case unix.CGROUP_SUPER_MAGIC:
		return false, nil
	}
	return false, fmt.Errorf("%s: %w", d.Name(), ErrNotCgroup)
}

// openRoot2 is openRoot for what only cgroup2 has.
func openRoot2(path string) (*os.File, error) {
	d, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	if v2, err := isV2(d); err != nil || !v2 {
		d.Close()
		return nil, fmt.Errorf("%s: not cgroup2: %w", path, ErrNotCgroup)
	}
	return d, nil
}

// makeRoot2 is openRoot2, but first makes the last element of the path if it
// is not there.
func makeRoot2(path string) (*os.File, error) {
	d, err := openRoot2(path)
	if !errors.Is(err, unix.ENOENT) {
		return d, err
	}
	up, err := openAt2(unix.AT_FDCWD, filepath.Dir(path), filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer up.Close()
	if _, err := isV2(up); err != nil {
		return nil, err
	}
	if err := makeDir(up, filepath.Base(path)); err != nil {
		return nil, err
	}
	return openRoot2(path)
}

func makeDir(d *os.File, name string) error {
	err := unix.Mkdirat(int(d.Fd()), name, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: d.Name() + "/" + name, Err: err}
	}
	return nil
}

func openDir(d *os.File, name string) (*os.File, error) {
	return openAt2(int(d.Fd()), name, d.Name()+"/"+name, unix.O_RDONLY|unix.O_DIRECTORY,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
}

func openFile(d *os.File, name string, flags uint64) (*os.File, error) {
	return openAt2(int(d.Fd()), name, d.Name()+"/"+name, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
}

// readFile returns a control file's text without the last line feed. None
// that is read with it comes near 64 KiB.
func readFile(d *os.File, name string) (string, error) {
	f, err := openFile(d, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return strings.TrimSuffix(string(data), "\n"), err
}

func writeFile(d *os.File, name, value string) error {
	f, err := openFile(d, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// gone says that a cgroup, or one of its files, was removed while we worked:
// its path is no more, or it is open and dead.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// eachEntry calls fn for all entries of d in small portions, since it is the
// guest who decides how many there are.
func eachEntry(d *os.File, fn func(e os.DirEntry) error) error {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		entries, err := d.ReadDir(256)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// walk calls fn for root, at depth 0, and for all cgroups below it, parents
// first. Cgroups that vanish meanwhile are left out.
func walk(root *os.File, fn func(d *os.File, depth int) error) error {
	left := MaxDirs + 1
	return walkBelow(root, 0, &left, fn)
}

func walkBelow(d *os.File, depth int, left *int, fn func(d *os.File, depth int) error) error {
	if *left--; *left < 0 || depth > MaxDepth {
		return tooBig(d.Name())
	}
	if err := fn(d, depth); err != nil {
		return err
	}
	if isLeaf(d) {
		return nil
	}
	return eachEntry(d, func(e os.DirEntry) error {
		if !e.IsDir() {
			return nil
		}
		sub, err := openDir(d, e.Name())
		if err == nil {
			defer sub.Close()
			err = walkBelow(sub, depth+1, left, fn)
		}
		if gone(err) {
			return nil
		}
		return err
	})
}

// isLeaf tells whether a cgroup has none below it, without reading through
// its many files: kernfs counts subdirectories in the links of a directory
// (fs/kernfs/inode.c, kernfs_refresh_inode).
func isLeaf(d *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(d.Fd()), &st) == nil && st.Nlink == 2
}

func tooBig(name string) error {
	return fmt.Errorf("%q: %w: more than %d cgroups or %d levels", name, ErrTooBig, MaxDirs, MaxDepth)
}
