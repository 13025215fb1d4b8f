//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/vnet"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

const (
	// restorePatience bounds the other side's restore, during which the guest
	// stands still.
	restorePatience = 5 * time.Minute
	// commitPatience bounds its answer to the word to let it run.
	commitPatience = 30 * time.Second
)

// restored is what the other side says of its restore.
type restored struct {
	Seconds float64 `json:"seconds"`
}

// handOver is called by CRIU when the images are whole and the guest is still
// stopped. It returns nil when the guest runs at the other side and must end
// here. An error that wraps ErrUnconfirmed leaves it frozen; with any other it
// goes on here.
func (m *migration) handOver(ctx context.Context) error {
	m.stats.Dump = time.Since(m.plan.stopping).Seconds()
	at := time.Now()
	if err := m.sendAll(ctx); err != nil {
		return err
	}
	m.stats.Transfer = time.Since(at).Seconds()
	at = time.Now()
	m.c.host.event(Event{ID: m.c.id, Step: "restoring there"})
	if err := m.control.Send(wire.Restore, nil); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, restorePatience)
	defer cancel()
	if _, err := m.control.Receive(waiting); err != nil {
		return err
	}
	m.stats.Restore = time.Since(at).Seconds()
	return m.commit()
}

// sendAll sends what the other side needs to restore: the images and, at the
// same time, what is left of the last pass over the files.
func (m *migration) sendAll(ctx context.Context) error {
	m.c.host.event(Event{ID: m.c.id, Step: "sending memory", Total: m.plan.manifest.Bytes})
	n, err := sendImages(ctx, m.session, m.plan.opts.Images, &m.plan.manifest, streamImages)
	m.stats.Images = n
	return errors.Join(err, m.finishFiles(ctx))
}

// commit says the word, and waits for the answer. From the moment before it is
// said the guest stays frozen here whatever ends, until it is known not to run
// there: CRIU lets go of the tasks if this process dies, so they are frozen and
// cut off by other means first.
func (m *migration) commit() error {
	if err := inNetworkOf(m.plan.opts.Pid, vnet.Silence); err != nil {
		return fmt.Errorf("lock the network: %w", err)
	}
	if err := m.c.lc.Pause(); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	if err := m.entry.Step(stepCommitting); err != nil {
		return err
	}
	m.said.Store(true)
	m.c.host.event(Event{ID: m.c.id, Step: "committing"})
	err := m.control.Send(wire.Commit, nil)
	if err == nil {
		// Nobody's wish to stop counts any more.
		ctx, cancel := context.WithTimeout(context.Background(), commitPatience)
		defer cancel()
		_, err = m.control.Receive(ctx)
	}
	var off *wire.Aborted
	switch {
	case err == nil:
		m.runsThere()
		return nil
	case errors.As(err, &off):
		// It knows that nothing runs there.
		back := ""
		if isLazy(m.o.Mode) {
			back = stepServing
		}
		m.know(back)
		return err
	}
	return unconfirmed(m.c.id, m.o.Target, err)
}

// runsThere notes that the guest is known to run at the other side.
func (m *migration) runsThere() {
	m.follow.tell(MigrationEvent{Event: MigrationCommitted})
	m.stats.Run = time.Since(m.begun).Seconds()
	m.stats.Frozen = time.Since(m.plan.stopping).Seconds()
	if isLazy(m.o.Mode) {
		m.know(stepHanded)
		return
	}
	m.know(stepCommitted)
	m.gone = true
}

// know notes what the other side has said of the guest. Where that cannot be written,
// the journal has stepCommitting, which is right for the next call: it asks again.
// This one goes by what it knows.
func (m *migration) know(step string) {
	if err := m.entry.Step(step); err != nil {
		m.c.host.warn(m.c.id, "its migration goes on, but cannot be noted: %v", err)
		m.entry.Operation.Step = step
	}
}
