//go:build !lean

package libvz

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// stallAfter is for how long, and up to twice as long, rsync may send and get nothing while
// the guest runs.
const stallAfter = time.Minute

// errStalled is what such a pass ends with. A guest that puts a pipe in the place of a file
// which rsync has listed has it wait for ever for somebody who writes (fifo(7)). It
// cannot do so once it is stopped.
var errStalled = fmt.Errorf("%w: rsync got nowhere for a minute", errNotWhole)

// whileMoving calls pass with a context that ends, with errStalled, when moved has not grown
// for that long, or up to twice as long.
func whileMoving(ctx context.Context, moved *atomic.Int64, after time.Duration, pass func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		tick := time.NewTicker(after)
		defer tick.Stop()
		for last := moved.Load(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := moved.Load()
			if now == last {
				cancel(errStalled)
				return
			}
			last = now
		}
	}()
	return pass(ctx)
}

// counting counts what is written.
type counting struct {
	to    io.Writer
	moved *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.moved.Add(int64(n))
	return n, err
}
