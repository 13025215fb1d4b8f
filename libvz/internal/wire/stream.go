package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/xtaci/smux"
)

// Stream is one stream of bytes in each direction. A Read that ends with io.EOF
// may also be that of a lost connection: who needs to know asks the other side
// what has arrived. One goroutine may read and one write; any may close.
type Stream struct {
	net.Conn // the bytes as they are on the wire, but for Read and Write
	// Kind is what the opener said that it is for, Args what goes with it.
	Kind string
	Args []string

	raw    *smux.Stream
	in     io.Reader       // raw, or what comes in bulk
	out    io.Writer       // raw, or what goes in bulk; or what holds it up
	bulk   *bulk           // in, if it is that
	ctx    context.Context // ends with the stream, or the connection
	cancel context.CancelFunc
	// Both nil: it is not compressed.
	packed *zstd.Encoder
	plain  *zstd.Decoder
	cut    error // why raw gave the decoder no more
}

// header is what a stream begins with.
type header struct {
	Kind string   `json:"kind"`
	Args []string `json:"args,omitempty"`
	Bulk bool     `json:"bulk,omitempty"`
}

// headerPatience is how long a stream that is open may take to say its kind.
const headerPatience = 10 * time.Second

// Open opens a stream of some kind to the other side.
func (s *Session) Open(kind string, args ...string) (*Stream, error) {
	return s.open(header{Kind: kind, Args: args})
}

// OpenBulk opens a stream for more than all others carry together. There must be no
// other one, and the other side must read all that comes on it at once: so it should have
// asked for it before. What that side writes goes as on any stream.
func (s *Session) OpenBulk(kind string) (*Stream, error) {
	return s.open(header{Kind: kind, Bulk: true})
}

func (s *Session) open(h header) (*Stream, error) {
	raw, err := s.mux.OpenStream()
	if err != nil {
		return nil, lost(err)
	}
	if err := writeFrame(raw, h); err != nil {
		raw.Close()
		return nil, lost(err)
	}
	stream := s.streamOf(raw, h)
	if h.Bulk {
		stream.out = &bulkWriter{stream.ctx, s.conn}
	}
	if err := s.fit(stream); err != nil {
		return nil, err
	}
	return stream, nil
}

// Accept waits for the next stream that the other side opens.
func (s *Session) Accept() (*Stream, error) {
	raw, err := s.mux.AcceptStream()
	if err != nil {
		return nil, lost(err)
	}
	var h header
	err = raw.SetReadDeadline(time.Now().Add(headerPatience))
	if err == nil {
		err = readFrame(raw, &h)
	}
	if err == nil {
		err = raw.SetReadDeadline(time.Time{})
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	stream := s.streamOf(raw, h)
	if h.Bulk {
		if stream.bulk, err = s.conn.acceptBulk(raw); err != nil {
			stream.Close()
			return nil, err
		}
		stream.in = stream.bulk
	}
	if err := s.fit(stream); err != nil {
		return nil, err
	}
	return stream, nil
}

func (s *Session) streamOf(raw *smux.Stream, h header) *Stream {
	stream := &Stream{Conn: raw, Kind: h.Kind, Args: h.Args, raw: raw, in: raw, out: raw}
	stream.ctx, stream.cancel = context.WithCancel(s.alive)
	return stream
}

// fit gives a stream the session's shape, or closes it.
func (s *Session) fit(stream *Stream) error {
	if s.limiter != nil {
		stream.out = &limited{ctx: stream.ctx, to: stream.out, limiter: s.limiter}
	}
	if s.compression == "" {
		return nil
	}
	var err error
	stream.packed, err = zstd.NewWriter(stream.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow))
	if err == nil {
		// No goroutine and no reading ahead: an answer comes out as soon as it is in.
		stream.plain, err = zstd.NewReader(readerFunc(stream.readPacked), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
	}
	if err != nil {
		stream.Close()
		return fmt.Errorf("compression of a stream: %w", err)
	}
	return nil
}

// Read reads what the other side wrote. What is no compressed data, where it should
// be, is ErrProtocol.
func (s *Stream) Read(b []byte) (int, error) {
	if s.plain == nil {
		return s.in.Read(b)
	}
	n, err := s.plain.Read(b)
	if err != nil && s.cut == nil {
		err = fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return n, err
}

func (s *Stream) readPacked(b []byte) (int, error) {
	n, err := s.in.Read(b)
	s.cut = err
	return n, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// Write returns when all has gone out, so that the other side can answer.
func (s *Stream) Write(b []byte) (int, error) {
	if s.packed == nil {
		return s.out.Write(b)
	}
	n, err := s.packed.Write(b)
	if err == nil {
		err = s.packed.Flush()
	}
	return n, err
}

// SetReadDeadline is that of net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	if s.bulk != nil {
		s.bulk.until.set(t)
		return nil
	}
	return s.raw.SetReadDeadline(t)
}

// SetDeadline is that of net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.raw.SetWriteDeadline(t))
}

// CloseWrite tells the other side that no more comes; it may still answer.
func (s *Stream) CloseWrite() error {
	if s.packed != nil {
		if err := s.packed.Close(); err != nil {
			return err
		}
	}
	return s.raw.CloseWrite()
}

// Close ends both directions, and a Read or Write that waits.
func (s *Stream) Close() error {
	s.cancel()
	return s.raw.Close()
}

// Report sends the result of what a stream carried, a JSON value; Result reads
// it on the other side.
func (s *Stream) Report(v any) error { return lost(writeFrame(s, v)) }

// Result reads what Report sent.
func (s *Stream) Result(v any) error { return readFrame(s, v) }
