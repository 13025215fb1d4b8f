package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// LogName is the file in a container's state directory with the newest
	// output, oldName the one before it.
	LogName = "console.log"
	oldName = LogName + ".1"
	// generation is the size in bytes at which a file gives way to a new
	// one. So at least that much of the newest output is kept, and at most
	// twice as much.
	generation = 128 << 10
	// MaxLog is the most that is kept of one console, in bytes.
	MaxLog = 2 * generation
)

// Log keeps the newest output of a console in two plain files of a directory.
// They can be read without asking their writer, and outlive it.
type Log struct {
	dir  string
	file *os.File
	size int64
}

// OpenLog goes on with the log in dir, or begins it.
func OpenLog(dir string) (*Log, error) {
	f, err := os.OpenFile(filepath.Join(dir, LogName), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Log{dir: dir, file: f, size: size}, nil
}

// Write appends p. It never returns a short count without an error.
func (l *Log) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if l.size >= generation {
			if err := l.turn(); err != nil {
				return written, err
			}
		}
		n, err := l.file.Write(p[:min(int64(len(p)), generation-l.size)])
		written += n
		l.size += int64(n)
		p = p[n:]
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// turn makes the full file the old one.
func (l *Log) turn() error {
	path := filepath.Join(l.dir, LogName)
	// One that failed half-way has moved it already.
	if err := os.Rename(path, filepath.Join(l.dir, oldName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.file.Close()
	l.file, l.size = f, 0
	return nil
}

// Close closes the file. What is in it stays.
func (l *Log) Close() error { return l.file.Close() }

// reader reads a log that somebody else may be writing.
type reader struct {
	dir  string
	file *os.File // what is read on from
}

// openTries bounds how often openPair finds the log turning.
const openTries = 100

// openPair opens the newest file and the one before it, nil where there is
// none. A turn between the two would make one file both, so it tries again.
func openPair(dir string) (old, newest *os.File, err error) {
	for n := 1; ; n++ {
		newest, err = os.Open(filepath.Join(dir, LogName))
		if errors.Is(err, fs.ErrNotExist) {
			// It may be turning this moment, or its writer died in it.
			newest, err = os.Open(filepath.Join(dir, oldName))
			if err == nil && n < openTries {
				newest.Close()
				continue
			}
			return nil, newest, err
		}
		if err != nil {
			return nil, nil, err
		}
		old, err = os.Open(filepath.Join(dir, oldName))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, newest, nil
		}
		if err != nil {
			newest.Close()
			return nil, nil, err
		}
		if !sameFile(old, newest) {
			return old, newest, nil
		}
		old.Close()
		newest.Close()
	}
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// CopyLog writes what is kept in dir to w, the last lines of it only where
// lines is not negative. With follow it goes on with what is added until ctx
// ends, or the log is removed. The error is fs.ErrNotExist where nothing is
// kept.
func CopyLog(ctx context.Context, w io.Writer, dir string, lines int, follow bool) error {
	var events *os.File
	if follow {
		var err error
		// Before the first look, so that nothing is missed.
		if events, err = watch(dir); err != nil {
			return err
		}
		defer events.Close()
	}
	old, newest, err := openPair(dir)
	if err != nil {
		return err
	}
	r := &reader{dir: dir, file: newest}
	defer func() { r.file.Close() }()
	var kept []byte
	if old != nil {
		kept, err = io.ReadAll(io.LimitReader(old, generation))
		old.Close()
		if err != nil {
			return err
		}
	}
	more, err := io.ReadAll(io.LimitReader(newest, MaxLog))
	if err != nil {
		return err
	}
	if _, err := w.Write(Tail(append(kept, more...), lines)); err != nil || !follow {
		return err
	}
	return r.follow(ctx, w, events)
}

// Tail returns the last n lines of data; all of it where n is negative. What
// stands behind the last newline is a line, too.
func Tail(data []byte, n int) []byte {
	if n < 0 {
		return data
	}
	begin := len(data)
	end := len(data)
	for range n {
		if end > 0 && data[end-1] == '\n' {
			end--
		}
		begin = bytes.LastIndexByte(data[:end], '\n') + 1
		end = begin
	}
	return data[begin:]
}

// watch tells of changes in dir, inotify(7).
func watch(dir string) (*os.File, error) {
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

func (r *reader) follow(ctx context.Context, w io.Writer, events *os.File) error {
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // an inotify descriptor can be polled
	defer stop()
	buffer := make([]byte, 4096)
	for {
		_, err := events.Read(buffer)
		over := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !over {
			return fmt.Errorf("watch %s: %w", r.dir, err)
		}
		// Also when it is over: the last words may have come just before.
		gone, err := r.copyNew(w)
		if err != nil || over || gone {
			return err
		}
	}
}

// copyNew copies what was added; gone says that there will be no more.
func (r *reader) copyNew(w io.Writer) (gone bool, err error) {
	for {
		// The name first: what is written until it is found to have moved on
		// is read from the old file before it is left.
		next, err := os.Open(filepath.Join(r.dir, LogName))
		missing := errors.Is(err, fs.ErrNotExist)
		if err != nil && !missing {
			return false, err
		}
		if _, err := io.Copy(w, r.file); err != nil {
			if next != nil {
				next.Close()
			}
			return false, err
		}
		if missing {
			_, err := os.Lstat(filepath.Join(r.dir, oldName))
			return errors.Is(err, fs.ErrNotExist), nil
		}
		if sameFile(next, r.file) {
			next.Close()
			return false, nil
		}
		r.file.Close()
		r.file = next
	}
}
