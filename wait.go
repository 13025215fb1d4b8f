package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// waiting is what `run --wait` does after the start; nil without --wait.
type waiting struct {
	timeout time.Duration
	keep    bool // also a container whose init has ended
}

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Usage: "with --detach: return when the guest's init says that it is up, as ready does"}
}

func waitTimeoutFlag() cli.Flag { return timeoutFlag("60s", "with --wait: give up after `TIME`") }

func newWait(c *cli.Context) (*waiting, error) {
	switch {
	case !c.Bool("wait") && c.IsSet("timeout"):
		return nil, &usageError{msg: "run: --timeout is for --wait", hint: "add --wait"}
	case !c.Bool("wait"):
		return nil, nil
	case !c.Bool("detach"):
		return nil, &usageError{msg: "run: --wait is for a container that nobody stays with", hint: "add --detach, or run `vzrun ready` beside it"}
	}
	timeout, err := timeoutOf(c)
	return &waiting{timeout, c.Bool("keep")}, err
}

// check refuses, before the start, what could only be waited for in vain.
func (w *waiting) check(ct *libvz.Container) error {
	if w == nil {
		return nil
	}
	return ct.CheckReady()
}

// wait ends as `vzrun ready` does. A guest that is not up in time goes on; one
// whose init has ended is removed, as if run had failed.
func (w *waiting) wait(c *cli.Context, ct *libvz.Container) error {
	ctx, stop := interruptible(c)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	readiness, err := ct.WaitReady(ctx)
	if errors.Is(err, libvz.ErrStatus) {
		code, waitErr := ct.Init().Wait()
		if !w.keep {
			discard(c.Context, ct)
		}
		if waitErr != nil {
			return err
		}
		return &libvz.Error{
			Op: "run", ID: ct.ID(),
			Err:  fmt.Errorf("%w: the guest's init ended with exit code %d before the system was up", libvz.ErrStatus, code),
			Hint: "run it without --detach to see what it says",
		}
	}
	if err != nil {
		return err
	}
	if err := printReadiness(c.App.Writer, readiness); err != nil {
		return err
	}
	return judgeReadiness(ct.ID(), readiness)
}
