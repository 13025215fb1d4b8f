//go:build !lean

package libvz

import (
	"context"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// lastPass is the pass over the files in which nothing moves: the guest has been
// stopped. It takes about as long as CRIU needs to save the guest, and goes beside that.
type lastPass struct {
	cancel context.CancelFunc
	result chan error // nil: none has begun
}

// begin begins it. CRIU tries again where it has lost a race, and the guest has run in
// between: what was begun before does not count then, and is followed by another one.
func (l *lastPass) begin(ctx context.Context, send func(context.Context) error) {
	before := *l
	ctx, l.cancel = context.WithCancel(ctx)
	result := make(chan error, 1)
	l.result = result
	go func() {
		before.end() // two at a time would be in each other's way
		result <- send(ctx)
	}()
}

// wait returns how it went.
func (l *lastPass) wait() error {
	err := <-l.result
	l.cancel()
	l.result = nil
	return err
}

// end ends it, however far it is.
func (l *lastPass) end() {
	if l.result != nil {
		l.cancel()
		l.wait() //nolint:errcheck // it does not count
	}
}

// finishFiles returns when the files over there are as they are here.
func (m *migration) finishFiles(ctx context.Context) error {
	if m.o.SharedStorage {
		return nil
	}
	if m.last.result == nil { // nobody has said that the guest was stopped
		return m.sendLast(ctx)
	}
	if err := m.last.wait(); err != nil {
		return err
	}
	// The names that CRIU has given to files which had none are younger.
	linked, err := criu.HasLinks(m.plan.opts.Images)
	if err != nil || !linked {
		return err
	}
	return m.sendLast(ctx)
}
