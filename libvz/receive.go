//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// DefaultBundles is where received bundles go, and vzrun@.service looks for them,
// unless ReceiveOptions say
// otherwise.
const DefaultBundles = "/var/lib/vzrun"

// ReceiveOptions of Receive; the zero value is ready for use.
type ReceiveOptions struct {
	// Bundles is the directory that received bundles are made in, under the
	// containers' ids; "" = DefaultBundles. It keeps the outcome of
	// migrations, too, so it must outlive a reboot.
	Bundles string
	// CgroupParent is the cgroup below which received containers go, under
	// their ids, or the slice of systemd with Options.SystemdCgroup; "" = where
	// their config.json puts them.
	CgroupParent string
}

// reception is the destination's side of a migration.
type reception struct {
	host    *Host
	follow  *announcer
	o       ReceiveOptions
	session *wire.Session
	control *wire.Control
	offer   *offer
	entry   *store.Entry
	record  recordAt
	bundle  string
	cgroup  string // in place of the one in config.json; "" = that one
	missing []int  // of the offer's layers, in order
	// prepared: the restored guest has been offered to the source, which may
	// have said the word from then on.
	prepared atomic.Bool
	revival  *revival
	serving  sync.WaitGroup // streams
	// announcing is what tells the network where the guest is.
	announcing sync.WaitGroup
	// In mode lazy: the first stream of pages and whether somebody has it;
	// closed when the source has said the word, and what there is from then on.
	pages     chan *wire.Stream
	dialled   atomic.Bool
	committed chan struct{}
	link      *pageLink
	faults    *FaultStats
	rounds    atomic.Int32 // that came
	flushed   atomic.Bool  // the files of the first pass are synced, or are about to be
}

// answerPatience bounds the making of an answer, dataPatience the wait for the
// source once all has been said.
const (
	answerPatience = time.Minute
	donePatience   = 5 * time.Minute
)

// Receive takes in the container that Migrate sends at the other end of conn, and
// answers Resolve. It returns the container, or nil where none was to stay: after
// a dry run and after a question. conn is closed at the end.
//
// On an error nothing of the container is left here.
func (h *Host) Receive(ctx context.Context, conn io.ReadWriteCloser, o ReceiveOptions) (*Container, error) {
	if o.Bundles == "" {
		o.Bundles = DefaultBundles
	}
	var err error
	if o.Bundles, err = filepath.Abs(o.Bundles); err != nil {
		return nil, fail("receive", "", err)
	}
	if h.opts.SystemdCgroup && o.CgroupParent != "" && !strings.HasSuffix(o.CgroupParent, ".slice") {
		return nil, fail("receive", "", withHint("name a slice, as in machine.slice", "cgroup parent %q: systemd keeps containers in slices", o.CgroupParent))
	}
	heard, follow := h.announced()
	h = heard
	r := &reception{host: h, follow: follow, o: o, pages: make(chan *wire.Stream, 1), committed: make(chan struct{})}
	if r.session, err = wire.New(conn, wire.Destination); err != nil {
		return nil, fail("receive", "", explainSource(err))
	}
	defer r.session.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-r.session.Lost():
			cancel(wire.ErrLost)
		case <-ctx.Done():
		}
	}()
	c, err := r.run(ctx)
	follow.end(err, nil)
	id := ""
	if r.offer != nil {
		id = r.offer.NewID
	}
	return c, fail("receive", id, err)
}

func (r *reception) run(ctx context.Context) (*Container, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	var err error
	if r.control, err = r.session.Control(); err != nil {
		return nil, explainSource(err)
	}
	first, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	msg, err := r.control.Receive(first)
	if err != nil {
		return nil, explainSource(err)
	}
	switch msg.Kind {
	case wire.Query:
		return nil, r.answerQuery(msg)
	case wire.Rejoin:
		return nil, r.takeLink(ctx, msg)
	}
	return r.take(ctx, msg)
}

// take is the whole story of a container that comes.
func (r *reception) take(ctx context.Context, msg *wire.Message) (*Container, error) {
	r.offer = &offer{}
	if err := msg.Decode(r.offer); err != nil {
		return nil, r.refuse(err)
	}
	if err := r.answer(ctx); err != nil {
		return nil, r.refuse(err)
	}
	if r.entry == nil { // a dry run, or something is in the way
		// The source hangs up.
		r.control.Receive(ctx) //nolint:errcheck // whatever it says
		return nil, nil
	}
	defer r.entry.Close()
	r.follow.begin(MigrationEvent{ID: r.offer.NewID, Role: "destination"}, r.offer.Token, r.offer.Mode, "")
	r.host.event(Event{ID: r.offer.NewID, Step: "receiving"})
	if err := r.collect(ctx); err != nil {
		return nil, r.fail(err)
	}
	c, stats, err := r.restore(ctx)
	if err != nil {
		return nil, r.fail(err)
	}
	return c, r.finish(ctx, c, stats)
}

// abort is what the source is told of an error.
func abort(err error) wire.Aborted {
	off := wire.Aborted{Reason: oneLine(err.Error())}
	var e *hinted
	if errors.As(err, &e) {
		off.Hint = e.hint
	}
	return off
}

// refuse tells the source why, before anything was made.
func (r *reception) refuse(err error) error {
	if r.control.Send(wire.Abort, abort(err)) == nil { // else it learns it from the connection's end
		r.session.Linger()
	}
	return explainSource(err)
}

// fail removes what was made, and then tells the source, which relies on it.
func (r *reception) fail(err error) error {
	if r.entry.Operation != nil {
		r.entry.Operation.Step = ""
		undo := r.host.undo(r.entry)
		if r.revival != nil {
			if r.revival.lazy != nil {
				r.revival.lazy.Stop()
			}
			r.revival.linksGone()
		}
		if undo != nil {
			// Not known to be gone: the source must not be told that it is.
			return errors.Join(err, fmt.Errorf("clean up: %w", undo))
		}
	}
	told := r.control.Send(wire.Abort, abort(err))
	if told == nil {
		r.session.Linger()
	}
	if !r.prepared.Load() || told == nil && !errors.Is(err, wire.ErrLost) {
		// The source has not asked, or has its answer.
		err = errors.Join(err, r.record.remove())
	}
	return explainSource(err)
}

// collect takes in files until the source says that all is there.
func (r *reception) collect(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	streams := make(chan struct{})
	go func() {
		defer close(streams)
		for ctx.Err() == nil {
			s, err := r.session.Accept()
			if err == nil {
				err = r.takeStream(ctx, s)
			}
			if err != nil && ctx.Err() == nil {
				cancel(err)
			}
		}
	}()
	msg, err := r.control.Receive(ctx)
	if err != nil {
		return err
	}
	if msg.Kind != wire.Restore {
		return fmt.Errorf("%w: %q in place of the word to restore", wire.ErrProtocol, string(msg.Kind))
	}
	// The source has its answers; ours have still to end.
	r.serving.Wait()
	return ctx.Err()
}

// takeStream serves one stream of the source, beside others. What fails there the
// source sees, too, and decides.
func (r *reception) takeStream(ctx context.Context, s *wire.Stream) error {
	var serve func() error
	switch {
	case s.Kind == streamPages && isLazy(r.offer.Mode):
		select {
		case r.pages <- s:
			return nil
		default:
			return fmt.Errorf("%w: more than one stream of pages", wire.ErrProtocol)
		}
	case s.Kind == streamImages:
		serve = func() error { return receiveImages(s, filepath.Join(r.bundle, arrivalFolder)) }
	case s.Kind == streamRound:
		n, err := r.roundOf(s.Args)
		if err != nil {
			s.Close()
			return err
		}
		r.rounds.Store(int32(n))
		serve = func() error { return r.receiveRound(s, n) }
	case s.Kind == streamRootfs && !r.offer.Shared:
		serve = func() error { return receiveRootfs(ctx, s, r.rootPlace(), s.Args, r.flush()) }
	case s.Kind == streamTemplate && !r.offer.Shared:
		place, err := r.templatePlace(s.Args)
		if err != nil {
			s.Close()
			return err
		}
		serve = func() error { return receiveRootfs(ctx, s, place, s.Args[1:], r.flush()) }
	default:
		s.Close()
		return fmt.Errorf("%w: a stream of kind %.32q", wire.ErrProtocol, s.Kind)
	}
	r.serving.Go(func() {
		if err := serve(); err != nil && ctx.Err() == nil {
			r.host.warn(r.offer.NewID, "%v", err)
		}
	})
	return nil
}

// flush returns what is done at the end of a pass over the files: in the first one,
// while the guest still runs, they are synced, so that there is less of it to do when it
// stands still.
func (r *reception) flush() func() error {
	if r.flushed.Swap(true) {
		return func() error { return nil }
	}
	return func() error { return syncFS(r.bundle) }
}

// restore brings the guest back up to the point at which it could run, and lets
// it run at the source's word.
func (r *reception) restore(ctx context.Context) (*Container, *Stats, error) {
	h, begun := r.host, time.Now()
	images := filepath.Join(r.bundle, arrivalFolder)
	o := RestoreOptions{Veth: r.offer.Veth, TCPEstablished: true}
	if r.offer.Shared {
		o.cgroup = r.cgroup // config.json is the source's, too
	}
	if err := r.linkRounds(images); err != nil {
		return nil, nil, err
	}
	if isLazy(r.offer.Mode) {
		o.LazyPages, o.dialPages = true, r.dialPages
	}
	v, err := h.planRestore(ctx, r.offer.NewID, r.bundle, images, o)
	if err != nil {
		return nil, nil, err
	}
	v.locks.Close() // the images are this call's own, as the bundle is
	v.entry = r.entry
	r.revival = v
	// The files are synced while CRIU restores, and before the source hears of it.
	synced := make(chan error, 1)
	go func() {
		if r.offer.Shared {
			synced <- nil
			return
		}
		synced <- syncFS(r.bundle)
	}()
	v.consent = func(pid int) error {
		if err := <-synced; err != nil {
			return err
		}
		return r.consent(ctx, pid, begun)
	}
	restoring, stop := r.untilPrepared(ctx)
	defer stop()
	stats, err := v.restore(restoring)
	if cause := context.Cause(restoring); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if err != nil {
		return nil, nil, err
	}
	stats.Restore = time.Since(begun)
	proc, err := os.FindProcess(v.pid)
	if err != nil {
		return nil, nil, err
	}
	c := &Container{host: h, id: r.offer.NewID, lc: v.lc, init: &Process{proc: proc}}
	if v.lazy != nil {
		c.arrival = &arrival{entry: r.entry, lazy: v.lazy}
	}
	return c, stats, nil
}

// untilPrepared returns a context that ends with ctx until the guest has been offered to
// the source: a task that lacks memory waits for ever if that cannot come any more, and
// CRIU waits for it. Once the word is there, the source's end is not the guest's.
func (r *reception) untilPrepared(ctx context.Context) (context.Context, func()) {
	until, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !r.prepared.Load() {
			cancel(context.Cause(ctx))
		}
	})
	return until, func() { stop(); cancel(nil) }
}

// consent is called when the guest is whole and stands still. Its nil lets it
// run.
func (r *reception) consent(ctx context.Context, pid int, begun time.Time) error {
	r.prepared.Store(true)
	if err := r.control.Send(wire.Ready, restored{Seconds: time.Since(begun).Seconds()}); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, commitPatience)
	defer cancel()
	if _, err := r.control.Receive(waiting); err != nil {
		return err
	}
	if r.revival.lazy != nil {
		// Until the answer all of it can still be taken back.
		err := r.revival.lazy.Failure()
		if err != nil {
			return err
		}
		if r.link, err = openLink(filepath.Join(r.host.opts.Root, r.offer.NewID)); err != nil {
			return fmt.Errorf("socket for another connection: %w", err)
		}
		r.link.use(r.session, false) // it may look alive for a while when it is not
	}
	if err := r.record.write(&migrationRecord{Token: r.offer.Token, ID: r.offer.NewID, State: recordCommitted}); err != nil {
		return err
	}
	if err := r.entry.Step(stepCommitted); err != nil {
		return err
	}
	close(r.committed)
	r.announce(pid)
	return nil
}

// announce tells the network where the guest is now. It runs meanwhile, and may say
// something itself: that is as good.
func (r *reception) announce(pid int) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		r.host.warn(r.offer.NewID, "open network namespace: %v", err)
		return
	}
	r.announcing.Go(func() {
		defer ns.Close()
		if err := inNetwork(ns, vnet.AnnounceOwn); err != nil {
			r.host.warn(r.offer.NewID, "%v", err)
		}
	})
}

// finish is what comes when the guest runs. Only the memory of a lazy one may
// fail to arrive.
func (r *reception) finish(ctx context.Context, c *Container, stats *Stats) error {
	h, id := r.host, r.offer.NewID
	if c.arrival == nil {
		if err := r.record.write(&migrationRecord{Token: r.offer.Token, ID: id, State: recordRunning}); err != nil {
			h.warn(id, "%v", err)
		}
	}
	told := r.control.Send(wire.Committed, nil)
	r.announcing.Wait()
	r.follow.tell(MigrationEvent{Event: MigrationCommitted})
	settled := r.revival.settleBeside(ctx, stats)
	if err := r.awaitMemory(c); err != nil {
		settled(err)
		return err
	}
	if c.arrival == nil {
		if err := errors.Join(keepBundle(r.entry.Operation.Migration), r.entry.End()); err != nil {
			h.warn(id, "%v", err)
		}
	}
	// The process that has the newest connection hears the rest.
	if r.link == nil || !r.link.wasRenewed() {
		if told == nil && c.arrival != nil {
			told = r.control.Send(wire.Arrived, arrivedAll{Faults: r.faults})
		}
		if told == nil {
			told = r.awaitDone(ctx, r.record)
		}
		if told != nil {
			h.warn(id, "the source has not said that its copy is gone: %v", told)
		}
	}
	r.session.Close()
	settled(nil)
	return nil
}

// explainSource is explainWire for this side.
func explainSource(err error) error {
	return explainLink(err, "nothing of the container is left here; see what the source says")
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
