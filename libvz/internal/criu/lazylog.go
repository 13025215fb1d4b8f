package criu

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The log of `criu lazy-pages` is the only place where it says which pages a task
// waits for, gives up, or has. It is read as it is written.

// eventLine is a line of it, with the task by its pid and a number, and one of: the
// beginning of a task that is restored; a fault; pages or zeroes that are put in place;
// pages that the task has given up; the end of a task, of which no more is heard. A task
// that was forked since has its parent's pid, and another number.
var eventLine = pattern(`^\(([0-9]+\.[0-9]+)\) uffd: (([0-9]+)-[0-9]+): ` +
	`(#PF at|uffd_copy:|zero page at|UNMAP:|REMOVE:|UFFD transferred pages:|Found) (?:0x)?([0-9a-f]*)(?:[/(]([0-9a-f]+))?`)

// logReader understands the lines of the log.
type logReader struct {
	faults faults
	// gone is told of pages that a task has given up, ended of a task that needs no
	// more.
	gone  func(pid, address, count uint64)
	ended func(pid uint64)
	// restored are the names of tasks by their pid, where they were said.
	restored map[uint64]string
}

func newLogReader(gone func(pid, address, count uint64), ended func(pid uint64)) *logReader {
	return &logReader{faults: newFaults(), gone: gone, ended: ended, restored: map[uint64]string{}}
}

func (r *logReader) line(line []byte) {
	m := eventLine().FindSubmatch(line)
	if m == nil {
		return
	}
	// The expression lets only numbers through.
	at, _ := strconv.ParseFloat(string(m[1]), 64)
	pid, _ := strconv.ParseUint(string(m[3]), 10, 64)
	address, _ := strconv.ParseUint(string(m[5]), 16, 64)
	task := string(m[2])
	name, said := r.restored[pid]
	forked := said && name != task
	switch string(m[4]) {
	case "Found":
		r.restored[pid] = task
	case "#PF at":
		r.faults.begin(task, address, at)
	case "uffd_copy:":
		size, _ := strconv.ParseUint(string(m[6]), 10, 64)
		r.faults.end(task, address, size, at)
	case "zero page at":
		r.faults.drop(task, address)
	case "UNMAP:", "REMOVE:":
		if forked {
			return
		}
		size, _ := strconv.ParseUint(string(m[6]), 16, 64)
		r.gone(pid, address, size/uint64(os.Getpagesize()))
	default:
		if !forked {
			r.ended(pid)
		}
	}
}

// followLog reads the log until done is closed, and what there is then.
func (r *logReader) followLog(path string, done <-chan struct{}) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-done:
			events.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // it can
		case <-stop:
		}
	}()
	var rest []byte
	buffer := make([]byte, 64<<10)
	for {
		last := isClosed(done)
		for {
			n, err := f.Read(buffer)
			rest = r.lines(append(rest, buffer[:n]...))
			if errors.Is(err, io.EOF) || n == 0 {
				break
			}
			if err != nil {
				return err
			}
		}
		if last {
			return nil
		}
		if _, err := events.Read(buffer); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// longestLine bounds what is kept of a line that has not ended.
const longestLine = 4096

// lines takes the whole lines from data, and returns what is left.
func (r *logReader) lines(data []byte) []byte {
	for {
		line, rest, found := bytes.Cut(data, []byte("\n"))
		if !found {
			break
		}
		r.line(line)
		data = rest
	}
	return bytes.Clone(data[:min(len(data), longestLine)])
}
