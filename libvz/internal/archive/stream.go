package archive

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pipes and sockets have somebody at the other end, who may stall without going away:
// a link that hangs. A guest stands still meanwhile, so that a read or write there
// must end when its context does. The descriptors are others' as well, perhaps a
// shell's, and so they stay blocking: no flag of theirs is changed.

// lookEvery is how often one who waits for the other end looks at its context, in ms.
const lookEvery = 100

// awaitFile waits until a descriptor can be read or written, or has failed.
func awaitFile(ctx context.Context, fd int, events int16) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, lookEvery)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// unstalled reads a file, and gives up when ctx ends.
type unstalled struct {
	ctx  context.Context
	from *os.File
	conn syscall.RawConn
}

// fromFile returns what reads f until ctx ends.
func fromFile(ctx context.Context, f *os.File) (io.Reader, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &unstalled{ctx, f, conn}, nil
}

func (u *unstalled) Read(p []byte) (int, error) {
	var waited error
	// Control leaves the file as it is, other than Fd.
	err := u.conn.Control(func(fd uintptr) { waited = awaitFile(u.ctx, int(fd), unix.POLLIN) })
	if err := errors.Join(err, waited); err != nil {
		return 0, err
	}
	return u.from.Read(p)
}

// ToStream writes to a pipe or a descriptor that somebody else has opened. How
// durable it is there is that one's business; a file is synced. When ctx has ended
// nothing more is written: whoever reads must not get the rest of what was given up.
func ToStream(ctx context.Context, f *os.File) (Target, error) {
	s := &stream{ctx: ctx, file: f, own: -1}
	var err error
	if s.conn, err = f.SyscallConn(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	closed := s.conn.Control(func(fd uintptr) {
		if err = unix.Fstat(int(fd), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return
		}
		// Opened once more, a pipe can be ours alone not to block. That fails where
		// nobody reads it any more, and without /proc.
		own, failed := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if failed == nil {
			s.own = own
		}
	})
	if err := errors.Join(closed, err); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	s.kind = st.Mode & unix.S_IFMT
	return s, nil
}

type stream struct {
	ctx  context.Context
	file *os.File
	conn syscall.RawConn
	kind uint32 // of the file, S_IFMT of its mode
	own  int    // a pipe, opened once more; -1 = it was not
}

func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		var n int
		var err error
		if closed := s.conn.Control(func(fd uintptr) { n, err = s.some(int(fd), p[written:]) }); closed != nil {
			return written, closed
		}
		written += max(n, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return written, err
		}
	}
	return written, nil
}

// some writes some of p, or none of it, without a block of which ctx does not know.
func (s *stream) some(fd int, p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	var n int
	var err error
	switch {
	case s.kind == unix.S_IFSOCK:
		n, err = unix.SendmsgN(fd, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	case s.own >= 0:
		fd = s.own
		n, err = unix.Write(fd, p)
	case s.kind == unix.S_IFREG || s.kind == unix.S_IFBLK:
		n, err = unix.Write(fd, p) // a disk does not stall
	default:
		// So much a pipe has room for that can be written to (pipe(7)).
		if err := awaitFile(s.ctx, fd, unix.POLLOUT); err != nil {
			return 0, err
		}
		n, err = unix.Write(fd, p[:min(len(p), pipeBuf)])
	}
	if errors.Is(err, unix.EAGAIN) {
		return 0, awaitFile(s.ctx, fd, unix.POLLOUT)
	}
	if err != nil {
		err = &os.PathError{Op: "write", Path: s.file.Name(), Err: err}
	}
	return n, err
}

// pipeBuf is PIPE_BUF of limits.h.
const pipeBuf = 4096

func (s *stream) wholeHash() hash.Hash { return nil }

func (s *stream) commit(hash.Hash) error {
	s.Discard()
	if err := s.file.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

func (s *stream) Discard() {
	if s.own >= 0 {
		unix.Close(s.own) //nolint:errcheck // a pipe has nothing to say
		s.own = -1
	}
}
