package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A CRIU at work writes to its log, or takes a processor's time, and so do the programs that
// it starts. One that does neither waits for what may never come, while a guest stands still:
// its user is told where, and a dump that can still be undone is.

const (
	// stallLook is how often is looked.
	stallLook = 10 * time.Second
	// A minute and five, in looks: a machine that was suspended, or a process that was
	// stopped, has not looked.
	looksUntilTold  = 6
	looksUntilEnded = 30
)

// ErrStalled says that CRIU stood still, and was ended for that.
var ErrStalled = errors.New("CRIU stood still")

// Stall is a CRIU that stands still.
type Stall struct {
	Pid int           // CRIU's
	For time.Duration // at least
	// Last is the last line of its log, "" where there is none.
	Last string
}

func (s Stall) String() string {
	text := fmt.Sprintf("CRIU (pid %d) has done nothing for %v", s.Pid, s.For)
	if s.Last != "" {
		text += "; its log ends with: " + s.Last
	}
	return text
}

// work is what a CRIU has done so far.
type work struct {
	log   int64  // bytes
	ticks uint64 // of a processor, its and those of the programs it has started
}

// idleness counts how often in turn nothing had been done.
type idleness struct {
	last  work
	looks int
}

// look returns how often that is now. Who waits for CRIU's caller is not idle.
func (i *idleness) look(now work, working bool) int {
	if !working || now != i.last {
		i.last, i.looks = now, 0
		return 0
	}
	i.looks++
	return i.looks
}

// stallWatch is what is done about a CRIU that stands still.
type stallWatch struct {
	every time.Duration // stallLook
	log   string
	tell  func(Stall) // each time that it stands still for a minute; nil tells nobody
	end   func(error) // after five; nil lets it be
}

// watch looks after CRIU until the function returned is called, which is idempotent.
func (s *server) watch(w stallWatch) func() {
	ctx, stop := context.WithCancel(context.Background())
	var over sync.WaitGroup
	over.Go(func() {
		tick := time.NewTicker(w.every)
		defer tick.Stop()
		var idle idleness
		pid := s.cmd.Process.Pid
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			looks := idle.look(workOf(pid, w.log), s.working.Load())
			stall := Stall{Pid: pid, For: time.Duration(looks) * w.every}
			switch {
			case looks == looksUntilTold && w.tell != nil:
				stall.Last = lastLine(w.log)
				w.tell(stall)
			case looks == looksUntilEnded && w.end != nil:
				stall.Last = lastLine(w.log)
				w.end(fmt.Errorf("%w: %v", ErrStalled, stall))
				return
			}
		}
	})
	return func() { stop(); over.Wait() }
}

// workOf looks at a CRIU and what it has started.
func workOf(pid int, log string) work {
	var w work
	if st, err := os.Stat(log); err == nil {
		w.log = st.Size()
	}
	// A tree that changes meanwhile is one that works.
	for pids := []int{pid}; len(pids) > 0; pids = pids[1:] {
		w.ticks += ticksOf(pids[0])
		pids = append(pids, childrenOf(pids[0])...)
	}
	return w
}

// ticksOf reads utime, stime, cutime and cstime (proc_pid_stat(5)); 0 of one that is gone.
func ticksOf(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// Its name may have spaces in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const utime = 14 - 3 // fields begin with the third
	var sum uint64
	for _, field := range fields[min(utime, len(fields)):min(utime+4, len(fields))] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0
		}
		sum += n
	}
	return sum
}

func childrenOf(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(field); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// lastLine returns the last line of a log, without what is not to be shown.
func lastLine(log string) string {
	const enough = 4096
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-enough), enough))
	if err != nil {
		return ""
	}
	text = bytes.TrimSpace(text)
	text = text[bytes.LastIndexByte(text, '\n')+1:]
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(text), ""))
}
