package guest

import (
	"encoding/binary"
	"path"
	"strings"
	"time"
)

const (
	// maxServices bounds a directory of services.
	maxServices = 256
	// settle is how long a service must be up to count: one that cannot start is up
	// for some milliseconds, again and again.
	settle = 500 * time.Millisecond
	// taiEpoch is 1970 in the seconds of a status, as runit counts them.
	taiEpoch = 1<<62 + 10
)

// runit keeps, for one WaitReady, what it saw of services that are not up.
type runit struct {
	w    *waiter
	down map[string]uint64
}

func newRunit(w *waiter) *runit { return &runit{w, map[string]uint64{}} }

// look finds runsvdir, which the second stage becomes when its other work is
// done, and waits until each of its services is up.
func (r *runit) look() (Status, bool, error) {
	dir, err := r.services()
	if dir == "" || err != nil {
		return Status{}, false, err
	}
	names, err := r.w.readDir(dir, maxServices)
	if absent(err) {
		return Status{}, false, nil
	}
	if err != nil {
		return Status{}, false, err
	}
	var failed []Unit
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue // as runsvdir does
		}
		status, err := r.w.readFile(path.Join(dir, name, "supervise/status"), 64)
		if absent(err) {
			// A file beside the services is none; of a service runsv makes it.
			if _, err := r.w.readDir(path.Join(dir, name), 1); absent(err) {
				continue
			}
			return Status{}, false, nil
		}
		if err != nil {
			return Status{}, false, err
		}
		switch r.judge(name, status, time.Now()) {
		case serviceStarts:
			return Status{}, false, nil
		case serviceFailed:
			failed = append(failed, Unit{Name: printable(name), Result: "exited"})
		}
	}
	return degraded(failed), true, nil
}

// services returns the directory that the guest's runsvdir serves, "" while there
// is no runsvdir.
func (r *runit) services() (string, error) {
	children, err := r.w.children()
	for _, c := range children {
		if c.program() != "runsvdir" {
			continue
		}
		for _, arg := range c.args()[1:] {
			if path.IsAbs(arg) {
				return arg, err
			}
		}
	}
	return "", err
}

const (
	serviceUp = iota
	serviceStarts
	serviceFailed
)

// judge reads a supervise/status: 12 bytes of time of the last change, 4 of the
// pid, one each for paused, wanted ('u', 'd' or 'x'), term sent, and state: 0
// down, 1 running, 2 finishing (runsv(8) and runit's sv.c). A service that is
// wanted and down has failed if it was down before, at another time; runsv tries
// again once a second.
func (r *runit) judge(name string, status []byte, now time.Time) int {
	if len(status) < 20 {
		return serviceStarts
	}
	at := binary.BigEndian.Uint64(status)<<32 | uint64(binary.BigEndian.Uint32(status[8:]))
	wanted, state := status[17], status[19]
	if wanted != 'u' {
		return serviceUp
	}
	if state == 1 {
		since := time.Unix(int64(binary.BigEndian.Uint64(status)-taiEpoch), int64(binary.BigEndian.Uint32(status[8:])))
		// The clock may have been set since.
		if age := now.Sub(since); age >= 0 && age < settle {
			return serviceStarts
		}
		return serviceUp
	}
	if before, seen := r.down[name]; seen && before != at {
		return serviceFailed
	}
	r.down[name] = at
	return serviceStarts
}
