package criu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestIdleness(t *testing.T) {
	var idle idleness
	for n, l := range []struct {
		work
		waits bool // for its caller
		want  int
	}{
		{work: work{10, 1}, want: 0},
		{work: work{10, 1}, want: 1},
		{work: work{10, 1}, want: 2},
		{work: work{11, 1}, want: 0},
		{work: work{11, 1}, want: 1},
		{work: work{11, 2}, want: 0},
		{work: work{11, 2}, want: 1},
		{work: work{11, 2}, waits: true, want: 0},
		{work: work{11, 2}, want: 1},
		// A program that it has waited for is one of its own by then; one that it has
		// not is gone with all that it took.
		{work: work{11, 1}, want: 0},
	} {
		if got := idle.look(l.work, !l.waits); got != l.want {
			t.Errorf("look %d: %d, want %d", n, got, l.want)
		}
	}
}

// stands watches a process until it is ended, or for a while, and returns what is told
// and how it is ended.
func stands(t *testing.T, log string, working bool, wait time.Duration, command ...string) (told []Stall, end error) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() }() //nolint:errcheck // it is killed
	s := &server{cmd: cmd}
	s.working.Store(working)
	ended := make(chan error, 1)
	stop := s.watch(stallWatch{
		every: everyForTests, log: log,
		tell: func(s Stall) { told = append(told, s) }, end: func(err error) { ended <- err },
	})
	select {
	case end = <-ended:
	case <-time.After(wait):
	}
	stop()
	stop()
	return told, end
}

const (
	everyForTests = 20 * time.Millisecond
	longEnough    = 3 * looksUntilEnded * everyForTests
)

func TestACRIUThatStandsStillIsToldOfAndEnded(t *testing.T) {
	log := filepath.Join(t.TempDir(), DumpLog)
	if err := os.WriteFile(log, []byte("(0.1) first\n(0.2) Dumping\x1b[2J task 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	told, end := stands(t, log, true, time.Minute, "sleep", "1000")
	if len(told) != 1 || told[0].For != looksUntilTold*everyForTests || told[0].Last != "(0.2) Dumping[2J task 7" {
		t.Errorf("told: %v", told)
	}
	if !errors.Is(end, ErrStalled) || !strings.Contains(end.Error(), "task 7") {
		t.Errorf("end: %v", end)
	}
	if told, end = stands(t, log, false, longEnough, "sleep", "1000"); told != nil || end != nil {
		t.Errorf("it waited for its caller: %v, %v", told, end)
	}
}

func TestWhatACRIUHasStartedMayWorkForIt(t *testing.T) {
	if told, end := stands(t, "", true, longEnough, "sh", "-c", "sh -c 'while :; do :; done' & wait"); end != nil {
		t.Errorf("told: %v, end: %v", told, end)
	}
}
