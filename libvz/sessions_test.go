package libvz

import (
	"math"
	"slices"
	"testing"

	"github.com/vzrun/vzrun/libvz/internal/preflight"
)

func TestSessionsIn(t *testing.T) {
	task := func(pid, parent int) preflight.Task { return preflight.Task{Pid: pid, Parent: parent} }
	tasks := []preflight.Task{
		task(100, 1),                   // the init
		task(101, 100), task(102, 101), // a login inside and its shell
		task(110, 5), task(111, 110), task(112, 111), // a shell from outside, a job of it and a job's child
		task(113, 110), // a daemon that it has made
		task(114, 113),
		task(120, 0), // from another pid namespace
	}
	session := map[int]uint64{100: 100, 101: 101, 102: 101, 110: 110, 111: 110, 112: 110, 113: 113, 114: 113, 120: 120}
	var got []int
	for _, s := range sessionsIn(tasks, func(pid int) uint64 { return session[pid] }) {
		got = append(got, s.Pid)
	}
	if !slices.Equal(got, []int{110, 120, 111, 112}) {
		t.Errorf("%v", got)
	}
	if got := sessionsIn(tasks[:3], func(int) uint64 { return 0 }); got != nil {
		t.Errorf("logins inside: %v", got)
	}
}

func TestAllowed(t *testing.T) {
	for text, want := range map[string]preflight.Options{
		"":                                 {},
		"# tcp-established\n\ntcp-close\n": {TCPEstablished: true},
		"tcp-established # yes\n  file-locks\nlink-remap\nshell-job\next-unix-sk\nskip-in-flight": {
			TCPEstablished: true, FileLocks: true, LinkRemap: true, ShellJob: true, ExtUnixSockets: true, SkipInFlight: true,
		},
		"ghost-limit=10M\nexternal mnt[a]:b\n": {GhostLimit: math.MaxUint64, AnyMounts: true},
		"log-file criu.log\nlink-remapped\n":   {},
	} {
		var o preflight.Options
		if allowed(text, &o); o != want {
			t.Errorf("%q: %+v", text, o)
		}
	}
}
