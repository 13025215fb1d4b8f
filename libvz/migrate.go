//go:build !lean

package libvz

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// MigrateOptions of Migrate.
type MigrateOptions struct {
	// Mode is ModeLazy, ModePreCopy, ModeHybrid or ModeCold; "" = ModeLazy.
	Mode string
	// FrozenBudget is for how long the guest may stand still, in modes with rounds;
	// 0 = nobody has said. It is an estimate that is held against it: rounds end when
	// it can be kept. If they cannot reach it, ModePreCopy gives up before the guest
	// is stopped, and ModeHybrid goes on with a warning.
	FrozenBudget time.Duration
	// Target is how the other side was dialled. It is kept where the outcome
	// is not known, for Resolve.
	Target string
	// NewID is the container's id there; "" = the one here.
	NewID string
	// Veth renames host ends there, as in RestoreOptions.
	Veth []string
	// Compress is CompressZstd or "", not to: what goes over the connection. The
	// other side must know the method.
	Compress string
	// Bandwidth bounds what is sent, in bytes per second after compression;
	// 0 = it is not bounded. Memory that a frozen guest waits for counts, too.
	Bandwidth int64
	// SharedStorage says that the bundle is there already, at the same path
	// on the same storage: no file of it is sent, and none removed here.
	SharedStorage bool
	// KeepSource leaves the files of the bundle here.
	KeepSource bool
	// DryRun asks the other side, and changes nothing on either.
	DryRun bool
	// LinkTimeout is for how long, in mode lazy, both sides wait for a new
	// connection when the one on which memory comes is lost; the guest stands
	// still where it lacks memory. 0 = not at all, 24 hours at most.
	LinkTimeout time.Duration
	// Redial makes that connection, to the same host; nil = a lost one stays so.
	Redial func(context.Context) (io.ReadWriteCloser, error)
	// GiveUp ends the wait for that connection when something comes from it; at other
	// times nobody receives. nil = the end of Migrate's ctx does, if it comes meanwhile.
	GiveUp <-chan struct{}
}

// How the memory of a container moves.
const (
	// ModeLazy lets the guest go on at once, and sends its memory as it is
	// asked for, and the rest in the background.
	ModeLazy = "lazy"
	// ModePreCopy sends the memory while the guest runs here, and then again what
	// it has written since; it is stopped when little is left, which is sent, too.
	ModePreCopy = "pre-copy"
	// ModeHybrid does likewise, but what is left when the guest is stopped comes
	// when it runs there.
	ModeHybrid = "hybrid"
	// ModeCold stops the guest, sends all of it and lets it go on there.
	ModeCold = "cold"
)

// CompressZstd is a method of compression, for MigrateOptions.
const CompressZstd = wire.Zstd

// migration is the source's side of one.
type migration struct {
	c       *Container
	caller  context.Context // of Migrate; it outlives a connection
	follow  *announcer
	o       MigrateOptions
	token   string
	entry   *store.Entry
	session *wire.Session
	control *wire.Control
	plan    *dumpPlan
	stats   *MigrationStats
	begun   time.Time
	said    atomic.Bool // the word to commit
	memory  int64       // bytes that the guest uses
	root    movedTree   // none where storage is shared
	layers  []layer
	missing []int // of layers, at the other side
	ours    error // why it went wrong, where it was not CRIU's doing
	gone    bool  // it runs at the other side with all of its memory, whatever fails here
	left    bool  // and something of it is left here, which the next call removes
	sent    sentFiles
	last    lastPass
}

// Migrate moves a running container to the host at the other end of conn, where
// Receive answers, and closes conn. It goes on there where it stopped here, with
// its addresses and its open TCP connections.
//
// On an error the container runs here as before, and nothing is left there; but
// for one that wraps ErrUnconfirmed: then it may run there, stands still here,
// and Resolve finds out. Errors wrap ErrRefused (the other side will not have
// it), ErrStatus, ErrBusy, ErrUnsupported as they fit. A cancelled ctx counts up
// to the moment at which the other side is told to let it run.
func (c *Container) Migrate(ctx context.Context, conn io.ReadWriteCloser, o MigrateOptions) (*MigrationStats, error) {
	if o.Mode == "" {
		o.Mode = ModeLazy
	}
	if o.LinkTimeout < 0 || o.LinkTimeout > maxLinkTimeout {
		conn.Close()
		return nil, fail("migrate", c.id, withHint(fmt.Sprintf("choose a time up to %v", maxLinkTimeout), "a wait of %v for a lost connection", o.LinkTimeout))
	}
	heard, follow := c.host.announced()
	moved := *c
	moved.host = heard
	c = &moved
	m := &migration{c: c, caller: ctx, follow: follow, o: o, begun: time.Now()}
	session, err := greet(ctx, conn)
	if err != nil {
		return nil, fail("migrate", c.id, explainWire(err))
	}
	m.session = session
	defer func() { m.session.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-session.Lost():
			cancel(wire.ErrLost)
		case <-ctx.Done():
		}
	}()
	err = c.change("migrate", func(e *store.Entry) error {
		if err := c.need(libcontainer.Running); err != nil {
			return err
		}
		m.entry = e
		return explainWire(withCause(ctx, m.run(ctx)))
	})
	if err == nil {
		m.stats.Total = time.Since(m.begun).Seconds()
		m.stats.Sent += m.session.Sent()
	}
	follow.end(err, m.stats)
	if err != nil {
		return nil, err
	}
	return m.stats, nil
}

// greet begins to talk to a destination, as long as ctx lasts: ssh may be asking for a
// password.
func greet(ctx context.Context, conn io.ReadWriteCloser) (*wire.Session, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	session, err := wire.New(conn, wire.Source)
	if ctx.Err() != nil {
		err = ctx.Err()
		if session != nil {
			session.Close()
		}
		return nil, err
	}
	return session, err
}

// withCause says why a context was cancelled where an error only says that it was.
func withCause(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnconfirmed) && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}

// run is the whole story.
func (m *migration) run(ctx context.Context) error {
	c := m.c
	known, err := c.host.findCriu(ctx)
	if err != nil {
		return err
	}
	if m.token, err = newToken(); err != nil {
		return err
	}
	if !m.o.DryRun {
		m.follow.begin(MigrationEvent{ID: c.id, Role: "source"}, m.token, m.o.Mode, m.o.Target)
	}
	m.plan, err = c.prepareDump(ctx, CheckpointOptions{TCPEstablished: true, FileLocks: true, LinkRemap: true})
	if err != nil {
		return err
	}
	m.plan.know(known)
	if m.control, err = m.session.Control(); err != nil {
		return err
	}
	if isLazy(m.o.Mode) {
		if err := m.planLazy(ctx); err != nil {
			return err
		}
	}
	if hasRounds(m.o.Mode) {
		if err := m.planRounds(ctx); err != nil {
			return err
		}
	}
	if err := m.agree(ctx); err != nil {
		return err
	}
	if m.o.DryRun {
		// The other side may hang up before this has been told to have gone out;
		// the end of the connection says the same.
		m.control.Send(wire.Abort, wire.Aborted{Reason: "it was a dry run"}) //nolint:errcheck // see above
		return nil
	}
	images := filepath.Join(c.bundle(), migrationFolder)
	defer m.plan.close()
	if err := m.plan.haveAlone(images); err != nil {
		return m.giveUp(err)
	}
	if err := newImageDir(images); err != nil {
		return m.giveUp(err)
	}
	m.plan.opts.Images, m.plan.opts.Work = images, images
	if err := m.entry.Begin(store.Operation{
		Name: opMigrate, Cgroups: m.plan.state.CgroupPaths, Images: images, Init: m.plan.opts.Pid, Net: netsOf(c.lc),
		Migration: &store.Migration{Token: m.token, Target: m.o.Target, Lazy: isLazy(m.o.Mode)},
	}); err != nil {
		return m.giveUp(err)
	}
	if err := m.move(ctx); err != nil {
		return err
	}
	m.finish()
	return nil
}

// thaw lets tasks die that CRIU kills. Nothing of them runs: CRIU has stopped
// them.
func (m *migration) thaw() {
	if err := m.c.lc.Resume(); err != nil {
		m.c.host.warn(m.c.id, "thaw: %v", err)
	}
}

// migrationFolder is where in a bundle the images of its migration lie.
const migrationFolder = "migration"

func newToken() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

// giveUp tells the other side that nothing comes, before the guest was frozen.
func (m *migration) giveUp(err error) error {
	// It learns it from the connection's end as well.
	m.control.Send(wire.Abort, wire.Aborted{Reason: err.Error()}) //nolint:errcheck // see above
	return err
}

// move sends the files, freezes the guest and hands it over. On an error it runs
// here, or its fate is unknown.
func (m *migration) move(ctx context.Context) error {
	undo := func(err error) error {
		return errors.Join(m.giveUp(err), m.c.host.undoMigration(m.entry))
	}
	if !m.o.SharedStorage {
		m.c.host.event(Event{ID: m.c.id, Step: "sending files"})
		err := m.sendTemplates(ctx)
		if err == nil {
			err = m.sendFiles(ctx)
		}
		if err != nil {
			return undo(err)
		}
	}
	if hasRounds(m.o.Mode) {
		if err := m.copyRounds(ctx); err != nil {
			return undo(err)
		}
	}
	d := m.plan
	d.handOver = func(s criu.Stage) error {
		if m.ours = m.handOver(ctx); m.ours == nil {
			// CRIU waits for the tasks to end, which frozen ones do not.
			s.Then(m.thaw)
		}
		return m.ours
	}
	if !m.o.SharedStorage {
		d.stopped = func() { m.last.begin(ctx, m.sendLast) }
	}
	var undone error
	d.undo = func(e *store.Entry) error {
		undone = m.c.host.undoMigration(e)
		return undone
	}
	ctx, stop := m.untilSaid(ctx)
	defer stop()
	stats, err := m.c.dump(ctx, m.entry, d)
	m.last.end()
	switch {
	case m.gone && err != nil:
		// Nobody must take this for a migration that has failed.
		m.c.host.warn(m.c.id, "it runs there; what is left of it here goes with the next call for it: %v", err)
		m.left = true
	case err == nil:
	case errors.Is(m.ours, ErrUnconfirmed):
		return m.ours
	case errors.Is(err, ErrUnconfirmed):
		return err
	case m.ours != nil:
		return m.giveUp(errors.Join(m.ours, undone))
	case ctx.Err() != nil:
		return m.giveUp(errors.Join(context.Cause(ctx), undone))
	default:
		return m.giveUp(err)
	}
	if stats != nil {
		m.stats.Pages, m.stats.Tasks = stats.Pages, stats.Tasks
	}
	return nil
}

// untilSaid returns a context that ends with ctx as long as the word to commit has
// not been said: then nothing may stop CRIU any more.
func (m *migration) untilSaid(ctx context.Context) (context.Context, func()) {
	until, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !m.said.Load() {
			cancel(context.Cause(ctx))
		}
	})
	return until, func() { stop(); cancel(nil) }
}

// finish tells the other side that the copy here is gone. It runs there: what is
// not well from here on is worth a warning.
func (m *migration) finish() {
	h, id := m.c.host, m.c.id
	if isLazy(m.o.Mode) {
		m.stats.Faults = m.awaitArrived()
	}
	if err := m.control.Send(wire.Done, nil); err != nil {
		h.warn(id, "the other side was not told that the copy here is gone: %v", err)
	} else {
		m.session.Linger()
	}
	if m.left {
		return
	}
	if err := store.RemoveTree(m.c.bundle(), migrationFolder); err != nil {
		h.warn(id, "%v", err)
	}
	if !m.o.KeepSource && !m.o.SharedStorage {
		if err := removeMoved(m.c.bundle(), m.plan.state.Config.Rootfs, m.layers); err != nil {
			h.warn(id, "files of the container are left here: %v", err)
		}
	}
}

// arrivedPatience bounds the wait for the last thing that the other side has to say,
// which is of interest only.
const arrivedPatience = 5 * time.Second

// awaitArrived returns how the guest fared until all of its memory was there; nil
// where the other side does not say.
func (m *migration) awaitArrived() *FaultStats {
	ctx, cancel := context.WithTimeout(context.Background(), arrivedPatience)
	defer cancel()
	msg, err := m.control.Receive(ctx)
	if err != nil {
		return nil
	}
	var a arrivedAll
	if err := msg.Decode(&a); err != nil {
		return nil
	}
	return a.Faults
}

// removeMoved removes what of a bundle has been sent: its configuration and,
// where it is in the bundle, its root file system; and the bundle, if nothing else is
// in it.
func removeMoved(bundle, rootfs string, layers []layer) error {
	if err := os.Remove(filepath.Join(bundle, "config.json")); err != nil {
		return err
	}
	if filepath.Dir(rootfs) != realPath(bundle) {
		return fmt.Errorf("%s is outside of the bundle", rootfs)
	}
	if err := store.RemoveTree(bundle, filepath.Base(rootfs)); err != nil {
		return err
	}
	// Templates that came with it.
	own := func(l layer) bool { return within(l.Path, filepath.Join(realPath(bundle), templatesName)) }
	if slices.ContainsFunc(layers, own) {
		if err := store.RemoveTree(bundle, templatesName); err != nil {
			return err
		}
	}
	// One that a migration has brought had nothing else, and must not be in the way
	// when it comes back.
	if err := os.Remove(bundle); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// explainWire adds what helps to the errors of a connection.
func explainWire(err error) error {
	return explainLink(err, "the container runs as before; see the log of the other side")
}

// explainLink is explainWire with another hint where the connection is lost.
func explainLink(err error, hint string) error {
	var gone *wire.Aborted
	switch {
	case errors.As(err, &gone):
		hint := gone.Hint
		switch {
		case hint != "":
		case strings.Contains(gone.Reason, wire.ErrProtocol.Error()):
			// An older one does not know all that an offer may say.
			hint = sameVersion
		default:
			hint = "see the log of the other side"
		}
		return withHint(hint, "%w", err)
	case errors.Is(err, ErrUnconfirmed):
		return err
	case errors.Is(err, wire.ErrForeign):
		return withHint("see that the other side has this version of vzrun, and that nothing else writes to the connection (the shell's start-up files, for ssh)", "%w", err)
	case errors.Is(err, wire.ErrLost):
		return withHint(hint, "%w", err)
	case errors.Is(err, wire.ErrProtocol):
		return withHint(sameVersion, "%w", err)
	}
	return err
}

// sameVersion is the remedy where two sides do not understand each other.
const sameVersion = "use the same version of vzrun on both sides"
