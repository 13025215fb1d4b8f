package store

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// maxNesting is how many directories below each other are open at once. Few
	// trees have more; a guest can make more than a process may have files.
	maxNesting = 64
	// maxNames is how many names of a directory are in memory at once.
	maxNames = 10000
	// deepPrefix begins the names of directories that were moved to the top.
	deepPrefix = ".deep."
)

// RemoveTree removes the directory name below parent and all that is in it,
// never through a symbolic link and never into another mount: every step is an
// openat2(2) with RESOLVE_NO_XDEV and RESOLVE_BENEATH, and a mount point found
// on the way is an error (EXDEV, or EBUSY from unlinkat), not emptied. A tree
// that is not there is no error, and one may be of any depth.
func RemoveTree(parent, name string) error {
	dir, err := unix.Open(parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", parent, err)
	}
	defer unix.Close(dir)
	r := removal{top: -1}
	if err := r.remove(dir, name, 0); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Join(parent, name), err)
	}
	return nil
}

// removal is that of one tree. What is nested too deeply is moved to the top of
// the tree, where it has all levels before it again. A removal that is killed
// leaves it there, and the next one finds it like all else.
type removal struct {
	top   int // descriptor of the tree's own directory
	moved int // how many were
}

// remove removes what is called name, and is depth levels below the top.
func (r *removal) remove(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("unlink %s: %w", name, err)
	}
	if depth >= maxNesting && r.moveUp(parent, name) {
		return nil
	}
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	if depth == 0 {
		r.top = fd
	}
	// Who holds a console may add a file to its log meanwhile, once or twice.
	for tries := 0; tries < 3; {
		moved := r.moved
		if err := r.empty(d, fd, depth); err != nil {
			return err
		}
		err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("rmdir %s: %w", name, err)
		}
		if r.moved == moved {
			tries++
		}
	}
	return fmt.Errorf("rmdir %s: %w", name, unix.ENOTEMPTY)
}

// empty removes what is in the directory d, of which fd is the descriptor.
func (r *removal) empty(d *os.File, fd, depth int) error {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := d.Readdirnames(maxNames)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := r.remove(fd, n, depth+1); err != nil {
				return err
			}
		}
	}
}

// moveUp moves a directory to the top of the tree. Both ends are descriptors of
// the tree and in one mount, and what it may replace there is to be removed as
// well. It fails for a mount point. Overlays do not move what is in a lower layer,
// nor need other file systems: then one more directory is held open.
func (r *removal) moveUp(parent int, name string) bool {
	if unix.Renameat(parent, name, r.top, fmt.Sprintf("%s%016x", deepPrefix, rand.Uint64())) != nil {
		return false
	}
	r.moved++
	return true
}
