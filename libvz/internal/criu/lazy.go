package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A lazy dump leaves most of the memory out of the images. CRIU stays, with the
// tasks stopped, and hands pages out to LazyPages (or a `criu lazy-pages`) of the other
// side, which puts them where the restored tasks fault.
//
// What CRIU 4.2 makes of it, read in its source and tried (docs/decisions/0021):
// its page server ends well, and ends the tasks, as soon as it reads the end of
// its connection or a word of farewell; and the other side says farewell after
// a failure too. Neither says that the memory has arrived. So CRIU never sees
// the other side's connection: it serves a socket of ours, PageServer answers what it
// can itself, moves other requests and their pages between the two and keeps the farewell
// back, and only when DumpOptions.Lazy has returned nil is that socket shut down. That is
// the commit of a lazy dump. Until then the tasks can go on here: CRIU is killed, which
// leaves them as they were when it had stopped them.

var (
	// ErrPeerGone says that the other side of a lazy dump went away without
	// a word: it may run, or not.
	ErrPeerGone = errors.New("the connection for pages was cut")
	// ErrPeerFailed says that the other side does not run, and never will.
	ErrPeerFailed = errors.New("the other side could not restore")
)

// PageServer is the memory of a lazy dump, whose tasks CRIU keeps stopped. It
// hands out a page as often as it is asked to: CRIU keeps all of them.
type PageServer struct {
	conn  *net.UnixConn
	tasks stopped
	sent  atomic.Int64
	once  sync.Once // begins answer
	mu    sync.Mutex
	owed  []net.Conn // who made the requests that CRIU has not answered, in order
	peer  net.Conn   // who may make more; nil: nobody
}

// ReadFrom names the tasks, so that their memory can be read without CRIU. It is to be
// called before Serve, if at all, while they are stopped.
func (p *PageServer) ReadFrom(tasks []Task) {
	p.tasks.close()
	p.tasks = stoppedOf(tasks)
}

// Sent returns how many bytes of memory have gone to other sides.
func (p *PageServer) Sent() int64 { return p.sent.Load() }

// Serve answers the requests of one LazyPages on peer until that has all it
// needs (nil), has failed (ErrPeerFailed), the connection ends (ErrPeerGone) or
// ctx does. A bare `criu lazy-pages` says that it has all after a failure, too.
// peer is closed then. After ErrPeerGone it may be called again, with a connection
// on which what was not answered is asked again.
func (p *PageServer) Serve(ctx context.Context, peer net.Conn) error {
	out := sendTo(peer)
	defer func() {
		peer.Close()
		out.stop()
	}()
	stop := context.AfterFunc(ctx, func() { peer.Close() })
	defer stop()
	p.mu.Lock()
	p.peer = peer
	p.mu.Unlock()
	p.once.Do(func() { go p.answer() })
	var request pageMessage
	for {
		if _, err := io.ReadFull(peer, request[:]); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %w", ErrPeerGone, err)
		}
		switch command := request.command(); {
		case command == psGet && request.count() > 0:
			if err := p.get(peer, &request, out); err != nil {
				return err
			}
		case command == psClose || command == psForceClose:
			out.drain()
			// It waits for a status; that it is gone by then is as well.
			peer.Write(make([]byte, 4)) //nolint:errcheck // see above
			return nil
		case command == psGivenUp:
			return ErrPeerFailed
		default:
			return fmt.Errorf("unknown request %#x for %d pages", command, request.count())
		}
	}
}

// get answers a request, or has CRIU answer it: also where that has others to answer,
// which come first.
func (p *PageServer) get(peer net.Conn, request *pageMessage, out *sending) error {
	p.mu.Lock()
	isFirst := len(p.owed) == 0
	p.mu.Unlock()
	if isFirst {
		buffer, head := <-out.free, len(request)
		most := min(request.bytes(), int64(len(buffer)-head))
		if n := p.tasks.read(request.task(), request.address(), buffer[head:][:most]); n > 0 {
			message := messageOf(psAdd, span{request.task(), request.address(), n / os.Getpagesize()})
			copy(buffer, message[:])
			p.sent.Add(int64(n))
			out.full <- buffer[:head+n]
			return nil
		}
		out.free <- buffer
		out.drain()
	}
	p.mu.Lock()
	p.owed = append(p.owed, peer)
	p.mu.Unlock()
	if _, err := p.conn.Write(request[:]); err != nil {
		return fmt.Errorf("criu went away: %w", err)
	}
	return nil
}

// sending writes one answer while the next one is read.
type sending struct {
	free  chan []byte
	full  chan []byte
	ended chan struct{}
}

const (
	// answerPages is how many pages there are in an answer at most, as many as LazyPages
	// asks for: a buffer for more would not stay in a processor's cache.
	answerPages = piecePages
	// answers is how many there may be: one that is read, and one that is written.
	answers = 2
)

// sendTo begins. When peer does not take an answer it is closed, which its reader notices.
func sendTo(peer io.WriteCloser) *sending {
	s := &sending{free: make(chan []byte, answers), full: make(chan []byte, answers), ended: make(chan struct{})}
	for range answers {
		s.free <- make([]byte, len(pageMessage{})+answerPages*os.Getpagesize())
	}
	go func() {
		defer close(s.ended)
		for answer := range s.full {
			if _, err := peer.Write(answer); err != nil {
				peer.Close()
			}
			s.free <- answer[:cap(answer)]
		}
	}()
	return s
}

// drain returns when all has been written.
func (s *sending) drain() {
	var all [answers][]byte
	for i := range all {
		all[i] = <-s.free
	}
	for _, buffer := range all {
		s.free <- buffer
	}
}

// stop returns when nothing is written any more. The connection has to be closed first,
// where it may not take what is left.
func (s *sending) stop() {
	close(s.full)
	<-s.ended
}

// forwardBuffer is how many bytes are moved at a time.
const forwardBuffer = 512 << 10

// answer moves the answers of CRIU to those who asked, as long as there are any:
// what nobody waits for any more is read all the same, so that the next answer
// begins where it should.
func (p *PageServer) answer() {
	var head pageMessage
	buffer := make([]byte, forwardBuffer)
	for {
		if _, err := io.ReadFull(p.conn, head[:]); err != nil {
			break
		}
		p.mu.Lock()
		if len(p.owed) == 0 {
			p.mu.Unlock()
			break // that is no page server
		}
		peer := p.owed[0]
		p.mu.Unlock()
		n := head.bytes()
		left, err := forward(peer, p.conn, &head, n, buffer)
		p.sent.Add(n - left)
		if err != nil || left > 0 {
			peer.Close()
			if _, err := io.CopyN(io.Discard, p.conn, left); err != nil {
				break
			}
		}
		p.mu.Lock()
		p.owed = p.owed[1:]
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peer != nil {
		p.peer.Close()
	}
}

// forward moves one answer, by way of a buffer, and returns how many bytes of it are
// still to be read.
func forward(to io.Writer, from io.Reader, head *pageMessage, n int64, buffer []byte) (left int64, err error) {
	filled := copy(buffer, head[:])
	for left = n; ; {
		if left > 0 {
			got, err := from.Read(buffer[filled:min(int64(len(buffer)), int64(filled)+left)])
			left -= int64(got)
			filled += got
			if err != nil {
				return left, err
			}
		}
		if _, err := to.Write(buffer[:filled]); err != nil || left == 0 {
			return left, err
		}
		filled = 0
	}
}

// lazyDump is the state of DumpOptions.Lazy during one dump.
type lazyDump struct {
	serve        func(context.Context, *PageServer) error
	mine, theirs *os.File
	server       *PageServer
	done         chan error // nil until serve runs
	cancel       context.CancelFunc
}

// prepareLazy makes the socket that CRIU serves. RPC has no field for it in a
// lazy dump (it takes the address away, too: CRIU would listen to anybody), the
// configuration file has. CRIU inherits both ends: so that its page server does
// not read the end of its connection, and does not end the tasks, when it is us
// who are killed.
func (o *DumpOptions) prepareLazy() (_ *lazyDump, retErr error) {
	l := &lazyDump{serve: o.Lazy}
	defer func() {
		if retErr != nil {
			l.close()
		}
	}()
	fds, err := unix.Socketpair(unix.AF_LOCAL, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	l.mine, l.theirs = os.NewFile(uintptr(fds[0]), "pages"), os.NewFile(uintptr(fds[1]), "criu-pages")
	conn, err := net.FileConn(l.mine)
	if err != nil {
		return nil, fmt.Errorf("socket for pages: %w", err)
	}
	widen(l.mine, l.theirs)
	l.server = &PageServer{conn: conn.(*net.UnixConn)}
	return l, nil
}

// begin runs serve beside the dump, whose images are complete.
func (l *lazyDump) begin(ctx context.Context, kill func() error) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.done = make(chan error, 1)
	go func() {
		err := l.serve(ctx, l.server)
		if err == nil {
			err = l.server.conn.CloseWrite() // the commit
		}
		if err != nil {
			// There is no other way out of its page server that leaves the
			// tasks alive.
			err = errors.Join(err, kill())
		}
		l.done <- err
	}()
}

// wait returns what serve did, after CRIU has ended with err.
func (l *lazyDump) wait(err error) error {
	if l.done == nil {
		return err
	}
	select {
	case served := <-l.done:
		if served != nil {
			return &refusal{served}
		}
	default: // it was criu that ended
		l.cancel()
		if served := <-l.done; err == nil && served != nil {
			return &refusal{served}
		}
	}
	return err
}

func (l *lazyDump) close() {
	if l.cancel != nil {
		l.cancel()
	}
	if l.server != nil {
		l.server.conn.Close()
		l.server.tasks.close()
	}
	for _, f := range []*os.File{l.mine, l.theirs} {
		if f != nil {
			f.Close()
		}
	}
}

// pairBuffer is how many bytes a socket for pages takes, so that neither side waits for
// the other all the time.
const pairBuffer = 4 << 20

// widen sets the buffers of sockets for pages. Without CAP_NET_ADMIN, or with a
// smaller limit, they stay as they are.
func widen(sockets ...*os.File) {
	for _, f := range sockets {
		unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pairBuffer) //nolint:errcheck // see above
		unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, pairBuffer) //nolint:errcheck // see above
	}
}
