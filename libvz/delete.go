package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/guest"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// killTimeout bounds the wait for processes that got SIGKILL: they end as
// soon as they leave the kernel.
const killTimeout = 20 * time.Second

// Delete removes a stopped container: its cgroups and its state; the bundle
// and the rootfs stay, but for those of a clone that Clone chose the place of.
// With force a container in any status is killed first; without, one that is not stopped is an error that wraps ErrStatus. A
// container that is created and not started may be deleted as it is.
func (c *Container) Delete(ctx context.Context, force bool) error {
	return c.change("delete", func(e *store.Entry) error {
		if !force {
			if err := c.need(libcontainer.Stopped, libcontainer.Created); err != nil {
				return err
			}
		}
		return c.remove(ctx, e)
	})
}

// Discard is Delete with force for who has made the container, on the handle that
// Create or Restore returned: it waits some seconds for others that change the
// container, as Stop does when the init has ended, and leaves alone another one that
// has the id by now. That the container is gone is an error that wraps ErrNotExist.
func (c *Container) Discard(ctx context.Context) error {
	st, err := c.lc.State()
	if err != nil {
		return fail("delete", c.id, err)
	}
	wait, cancel := context.WithTimeout(ctx, finishPatience)
	defer cancel()
	return c.finish(wait, "delete", st.Created, func(e *store.Entry) error { return c.remove(ctx, e) })
}

// finishPatience is for those that see an init end at the same moment. They have
// little left to do.
const finishPatience = 10 * time.Second

// remove ends the container, whatever it does, and removes it.
func (c *Container) remove(ctx context.Context, e *store.Entry) error {
	st, err := c.lc.State()
	if err != nil {
		return err
	}
	made, generation, err := c.ownBundle()
	if err != nil {
		return err
	}
	if err := e.Begin(store.Operation{
		Name: "delete", Cgroups: st.CgroupPaths, Net: netsOf(c.lc), Made: made, MadeFor: generation,
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	links := c.links(st)
	if err := c.end(ctx); err != nil {
		return err
	}
	if err := c.host.clear(ctx, e); err != nil {
		return err
	}
	if err := vnet.Gone(ctx, links); err != nil {
		c.host.warn(c.id, "%v", err)
	}
	c.host.awaitRoot(ctx, c.id, &st.Config)
	// Nothing is left for it to remove; it runs the poststop hooks, and
	// one that fails is only worth a warning (runtime-spec, config.md).
	if err := c.lc.Destroy(); err != nil {
		c.host.warn(c.id, "%v", err)
	}
	return forget(e)
}

// links are the host ends of the network of a whole operating system, or of
// one that vzrun made, so that Delete can wait until their names are free
// again. Engines take down their own.
func (c *Container) links(st *libcontainer.State) []vnet.Link {
	if c.guestInit() == "" && netsOf(c.lc) == "" || !st.Config.Namespaces.IsPrivate(configs.NEWNET) {
		return nil
	}
	links, err := vnet.Capture(st.InitProcessPid)
	if err != nil || !isInit(st) {
		return nil // it has ended already, and the pid may be somebody else's
	}
	return links
}

// isInit tells whether the init's pid is still the init's.
func isInit(st *libcontainer.State) bool {
	start, err := startTime(st.InitProcessPid)
	return err == nil && start == st.InitProcessStartTime
}

// end kills whatever runs in the container and waits until it is gone. The
// status that libcontainer has last seen is then that of a stopped one: Destroy
// goes by it, and a paused one has cgroups.
func (c *Container) end(ctx context.Context) error {
	pid, err := c.initPid()
	if err != nil {
		if errors.Is(err, ErrStatus) {
			return nil
		}
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		_, err := c.lc.Status()
		return err
	}
	if err != nil {
		return fmt.Errorf("open init: %w", err)
	}
	defer unix.Close(fd)
	if err := c.lc.Signal(syscall.SIGKILL); err != nil && !hasEnded(err) {
		return err
	}
	if err := waitPidfd(ctx, fd); err != nil {
		return fmt.Errorf("init does not end: %w", err)
	}
	_, err = c.lc.Status()
	return err
}

// Stop asks the guest's init to shut the system down, and kills what is left
// after grace. Zero grace kills at once. A container that is stopped already
// is no error, nor is one that somebody deletes when it has stopped. The container is
// not deleted. The lock is held to ask and to kill, not while the guest takes its time.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	if grace <= 0 {
		return c.change("stop", func(*store.Entry) error { return c.endAll(ctx) })
	}
	var init *os.File
	var made time.Time
	err := c.change("stop", func(*store.Entry) error {
		st, err := c.lc.State()
		if err != nil {
			return err
		}
		made = st.Created
		init, err = c.askToStop()
		return err
	})
	if err != nil {
		return err
	}
	left := c.sweep
	if init != nil {
		defer init.Close()
		c.host.event(Event{ID: c.id, Step: "stopping"})
		gctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if err := waitPidfd(gctx, int(init.Fd())); err != nil {
			if ctx.Err() != nil {
				return fail("stop", c.id, ctx.Err())
			}
			c.host.warn(c.id, "the guest did not stop within %s: killed", grace)
			left = c.endAll
		}
	}
	wait, cancel := context.WithTimeout(ctx, finishPatience)
	defer cancel()
	err = c.finish(wait, "stop", made, func(*store.Entry) error { return left(ctx) })
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// endAll kills whatever runs in the container.
func (c *Container) endAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := c.end(ctx); err != nil {
		return err
	}
	return c.sweep(ctx)
}

// askToStop sends the init its own stop signal and returns a pidfd of it, nil
// where there is no init any more.
func (c *Container) askToStop() (_ *os.File, retErr error) {
	pid, err := c.initPid()
	if errors.Is(err, ErrStatus) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open init: %w", err)
	}
	init := os.NewFile(uintptr(fd), "init")
	defer func() {
		if retErr != nil {
			init.Close()
		}
	}()
	if st, err := c.lc.Status(); err != nil {
		return nil, err
	} else if st == libcontainer.Paused {
		if err := c.lc.Resume(); err != nil {
			return nil, err
		}
	}
	sig, err := c.stopSignal(pid)
	if err != nil || sig == 0 {
		return init, err
	}
	return init, c.Signal(sig)
}

// stopSignal asks a guest's init to stop, as far as no signal says it, and returns
// the signal that does.
func (c *Container) stopSignal(pid int) (syscall.Signal, error) {
	kind := c.guestInit()
	if kind == "" {
		return syscall.SIGTERM, nil
	}
	config := c.lc.Config()
	uid, gid, err := rootIDs(&config)
	if err != nil {
		return 0, err
	}
	return guest.BeginStop(guest.Init(kind), pid, uid, gid), nil
}

// sweep waits until the last process that the init took with it is gone.
func (c *Container) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	st, err := c.lc.State()
	if err != nil {
		return err
	}
	paths := make([]string, 0, len(st.CgroupPaths))
	for _, p := range st.CgroupPaths {
		paths = append(paths, p)
	}
	return cgroup.KillAll(ctx, paths)
}
