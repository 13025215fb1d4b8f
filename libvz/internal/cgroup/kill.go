package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// KillAll ends every process in the cgroups at paths, of any hierarchy, and
// below them, and returns when they are gone. Use it to clean up after a
// create or a restore that was not finished.
//
// On cgroup2 the kernel does it (cgroup.kill, since Linux 5.14; processes that
// are forked meanwhile are included). Elsewhere the processes are frozen where
// the path is one of the v1 freezer's, or has cgroup.freeze, and each is
// killed through a pidfd that was seen to belong to the cgroup, so that a
// reused number never hits anyone else. The v1 freezer paths are thawed, for a
// frozen process cannot die there; so a paused container needs its freezer
// path among paths.
//
// A path that does not exist is taken for empty; no path at all is success.
// If the caller is itself in one of them it returns ErrSelf and nothing is
// killed. If ctx ends first, the error wraps its cause and names processes
// that are left; without a deadline it waits for as long as a process hangs in
// the kernel.
func KillAll(ctx context.Context, paths []string) error {
	var groups []group
	defer func() {
		for _, g := range groups {
			g.Close()
		}
	}()
	for _, path := range paths {
		d, err := openRoot(path)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return fmt.Errorf("kill: %w", err)
		}
		groups = append(groups, group{File: d})
		g := &groups[len(groups)-1]
		if g.v2, err = isV2(d); err == nil {
			err = g.checkSelf()
		}
		if err != nil {
			return fmt.Errorf("kill: %w", err)
		}
	}
	if allEmpty(groups) {
		return nil
	}
	var errs []error
	for _, step := range []func(group) error{group.freeze, group.kill, group.thaw} {
		for _, g := range groups {
			if err := step(g); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("kill: %w", err))
			}
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, g := range groups {
		if err := g.wait(ctx); err != nil && !gone(err) {
			return fmt.Errorf("kill processes of %s%s: %w", g.Name(), g.left(), err)
		}
	}
	return nil
}

// allEmpty tells whether there is no process to end, as after the init of a pid
// namespace has ended: then nothing need be frozen, for which the kernel patches
// its own code.
func allEmpty(groups []group) bool {
	for _, g := range groups {
		var empty bool
		var err error
		if g.v2 {
			// Those count too that have no number here.
			var events string
			events, err = readFile(g.File, "cgroup.events")
			empty = strings.Contains(events, "populated 0")
		} else {
			var pids []int
			pids, err = procsBelow(g.File)
			empty = len(pids) == 0
		}
		if !gone(err) && (err != nil || !empty) {
			return false
		}
	}
	return true
}

// group is one cgroup whose processes are to end.
type group struct {
	*os.File
	v2 bool
}

// has says whether the cgroup has a control file.
func (g group) has(name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(g.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// checkSelf is ErrSelf if the caller is in the cgroup or below it. It goes up
// from the caller's cgroup, since the way down is as long as the guest likes.
func (g group) checkSelf() error {
	if !g.v2 {
		pids, err := procsBelow(g.File)
		if err == nil && slices.Contains(pids, os.Getpid()) {
			err = fmt.Errorf("%s: %w", g.Name(), ErrSelf)
		}
		return err
	}
	mount, _, err := Unified()
	if err != nil {
		return err
	}
	of, err := Of(0)
	if err != nil {
		return err
	}
	here, err := openAt2(unix.AT_FDCWD, mount+of[""], mount+of[""], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed, or outside of what is mounted: not below g
	} else if err != nil {
		return err
	}
	defer func() { here.Close() }()
	var want, st unix.Stat_t
	if err := unix.Fstat(int(g.Fd()), &want); err != nil {
		return err
	}
	for {
		if err := unix.Fstat(int(here.Fd()), &st); err != nil {
			return err
		}
		switch {
		case st.Dev != want.Dev:
			return nil // above the mount
		case st.Ino == want.Ino:
			return fmt.Errorf("%s: %w", g.Name(), ErrSelf)
		}
		up, err := openAt2(int(here.Fd()), "..", here.Name()+"/..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		here.Close()
		here = up
	}
}

// freeze stops the processes from forking where that is needed and possible.
func (g group) freeze() error {
	switch {
	case g.v2 && g.has("cgroup.kill"):
		return nil
	case g.has("cgroup.freeze"):
		return writeFile(g.File, "cgroup.freeze", "1")
	case g.has("freezer.state"):
		return writeFile(g.File, "freezer.state", "FROZEN")
	}
	return nil
}

func (g group) kill() error {
	if g.v2 {
		err := writeFile(g.File, "cgroup.kill", "1")
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	pids, err := procsBelow(g.File)
	for batch := range slices.Chunk(pids, pidfdBatch) {
		if err == nil {
			err = g.signal(batch, func([]unix.PollFd) error { return nil })
		}
	}
	return err
}

// thaw lets the processes of a v1 freezer run into their death. Each cgroup
// below has a state of its own there.
func (g group) thaw() error {
	if g.v2 || !g.has("freezer.state") {
		return nil
	}
	return walk(g.File, func(d *os.File, _ int) error {
		return writeFile(d, "freezer.state", "THAWED")
	})
}

// pidfdBatch is how many pidfds are open at once, well below the usual limit
// of 1024 descriptors.
const pidfdBatch = 256

func (g group) wait(ctx context.Context) error {
	if g.v2 && g.has("cgroup.kill") {
		return waitEmpty(ctx, g.File)
	}
	for ctx.Err() == nil {
		pids, err := procsBelow(g.File)
		if err != nil || len(pids) == 0 {
			return err
		}
		for batch := range slices.Chunk(pids, pidfdBatch) {
			err := g.signal(batch, func(fds []unix.PollFd) error { return waitExit(ctx, fds) })
			if err != nil {
				return err
			}
		}
	}
	return context.Cause(ctx)
}

// signal sends SIGKILL to those of pids that are in the cgroup, and calls then
// with their pidfds.
func (g group) signal(pids []int, then func([]unix.PollFd) error) error {
	fds, err := openPidfds(pids)
	defer closePidfds(fds)
	if err != nil {
		return err
	}
	// With the pidfds open, a process that is listed now is the one that we
	// hold, or ours is dead and will not take the signal.
	now, err := procsBelow(g.File)
	if err != nil {
		return err
	}
	var hit []unix.PollFd
	for pid, fd := range fds {
		if _, ok := slices.BinarySearch(now, pid); !ok {
			continue
		}
		err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
		hit = append(hit, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return then(hit)
}

// openPidfds returns the pidfd of each process that there is. The caller
// closes them, also after an error.
func openPidfds(pids []int) (map[int]int, error) {
	fds := make(map[int]int, len(pids))
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		switch {
		case errors.Is(err, unix.ESRCH):
		case err != nil:
			return fds, fmt.Errorf("pidfd of process %d: %w", pid, err)
		default:
			fds[pid] = fd
		}
	}
	return fds, nil
}

func closePidfds(fds map[int]int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// waitExit waits until all the processes have ended.
func waitExit(ctx context.Context, fds []unix.PollFd) error {
	for len(fds) > 0 {
		if err := poll(ctx, fds); err != nil {
			return err
		}
		fds = slices.DeleteFunc(fds, func(f unix.PollFd) bool { return f.Revents != 0 })
	}
	return nil
}

// left names some of the processes that are still there, for an error.
func (g group) left() string {
	pids, err := procsBelow(g.File)
	switch {
	case err != nil || len(pids) == 0:
		return ""
	case len(pids) > 8:
		return fmt.Sprintf(" (left: %d and %d more)", pids[:8], len(pids)-8)
	}
	return fmt.Sprintf(" (left: %d)", pids)
}
