package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

func clocks() []thing {
	return []thing{
		{"clocks", clockGaps},
		{"timer-monotonic", func(dir string) (func() error, error) { return timer(dir, monotonic) }},
		{"timer-boottime", func(dir string) (func() error, error) { return timer(dir, boottime) }},
		{"timer-realtime", func(dir string) (func() error, error) { return timer(dir, realtime) }},
		{"timer-interval", timerInterval},
		{"timer-posix", timerPosix},
	}
}

// Of clock_gettime(2).
const (
	realtime  = 0
	monotonic = 1
	boottime  = 7
)

func now(clock uintptr) time.Duration {
	var ts syscall.Timespec
	if _, err := call(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// clockGaps samples all clocks and writes the largest step of each to "gaps":
// nanoseconds of real time, monotonic, boot time. No clock goes back.
func clockGaps(dir string) (func() error, error) {
	type sample [3]time.Duration
	look := func() sample { return sample{now(realtime), now(monotonic), now(boottime)} }
	stop, result := make(chan struct{}), make(chan error, 1)
	go func() {
		last, gaps := look(), sample{}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				text := fmt.Sprintln(gaps[0].Nanoseconds(), gaps[1].Nanoseconds(), gaps[2].Nanoseconds())
				result <- os.WriteFile(filepath.Join(dir, "gaps"), []byte(text), 0o644)
				return
			case <-tick.C:
			}
			s := look()
			for i := range s {
				if s[i] < last[i] {
					result <- fmt.Errorf("clock %d went back by %v", i, last[i]-s[i])
					return
				}
				gaps[i] = max(gaps[i], s[i]-last[i])
			}
			last = s
		}
	}()
	return func() error {
		close(stop)
		return <-result
	}, nil
}

// timer is to fire once, at a time that DIR/after gives in milliseconds from now
// (5000 if there is none), and not before. "fired" then says when it did, and when
// it should have.
func timer(dir string, clock uintptr) (func() error, error) {
	after := 5000 * time.Millisecond
	if text, err := os.ReadFile(filepath.Join(dir, "after")); err == nil {
		ms, err := strconv.Atoi(string(text))
		if err != nil {
			return nil, err
		}
		after = time.Duration(ms) * time.Millisecond
	}
	fd, err := call(syscall.SYS_TIMERFD_CREATE, clock, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	at := now(clock) + after
	spec := [2]syscall.Timespec{{}, syscall.NsecToTimespec(at.Nanoseconds())}
	const absolute = 1
	if _, err := call(syscall.SYS_TIMERFD_SETTIME, fd, absolute, uintptr(unsafe.Pointer(&spec)), 0, 0); err != nil {
		return nil, err
	}
	f := os.NewFile(fd, "timer")
	fired := make(chan error, 1)
	go func() {
		times, err := expirations(f)
		woke := now(clock)
		text := fmt.Sprintln(woke.Nanoseconds(), at.Nanoseconds())
		err = errors.Join(err, same("expirations", times, uint64(1)), os.WriteFile(filepath.Join(dir, "fired"), []byte(text), 0o644))
		if woke < at {
			err = errors.Join(err, fmt.Errorf("fired %v too early", at-woke))
		}
		fired <- err
	}()
	return func() error {
		if err := <-fired; err != nil {
			return err
		}
		// Not once more.
		set, err := syscall.EpollCreate1(0)
		if err != nil {
			return err
		}
		if err := syscall.EpollCtl(set, syscall.EPOLL_CTL_ADD, int(f.Fd()), &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
			return err
		}
		found, err := ready(set, 100)
		return errors.Join(err, same("events after it fired", len(found), 0))
	}, nil
}

func expirations(f *os.File) (uint64, error) {
	buf := make([]byte, 8)
	_, err := f.Read(buf)
	return binary.NativeEndian.Uint64(buf), err
}

// timerInterval fires each 20 ms of the time in which the process could run.
func timerInterval(string) (func() error, error) {
	const every = 20 * time.Millisecond
	fd, err := call(syscall.SYS_TIMERFD_CREATE, monotonic, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	spec := [2]syscall.Timespec{syscall.NsecToTimespec(every.Nanoseconds()), syscall.NsecToTimespec(every.Nanoseconds())}
	begun := now(monotonic)
	if _, err := call(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&spec)), 0, 0); err != nil {
		return nil, err
	}
	return func() error {
		times, err := expirations(os.NewFile(fd, "timer"))
		if err != nil {
			return err
		}
		// What it was late is missing; it never fires more often.
		if most := uint64((now(monotonic) - begun) / every); times == 0 || times > most {
			return fmt.Errorf("%d expirations in the time of %d", times, most)
		}
		return nil
	}, nil
}

// timerPosix is one of timer_create(2), set to a time on the wall, that tells nobody.
func timerPosix(string) (func() error, error) {
	event := [16]int32{3: 1} // SIGEV_NONE
	var id int32
	if _, err := call(syscall.SYS_TIMER_CREATE, realtime, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id)), 0, 0); err != nil {
		return nil, err
	}
	at := now(realtime) + time.Hour
	spec := [2]syscall.Timespec{{}, syscall.NsecToTimespec(at.Nanoseconds())}
	const absolute = 1
	if _, err := call(syscall.SYS_TIMER_SETTIME, uintptr(id), absolute, uintptr(unsafe.Pointer(&spec)), 0, 0); err != nil {
		return nil, err
	}
	return func() error {
		var left [2]syscall.Timespec
		if _, err := call(syscall.SYS_TIMER_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&left)), 0, 0, 0); err != nil {
			return err
		}
		// It was asked a little earlier than the clock is now.
		late := time.Duration(left[1].Nano()) + now(realtime) - at
		if late > 100*time.Millisecond {
			return fmt.Errorf("late by %v", late)
		}
		return nil
	}, nil
}
