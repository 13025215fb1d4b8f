package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxXattrs bounds the bytes of all extended attributes of a Tree. The kernel
// allows 128 KiB in each directory, which would be more than 1 GiB.
const maxXattrs = 4 << 20

// Save records the cgroup2 subtree at path. The maps are those of the guest's
// user namespace, from its config.json; empty ones stand for a guest without
// such a namespace. Cgroups that come and go meanwhile may or may not be in
// the record, so stop or freeze the guest first if it must match an image.
//
// It returns ErrTooBig beyond MaxDirs, MaxDepth or 4 MiB of extended
// attributes, and an error that wraps fs.ErrNotExist if there is no such
// cgroup.
func Save(path string, uids, gids []specs.LinuxIDMapping) (Tree, error) {
	d, err := openRoot2(path)
	if err != nil {
		return Tree{}, fmt.Errorf("save cgroups: %w", err)
	}
	defer d.Close()
	own, err := delegated()
	if err != nil {
		return Tree{}, fmt.Errorf("save cgroups: %w", err)
	}
	s := &saver{uids: uids, gids: gids, delegated: own, dirs: MaxDirs + 1, xattrs: maxXattrs}
	t, err := s.save(d, 0)
	if err != nil {
		return Tree{}, fmt.Errorf("save cgroups: %w", err)
	}
	return t, nil
}

type saver struct {
	uids, gids   []specs.LinuxIDMapping
	delegated    []string
	dirs, xattrs int // how many more, how many more bytes
	// XATTR_LIST_MAX and XATTR_SIZE_MAX of xattr(7); here, since a buffer for
	// each cgroup would be most of what Save allocates.
	names, value [64 << 10]byte
}

func (s *saver) save(d *os.File, depth int) (Tree, error) {
	if s.dirs--; s.dirs < 0 || depth > MaxDepth {
		return Tree{}, tooBig(d.Name())
	}
	var t Tree
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return t, &os.PathError{Op: "fstat", Path: d.Name(), Err: err}
	}
	t.Dir = s.owner(&st)
	t.Dir.Mode = st.Mode & 0o1777
	if err := unix.Fstatat(int(d.Fd()), "cgroup.controllers", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return t, &os.PathError{Op: "fstatat", Path: d.Name() + "/cgroup.controllers", Err: err}
	}
	// Nobody has a reason to give this file away, so its owner is that of
	// most others.
	t.Files = s.owner(&st)
	for _, part := range []func(*Tree, *os.File, int) error{s.settings, s.attributes, s.entries} {
		if err := part(&t, d, depth); err != nil {
			return t, err
		}
	}
	if t.Limits["cpu.idle"] != "" {
		// The weight of an idle cgroup is fixed and cannot be written.
		delete(t.Limits, "cpu.weight")
	}
	return t, nil
}

func (s *saver) owner(st *unix.Stat_t) Owner {
	return Owner{UID: toGuest(s.uids, st.Uid), GID: toGuest(s.gids, st.Gid)}
}

// settings records what the guest can set by the core files. For the root,
// only the controllers below it are the guest's.
func (s *saver) settings(t *Tree, d *os.File, depth int) error {
	control, err := readFile(d, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	t.Control = strings.Fields(control)
	if depth == 0 {
		return nil
	}
	kind, err := readFile(d, "cgroup.type")
	if err != nil {
		return err
	}
	t.Threaded = kind == "threaded"
	frozen, err := readFile(d, "cgroup.freeze")
	if err != nil {
		return err
	}
	t.Frozen = frozen == "1"
	return nil
}

// entries records the files and the cgroups below.
func (s *saver) entries(t *Tree, d *os.File, depth int) error {
	return eachEntry(d, func(e os.DirEntry) error {
		var err error
		if e.IsDir() {
			err = s.child(t, d, e.Name(), depth)
		} else {
			err = s.file(t, d, e.Name(), depth)
		}
		if gone(err) {
			return nil
		}
		return err
	})
}

func (s *saver) child(t *Tree, d *os.File, name string, depth int) error {
	sub, err := openDir(d, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	c, err := s.save(sub, depth+1)
	if err != nil {
		return err
	}
	c.Name = Name(name)
	t.Children = append(t.Children, c)
	return nil
}

func (s *saver) file(t *Tree, d *os.File, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "fstatat", Path: d.Name() + "/" + name, Err: err}
	}
	own := s.owner(&st)
	own.Mode = unusual(st.Mode & 0o777)
	if own != t.Files {
		if t.Differ == nil {
			t.Differ = make(map[string]Owner)
		}
		t.Differ[name] = own
	}
	usual, ok := limitDefault(name)
	if !ok || depth == 0 && !slices.Contains(s.delegated, name) {
		return nil
	}
	value, err := readFile(d, name)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil // a threaded cgroup, or the kernel was booted without it
	case err != nil:
		return err
	}
	// io.weight goes on with lines for devices, which are not recorded.
	value, _, _ = strings.Cut(value, "\n")
	if value != usual {
		if t.Limits == nil {
			t.Limits = make(map[string]string)
		}
		t.Limits[name] = value
	}
	return nil
}

// unusual is 0 for the modes that the kernel itself gives to control files.
func unusual(mode uint32) uint32 {
	switch mode {
	case 0o444, 0o644, 0o200:
		return 0
	}
	return mode
}

// attributes records the extended attributes. Those of the root may be from
// the host's systemd, about the unit that the container is there.
func (s *saver) attributes(t *Tree, d *os.File, depth int) error {
	if depth == 0 {
		return nil
	}
	n, err := unix.Flistxattr(int(d.Fd()), s.names[:])
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return &os.PathError{Op: "listxattr", Path: d.Name(), Err: err}
	}
	for name := range strings.SplitSeq(string(s.names[:n]), "\x00") {
		if !isXattr(name) {
			continue
		}
		n, err := unix.Fgetxattr(int(d.Fd()), name, s.value[:])
		switch {
		case errors.Is(err, unix.ENODATA):
			continue
		case err != nil:
			return &os.PathError{Op: "getxattr", Path: d.Name(), Err: err}
		}
		if s.xattrs -= len(name) + n; s.xattrs < 0 {
			return fmt.Errorf("%q: %w: more than %d bytes of extended attributes", d.Name(), ErrTooBig, maxXattrs)
		}
		if t.Xattrs == nil {
			t.Xattrs = make(map[string][]byte)
		}
		t.Xattrs[name] = slices.Clone(s.value[:n])
	}
	return nil
}
