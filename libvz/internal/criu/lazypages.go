package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lazySocket is what CRIU calls the socket between a restore and the process
// that fills the memory of the restored tasks, in the work directory of each.
const lazySocket = "lazy-pages.socket"

// LazyLog is the log of that process, in the work directory.
const LazyLog = "lazy-pages.log"

// lazyDir is its own work directory, in the one of the restore: the socket there
// is criu's, the one above ours.
const lazyDir = "lazy-pages"

// LazyOptions say where the memory of a lazy restore comes from.
type LazyOptions struct {
	Criu         string
	Images, Work string // as in Common; Work is the restore's
	// Dial connects to a PageServer. It is called when the first page is asked
	// for, and again whenever that connection has ended: its error, not the
	// connection's, ends the process. nil = the memory is in the images.
	Dial func(context.Context) (net.Conn, error)
}

// LazyPages is a `criu lazy-pages` process that fills the memory of tasks which
// run already. It is not bound to the caller's life: where that is killed, it
// goes on with what is in the images, and waits for what is not.
//
// When such a process fails, or is killed, the kernel fills what is missing with
// zeroes: tasks would go on with memory that is not theirs. So the connection
// of the restore runs through here, and the userfaultfds that pass are kept
// open until their task has all, or Release: tasks that need a missing page wait, and
// can be ended. (A task that was forked since has one that only criu has.) No other process can
// take over: it could not know which pages were filled or given up since.
type LazyPages struct {
	cmd      *exec.Cmd
	work     string
	relay    *pageRelay    // nil: the memory is in the images
	fetched  chan struct{} // closed when relay has ended
	fetchErr error         // why no more pages came, valid then
	listener *net.UnixListener
	dir      *os.File
	held     holds
	logged   chan struct{} // closed when the log has been read
	faults   *FaultStats   // valid then
	ended    chan struct{}
	err      error // of the process, valid when ended is closed
}

// StartLazyPages starts the process and returns when a restore with
// RestoreOptions.Lazy and the same Work may begin.
func StartLazyPages(ctx context.Context, o LazyOptions) (_ *LazyPages, retErr error) {
	l := &LazyPages{work: o.Work, held: holds{images: o.Images}, ended: make(chan struct{}), fetched: make(chan struct{}), logged: make(chan struct{})}
	defer func() {
		if retErr != nil {
			l.removeSockets()
		}
	}()
	inner := filepath.Join(o.Work, lazyDir)
	if err := os.Mkdir(inner, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create work directory: %w", err)
	}
	var err error
	if l.dir, err = os.Open(o.Work); err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	if err := l.listen(); err != nil {
		return nil, err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	err = l.start(o, inner, theirs)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if err := l.awaitReady(ctx, ready); err != nil {
		return nil, errors.Join(err, l.Stop())
	}
	go l.pass()
	go l.readLog()
	if l.relay != nil {
		go l.expect(o.Images)
	}
	return l, nil
}

// expect tells the relay which pages have to come. What it is not told of CRIU asks
// for all the same.
func (l *LazyPages) expect(images string) {
	names, _ := filepath.Glob(filepath.Join(images, "pagemap-*.img")) //nolint:errcheck // the pattern is well-formed
	for _, name := range names {
		task, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "pagemap-"), ".img"), 10, 64)
		if err != nil {
			continue // of memory that is shared
		}
		if ranges, err := lazyRanges(name); err == nil {
			l.relay.expect(task, ranges)
		}
	}
}

// pairBuffer is how many bytes a pair of sockets takes that leads to a criu, so that
// neither side waits for the other all the time.
const pairBuffer = 4 << 20

// widen sets the buffers of a pair of sockets. Without CAP_NET_ADMIN, or with a
// smaller limit, they stay as they are.
func widen(pair ...*os.File) {
	for _, f := range pair {
		unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pairBuffer) //nolint:errcheck // see above
		unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, pairBuffer) //nolint:errcheck // see above
	}
}

// readLog follows what the process says, to its end.
func (l *LazyPages) readLog() {
	defer close(l.logged)
	r := newLogReader(l.held.arrived, func(pid uint64) {
		l.held.end(pid)
		if l.relay != nil {
			l.relay.forget(pid)
		}
	})
	if r.followLog(filepath.Join(l.work, LazyLog), l.ended) == nil {
		l.faults = summarize(r.faults.waits)
	}
}

// Faults tells how tasks waited for pages, after Wait; nil where that is not known.
func (l *LazyPages) Faults() *FaultStats {
	<-l.logged
	return l.faults
}

// listen makes the socket that the restore finds.
func (l *LazyPages) listen() error {
	path := filepath.Join(l.work, lazySocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lazy pages: %w", err)
	}
	// The path may be longer than a socket's may.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: l.short(lazySocket), Net: "unix"})
	if err != nil {
		return fmt.Errorf("lazy pages: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	l.listener = ln
	return os.Chmod(path, 0o600)
}

func (l *LazyPages) short(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(l.dir.Fd())) + "/" + name
}

func (l *LazyPages) start(o LazyOptions, inner string, status *os.File) error {
	args := []string{
		"lazy-pages", "--images-dir", o.Images, "--work-dir", inner,
		"--log-file", "../" + LazyLog, "-v4", "--status-fd", "3",
	}
	files := []*os.File{status}
	if o.Dial != nil {
		fds, err := unix.Socketpair(unix.AF_LOCAL, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socketpair: %w", err)
		}
		theirs, mine := os.NewFile(uintptr(fds[0]), "criu-pages"), os.NewFile(uintptr(fds[1]), "pages")
		defer theirs.Close()
		defer mine.Close()
		conn, err := net.FileConn(mine)
		if err != nil {
			return fmt.Errorf("socket for pages: %w", err)
		}
		widen(theirs, mine)
		args = append(args, "--page-server", "--ps-socket", "4")
		// Both ends: were the other one only ours, criu would fail when we are
		// killed, and zeroes would be the rest of the memory.
		files = append(files, theirs, mine)
		l.relay = newPageRelay(conn, o.Dial, l.held.arrived)
		defer func() { go l.fetch() }()
	}
	l.cmd = exec.Command(o.Criu, args...)
	l.cmd.ExtraFiles = files
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.cmd.Start(); err != nil {
		return fmt.Errorf("start criu lazy-pages: %w", err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.ended)
	}()
	return nil
}

// fetch relays for criu until it ends. Where no more pages come it is killed, as it
// would wait for ever; the tasks wait until Release.
func (l *LazyPages) fetch() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-l.ended // criu has the other end of its socket, too
		cancel()
	}()
	l.fetchErr = l.relay.run(ctx)
	if l.fetchErr != nil {
		l.cmd.Process.Kill() //nolint:errcheck // it may have ended
	}
	close(l.fetched)
}

// awaitReady waits for the byte by which criu says that its socket is there.
func (l *LazyPages) awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a pipe can
	defer stop()
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return explain("lazy-pages", filepath.Join(l.work, LazyLog), fmt.Errorf("criu lazy-pages did not begin: %w", err))
	}
	return nil
}

// pass moves what the restore says to criu, and keeps the userfaultfds that it
// sends.
func (l *LazyPages) pass() {
	from, err := l.listener.AcceptUnix()
	if err != nil {
		return
	}
	defer from.Close()
	to, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.short(lazyDir + "/" + lazySocket), Net: "unix"})
	if err != nil {
		return // criu has ended: Wait says so, and the restore fails
	}
	defer to.Close()
	// No longer than a number, which comes before each descriptor: read in one
	// go with it, the descriptor would go to whom the number is for.
	buf, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	pid := uint64(0)
	for {
		n, oobn, _, _, err := from.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		if oobn > 0 {
			l.hold(pid, oob[:oobn])
		} else if n == len(buf) {
			pid = uint64(binary.NativeEndian.Uint32(buf))
		}
		if _, _, err := to.WriteMsgUnix(buf[:n], oob[:oobn], nil); err != nil {
			return
		}
	}
}

func (l *LazyPages) hold(pid uint64, oob []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				l.held.add(pid, fd)
			}
		}
	}
}

// Wait returns when the process has ended: nil when all memory is in place, which
// Confirm tells the page server. After an error the tasks wait for pages that will
// not come: end them, call GiveUp, then Release. ctx ends the waiting, not the
// process.
func (l *LazyPages) Wait(ctx context.Context) error {
	select {
	case <-l.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.err == nil {
		return nil
	}
	if l.relay != nil {
		<-l.fetched
	}
	if l.fetchErr != nil {
		return l.fetchErr
	}
	return explain("lazy-pages", filepath.Join(l.work, LazyLog), fmt.Errorf("criu lazy-pages: %w", l.err))
}

// Confirm tells the page server that all memory is in place: then it forgets it.
// So first see to it that nothing here can fail any more.
func (l *LazyPages) Confirm() { l.farewell(psClose) }

// GiveUp tells the page server that the tasks do not run here, nor will. After an
// error, and only when they have been ended.
func (l *LazyPages) GiveUp() { l.farewell(psGivenUp) }

// farewell says the last word; after the first there is none.
func (l *LazyPages) farewell(command uint32) {
	if l.relay != nil {
		l.relay.farewell(command)
	}
}

// Pid is the process's.
func (l *LazyPages) Pid() int { return l.cmd.Process.Pid }

// Release lets go of the tasks' memory, and removes the sockets.
func (l *LazyPages) Release() {
	l.held.release()
	l.removeSockets()
}

// Stop kills the process where it has not ended, and releases what it held. For
// a restore that failed: no task must be left that waits for memory.
func (l *LazyPages) Stop() error {
	err := l.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err == nil {
		<-l.ended
	}
	l.GiveUp()
	l.Release()
	return err
}

func (l *LazyPages) removeSockets() {
	if l.listener != nil {
		l.listener.Close()
	}
	if l.dir != nil {
		l.dir.Close()
	}
	// Only sockets and an empty directory: what is left is in nobody's way.
	os.Remove(filepath.Join(l.work, lazySocket))
	os.Remove(filepath.Join(l.work, lazyDir, lazySocket))
	os.Remove(filepath.Join(l.work, lazyDir))
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
