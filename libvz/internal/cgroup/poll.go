package cgroup

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// poll waits until one of fds has an event, which it leaves in Revents, or
// until ctx ends, when it returns the cause.
func poll(ctx context.Context, fds []unix.PollFd) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		// It cannot fail: the counter is 0 and this is its only writer.
		_, _ = unix.Write(wake, []byte{0, 0, 0, 0, 0, 0, 0, 1})
	})
	defer func() {
		if !stop() {
			<-woken // else it could write to a descriptor of someone else
		}
	}()
	all := append([]unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}, fds...)
	for {
		_, err := unix.Poll(all, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case all[0].Revents != 0:
			return context.Cause(ctx)
		}
		copy(fds, all[1:])
		return nil
	}
}

// waitEmpty waits until no process is left in a cgroup2 directory or below
// it. The kernel notifies readers of cgroup.events of that, cgroup-v2.rst,
// "[Un]populated Notification".
func waitEmpty(ctx context.Context, d *os.File) error {
	f, err := openFile(d, "cgroup.events", unix.O_RDONLY)
	if gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 512)
	for {
		// To read is what arms the next notification, so none is missed.
		n, err := unix.Pread(int(f.Fd()), buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return &os.PathError{Op: "read", Path: f.Name(), Err: err}
		case !populated(string(buf[:n])):
			return nil
		}
		if err := poll(ctx, []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}); err != nil {
			return err
		}
	}
}

func populated(events string) bool {
	for line := range strings.Lines(events) {
		if strings.TrimSuffix(line, "\n") == "populated 0" {
			return false
		}
	}
	return true
}
