package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
)

// Fields of images/remap-file-path.proto and regfile.proto.
const (
	remapID, remapType = 2, 3
	remapLinked        = 0
	linkName           = "link_remap."
)

// RemoveLinks removes the names that a dump has given to open files whose own names
// were deleted (LinkRemap), by its images in dir, from the root of the process pid. A
// dump that fails does that by itself, unless it is killed. It is idempotent.
func RemoveLinks(dir string, pid int) error {
	names, err := links(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return err
	}
	defer root.Close()
	var all []error
	for _, name := range names {
		all = append(all, removeLink(root, name))
	}
	return errors.Join(all...)
}

// HasLinks tells whether a dump, by its images in dir, has given names to open files
// whose own names were deleted (LinkRemap).
func HasLinks(dir string) (bool, error) {
	names, err := links(dir)
	return len(names) > 0, err
}

// removeLink removes a name below root, however the guest has changed what lies there.
func removeLink(root *os.File, name string) error {
	dir, err := unix.Openat2(int(root.Fd()), path.Dir(name), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == nil {
		defer unix.Close(dir)
		err = unix.Unlinkat(dir, path.Base(name), 0)
	}
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: name, Err: err}
}

// links are the paths in the guest of names that CRIU has made.
func links(dir string) ([]string, error) {
	remaps, err := readImage(filepath.Join(dir, "remap-fpath.img"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ids := map[uint64]bool{}
	for _, r := range remaps {
		if kind, ok := varint(r, remapType); ok && kind == remapLinked {
			if id, ok := varint(r, remapID); ok {
				ids[id] = true
			}
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	files, err := readImage(filepath.Join(dir, "files.img"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		id, reg, err := parseFile(f)
		if err != nil {
			return nil, err
		}
		// What the guest has called so itself is no link of a remap.
		name := text(reg, regFileName)
		if n, ours := strings.CutPrefix(path.Base(name), linkName); ours && ids[id] && strings.Trim(n, "0123456789") == "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// text returns a field of bytes, "" where there is none.
func text(msg []byte, field uint64) (value string) {
	each(msg, func(tag uint64, v []byte) {
		if tag != field<<3|wireBytes {
			return
		}
		if size, n := protobuf.ConsumeVarint(v); n > 0 && size == uint64(len(v)-n) {
			value = string(v[n:])
		}
	})
	return value
}
