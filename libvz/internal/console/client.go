package console

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A packet is a message on the console's socket: its kind and what belongs to
// it.
const (
	packetHello  byte = 'h' // from the server, first: it is attached
	packetOutput byte = 'o' // from the server: bytes
	packetEnd    byte = 'e' // from the server: the guest has ended
	packetLeft   byte = 'l' // from the server: it gives the console away
	packetInput  byte = 'i' // from a client: bytes
	packetSize   byte = 's' // from a client: rows and columns, two bytes each, big endian
	maxPacket         = 1 + 8192
)

// ErrLeft says that the server has given the console away, while the guest
// goes on.
var ErrLeft = errors.New("the console has another holder now")

// client is somebody who watches.
type client struct {
	queue   chan []byte
	skipped atomic.Int64 // bytes that found no room in the queue
	out     io.Writer
	conn    *net.UnixConn // nil for our own stdout
	last    atomic.Int32  // the packet that says why it is over
}

// offer queues a copy of p, or skips it where the client is too far behind.
func (c *client) offer(p []byte) {
	select {
	case c.queue <- append([]byte(nil), p...):
	default:
		c.skipped.Add(int64(len(p)))
	}
}

// serve writes what is in the queue until it is closed. A client that takes
// nothing keeps this goroutine and nothing else waiting.
func (c *client) serve() {
	broken := false
	if c.conn != nil {
		_, err := c.conn.Write([]byte{packetHello})
		broken = err != nil
	}
	for p := range c.queue {
		if broken {
			continue // until the server notices
		}
		_, err := c.out.Write(p)
		if n := c.skipped.Swap(0); n > 0 && err == nil {
			_, err = fmt.Fprintf(c.out, "\r\n[vzrun: %d bytes of output skipped]\r\n", n)
		}
		broken = err != nil
	}
	if c.conn == nil {
		return
	}
	if last := byte(c.last.Load()); last != 0 && !broken {
		c.conn.Write([]byte{last}) //nolint:errcheck // it may have gone
	}
	c.conn.Close()
}

// dismiss bounds what is left to be done for the client.
func (c *client) dismiss(why byte) {
	c.last.Store(int32(why))
	if c.conn != nil {
		c.conn.SetWriteDeadline(time.Now().Add(farewell)) //nolint:errcheck // a socket can be polled
	}
}

// packets sends output as packets.
type packets struct{ to io.Writer }

func (w packets) Write(p []byte) (int, error) {
	if _, err := w.to.Write(append([]byte{packetOutput}, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *Server) accept() {
	for {
		conn, err := s.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Too many open files, say: those who have it keep it.
			time.Sleep(farewell)
			continue
		}
		c := &client{queue: make(chan []byte, queueLength), out: packets{conn}, conn: conn}
		if !ownPeer(conn) || !s.add(c, maxClients) {
			conn.Close()
			continue
		}
		go s.listenTo(c)
	}
}

// ownPeer tells whether the other side is the user that we are: the socket is
// closed to others already, unless somebody has opened the directory.
func ownPeer(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return err == nil && failed == nil && int(peer.Uid) == os.Geteuid()
}

func (s *Server) listenTo(c *client) {
	defer s.remove(c)
	buffer := make([]byte, maxPacket)
	for {
		n, err := c.conn.Read(buffer)
		if err != nil || n == 0 {
			// A client that has gone may have left a write waiting.
			c.conn.SetWriteDeadline(time.Unix(1, 0)) //nolint:errcheck // a socket can be polled
			return
		}
		switch body := buffer[1:n]; {
		case buffer[0] == packetInput:
			s.Input(body)
		case buffer[0] == packetSize && len(body) == 4:
			s.Resize(binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])) //nolint:errcheck // a terminal of the wrong size is better than none
		}
	}
}

// Client is the other end of a Server's socket.
type Client struct{ conn *net.UnixConn }

// ErrFull says that a console has as many clients as it can have, or is ending.
var ErrFull = errors.New("the console takes no more clients")

// dialPatience is for a server that was stopped.
const dialPatience = 5 * time.Second

// Dial attaches to the console served in a container's state directory: what is
// written to it from then on comes. The error wraps fs.ErrNotExist or ECONNREFUSED
// where nobody serves it, ErrFull, or os.ErrDeadlineExceeded where nobody answers.
func Dial(dir string) (*Client, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	hello := make([]byte, maxPacket)
	conn.SetReadDeadline(time.Now().Add(dialPatience)) //nolint:errcheck // a socket can be polled
	n, err := conn.Read(hello)
	conn.SetReadDeadline(time.Time{}) //nolint:errcheck // see above
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET):
		conn.Close()
		return nil, err
	case err != nil || n == 0 || hello[0] != packetHello:
		conn.Close()
		return nil, ErrFull
	}
	return &Client{conn}, nil
}

// Write types p on the console.
func (c *Client) Write(p []byte) (int, error) {
	for at := 0; at < len(p); at += maxPacket - 1 {
		part := p[at:min(len(p), at+maxPacket-1)]
		if _, err := c.conn.Write(append([]byte{packetInput}, part...)); err != nil {
			return at, err
		}
	}
	return len(p), nil
}

// Resize gives the console another size in characters.
func (c *Client) Resize(rows, columns uint16) error {
	packet := binary.BigEndian.AppendUint16([]byte{packetSize}, rows)
	_, err := c.conn.Write(binary.BigEndian.AppendUint16(packet, columns))
	return err
}

// CopyTo writes the console's output to w until the guest ends (nil), the
// console is given away (ErrLeft), the server dies (io.ErrUnexpectedEOF), or w
// takes no more.
func (c *Client) CopyTo(w io.Writer) error {
	buffer := make([]byte, maxPacket)
	for {
		n, err := c.conn.Read(buffer)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		switch buffer[0] {
		case packetEnd:
			return nil
		case packetLeft:
			return ErrLeft
		case packetOutput:
			if _, err := w.Write(buffer[1:n]); err != nil {
				return err
			}
		}
	}
}

// Close ends being attached.
func (c *Client) Close() error { return c.conn.Close() }
