//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// In mode lazy the guest runs at the destination as soon as all but its memory is
// there. CRIU keeps the tasks stopped at the source and hands pages out, those
// first that are asked for; when the destination has all, the tasks end.

// streamPages carries the requests of the destination and the memory.
const streamPages = "pages"

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
	stream, err := m.session.OpenBulk(streamPages)
	if err != nil {
		return err
	}
	pages.ReadFrom(m.plan.tasks)
	served := make(chan error, 1)
	go func() { served <- pages.Serve(serving, stream) }()
	if err := m.handOver(ctx); err != nil {
		stream.Close()
		gone := <-served
		if !errors.Is(err, ErrUnconfirmed) || !errors.Is(gone, criu.ErrPeerGone) || !m.canRejoin() {
			return err
		}
		// Whether it runs there can be asked, and then it needs its memory.
		served <- gone
	}
	at := time.Now()
	err = m.serveOn(serving, pages, served)
	m.stats.Memory, m.stats.Pull = pages.Sent(), time.Since(at).Seconds()
	switch {
	case errors.Is(err, errNeverRan):
		m.know(stepServing)
		return err
	case err != nil:
		return unconfirmed(m.c.id, m.o.Target, fmt.Errorf("its memory was on the way: %w", err))
	}
	m.know(stepCommitted)
	m.gone = true
	return m.c.lc.Resume() // what is frozen cannot be ended; CRIU has stopped it
}

// serveOn waits for the end of what serves the memory, and begins anew on another
// connection where that was lost.
func (m *migration) serveOn(serving context.Context, pages *criu.PageServer, served chan error) error {
	for {
		m.c.host.event(Event{ID: m.c.id, Step: stepMemory, Done: pages.Sent(), Total: m.memory})
		err := m.watch(pages, served)
		if !errors.Is(err, criu.ErrPeerGone) || !m.canRejoin() {
			return err
		}
		stream, err := m.rejoin(serving, err)
		if stream == nil || err != nil {
			return err
		}
		go func() { served <- pages.Serve(serving, stream) }()
	}
}

// stepMemory is what a caller is told while memory is on the way.
const stepMemory = "sending memory"

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
			m.c.host.event(Event{ID: m.c.id, Step: stepMemory, Done: pages.Sent(), Total: m.memory})
		}
	}
}
