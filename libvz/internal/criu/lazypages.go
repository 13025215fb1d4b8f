package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// lazySocket is what CRIU calls the socket between a restore and the process
// that fills the memory of the restored tasks, in the work directory of each.
const lazySocket = "lazy-pages.socket"

// restoreFinished is what a restore says when all of its tasks are there, in place of
// a pid (LAZY_PAGES_RESTORE_FINISHED in CRIU's uffd.c).
const restoreFinished = 0x52535446

// LazyOptions say where the memory of a lazy restore comes from.
type LazyOptions struct {
	Images, Work string // as in Common; Work is the restore's
	// Dial connects to a PageServer. It is called when the first task is there,
	// and again whenever that connection has ended: its error, not the
	// connection's, ends the filling. nil = the memory is in the images.
	Dial func(context.Context) (net.Conn, error)
	// Holder is a command that calls Hold(3), and the arguments of it.
	Holder []string
}

// LazyPages fills the memory of tasks which run already. What fills it is bound to the
// caller's life, but not the memory: its Holder keeps tasks waiting that need what is
// missing.
type LazyPages struct {
	work     string
	images   string
	memory   *memory
	holder   *holder
	listener *net.UnixListener
	dir      *os.File
}

// StartLazyPages returns when a restore with RestoreOptions.Lazy and the same Work may
// begin.
func StartLazyPages(o LazyOptions) (_ *LazyPages, retErr error) {
	l := &LazyPages{work: o.Work, images: o.Images}
	defer func() {
		if retErr != nil {
			l.removeSocket()
		}
	}()
	var err error
	if l.dir, err = os.Open(o.Work); err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	if err := l.listen(); err != nil {
		return nil, err
	}
	if l.holder, err = startHolder(o.Holder); err != nil {
		return nil, err
	}
	dial := o.Dial
	if dial == nil {
		dial = (&imagePages{dir: o.Images}).dial
	}
	l.memory = newMemory(dial, l.holder)
	go func() {
		<-l.holder.ended
		l.memory.fail(errNoHolder)
	}()
	go func() {
		if err := l.meet(); err != nil {
			l.memory.fail(fmt.Errorf("lazy pages: %w", err))
		}
	}()
	return l, nil
}

// listen makes the socket that the restore finds.
func (l *LazyPages) listen() error {
	path := filepath.Join(l.work, lazySocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lazy pages: %w", err)
	}
	// The path may be longer than a socket's may.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(int(l.dir.Fd())) + "/" + lazySocket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("lazy pages: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	l.listener = ln
	return os.Chmod(path, 0o600)
}

// meet hears from the restore of its tasks: of each its pid, and then a userfaultfd; of
// one that is dead already the pid is negative. In the end it says that it has finished.
func (l *LazyPages) meet() error {
	conn, err := l.listener.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		var word [4]byte
		if _, err := io.ReadFull(conn, word[:]); err != nil {
			return fmt.Errorf("the restore has ended too soon: %w", err)
		}
		number := binary.NativeEndian.Uint32(word[:])
		if number == restoreFinished {
			l.memory.begin()
			return nil
		}
		if int32(number) < 0 {
			continue
		}
		fd, err := receiveRight(conn)
		if err != nil {
			return fmt.Errorf("userfaultfd of task %d: %w", number, err)
		}
		ranges, err := lazyRanges(filepath.Join(l.images, fmt.Sprintf("pagemap-%d.img", number)))
		if err != nil {
			unix.Close(fd)
			return err
		}
		if err := l.memory.add(uint64(number), ranges, fd); err != nil {
			return err
		}
	}
}

// receiveRight reads a message that carries a descriptor, which comes with one byte.
func receiveRight(conn *net.UnixConn) (int, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return -1, err
	}
	fd, ok := rightOf(rights[:n])
	if !ok {
		return -1, errors.New("there is none")
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// Wait returns when it has ended: nil when all memory is in place, which
// Confirm tells the page server. After an error the tasks wait for pages that will
// not come: end them, call GiveUp, then Release. ctx ends the waiting, not the
// filling.
func (l *LazyPages) Wait(ctx context.Context) error {
	select {
	case <-l.memory.ended:
		return l.memory.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Failure returns why not all memory comes to its place, nil as long as it may.
func (l *LazyPages) Failure() error {
	select {
	case <-l.memory.ended:
		return l.memory.err
	default:
		return nil
	}
}

// Faults tells how tasks waited for pages, after Wait.
func (l *LazyPages) Faults() *FaultStats { return l.memory.faults() }

// Confirm tells the page server that all memory is in place: then it forgets it.
// So first see to it that nothing here can fail any more.
func (l *LazyPages) Confirm() { l.memory.farewell(psClose) }

// GiveUp ends the filling, and tells the page server that the tasks do not run here, nor
// will. After an error, and only when they have been ended.
func (l *LazyPages) GiveUp() {
	l.memory.fail(errStopped)
	l.memory.farewell(psGivenUp)
}

// Pid is the holder's: as long as it lives tasks wait that need memory which is missing.
func (l *LazyPages) Pid() int { return l.holder.cmd.Process.Pid }

// Release lets go of the tasks' memory, and removes the socket.
func (l *LazyPages) Release() {
	l.memory.release()
	l.removeSocket()
}

// Stop ends the filling where it has not ended, and releases the memory. For
// a restore that failed: no task must be left that waits for memory.
func (l *LazyPages) Stop() {
	l.GiveUp()
	l.Release()
}

// errStopped is why not all memory is in place after Stop.
var errStopped = errors.New("the restore has failed")

func (l *LazyPages) removeSocket() {
	if l.listener != nil {
		l.listener.Close()
	}
	if l.dir != nil {
		l.dir.Close()
	}
	os.Remove(filepath.Join(l.work, lazySocket)) //nolint:errcheck // it is in nobody's way
}

// HasLazyPages tells whether somebody else's `criu lazy-pages` listens in work,
// as runc's users start one. It is not disturbed: it would take a connection for
// the restore's.
func HasLazyPages(work string) bool {
	dir, err := os.Open(work)
	if err != nil {
		return false
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_LOCAL, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + lazySocket})
	return errors.Is(err, unix.EPROTOTYPE) // one of another type is there
}
