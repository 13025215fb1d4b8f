// Package wire carries a migration between two hosts: one connection, on which
// a dialogue of control messages and any number of streams of bytes go side by
// side. It knows in which order messages may come and what the loss of the
// connection means at each moment; it knows no container, and what is in the
// streams is its callers' affair.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Version is that of the protocol. Both sides must have the same.
const Version = 1

var (
	// ErrForeign says that the other side does not speak this protocol, or
	// another version of it.
	ErrForeign = errors.New("the other side does not speak vzrun's migration protocol")
	// ErrProtocol says that the other side broke the protocol's rules.
	ErrProtocol = errors.New("the other side broke the migration protocol")
	// ErrLost says that the connection is gone.
	ErrLost = errors.New("connection to the other side lost")
)

// The first bytes on a connection, in both directions. They tell at once a
// greeting of some shell, or another protocol, from a vzrun.
var greeting = []byte(fmt.Sprintf("vzrun-migration/%d\n", Version))

const (
	// greetingPatience is how long the other side may take to start, which
	// includes the login of ssh.
	greetingPatience = 60 * time.Second
	// A connection on which nothing arrives for linkPatience is lost; each
	// side sends something every linkPulse.
	linkPulse    = time.Second
	linkPatience = 10 * time.Second

	streamWindow = 4 << 20
	allWindows   = 16 << 20
	frameSize    = 60 << 10
)

// Role says which side of a migration one is.
type Role int

// The two roles.
const (
	Source Role = iota
	Destination
)

// Session is one connection. Its methods may be called from any goroutine.
type Session struct {
	mux  *smux.Session
	conn *link
	role Role
	// alive ends with the connection.
	alive    context.Context
	dialogue atomic.Pointer[Control]
	// Of SetShape.
	compression string
	limiter     *rate.Limiter
}

// New greets the other side and returns the session. It closes conn where it
// returns an error, and waits for the other side for a minute.
func New(conn io.ReadWriteCloser, role Role) (*Session, error) {
	if err := greet(conn); err != nil {
		conn.Close()
		return nil, err
	}
	widen(conn)
	l := &link{ReadWriteCloser: conn, failed: make(chan struct{})}
	config := smux.DefaultConfig()
	config.Version = 2 // with a window for each stream: one that nobody reads holds up no other
	config.KeepAliveInterval, config.KeepAliveTimeout = linkPulse, linkPatience
	config.MaxFrameSize, config.MaxStreamBuffer, config.MaxReceiveBuffer = frameSize, streamWindow, allWindows
	open := smux.Client
	if role == Destination {
		open = smux.Server
	}
	mux, err := open(l.vectored(), config)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("multiplex connection: %w", err)
	}
	alive, end := context.WithCancel(context.Background())
	go func() {
		<-l.failed
		end()
		mux.Close() // it does so itself only when it has something to send
	}()
	return &Session{mux: mux, conn: l, role: role, alive: alive}, nil
}

// socketBuffer is how many bytes a unix socket takes that have not been read, so that the
// two sides work at the same time. Those of the network find that out themselves.
const socketBuffer = 1 << 20

// widen makes the buffer of a unix socket so large. Without CAP_NET_ADMIN it stays as it is.
func widen(conn io.ReadWriteCloser) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck // it is as good without
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) //nolint:errcheck // likewise
	})
}

// link notices the end of the connection under a session, counts, and has what is in bulk
// go between the frames of the multiplexer, which alone reads it.
type link struct {
	io.ReadWriteCloser
	failed  chan struct{}
	once    sync.Once
	sent    atomic.Int64 // bytes
	writing sync.Mutex   // one frame at a time
	bulk    atomic.Pointer[bulk]
	// Of the frame that the multiplexer reads: its head, and what is left of both.
	head     [headSize]byte
	headLeft []byte
	left     int
}

func (l *link) note(n int, err error) (int, error) {
	if err != nil {
		l.once.Do(func() { close(l.failed) })
	}
	return n, err
}

func (l *link) Read(b []byte) (int, error) {
	if len(l.headLeft) == 0 && l.left == 0 {
		if err := l.readHead(); err != nil {
			return l.note(0, err)
		}
	}
	if len(l.headLeft) > 0 {
		n := copy(b, l.headLeft)
		l.headLeft = l.headLeft[n:]
		return n, nil
	}
	n, err := l.ReadWriteCloser.Read(b[:min(len(b), l.left)])
	l.left -= n
	return l.note(n, err)
}

func (l *link) Write(b []byte) (int, error) { return l.write(b) }

// write writes one frame. The parts of it go without being copied into one, where the
// connection is a plain socket.
func (l *link) write(parts ...[]byte) (int, error) {
	buffers := net.Buffers(parts)
	l.writing.Lock()
	defer l.writing.Unlock()
	var n int64
	var err error
	if conn, ok := l.ReadWriteCloser.(*secured); ok {
		n, err = conn.writeTogether(buffers)
	} else {
		n, err = buffers.WriteTo(l.ReadWriteCloser)
	}
	l.sent.Add(n)
	return l.note(int(n), err)
}

// vectored returns the link as one whose writes are gathered, if it is a plain socket:
// frames go without being copied to their headers first.
func (l *link) vectored() io.ReadWriteCloser {
	switch l.ReadWriteCloser.(type) {
	case *net.UnixConn, *net.TCPConn:
		return &vectoredLink{l}
	}
	return l
}

// vectoredLink is what smux looks for.
type vectoredLink struct{ *link }

// WriteBuffers writes all of v, and leaves v as it is.
func (l *vectoredLink) WriteBuffers(v [][]byte) (int, error) {
	return l.write(append([][]byte{}, v...)...) // it is used up
}

func (l *link) Close() error {
	err := l.ReadWriteCloser.Close()
	l.once.Do(func() { close(l.failed) })
	return err
}

// greet exchanges greetings. A connection knows no deadlines (it may be two
// pipes), so one that stays silent is closed.
func greet(conn io.ReadWriteCloser) error {
	var once sync.Once
	silent := false
	timer := time.AfterFunc(greetingPatience, func() { once.Do(func() { silent = true; conn.Close() }) })
	defer timer.Stop()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(greeting)
		sent <- err
	}()
	got := make([]byte, len(greeting))
	n, err := io.ReadFull(conn, got)
	once.Do(func() {})
	switch {
	case silent:
		return fmt.Errorf("%w: it said nothing for %v", ErrForeign, greetingPatience)
	case string(got[:n]) != string(greeting[:n]):
		return fmt.Errorf("%w: it began with %q", ErrForeign, got[:n])
	case err != nil:
		return fmt.Errorf("%w before it began: %w", ErrLost, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("%w before it began: %w", ErrLost, err)
	}
	return nil
}

// Lost is closed when the connection is.
func (s *Session) Lost() <-chan struct{} { return s.mux.CloseChan() }

// lingerPatience bounds the wait for the other side to hang up.
const lingerPatience = 5 * time.Second

// Linger waits until the other side has hung up. Who says the last word calls it
// before Close: what has arrived when a connection ends need not be read any more.
func (s *Session) Linger() {
	if c := s.dialogue.Load(); c != nil {
		c.stream.CloseWrite() //nolint:errcheck // a connection that is gone says as much
	}
	select {
	case <-s.Lost():
	case <-time.After(lingerPatience):
	}
}

// Close ends the connection and all of its streams. Where the other side has had the
// last word it waits until that side knows that it has said it: of a connection that
// ends meanwhile it could not tell.
func (s *Session) Close() error {
	if c := s.dialogue.Load(); c != nil && c.heardLast.Swap(false) {
		c.awaitEnd()
	}
	err := s.mux.Close()
	s.conn.Close() // a pipe that is closed already says so
	return err
}

// lost makes errors of a connection that is gone recognisable.
func lost(err error) error {
	if err == nil || errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}
