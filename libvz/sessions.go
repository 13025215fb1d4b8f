package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/preflight"
)

// sessionGrace is how long a session from outside has to end by itself when it is
// hung up.
const sessionGrace = 5 * time.Second

// statSession is the field of /proc/PID/stat that counts from 1, proc_pid_stat(5).
const statSession = 6

// member is a process of a session from outside, held so that its pid cannot become
// somebody else's.
type member struct {
	preflight.Task
	pidfd int
}

// makeWay ends sessions from outside, unless something else is in the way, too.
func (c *Container) makeWay(ctx context.Context, o CheckpointOptions) error {
	st, err := c.lc.State()
	if err != nil {
		return err
	}
	_, found, err := c.survey(ctx, st, o)
	if err != nil {
		return err
	}
	if err := refuse(slices.DeleteFunc(found, func(o Obstacle) bool { return o.Kind == ObstacleSession })); err != nil {
		return err
	}
	return c.endSessions(ctx, st.InitProcessPid)
}

// endSessions ends what was started in the container from outside, by exec or enter:
// a process whose parent is not in the container, and what it has started and not
// made a daemon of (setsid(2)). They are hung up and, if that is not enough, killed.
// Each session that has ended is told of.
func (c *Container) endSessions(ctx context.Context, init int) error {
	members, err := c.sessionMembers(init)
	defer func() {
		for _, m := range members {
			unix.Close(m.pidfd)
		}
	}()
	if err != nil || len(members) == 0 {
		return err
	}
	if is, err := c.lc.Status(); err != nil {
		return err
	} else if is == libcontainer.Paused {
		return withHint("resume it first", "%w: sessions cannot end in a paused container", ErrStatus)
	}
	c.host.event(Event{ID: c.id, Step: "ending sessions"})
	for _, step := range []struct {
		signal unix.Signal
		grace  time.Duration
	}{{unix.SIGHUP, sessionGrace}, {unix.SIGKILL, killTimeout}} {
		if err := signalMembers(members, step.signal); err != nil {
			return err
		}
		left, err := awaitMembers(ctx, members, step.grace)
		if err != nil {
			return err
		}
		if left == 0 {
			for _, m := range members {
				c.host.warn(c.id, "ended by --end-sessions: process %q (pid %d)", m.Command, m.Guest)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: a session does not end", ErrRefused)
}

// sessionMembers finds them.
func (c *Container) sessionMembers(init int) ([]member, error) {
	pids, err := c.lc.Processes()
	if err != nil {
		return nil, err
	}
	tasks, err := tasksOf(init, pids)
	if err != nil {
		return nil, err
	}
	var members []member
	for _, t := range sessionsIn(tasks, func(pid int) uint64 {
		id, err := processStat(pid, statSession)
		if err != nil {
			return 0 // it has ended
		}
		return id
	}) {
		fd, err := unix.PidfdOpen(t.Pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return members, fmt.Errorf("session of process %d: %w", t.Pid, err)
		}
		// The same process still? Then the descriptor is its.
		if now, err := preflight.ReadTask(t.Pid); err != nil || now.Guest != t.Guest || now.Parent != t.Parent {
			unix.Close(fd)
			continue
		}
		members = append(members, member{t, fd})
	}
	return members, nil
}

// sessionsIn decides which tasks, of those of a container with its init first, are
// sessions from outside: those with a parent that is none of them, and what these
// have started in the same session as session tells.
func sessionsIn(tasks []preflight.Task, session func(pid int) uint64) []preflight.Task {
	var out []preflight.Task
	for i, t := range tasks {
		if i > 0 && !slices.ContainsFunc(tasks, func(p preflight.Task) bool { return p.Pid == t.Parent }) {
			out = append(out, t)
		}
	}
	// Each that is found may be the parent of more.
	for i := 0; i < len(out); i++ {
		for _, t := range tasks[1:] {
			if t.Parent == out[i].Pid && session(t.Pid) == session(out[i].Pid) && session(t.Pid) != 0 {
				out = append(out, t)
			}
		}
	}
	return out
}

func signalMembers(members []member, signal unix.Signal) error {
	for _, m := range members {
		if err := unix.PidfdSendSignal(m.pidfd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the session of process %d: %w", m.Pid, err)
		}
	}
	return nil
}

// awaitMembers waits until all have ended, grace at the most, and returns how many
// have not.
func awaitMembers(ctx context.Context, members []member, grace time.Duration) (int, error) {
	deadline := time.Now().Add(grace)
	for {
		var open []unix.PollFd
		for _, m := range members {
			open = append(open, unix.PollFd{Fd: int32(m.pidfd), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(open, 0); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
		open = slices.DeleteFunc(open, func(p unix.PollFd) bool { return p.Revents != 0 })
		left := time.Until(deadline)
		if len(open) == 0 || left <= 0 {
			return len(open), nil
		}
		if err := ctx.Err(); err != nil {
			return len(open), err
		}
		// In turns, so that one that is interrupted is noticed.
		if _, err := unix.Poll(open[:1], int(min(left, 200*time.Millisecond).Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
	}
}
