package libvz

import (
	"context"
	"errors"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// Readiness is what a guest's init says of its start.
type Readiness struct {
	// State is systemd's own word, systemctl(1), is-system-running: "running",
	// "degraded", "maintenance", ...; of another init the one that fits.
	State string
	// Failed are the units that did not start, when State is "degraded". Of
	// sysvinit and busybox none are known, unless their scripts are OpenRC's.
	Failed []FailedUnit
	Init   string        // the kind of init: "systemd", "openrc", ...
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

// CheckReady returns the error of WaitReady where the container's init has no way
// to say that it is up, so that a caller can know before it starts it.
func (c *Container) CheckReady() error { return fail("ready", c.id, c.checkReady()) }

func (c *Container) checkReady() error {
	init := c.guestInit()
	if guest.SaysReady(guest.Init(init)) {
		return nil
	}
	if init == "" {
		return withHint("`vzrun spec --system` writes a configuration for a whole system", "%w: the container is none with an init", ErrUnsupported)
	}
	return withHint("`vzrun exec` can ask it", "%w: init %q does not say when it is ready", ErrUnsupported, init)
}

func (c *Container) waitReady(ctx context.Context) (Readiness, error) {
	pid, err := c.initPid()
	if err != nil {
		return Readiness{}, err
	}
	if err := c.checkReady(); err != nil {
		return Readiness{}, err
	}
	init := c.guestInit()
	config := c.lc.Config()
	uid, gid, err := rootIDs(&config)
	if err != nil {
		return Readiness{}, err
	}
	st, err := guest.WaitReady(ctx, guest.Init(init), pid, uint32(uid), uint32(gid))
	switch {
	case errors.Is(err, guest.ErrInitGone):
		return Readiness{}, withHint("`vzrun run` without --detach shows what it says", "%w: %w", ErrStatus, err)
	case errors.Is(err, context.DeadlineExceeded):
		return Readiness{}, withHint("allow more --timeout, or look inside with `vzrun enter`", "the guest is not up yet: %w", err)
	case err != nil:
		return Readiness{}, err
	}
	r := Readiness{State: st.State, Took: st.Took, Init: init}
	for _, u := range st.Failed {
		r.Failed = append(r.Failed, FailedUnit{Name: u.Name, Description: u.Description, Result: u.Result})
	}
	return r, nil
}
