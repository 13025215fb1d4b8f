package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Delegate gives the cgroup2 directory, and those of its files by which a
// delegatee manages its subtree, to a user: a guest's root, by its host ids.
// The files are those in /sys/kernel/cgroup/delegate, or, where the kernel has
// no such list, those that "Model of Delegation" in cgroup-v2.rst names; the
// limits stay with the host. It is the same on a pure host and on a hybrid
// one.
//
// Where they are at "max", it also lowers cgroup.max.descendants and
// cgroup.max.depth to MaxDirs and MaxDepth, so that a guest cannot grow a
// subtree that cannot be recorded; mkdir in the guest fails with EAGAIN
// beyond that.
//
// Both ids are 0 to 2^32-2. Delegate is idempotent; the cgroup must exist.
func Delegate(path string, uid, gid int) error {
	for _, id := range []int{uid, gid} {
		// The highest one is the kernel's "leave as it is".
		if id < 0 || id >= math.MaxUint32 {
			return fmt.Errorf("delegate %s: id %d out of range", path, id)
		}
	}
	d, err := openRoot2(path)
	if err != nil {
		return fmt.Errorf("delegate: %w", err)
	}
	defer d.Close()
	if err := lowerMax(d); err != nil {
		return fmt.Errorf("delegate: %w", err)
	}
	files, err := delegated()
	if err != nil {
		return fmt.Errorf("delegate: %w", err)
	}
	if err := chownRoot(d, files, uid, gid); err != nil {
		return fmt.Errorf("delegate: %w", err)
	}
	return nil
}

func lowerMax(d *os.File) error {
	for _, limit := range []struct {
		file  string
		value int
	}{{"cgroup.max.descendants", MaxDirs}, {"cgroup.max.depth", MaxDepth}} {
		now, err := readFile(d, limit.file)
		if err == nil && now == "max" {
			err = writeFile(d, limit.file, strconv.Itoa(limit.value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chownRoot changes the owner of d and of the named files of d that exist;
// an id of -1 is left as it is.
func chownRoot(d *os.File, files []string, uid, gid int) error {
	for _, name := range files {
		// A controller's file is not there where the controller is off.
		if err := chownFile(d, name, uid, gid); err != nil && !gone(err) {
			return err
		}
	}
	// Last, so that the directory's owner tells that all is done.
	return d.Chown(uid, gid)
}

func chownFile(d *os.File, name string, uid, gid int) error {
	if err := unix.Fchownat(int(d.Fd()), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: d.Name() + "/" + name, Err: err}
	}
	return nil
}

// delegated returns the names of the files that belong to the delegatee.
func delegated() ([]string, error) {
	data, err := os.ReadFile("/sys/kernel/cgroup/delegate")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return delegatedFrom(string(data)), nil
}

func delegatedFrom(text string) []string {
	files := []string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
	for name := range strings.FieldsSeq(text) {
		if !strings.Contains(name, "/") && !slices.Contains(files, name) {
			files = append(files, name)
		}
	}
	return files
}
