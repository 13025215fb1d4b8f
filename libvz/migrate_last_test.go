//go:build !lean

package libvz

import (
	"context"
	"errors"
	"testing"
)

// Two passes at a time would be in each other's way, and one that was begun before the
// guest ran again does not count.
func TestOnlyTheNewestLastPassCounts(t *testing.T) {
	var l lastPass
	l.end() // there is none
	running := make(chan int, 2)
	tell := errors.New("it was the second")
	pass := func(n int, result error) func(context.Context) error {
		return func(ctx context.Context) error {
			running <- n
			defer func() { <-running }()
			if len(running) > 1 {
				return errors.New("two at a time")
			}
			if result == nil {
				<-ctx.Done()
			}
			return result
		}
	}
	l.begin(context.Background(), pass(1, nil))
	l.begin(context.Background(), pass(2, tell))
	if err := l.wait(); !errors.Is(err, tell) {
		t.Error(err)
	}
	l.begin(context.Background(), pass(3, nil))
	l.end()
	if l.result != nil || len(running) > 0 {
		t.Error("it goes on")
	}
}
