package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// Container is a handle to one container.
//
// A container is created (its init waits to be told to go), running, paused or
// stopped; Checkpoint stops it unless told otherwise, and Restore makes it
// running again, here or under another id. Methods that change it take its
// lock, so one wins and the others get ErrBusy; after a process is killed in
// the middle of one, the next that loads the container undoes or finishes what
// was begun. Reading methods take no lock.
type Container struct {
	host *Host
	id   string
	lc   *libcontainer.Container
	init *Process // set on the handle that Create or Restore returned
	// loaded is the state file that lc was made from, zero where that is not
	// known: as long as it is there, there is nothing to read again.
	loaded stamp
	// arrival is the rest of a lazy restore, on the handle that it returned.
	arrival *arrival
}

// State is what runc's state and list verbs show of a container.
type State struct {
	// Version is the runtime specification's, of the state's format.
	Version string `json:"ociVersion"`
	ID      string `json:"id"`
	// Pid is the init's in the caller's pid namespace; 0 when stopped.
	Pid int `json:"pid"`
	// Status is created, running, paused or stopped.
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Owner is the name of the user that created the container, a number
	// where the host knows no name.
	Owner string `json:"owner"`
}

// ID returns the container's id.
func (c *Container) ID() string { return c.id }

// Init returns the container's first process, on the handle that Create or
// Restore returned: the caller is its parent and may wait for it. On a loaded
// handle it is nil.
func (c *Container) Init() *Process { return c.init }

// State derives the state from the kernel and the state directory.
func (c *Container) State() (State, error) {
	oci, err := c.lc.OCIState()
	if err != nil {
		return State{}, fail("state", c.id, err)
	}
	st, err := c.lc.State()
	if err != nil {
		return State{}, fail("state", c.id, err)
	}
	return State{
		Version:     oci.Version,
		ID:          c.id,
		Pid:         oci.Pid,
		Status:      string(oci.Status),
		Bundle:      oci.Bundle,
		Rootfs:      st.Config.Rootfs,
		Created:     st.Created,
		Annotations: oci.Annotations,
		Owner:       owner(c.host.opts.Root, c.id),
	}, nil
}

func owner(root, id string) string {
	var st unix.Stat_t
	if err := unix.Stat(root+"/"+id, &st); err != nil {
		return ""
	}
	uid := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

func (c *Container) bundle() string {
	dir, _ := utils.Annotations(c.lc.Config().Labels)
	return dir
}

// guestInit is the init of a whole operating system, "" for an ordinary
// container.
func (c *Container) guestInit() string {
	_, all := utils.Annotations(c.lc.Config().Labels)
	return all[annotationGuest]
}

// change runs fn under the container's lock, with the state as it is then.
func (c *Container) change(op string, fn func(*store.Entry) error) error {
	entry, err := c.host.lock(c.id)
	if err != nil {
		return fail(op, c.id, err)
	}
	defer entry.Close()
	return fail(op, c.id, c.changeLocked(entry, fn))
}

func (c *Container) changeLocked(entry *store.Entry, fn func(*store.Entry) error) error {
	err := c.reload()
	if errors.Is(err, libcontainer.ErrNotExist) {
		// Deleted since we looked; the lock is a new one, and nobody's.
		return errors.Join(ErrNotExist, entry.Forget())
	}
	if err != nil {
		return err
	}
	return fn(entry)
}

// finish is change for who has seen the container's time end, which others see as
// well: it waits for these, and a container that has got the id meanwhile is none of
// its business: for the one that was made at that time the answer is ErrNotExist.
func (c *Container) finish(ctx context.Context, op string, made time.Time, fn func(*store.Entry) error) error {
	entry, err := c.host.awaitLock(ctx, c.id)
	if err != nil {
		return fail(op, c.id, err)
	}
	defer entry.Close()
	return fail(op, c.id, c.changeLocked(entry, func(e *store.Entry) error {
		st, err := c.lc.State()
		if err != nil {
			return err
		}
		if !st.Created.Equal(made) {
			return ErrNotExist
		}
		return fn(e)
	}))
}

// reload reads the state if it was written since. What is in no file, the
// status, libcontainer looks up whenever it is asked.
func (c *Container) reload() error {
	now := c.host.stampOf(c.id)
	if now != (stamp{}) && now == c.loaded {
		return nil
	}
	lc, err := libcontainer.Load(c.host.opts.Root, c.id)
	if err != nil {
		return err
	}
	c.lc, c.loaded = lc, now
	return nil
}

// stamp tells one state file from another: libcontainer replaces it as a whole.
type stamp struct {
	ino           uint64
	size          int64
	mtime, change unix.Timespec
}

// stampOf returns the zero stamp where there is no state.
func (h *Host) stampOf(id string) stamp {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(h.opts.Root, id, "state.json"), &st); err != nil {
		return stamp{}
	}
	return stamp{st.Ino, st.Size, st.Mtim, st.Ctim}
}

// need fails unless the container's status is one of want.
func (c *Container) need(want ...libcontainer.Status) error {
	is, err := c.lc.Status()
	if err != nil {
		return err
	}
	for _, w := range want {
		if is == w {
			return nil
		}
	}
	hint := ""
	switch {
	case is == libcontainer.Paused:
		hint = "resume it first"
	case is == libcontainer.Created:
		hint = "start it first"
	case is == libcontainer.Stopped:
		hint = "restore it from a checkpoint, or delete and create it again"
	case want[0] == libcontainer.Stopped:
		hint = "stop or kill it first"
	}
	return withHint(hint, "%w: it is %s", ErrStatus, is)
}

// Start lets the init of a created container go.
func (c *Container) Start(context.Context) error {
	return c.change("start", func(*store.Entry) error {
		if err := c.need(libcontainer.Created); err != nil {
			return err
		}
		if err := c.lc.Exec(); err != nil {
			return c.endedMeanwhile(err)
		}
		return nil
	})
}

// Signal sends sig to the init, without the lock: signals may come at any
// time. SIGKILL ends a paused container too.
func (c *Container) Signal(sig syscall.Signal) error {
	err := c.lc.Signal(sig)
	if hasEnded(err) {
		err = fmt.Errorf("%w: %w", ErrStatus, libcontainer.ErrNotRunning)
	}
	return fail("kill", c.id, err)
}

// hasEnded tells by the error of a signal whether the init had ended before, or ended
// this moment.
func hasEnded(err error) bool {
	return errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, os.ErrProcessDone)
}

// Kill sends sig to the init, or with all to every process of the container.
func (c *Container) Kill(_ context.Context, sig syscall.Signal, all bool) error {
	if !all {
		return c.Signal(sig)
	}
	pids, err := c.Pids()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fail("kill", c.id, fmt.Errorf("%w: container not running", ErrStatus))
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fail("kill", c.id, fmt.Errorf("signal %d: %w", pid, err))
		}
	}
	return nil
}

// Pause freezes all processes. It is idempotent.
func (c *Container) Pause(context.Context) error {
	return c.change("pause", func(*store.Entry) error {
		if err := c.need(libcontainer.Running, libcontainer.Created, libcontainer.Paused); err != nil {
			return err
		}
		if err := c.lc.Pause(); err != nil {
			return c.notFrozen(err)
		}
		return nil
	})
}

// notFrozen explains a pause that failed: without a cgroup there is nothing to
// freeze, and a SIGKILL takes no lock and thaws what is to die.
func (c *Container) notFrozen(err error) error {
	if _, noCgroup := c.lc.Processes(); noCgroup != nil && c.lc.Config().RootlessCgroups {
		return withHint("run it as root, or in cgroups that are delegated to you", "%w: %w", ErrUnsupported, err)
	}
	if st, statusErr := c.lc.Status(); statusErr == nil && st == libcontainer.Running {
		return fmt.Errorf("%w: it does not stay frozen: %w", ErrBusy, err)
	}
	return c.endedMeanwhile(err)
}

// Resume thaws a paused container.
func (c *Container) Resume(context.Context) error {
	return c.change("resume", func(*store.Entry) error {
		if err := c.need(libcontainer.Paused); err != nil {
			return err
		}
		if init, err := c.initPid(); err == nil {
			if err := c.host.ownAgain(c.id, init); err != nil {
				return err
			}
		}
		return c.lc.Resume()
	})
}

// Pids lists the container's processes, in the caller's pid namespace.
func (c *Container) Pids() ([]int, error) {
	if c.lc.Config().RootlessCgroups {
		pids, err := c.pidsWithoutCgroup()
		return pids, fail("ps", c.id, err)
	}
	pids, err := c.lc.Processes()
	return pids, fail("ps", c.id, endedMeanwhile(err))
}

// endedMeanwhile makes ErrNotExist of the errors that say that a container's
// cgroups went while they were read: a file that is not there, or, once it is
// open, ENODEV.
func endedMeanwhile(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNotExist, err)
	}
	return err
}

// initPid returns the pid of the running init, or an error that wraps
// ErrStatus.
func (c *Container) initPid() (int, error) {
	st, err := c.lc.OCIState()
	if err != nil {
		return 0, err
	}
	if st.Status == specs.StateStopped || st.Pid <= 0 {
		return 0, fmt.Errorf("%w: it is stopped", ErrStatus)
	}
	return st.Pid, nil
}
