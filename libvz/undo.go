package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// Steps of an operation that decide what its undo does.
const (
	// stepCommitted: a checkpoint's images are complete on disk, or a
	// restored tree is complete and its state written.
	stepCommitted = "committed"
)

// undoTimeout bounds the clean-up of one operation: processes that were
// killed, and a criu that lost its caller, need moments to end.
const undoTimeout = 30 * time.Second

// undo brings a container whose operation did not end back to where it was
// before, or forward to where the operation had already committed. It is
// idempotent; the caller holds the lock.
func (h *Host) undo(e *store.Entry) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	op := e.Operation
	if err := h.holdMoved(ctx, e); err != nil {
		return err
	}
	switch op.Step {
	case stepServing:
		if err := killCriu(ctx, op.Criu, op.CriuStart); err != nil {
			return err
		}
	case stepShared:
		return h.undoShared(ctx, e)
	case stepArriving:
		return h.undoArriving(ctx, e)
	}
	if err := endCriu(ctx, op.Criu, op.CriuStart); err != nil {
		return err
	}
	if op.Private != "" {
		h.removeLinks(e) // the images in it say which
		if err := store.RemoveTree(filepath.Dir(op.Private), filepath.Base(op.Private)); err != nil {
			return fmt.Errorf("remove images: %w", err)
		}
	}
	switch op.Name {
	case opMigrate:
		return h.undoMigration(e)
	case opReceive:
		return h.undoReceive(ctx, e)
	case "checkpoint":
		locks, others := othersImages(e)
		defer locks.Close()
		if others {
			op.Images = ""
		}
		if op.Step == stepCommitted && !h.initAlive(e.ID) {
			if err := undoImages(op); err != nil {
				return err
			}
			return h.erase(ctx, e)
		}
		return h.undoCheckpoint(e)
	case "create", "restore":
		if op.Step == stepCommitted && h.initAlive(e.ID) {
			if op.Renew {
				h.renewInterrupted(ctx, e.ID)
			}
			return h.keepRestored(ctx, e)
		}
		return h.erase(ctx, e)
	case "delete":
		return h.erase(ctx, e)
	}
	return fmt.Errorf("unknown operation %q", op.Name)
}

// keepRestored finishes for a criu that had committed.
func (h *Host) keepRestored(ctx context.Context, e *store.Entry) error {
	if aside := e.Operation.Cgroups[asideKey]; aside != "" {
		if err := cgroup.Remove(ctx, aside); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	h.handOver(e)
	return e.End()
}

// undoCheckpoint thaws what an interrupted checkpoint froze. CRIU itself has
// let the tasks go when it lost its caller (see endCriu), or has killed them
// after the images were complete; both leave a valid container.
func (h *Host) undoCheckpoint(e *store.Entry) error {
	if e.Operation.Step == stepShared {
		return e.End() // it stays paused: see lazyDump
	}
	h.removeLinks(e)
	if err := undoImages(e.Operation); err != nil {
		return err
	}
	lc, err := libcontainer.Load(h.opts.Root, e.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return e.End()
	}
	if err != nil {
		return err
	}
	if err := h.letGo(e, lc); err != nil {
		return err
	}
	// A lazy checkpoint that the other side has given up.
	if err := os.Remove(filepath.Join(h.opts.Root, e.ID, unconfirmedMark)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return e.End()
}

// removeLinks removes names that the CRIU of a checkpoint has given to deleted files,
// which it does itself, unless it is killed.
func (h *Host) removeLinks(e *store.Entry) {
	op := e.Operation
	if op.Step == stepCommitted || op.Images == "" || op.Init == 0 || !h.initAlive(e.ID) {
		return
	}
	if err := criu.RemoveLinks(op.Images, op.Init); err != nil {
		// Names too many: not worth a container that cannot be used.
		h.warn(e.ID, "names that CRIU has given to deleted files may be left: %v", err)
	}
}

// freezable is what letGo needs of a container.
type freezable interface {
	Status() (libcontainer.Status, error)
	Resume() error
}

// letGo lets a container run, and speak, that a checkpoint has held.
func (h *Host) letGo(e *store.Entry, c freezable) error {
	st, err := c.Status()
	if err != nil {
		// It might stay frozen for good, with an empty journal.
		return fmt.Errorf("look whether it is frozen: %w", err)
	}
	if st == libcontainer.Stopped {
		return nil
	}
	if st == libcontainer.Paused && !e.Operation.Paused {
		if err := c.Resume(); err != nil {
			return fmt.Errorf("thaw: %w", err)
		}
	}
	if err := refreezeGuest(e); err != nil {
		return err
	}
	if e.Operation.Init == 0 {
		return nil
	}
	if err := unlockNetwork(e.Operation.Init); err != nil {
		// Where there is no packet filter to ask, there is no lock.
		h.warn(e.ID, "%v", err)
	}
	return nil
}

// undoImages leaves of a checkpoint's images those that are to stay.
func undoImages(op *store.Operation) error {
	switch {
	case op.Images == "":
		return nil
	case op.Replaces && op.Step == stepCommitted:
		return dropReplaced(op.Images)
	case op.Replaces:
		return bringBack(op.Images)
	case op.Step == stepCommitted:
		return nil
	}
	return discardImages(op.Images)
}

func (h *Host) initAlive(id string) bool {
	lc, err := libcontainer.Load(h.opts.Root, id)
	if err != nil {
		return false
	}
	st, err := lc.Status()
	return err == nil && st != libcontainer.Stopped
}

// erase is clear and forget, where nothing remains to be done in between, and
// nobody has ended the init.
func (h *Host) erase(ctx context.Context, e *store.Entry) error {
	if err := h.endWithoutCgroup(e.ID); err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	if err := h.clear(ctx, e); err != nil {
		return err
	}
	return forget(e)
}

// forget gives the id away: another container may have it before the entry is
// closed. So it is the last that is done to the container.
func forget(e *store.Entry) error {
	// Not End and then Forget: a record without operation and container
	// would be nobody's to remove.
	e.Operation = nil
	return e.Forget()
}

// clear ends what runs in the operation's cgroups and removes cgroups and the
// state, and what of a network that vzrun made is on the host. Links end with the
// container's namespace. The rootfs is never touched.
func (h *Host) clear(ctx context.Context, e *store.Entry) error {
	paths := make([]string, 0, len(e.Operation.Cgroups))
	for _, p := range e.Operation.Cgroups {
		paths = append(paths, p)
	}
	// Mostly nobody is left, and this is all.
	paths = slices.DeleteFunc(paths, cgroup.RemoveUnused)
	if err := cgroup.KillAll(ctx, paths); err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	for _, p := range paths {
		if err := cgroup.Remove(ctx, p); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	// Nobody is left who would find zeroes.
	if err := killCriu(ctx, e.Operation.Holder, e.Operation.HolderStart); err != nil {
		return err
	}
	if err := h.takeDownNetwork(ctx, e.ID, e.Operation.Net); err != nil {
		return err
	}
	if err := h.undoMade(ctx, e); err != nil {
		return fmt.Errorf("bundle that was made: %w", err)
	}
	return store.RemoveTree(h.opts.Root, e.ID)
}

// endCriu waits for the criu process of an operation whose vzrun is gone. It
// asks for consent at its next stage, learns that nobody answers, undoes its
// work and exits; killing it before would leave its victims traced. Only one
// that does not end in time is killed, by its pid and start time.
func endCriu(ctx context.Context, pid int, start uint64) error {
	fd, err := criuFD(pid, start)
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	// Somebody may have stopped it.
	if err := unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("wake criu: %w", err)
	}
	grace, cancel := context.WithTimeout(ctx, undoTimeout/2)
	defer cancel()
	if waitPidfd(grace, fd) == nil {
		return nil
	}
	return endPidfd(ctx, fd)
}

// killCriu ends a criu, or a holder of memory, that nobody will tell to end.
func killCriu(ctx context.Context, pid int, start uint64) error {
	fd, err := criuFD(pid, start)
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	return endPidfd(ctx, fd)
}

// criuFD returns a pidfd of a process that is known by pid and start time, -1
// where it has ended.
func criuFD(pid int, start uint64) (int, error) {
	if pid == 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open criu's pid: %w", err)
	}
	if s, err := startTime(pid); err != nil || s != start {
		unix.Close(fd)
		return -1, nil // the pid is somebody else's by now
	}
	return fd, nil
}

func endPidfd(ctx context.Context, fd int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill criu: %w", err)
	}
	return waitPidfd(ctx, fd)
}

// waitPidfd blocks until the process ends or ctx does.
func waitPidfd(ctx context.Context, fd int) error {
	wake, done := make(chan struct{}), make(chan error, 1)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		select {
		case <-ctx.Done():
		case <-wake:
		}
		w.Close()
	}()
	go func() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(r.Fd()), Events: unix.POLLHUP}}
		for {
			_, err := unix.Poll(fds, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && fds[0].Revents == 0 {
				err = ctx.Err()
			}
			done <- err
			return
		}
	}()
	err = <-done
	close(wake)
	return err
}
