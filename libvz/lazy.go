package libvz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// Steps of a lazy checkpoint and a lazy restore, see docs/decisions/0021.
const (
	// stepServing: the images are written, the memory is CRIU's to hand out,
	// and nobody has asked for it.
	stepServing = "serving"
	// stepShared: the other side may run. The container is paused, so that
	// it does not run here, whatever becomes of CRIU.
	stepShared = "shared"
	// stepArriving: the restored guest runs and lacks memory. It can be
	// neither left alone nor saved.
	stepArriving = "arriving"
)

// unconfirmedMark is a file in the state directory of a container whose lazy
// checkpoint was cut off: its network is locked until it is resumed.
const unconfirmedMark = "unconfirmed"

// planPages decides where the memory of a checkpoint goes other than into its
// images. What it opens is closed by d.close.
func (c *Container) planPages(e *store.Entry, d *dumpPlan, o CheckpointOptions) (err error) {
	if o.PageServer == "" && !o.LazyPages {
		return nil
	}
	if o.PageServer == "" {
		return withHint("say where the other side can ask for it: --page-server ADDRESS:PORT", "lazy pages need a place to serve them")
	}
	if !o.LazyPages {
		d.manifest.PagesElsewhere = true
		d.opts.PageServer.Address, d.opts.PageServer.Port, err = splitAddress(o.PageServer)
		return err
	}
	if o.LeaveRunning || o.PreDump {
		return withHint("take a checkpoint without lazy pages", "lazy pages end the container here: they go neither with a pre-dump nor with one that leaves it running")
	}
	if err := unsupported(criu.CheckLazyDump()); err != nil {
		return err
	}
	if d.listener, err = net.Listen("tcp", o.PageServer); err != nil {
		return withHint("give --page-server an address of this host, and a port that is free", "page server: %w", err)
	}
	c.lazyDump(e, d, func(ctx context.Context, pages *criu.PageServer, share func() error) error {
		if o.Serving != nil {
			if err := o.Serving(); err != nil {
				return err
			}
		}
		peer, err := accept(ctx, d.listener)
		if err != nil {
			return fmt.Errorf("page server: %w", err)
		}
		if err := share(); err != nil {
			peer.Close()
			return err
		}
		return pages.Serve(ctx, peer)
	})
	return nil
}

// lazyDump makes a dump a lazy one. serve hands the memory out, and returns nil
// when the other side has it all: then the tasks end. Before the other side may
// run it must call share, which pauses the container, and an error from then on
// leaves it so, unless it is ErrPeerFailed.
func (c *Container) lazyDump(e *store.Entry, d *dumpPlan, serve func(ctx context.Context, pages *criu.PageServer, share func() error) error) {
	d.manifest.Lazy = true
	d.opts.Lazy = func(ctx context.Context, pages *criu.PageServer) error {
		if err := e.Step(stepServing); err != nil {
			return err
		}
		d.locks.Close() // nothing more is written, and the other side may read here
		c.host.event(Event{ID: c.id, Step: "serving memory"})
		pages.ReadFrom(d.tasks)
		err := serve(ctx, pages, func() error {
			if err := e.Step(stepShared); err != nil {
				return err
			}
			return c.pauseForGood()
		})
		d.sent = pages.Sent()
		if err != nil {
			if errors.Is(err, criu.ErrPeerFailed) {
				return errors.Join(err, e.Step(stepServing)) // it is only here again
			}
			return err
		}
		if err := e.Step(stepCommitted); err != nil {
			return err
		}
		return c.lc.Resume() // what is frozen cannot be ended; CRIU still holds it
	}
}

// explainShared says what has become of a lazy checkpoint that failed when the
// other side may have been running.
func (c *Container) explainShared(e *store.Entry, err error) error {
	if e.Operation.Step != stepShared {
		return err
	}
	return withHint(fmt.Sprintf("if it runs elsewhere: vzrun delete --force %s; if not: vzrun resume %s", c.id, c.id),
		"%w: the container is paused, it may run elsewhere: %w", ErrUnconfirmed, err)
}

// pauseForGood pauses the container whose tasks CRIU holds; a CRIU that is gone
// leaves them paused.
func (c *Container) pauseForGood() error {
	mark := filepath.Join(c.host.opts.Root, c.id, unconfirmedMark)
	if err := store.WriteState(mark, nil, 0o600); err != nil {
		return err
	}
	if is, err := c.lc.Status(); err == nil && is == libcontainer.Paused {
		return nil
	}
	if err := c.lc.Pause(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	return nil
}

// ownAgain lets the network of a container go that was kept locked, as
// somebody else may have been it. It is idempotent.
func (h *Host) ownAgain(id string, init int) error {
	mark := filepath.Join(h.opts.Root, id, unconfirmedMark)
	if _, err := os.Lstat(mark); err != nil {
		return nil //nolint:nilerr // there is none
	}
	if err := unlockNetwork(init); err != nil {
		h.warn(id, "%v", err)
	}
	return os.Remove(mark)
}

func accept(ctx context.Context, ln net.Listener) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	conn, err := ln.Accept()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return conn, err
}

func splitAddress(address string) (string, int, error) {
	host, service, err := net.SplitHostPort(address)
	if err == nil && host != "" {
		var port int
		if port, err = net.LookupPort("tcp", service); err == nil {
			return host, port, nil
		}
	}
	return "", 0, withHint("write it as --page-server ADDRESS:PORT", "page server %q: no address with a port", address)
}

// unsupported makes what the engine says of the host an error of this package.
func unsupported(err error) error {
	var ce *criu.Error
	if errors.As(err, &ce) && ce.Unsupported {
		return withHint(ce.Remedy, "%w: %s", ErrUnsupported, ce.Cause)
	}
	return err
}

// checkMemory says whether the memory is where the restore is to look for it.
func (m *manifest) checkMemory(dir string, o RestoreOptions) error {
	remote := o.PageServer != "" || o.dialPages != nil
	switch {
	case remote && !o.LazyPages:
		return withHint("add --lazy-pages", "a page server was named, and no lazy pages")
	case remote && !m.Lazy:
		return withHint("leave out --page-server", "these images have their memory, no page server does")
	case m.Lazy && !o.LazyPages:
		return withHint("add --lazy-pages, and --page-server with the address where it is served", "these images are of a lazy checkpoint and have no memory")
	case m.PagesElsewhere:
		if found, err := filepath.Glob(filepath.Join(dir, "pagemap-*.img")); err != nil || len(found) == 0 {
			return withHint("copy the *.img files of the page server to the other images", "the memory went to a page server and is not in %s", dir)
		}
	}
	return nil
}

// startLazy starts what fills the memory of a lazy restore. It must run in the
// host's network namespace.
func (r *revival) startLazy(work string) error {
	if !r.options.LazyPages {
		return nil
	}
	if err := unsupported(criu.CheckLazyRestore(len(r.spec.Linux.UIDMappings) > 0)); err != nil {
		return err
	}
	r.opts.Lazy = true
	o := criu.LazyOptions{
		Images: r.images, Work: work, Dial: r.options.dialPages,
		Holder: []string{"/proc/self/exe", HoldMemoryVerb},
	}
	if address := r.options.PageServer; address != "" {
		o.Dial = dialer(address)
	}
	if o.Dial == nil && criu.HasLazyPages(work) {
		return nil // its owner's to look after
	}
	if o.Dial == nil && r.manifest.Lazy {
		return withHint("say where it is served: --page-server ADDRESS:PORT", "the memory is not in the images, which are of a lazy checkpoint")
	}
	var err error
	if r.lazy, err = criu.StartLazyPages(o); err != nil {
		return err
	}
	op := r.entry.Operation
	if op.HolderStart, err = startTime(r.lazy.Pid()); err != nil {
		return fmt.Errorf("holder of the memory: %w", err)
	}
	op.Holder = r.lazy.Pid()
	return r.entry.Save()
}

// HoldMemoryVerb is the only argument with which libvz starts the program again for a
// restore with lazy pages; it must call HoldMemory then.
const HoldMemoryVerb = "hold-memory"

// HoldMemory keeps a guest's tasks waiting that need memory which is missing, until it is
// killed: otherwise they would find zeroes were the process killed that fills the memory.
// It returns where it was not libvz that started the program, and where there is nothing to
// keep and whoever started it has ended.
func HoldMemory() error { return criu.Hold(3) }

// dialer connects from the network namespace that it is made in, once: a lazy
// checkpoint serves one connection.
func dialer(address string) func(context.Context) (net.Conn, error) {
	var used atomic.Bool
	return func(ctx context.Context) (net.Conn, error) {
		if used.Swap(true) {
			return nil, criu.ErrPeerGone
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

// memoryArrives notes that the guest runs without all of its memory.
func (r *revival) memoryArrives() error { return r.entry.Step(stepArriving) }

// endRestore ends the journal of a restore. One whose memory still arrives is
// ended by AwaitMemory; when it has failed, nobody waits for memory any more.
func (r *revival) endRestore(failed error) error {
	lazy := r.lazy
	if lazy != nil && failed == nil {
		return nil
	}
	r.lazy = nil
	err := r.settle("restore", failed)
	if lazy != nil {
		lazy.Stop()
	}
	if failed != nil {
		r.linksGone()
	}
	return err
}

// arrival is the rest of a lazy restore.
type arrival struct {
	entry *store.Entry
	lazy  *criu.LazyPages
	locks imageLocks // where memory may come from
	// note, if not nil, is told the end before the lock is released, and before
	// the page server is: that all is there, or that the guest has been ended.
	note func(arrived bool)
}

// AwaitMemory must be called on the handle that a Restore with LazyPages has
// returned: it waits until all memory of the guest is in place, and holds the
// container's lock until then, so that other operations are ErrBusy. Where the
// memory does not arrive, the guest is ended and removed, as it cannot go on, and
// the error says why. On other handles it returns nil at once. It may be called
// once.
func (c *Container) AwaitMemory(ctx context.Context) error {
	a := c.arrival
	if a == nil {
		return nil
	}
	defer a.entry.Close()
	defer a.locks.Close()
	err := a.lazy.Wait(ctx)
	if err == nil {
		// The source's copy ends at our word: by then nobody may end this one
		// who takes it for half a guest.
		if a.note != nil {
			a.note(true)
		}
		err = a.entry.End()
		a.lazy.Confirm()
		a.lazy.Release()
		return fail("restore", c.id, err)
	}
	end, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	ended := c.host.clear(end, a.entry)
	if ended == nil {
		if a.note != nil {
			a.note(false)
		}
		a.lazy.GiveUp()
	}
	a.lazy.Stop()
	if ended == nil {
		ended = forget(a.entry)
	}
	return fail("restore", c.id, errors.Join(fmt.Errorf("the guest was ended, as its memory did not arrive: %w", unsupported(err)), ended))
}

// undoShared ends a lazy checkpoint whose vzrun is gone: the container may run
// elsewhere, so it stays paused here.
func (h *Host) undoShared(ctx context.Context, e *store.Entry) error {
	lc, err := libcontainer.Load(h.opts.Root, e.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return e.End()
	}
	if err != nil {
		return err
	}
	c := &Container{host: h, id: e.ID, lc: lc}
	if err := c.pauseForGood(); err != nil && h.initAlive(e.ID) {
		return err
	}
	if err := killCriu(ctx, e.Operation.Criu, e.Operation.CriuStart); err != nil {
		return err
	}
	h.warn(e.ID, "its checkpoint was cut off while another host took its memory: it is paused; `vzrun resume` lets it go on if it does not run there")
	return e.End()
}

// undoArriving ends a guest whose memory nobody sees to any more: first the
// guest, which waits for pages, and then the holder, without which it would find zeroes.
func (h *Host) undoArriving(ctx context.Context, e *store.Entry) error {
	paths := make([]string, 0, len(e.Operation.Cgroups))
	for _, p := range e.Operation.Cgroups {
		paths = append(paths, p)
	}
	if err := cgroup.KillAll(ctx, paths); err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	// CRIU may still be about to let the tasks go.
	if err := killCriu(ctx, e.Operation.Criu, e.Operation.CriuStart); err != nil {
		return err
	}
	if err := killCriu(ctx, e.Operation.Holder, e.Operation.HolderStart); err != nil {
		return err
	}
	if e.Operation.Name == opReceive {
		return h.loseReceived(ctx, e)
	}
	return h.erase(ctx, e)
}
