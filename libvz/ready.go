package libvz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// Readiness is what a guest's init says of its start.
type Readiness struct {
	// State is the init's own word; systemd's are in systemctl(1),
	// is-system-running: "running", "degraded", "maintenance", ...
	State string
	// Failed are the units that did not start, when State is "degraded".
	Failed []FailedUnit
	Took   time.Duration // from the call
}

// FailedUnit is one of them.
type FailedUnit struct{ Name, Description, Result string }

// WaitReady blocks until the guest's init says that the system is up. A
// degraded system is up: the caller decides what it thinks of Failed. It wraps
// ErrStatus where the container does not run or ends meanwhile, ErrUnsupported
// where its init has no way to say it.
func (c *Container) WaitReady(ctx context.Context) (Readiness, error) {
	r, err := c.waitReady(ctx)
	return r, fail("ready", c.id, err)
}

func (c *Container) waitReady(ctx context.Context) (Readiness, error) {
	pid, err := c.initPid()
	if err != nil {
		return Readiness{}, err
	}
	init := c.guestInit()
	if guest.Init(init) != guest.Systemd {
		return Readiness{}, withHint("`vzrun exec` can ask it", "%w: init %q does not say when it is ready", ErrUnsupported, init)
	}
	config := c.lc.Config()
	uid, gid, err := rootIDs(&config)
	if err != nil {
		return Readiness{}, err
	}
	st, err := guest.WaitReady(ctx, pid, uint32(uid), uint32(gid))
	switch {
	case errors.Is(err, guest.ErrInitGone):
		return Readiness{}, fmt.Errorf("%w: %w", ErrStatus, err)
	case errors.Is(err, context.DeadlineExceeded):
		return Readiness{}, withHint("allow more --timeout, or look inside with `vzrun enter`", "the guest is not up yet: %w", err)
	case err != nil:
		return Readiness{}, err
	}
	r := Readiness{State: st.State, Took: st.Took}
	for _, u := range st.Failed {
		r.Failed = append(r.Failed, FailedUnit{Name: u.Name, Description: u.Description, Result: u.Result})
	}
	return r, nil
}
