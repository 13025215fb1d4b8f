package guest

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openrcDir is where OpenRC keeps the state of its services (its RC_SVCDIR).
const openrcDir = "/run/openrc"

// openrc-init runs the run levels sysinit, boot and default one after the other.
// After the last it makes the fifo by which it can be told to shut down.
func (w *waiter) openrc() (Status, bool, error) {
	f, err := openIn(w.root, openrcDir+"/init.ctl", unix.O_PATH|unix.O_NOFOLLOW)
	if absent(err) {
		return Status{}, false, nil
	}
	if err != nil {
		return Status{}, false, err
	}
	fi, err := f.Stat()
	f.Close()
	if err != nil {
		return Status{}, false, err
	}
	if fi.Mode().Type() != os.ModeNamedPipe {
		return Status{}, false, nil
	}
	level, err := w.readFile(openrcDir+"/softlevel", 256)
	if err != nil && !absent(err) {
		return Status{}, false, err
	}
	switch strings.TrimSpace(string(level)) {
	case "shutdown", "reboot", "off":
		return Status{State: "stopping"}, true, nil
	case "single", "recovery":
		return Status{State: "maintenance"}, true, nil
	}
	failed, err := w.openrcFailed()
	return degraded(failed), true, err
}

// openrcFailed names the services of OpenRC that have failed, none where there is
// no OpenRC.
func (w *waiter) openrcFailed() ([]Unit, error) {
	names, err := w.readDir(openrcDir+"/failed", maxFailed)
	if absent(err) {
		return nil, nil
	}
	var units []Unit
	for _, name := range names {
		units = append(units, Unit{Name: printable(name), Result: "failed"})
	}
	return units, err
}
