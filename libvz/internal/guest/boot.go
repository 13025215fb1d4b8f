package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// Inits other than systemd tell nobody that they are done. Each leaves a mark by
// which its own tools know: a record, a fifo, a process. Those are looked at from
// here, again after each event: the kernel tells of changes of files (inotify) and
// of ends of processes (pidfd).
const (
	// bootPace is the least time between two looks, so that a guest that changes
	// its files all the time costs the host little.
	bootPace = 10 * time.Millisecond
	// bootTick is for what the kernel sends no event for: that a process runs
	// another program, or waits.
	bootTick = 50 * time.Millisecond
	// maxWatches bounds a guest that replaces its directories again and again.
	maxWatches = 1024
	// maxChildren and maxText bound what is read of the processes of a guest.
	maxChildren = 256
	maxText     = 4096
)

// boot is how the end of an init's start is recognised.
type boot struct {
	dirs     []string // whose files change meanwhile
	children bool     // what the init's children do counts, too
	// look looks once. over is false while the start goes on.
	look func() (st Status, over bool, err error)
}

// bootOf returns nil for an init whose marks are not known.
func (w *waiter) bootOf(init Init) *boot {
	switch init {
	case SysVInit:
		return &boot{dirs: utmpDirs(), look: w.sysvinit}
	case OpenRC:
		return &boot{dirs: []string{openrcDir}, look: w.openrc}
	case Runit:
		return &boot{dirs: []string{"/run/runit/supervise"}, children: true, look: newRunit(w).look}
	case Busybox:
		return &boot{children: true, look: w.busybox}
	}
	return nil
}

func (w *waiter) waitBoot(ctx context.Context, b *boot) (Status, error) {
	events, err := newWatch()
	if err != nil {
		return Status{}, err
	}
	defer events.Close()
	// Poll cannot wait for a context, but for a pipe that it closes.
	done, end, err := os.Pipe()
	if err != nil {
		return Status{}, err
	}
	defer done.Close()
	defer end.Close()
	stop := context.AfterFunc(ctx, func() { end.Close() })
	defer stop()
	pace := time.NewTicker(bootPace)
	defer pace.Stop()
	for {
		// Watch first, look then: what comes in between is not missed.
		for _, dir := range b.dirs {
			if err := w.watchDirs(events, dir, bootEvents); err != nil {
				return Status{}, err
			}
		}
		var children []*os.File
		if b.children {
			children = w.openChildren()
		}
		st, over, err := b.look()
		if err == nil && !over {
			err = pollBoot(done, events, children, b.children)
		}
		for _, c := range children {
			c.Close()
		}
		if over || err != nil {
			return st, err
		}
		select {
		case <-ctx.Done():
			return Status{}, ctx.Err()
		case <-pace.C:
		}
	}
}

// pollBoot returns when there may be something new.
func pollBoot(done, events *os.File, children []*os.File, tick bool) error {
	fds := []unix.PollFd{{Fd: int32(done.Fd()), Events: unix.POLLIN}, {Fd: int32(events.Fd()), Events: unix.POLLIN}}
	for _, c := range children {
		fds = append(fds, unix.PollFd{Fd: int32(c.Fd()), Events: unix.POLLIN})
	}
	timeout := -1
	if tick {
		timeout = int(bootTick.Milliseconds())
	}
	if _, err := unix.Poll(fds, timeout); err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("poll", err)
	}
	if fds[1].Revents != 0 {
		var buf [16 << 10]byte
		if _, err := unix.Read(int(events.Fd()), buf[:]); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("read inotify", err)
		}
	}
	return nil
}

// readFile returns the beginning of a file of the guest, at most limit bytes.
// What is no regular file is an error: reading it could take for ever.
func (w *waiter) readFile(name string, limit int64) ([]byte, error) {
	f, err := openRegular(w.root, name, inRoot)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// readDir returns at most limit names of a directory of the guest, sorted.
func (w *waiter) readDir(name string, limit int) ([]string, error) {
	d, err := openIn(w.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	sort.Strings(names)
	return names, nil
}

// degraded is the status of a system that is up, for these failures.
func degraded(failed []Unit) Status {
	if len(failed) == 0 {
		return Status{State: "running"}
	}
	if len(failed) > maxFailed {
		failed = failed[:maxFailed]
	}
	return Status{State: "degraded", Failed: failed}
}

// child is a child of the init.
type child struct {
	pid int // the host's
	// text is its command line, each argument followed by a NUL. The guest
	// decides what it says.
	text string
}

// children lists the init's children, the oldest first (proc(5),
// /proc/PID/task/TID/children).
func (w *waiter) children() ([]child, error) {
	var all []child
	pids, err := w.childPids()
	for _, pid := range pids {
		text, err := readProc(fmt.Sprintf("/proc/%d/cmdline", pid), maxText)
		if err == nil { // else it has ended
			all = append(all, child{pid, string(text)})
		}
	}
	return all, err
}

func (w *waiter) childPids() ([]int, error) {
	data, err := readProc(fmt.Sprintf("/proc/%d/task/%d/children", w.pid, w.pid), 16*maxChildren)
	if err != nil {
		return nil, err
	}
	var pids []int
	for len(data) > 0 && len(pids) < maxChildren {
		var pid int
		for len(data) > 0 && data[0] >= '0' && data[0] <= '9' {
			pid, data = 10*pid+int(data[0]-'0'), data[1:]
		}
		if len(data) == 0 { // each number is followed by a blank: this one is cut off
			break
		}
		data = data[1:]
		pids = append(pids, pid)
	}
	return pids, nil
}

// openChildren returns pidfds of the children. One of a pid that was used again
// only makes for a look too many.
func (w *waiter) openChildren() []*os.File {
	pids, err := w.childPids()
	if err != nil {
		return nil // look says it
	}
	var files []*os.File
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			files = append(files, os.NewFile(uintptr(fd), "pidfd"))
		}
	}
	return files
}

func readProc(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// program is the name of the program that a command line begins with.
func (c child) program() string {
	args := c.args()
	if len(args) == 0 {
		return ""
	}
	return path.Base(args[0])
}

// args are its arguments, the program first.
func (c child) args() []string {
	var args []string
	text := c.text
	for i := 0; i < len(text); {
		j := i
		for j < len(text) && text[j] != 0 {
			j++
		}
		args = append(args, text[i:j])
		i = j + 1
	}
	return args
}
