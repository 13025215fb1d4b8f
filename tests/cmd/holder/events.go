package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

func events() []thing {
	return []thing{
		{"epoll", epoll},
		{"eventfd", eventfd},
		{"eventfd-semaphore", eventfdSemaphore},
		{"signalfd", signalfd},
		{"pidfd", pidfd},
		{"inotify", inotify},
		{"inotify-unread", inotifyUnread},
		{"pressure", pressure},
	}
}

func newEventfd(value uint64, flags uintptr) (*os.File, error) {
	fd, err := call(syscall.SYS_EVENTFD2, uintptr(value), flags, 0, 0, 0)
	return os.NewFile(fd, "eventfd"), err
}

// ready returns the descriptors that an epoll set has events of.
func ready(fd int, milliseconds int) ([]syscall.EpollEvent, error) {
	found := make([]syscall.EpollEvent, 10)
	for {
		n, err := syscall.EpollWait(fd, found, milliseconds)
		if !errors.Is(err, syscall.EINTR) {
			return found[:max(n, 0)], err
		}
	}
}

// epoll watches two descriptors, in a set within a set; one of them is ready.
func epoll(string) (func() error, error) {
	inner, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	outer, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	full, err := newEventfd(1, 0)
	if err != nil {
		return nil, err
	}
	empty, err := newEventfd(0, 0)
	if err != nil {
		return nil, err
	}
	for fd, data := range map[*os.File]int32{full: 77, empty: 78} {
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd.Fd()), Pad: data}
		if err := syscall.EpollCtl(inner, syscall.EPOLL_CTL_ADD, int(fd.Fd()), &event); err != nil {
			return nil, err
		}
	}
	if err := syscall.EpollCtl(outer, syscall.EPOLL_CTL_ADD, inner, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(inner)}); err != nil {
		return nil, err
	}
	return func() error {
		found, err := ready(outer, 1000)
		if err := errors.Join(err, same("outer events", len(found), 1)); err != nil {
			return err
		}
		found, err = ready(inner, 1000)
		if err := errors.Join(err, same("inner events", len(found), 1)); err != nil {
			return err
		}
		if err := same("data", found[0], syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(full.Fd()), Pad: 77}); err != nil {
			return err
		}
		if _, err := empty.Write(binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
			return err
		}
		found, err = ready(inner, 1000)
		return errors.Join(err, same("inner events", len(found), 2))
	}, nil
}

func eventfd(string) (func() error, error) { return counter(0, 5, 0) }

// eventfdSemaphore gives one at a time.
func eventfdSemaphore(string) (func() error, error) {
	const semaphore = 1 // of eventfd(2)
	return counter(semaphore, 1, 1)
}

// counter is an eventfd of 5 that is to give first, and then second unless that is 0.
func counter(flags uintptr, first, second uint64) (func() error, error) {
	f, err := newEventfd(5, flags)
	if err != nil {
		return nil, err
	}
	return func() error {
		for _, want := range []uint64{first, second} {
			if want == 0 {
				break
			}
			got := make([]byte, 8)
			if _, err := f.Read(got); err != nil {
				return err
			}
			if err := same("value", binary.NativeEndian.Uint64(got), want); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// signalfd is another process's, as Go takes signals itself: it has one pending,
// with a value.
func signalfd(string) (func() error, error) {
	c, err := startChild("signals")
	if err != nil {
		return nil, err
	}
	if answer, err := c.hear(); err != nil || answer != "pending" {
		return nil, fmt.Errorf("%s: %w", answer, err)
	}
	return func() error {
		if err := c.say("go on"); err != nil {
			return err
		}
		answer, err := c.hear()
		return errors.Join(err, same("signal and value", answer, "10 4711"), c.end())
	}, nil
}

// pidfdOpen is the number of pidfd_open(2) on all architectures.
const pidfdOpen = 434

// pidfd becomes ready when the process ends.
func pidfd(string) (func() error, error) {
	c, err := startChild("wait")
	if err != nil {
		return nil, err
	}
	fd, err := call(pidfdOpen, uintptr(c.cmd.Process.Pid), 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	set, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	if err := syscall.EpollCtl(set, syscall.EPOLL_CTL_ADD, int(fd), &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
		return nil, err
	}
	return func() error {
		found, err := ready(set, 0)
		if err := errors.Join(err, same("events before", len(found), 0), c.stdin.Close()); err != nil {
			return err
		}
		found, err = ready(set, 10000)
		return errors.Join(err, same("events after", len(found), 1), c.cmd.Wait())
	}, nil
}

// inotify watches a directory and a file in it.
func inotify(dir string) (func() error, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return nil, err
	}
	watchDir, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE)
	if err != nil {
		return nil, err
	}
	watchFile, err := syscall.InotifyAddWatch(fd, file, syscall.IN_MODIFY)
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), os.WriteFile(file, []byte("x"), 0o644)); err != nil {
			return err
		}
		buf := make([]byte, 1000)
		n, err := syscall.Read(fd, buf)
		if err != nil {
			return err
		}
		var seen []string
		for at := 0; at+syscall.SizeofInotifyEvent <= n; {
			event := (*syscall.InotifyEvent)(unsafe.Pointer(&buf[at]))
			if s := fmt.Sprint(event.Wd, " ", event.Mask); len(seen) == 0 || seen[len(seen)-1] != s {
				seen = append(seen, s)
			}
			at += syscall.SizeofInotifyEvent + int(event.Len)
		}
		want := []string{fmt.Sprint(watchDir, " ", syscall.IN_CREATE), fmt.Sprint(watchFile, " ", syscall.IN_MODIFY)}
		return same("events", fmt.Sprint(seen), fmt.Sprint(want))
	}, nil
}

// inotifyUnread has an event that nobody has asked for yet.
func inotifyUnread(dir string) (func() error, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err != nil {
		return nil, err
	}
	return func() error {
		_, err := syscall.Read(fd, make([]byte, 1000))
		return err
	}, nil
}

// pressure is a trigger of the memory pressure of our cgroup, or of the whole
// system. Without a trigger, such a descriptor always has an event.
func pressure(string) (func() error, error) {
	f, err := os.OpenFile(filepath.Join("/sys/fs/cgroup", ownCgroup(), "memory.pressure"), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile("/proc/pressure/memory", os.O_RDWR|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString("some 200000 2000000\x00"); err != nil {
		return nil, err
	}
	set, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	if err := syscall.EpollCtl(set, syscall.EPOLL_CTL_ADD, int(f.Fd()), &syscall.EpollEvent{Events: syscall.EPOLLPRI}); err != nil {
		return nil, err
	}
	return func() error {
		found, err := ready(set, 0)
		if err := errors.Join(err, same("events", len(found), 0)); err != nil {
			return err
		}
		// It has one trigger, and takes no other.
		_, err = f.WriteString("some 300000 2000000\x00")
		return same("a second trigger", err != nil, true)
	}, nil
}

// ownCgroup is our path in the tree of cgroup2.
func ownCgroup() string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return path
		}
	}
	return ""
}
