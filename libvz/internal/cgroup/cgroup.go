// Package cgroup adds to libcontainer's cgroup managers what a guest with a
// cgroup2 subtree of its own needs: delegation, a record of the subtree that
// can be made again before a restore, and an end of every process and
// directory in it.
//
// The guest's root owns its subtree and is not trusted. It may use any
// directory name, nest deeply, make thousands of directories and change all
// of it while we look. So everything here works below one directory
// descriptor, never follows a symbolic link or crosses a mount, is bounded by
// [MaxDirs] and [MaxDepth], and takes a directory that vanishes meanwhile for
// one that never was.
//
// Paths are absolute and must name a cgroup below a hierarchy's root as seen
// from here; the root itself is refused, for what is meant for a container
// must never reach the host.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// MaxDirs is the number of cgroups, without the root, that one guest's
	// subtree may have.
	MaxDirs = 10000
	// MaxDepth is the number of levels that a guest's subtree may have below
	// its root.
	MaxDepth = 64
)

var (
	// ErrNoUnified says that the host has no cgroup2 hierarchy mounted where
	// it is expected.
	ErrNoUnified = errors.New("no cgroup2 hierarchy")
	// ErrNotCgroup says that a path is not a cgroup below a hierarchy's root.
	ErrNotCgroup = errors.New("not a cgroup below the root of a hierarchy")
	// ErrTooBig says that a subtree exceeds MaxDirs, MaxDepth or the room for
	// extended attributes.
	ErrTooBig = errors.New("cgroup subtree too big")
	// ErrSelf says that the calling process is itself in the cgroup.
	ErrSelf = errors.New("the calling process is in the cgroup")
	// ErrInvalid says that a recorded Tree is not one that Save can have made.
	ErrInvalid = errors.New("invalid cgroup tree")
	// ErrController says that a controller that the guest had enabled is not
	// available in the cgroup that it is to be enabled in.
	ErrController = errors.New("cgroup controller not available")
)

// Unified returns the mount point of the host's cgroup2 hierarchy, and
// whether it is the only one (pure) or stands beside v1 hierarchies (hybrid).
// The two places are those that systemd and libcontainer use:
// /sys/fs/cgroup, else /sys/fs/cgroup/unified. It returns ErrNoUnified if
// neither is cgroup2.
func Unified() (mount string, pure bool, err error) {
	return unified(func(path string) (int64, error) {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		return int64(st.Type), err
	})
}

func unified(fsType func(path string) (int64, error)) (string, bool, error) {
	const pure, hybrid = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
	for _, path := range []string{pure, hybrid} {
		t, err := fsType(path)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case err != nil:
			return "", false, fmt.Errorf("statfs %s: %w", path, err)
		case t == unix.CGROUP2_SUPER_MAGIC:
			return path, path == pure, nil
		}
	}
	return "", false, ErrNoUnified
}

// Of returns the cgroups of a process from /proc/<pid>/cgroup, cgroups(7): for
// each v1 controller, for each named v1 hierarchy as "name=<name>", and for
// cgroup2 under the empty key, the path below the root of the caller's cgroup
// namespace. A pid of 0 means the caller. A path that starts with "/.." lies
// outside of that namespace; one that ends in " (deleted)" has been removed.
func Of(pid int) (map[string]string, error) {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	data, err := os.ReadFile("/proc/" + who + "/cgroup")
	if err != nil {
		return nil, err
	}
	of, err := parseOf(string(data))
	if err != nil {
		return nil, fmt.Errorf("cgroups of process %s: %w", who, err)
	}
	return of, nil
}

func parseOf(text string) (map[string]string, error) {
	of := make(map[string]string)
	for line := range strings.Lines(text) {
		// A path may hold colons, but no line feed: cgroup_mkdir refuses it.
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) != 3 || !strings.HasPrefix(part[2], "/") {
			return nil, fmt.Errorf("parse line %q", line)
		}
		if strings.HasPrefix(part[1], "name=") {
			of[part[1]] = part[2]
			continue
		}
		for controller := range strings.SplitSeq(part[1], ",") {
			of[controller] = part[2]
		}
	}
	return of, nil
}

// Procs returns the ids of all processes in the cgroup and in those below it,
// ascending and each once, as numbers of the caller's PID namespace;
// processes that have none there are left out. The set may have changed when
// it is returned. It returns an error that wraps fs.ErrNotExist if there is no
// such cgroup and ErrTooBig if there are too many below it.
func Procs(path string) ([]int, error) {
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return procsBelow(root)
}

func procsBelow(root *os.File) ([]int, error) {
	var pids []int
	err := walk(root, func(d *os.File, depth int) error {
		own, err := procsIn(d)
		if depth > 0 && errors.Is(err, unix.EOPNOTSUPP) {
			// The processes of a threaded cgroup are listed in the one that
			// is the root of the threaded subtree, which is above it.
			return nil
		}
		pids = append(pids, own...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func procsIn(d *os.File) ([]int, error) {
	f, err := openFile(d, "cgroup.procs", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return parsePIDs(string(data))
}

// parsePIDs leaves out the 0 that stands for a process of a PID namespace
// that the reader cannot see.
func parsePIDs(text string) ([]int, error) {
	var pids []int
	for word := range strings.FieldsSeq(text) {
		pid, err := strconv.Atoi(word)
		if err != nil || pid < 0 {
			return nil, fmt.Errorf("parse process id %q", word)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
