package libvz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// In mode lazy the guest runs at the destination as soon as all but its memory is
// there. CRIU keeps the tasks stopped at the source and hands pages out, those
// first that are asked for; when the destination has all, the tasks end.

// streamPages carries the requests of the destination and the memory.
const streamPages = "pages"

// stepHanded: the guest runs at the other side, and what it lacks of its memory is
// here.
const stepHanded = "handed over"

// planLazy keeps the memory out of the images, and hands the guest over once
// they are complete.
func (m *migration) planLazy(ctx context.Context) error {
	if err := unsupported(criu.CheckLazyDump()); err != nil {
		return withHint(orCold(err), "%w", err)
	}
	m.plan.manifest.Lazy = true
	m.plan.opts.Lazy = func(serving context.Context, pages *criu.PageServer) error {
		m.ours = m.serve(ctx, serving, pages)
		return m.ours
	}
	return nil
}

// orCold is the remedy where lazy pages are not supported.
func orCold(err error) string {
	var h *hinted
	if errors.As(err, &h) && h.hint != "" {
		return h.hint + ", or use --mode cold"
	}
	return "use --mode cold"
}

// serve hands the guest over and then its memory. nil ends the tasks here.
func (m *migration) serve(ctx, serving context.Context, pages *criu.PageServer) error {
	if err := m.entry.Step(stepServing); err != nil {
		return err
	}
	stream, err := m.session.Open(streamPages)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- pages.Serve(serving, stream) }()
	if err := m.handOver(ctx); err != nil {
		stream.Close()
		<-served
		return err
	}
	m.c.host.event(Event{ID: m.c.id, Step: "sending memory", Total: m.memory})
	at := time.Now()
	err = m.watch(pages, served)
	m.stats.Memory, m.stats.Pull = pages.Sent(), time.Since(at).Seconds()
	if err != nil {
		return unconfirmed(m.c.id, m.o.Target, fmt.Errorf("its memory was on the way: %w", err))
	}
	if err := m.entry.Step(stepCommitted); err != nil {
		return err
	}
	return m.c.lc.Resume() // what is frozen cannot be ended; CRIU has stopped it
}

// watch tells how far the memory is, until it is served.
func (m *migration) watch(pages *criu.PageServer, served <-chan error) error {
	const often = 200 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		select {
		case err := <-served:
			return err
		case <-tick.C:
			m.c.host.event(Event{ID: m.c.id, Step: "sending memory", Done: pages.Sent(), Total: m.memory})
		}
	}
}

// dialPages waits for the stream of pages, which the source has opened by now.
func (r *reception) dialPages(ctx context.Context) (net.Conn, error) {
	select {
	case s := <-r.pages:
		return s, nil
	case <-r.session.Lost():
		return nil, wire.ErrLost
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// awaitMemory waits until the guest that runs here has all of its memory. Where it
// does not arrive the guest has been ended, and there is a record of that.
func (r *reception) awaitMemory(c *Container) error {
	if c.arrival == nil {
		return nil
	}
	err := c.AwaitMemory(context.Background())
	if err == nil {
		return nil
	}
	lost := r.record.write(&migrationRecord{Token: r.offer.Token, ID: r.offer.NewID, State: recordLost})
	return errors.Join(err, lost, dropBundle(r.bundle, r.offer.Shared))
}
