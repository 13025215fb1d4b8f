package guest

import (
	"os"
	"path"
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

const (
	// maxDeptree bounds OpenRC's cache of dependencies; real ones have some 50 KB.
	maxDeptree = 1 << 20
	// maxOpenRC bounds the services of a run level and of a state.
	maxOpenRC = 1024
)

// openrcFailed names the services of OpenRC that have failed, none where there is
// no OpenRC. When a run level has been entered OpenRC forgets which services did
// not start (clean_failed in its rc.c), so that these are the ones that belong to a
// run level and are not started. Those that somebody has stopped since are among
// them.
func (w *waiter) openrcFailed() ([]Unit, error) {
	tree, err := w.readFile(openrcDir+"/deptree", maxDeptree)
	if err != nil && !absent(err) {
		return nil, err
	}
	level, err := w.readFile(openrcDir+"/softlevel", 256)
	if err != nil && !absent(err) {
		return nil, err
	}
	var wanted []string
	for _, l := range []string{"sysinit", "boot", strings.TrimSpace(string(level))} {
		if l == "" || strings.ContainsRune(l, '/') {
			continue
		}
		names, err := w.readDir("/etc/runlevels/"+l, maxOpenRC)
		if err != nil && !absent(err) {
			return nil, err
		}
		wanted = append(wanted, names...)
	}
	in := map[string][]string{}
	for _, state := range []string{"failed", "started", "starting", "inactive", "wasinactive", "scheduled"} {
		names, err := w.readDir(path.Join(openrcDir, state), maxOpenRC)
		if err != nil && !absent(err) {
			return nil, err
		}
		in[state] = names
	}
	return openrcUnits(wanted, string(tree), in), nil
}

// openrcUnits decides. wanted are the services of the run levels, tree is the
// cache of dependencies, in are the services by state. What is not in the cache is
// not started: it has no script, or its keyword (such as "-lxc") excludes this kind
// of system.
func openrcUnits(wanted []string, tree string, in map[string][]string) []Unit {
	known, done := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(tree) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if strings.HasPrefix(key, "depinfo_") && strings.HasSuffix(key, "_service") {
			known[strings.Trim(value, "'")] = true
		}
	}
	var units []Unit
	for _, name := range in["failed"] {
		done[name] = true
		units = append(units, Unit{Name: printable(name), Result: "failed"})
	}
	for state, names := range in {
		if state == "failed" {
			continue
		}
		for _, name := range names {
			done[name] = true
		}
	}
	for _, name := range wanted {
		if known[name] && !done[name] {
			done[name] = true
			units = append(units, Unit{Name: printable(name), Result: "not started"})
		}
	}
	return units
}
