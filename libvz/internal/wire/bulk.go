package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A stream in bulk carries more than all others together, from the side that opens it to
// the one that accepts it. Frames of the multiplexer are small, go through four goroutines
// and two buffers, and have to be let go by the reader. So what is in bulk goes between
// them, in frames of its own, from the writer's buffer to the connection, and from there
// into the reader's. There is one such stream at a time. Nothing else comes in while its
// frames wait to be read: its reader has to ask for what it reads, and to have room for it.

const (
	// headSize is how long the head of a frame is, of either kind.
	headSize = 8
	// bulkMark begins a frame in bulk. Those of the multiplexer begin with its version.
	bulkMark = 0xb0
	// bulkSize is how many bytes one may have: others wait for the connection meanwhile.
	bulkSize = 256 << 10
)

// bulk is the end of a stream in bulk where it is read.
type bulk struct {
	wants chan []byte   // where a reader wants bytes
	got   chan gotBulk  // what it is told then
	ended chan struct{} // closed when no more is read
	once  sync.Once
	end   error // what a reader is told then
	until deadline
}

type gotBulk struct {
	n   int
	err error
}

func newBulk() *bulk {
	return &bulk{wants: make(chan []byte), got: make(chan gotBulk), ended: make(chan struct{}), until: deadline{passed: make(chan struct{})}}
}

// finish ends the reading.
func (k *bulk) finish(err error) {
	k.once.Do(func() {
		k.end = err
		close(k.ended)
	})
}

// Read gives b to whoever reads from the connection. Once that has begun to fill it, a
// deadline counts no more: what comes is under way.
func (k *bulk) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	passed := k.until.channel()
	select {
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	select {
	case k.wants <- b:
		got := <-k.got
		return got.n, got.err
	case <-k.ended:
		return 0, k.end
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	}
}

// fill reads n bytes from the connection to where they are wanted.
func (k *bulk) fill(conn io.Reader, n int) error {
	for n > 0 {
		var got gotBulk
		select {
		case b := <-k.wants:
			got.n, got.err = io.ReadFull(conn, b[:min(len(b), n)])
			k.got <- got
		case <-k.ended: // nobody reads it any more
			var m int64
			m, got.err = io.CopyN(io.Discard, conn, int64(n))
			got.n = int(m)
		}
		if errors.Is(got.err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if got.err != nil {
			return got.err
		}
		n -= got.n
	}
	return nil
}

// bulkWriter is the other end.
type bulkWriter struct {
	ctx  context.Context // of the stream
	link *link
}

func (w *bulkWriter) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		if w.ctx.Err() != nil {
			return written, io.ErrClosedPipe
		}
		n, err := w.link.writeBulk(b[written:min(len(b), written+bulkSize)])
		written += n
		if err != nil {
			return written, lost(err)
		}
	}
	return written, nil
}

// writeBulk writes one frame in bulk.
func (l *link) writeBulk(b []byte) (int, error) {
	head := make([]byte, headSize)
	head[0] = bulkMark
	binary.BigEndian.PutUint32(head[4:], uint32(len(b)))
	n, err := l.write(head, b)
	return max(0, n-headSize), err
}

// readHead reads the head of the next frame that is the multiplexer's, and gives those
// in bulk before it to who reads them.
func (l *link) readHead() error {
	for {
		if _, err := io.ReadFull(l.ReadWriteCloser, l.head[:]); err != nil {
			return err
		}
		if l.head[0] != bulkMark {
			l.headLeft, l.left = l.head[:], int(binary.LittleEndian.Uint16(l.head[2:]))
			return nil
		}
		n := binary.BigEndian.Uint32(l.head[4:])
		k := l.bulk.Load()
		if k == nil || l.head[1]|l.head[2]|l.head[3] != 0 || n == 0 || n > bulkSize {
			return fmt.Errorf("%w: a frame of %d bytes in bulk", ErrProtocol, n)
		}
		if err := k.fill(l.ReadWriteCloser, int(n)); err != nil {
			return err
		}
	}
}

// acceptBulk makes a stream the one that gets what comes in bulk.
func (l *link) acceptBulk(raw net.Conn) (*bulk, error) {
	k := newBulk()
	if before := l.bulk.Load(); before != nil {
		select {
		case <-before.ended:
		default:
			return nil, fmt.Errorf("%w: two streams in bulk", ErrProtocol)
		}
	}
	l.bulk.Store(k)
	go func() {
		n, err := raw.Read(make([]byte, 1))
		if n > 0 {
			err = fmt.Errorf("%w: small frames of a stream in bulk", ErrProtocol)
		}
		k.finish(err)
	}()
	return k, nil
}

// deadline is one that can be changed while it is waited for.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{} // closed when it has
}

// set makes it another one; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	select {
	case <-d.passed:
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		d.timer = nil
		return
	}
	passed := d.passed
	var timer *time.Timer
	pass := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // else there is another one by now
			close(passed)
			d.timer = nil
		}
	}
	if wait := time.Until(t); wait > 0 {
		timer = time.AfterFunc(wait, pass)
		d.timer = timer
		return
	}
	d.timer = nil
	close(passed)
}

func (d *deadline) channel() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}
