package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"
)

const (
	lastSignal = 64
	// firstRealtime is SIGRTMIN as the C library counts: it keeps 32 and 33.
	firstRealtime = 34
)

// parseSignal understands a number (0 only asks whether the process is there),
// a name with or without SIG in any case, and RTMIN+n and RTMAX-n.
func parseSignal(s string) (syscall.Signal, error) {
	unknown := &usageError{
		msg:  fmt.Sprintf("unknown signal %q", s),
		hint: "signals are numbers from 0 to 64, or names such as TERM, SIGKILL, RTMIN+3",
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > lastSignal {
			return 0, unknown
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, base := range map[string]int{"RTMIN": firstRealtime, "RTMAX": lastSignal} {
		offset, isRealtime := strings.CutPrefix(name, prefix)
		if !isRealtime {
			continue
		}
		n, err := strconv.Atoi("0" + strings.TrimLeft(offset, "+-"))
		if strings.HasPrefix(offset, "-") {
			n = -n
		} else if offset != "" && !strings.HasPrefix(offset, "+") {
			return 0, unknown
		}
		if n += base; err != nil || n < firstRealtime || n > lastSignal {
			return 0, unknown
		}
		return syscall.Signal(n), nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	return 0, unknown
}

// interruptible returns a context that ends at SIGINT or SIGTERM, for verbs
// that take long and can be given up in an orderly way.
func interruptible(c *cli.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
}

// untilInterrupted is for a verb after which a guest is elsewhere, and whose end in the
// middle may be the guest's. The context ends at the first SIGINT, SIGTERM or SIGHUP;
// who receives from again hears of each SIGINT and SIGTERM that comes just then. No
// reader of our output that goes away ends us.
func untilInterrupted(parent context.Context) (ctx context.Context, again <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	caught, told := make(chan os.Signal, 8), make(chan struct{})
	signals := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGPIPE}
	if !signal.Ignored(unix.SIGHUP) { // as nohup wants it
		signals = append(signals, unix.SIGHUP)
	}
	signal.Notify(caught, signals...)
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-caught:
				if s == unix.SIGPIPE {
					continue
				}
				cancel()
				if s == unix.SIGHUP {
					continue
				}
				select {
				case told <- struct{}{}:
				default:
				}
			case <-ended:
				return
			}
		}
	}()
	return ctx, told, func() { signal.Stop(caught); close(ended); cancel() }
}

// catchSignals begins to collect every signal that a guest should get. It is
// called before the guest exists, so that none is lost and none kills vzrun
// while a container is half made. Go's runtime asks a thread of its own for each
// signal, which takes long enough that the real-time ones, which nobody sends so
// early, are left to the time in which we wait for the guest: all is closed when
// they are caught, too.
func catchSignals() (caught chan os.Signal, all chan struct{}) {
	caught, all = make(chan os.Signal, 256), make(chan struct{})
	classic, realtime := forwardable()
	signal.Notify(caught, classic...)
	go func() {
		defer close(all)
		signal.Notify(caught, realtime...)
	}()
	return caught, all
}

func forwardable() (classic, realtime []os.Signal) {
	for n := syscall.Signal(1); n <= lastSignal; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP: // cannot be caught
		case unix.SIGURG: // the Go runtime's own, for preemption
		case unix.SIGPIPE: // ours: somebody closed our stdout
		case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU: // our shell's job control stops vzrun, not the guest
		case unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, unix.SIGPROF: // our own faults
		case firstRealtime - 2, firstRealtime - 1: // the C library's own
		default:
			if n < firstRealtime {
				classic = append(classic, n)
			} else {
				realtime = append(realtime, n)
			}
		}
	}
	return classic, realtime
}
