package wire

import (
	"context"
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
	out    io.Writer // raw, or what holds it up
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
}

// headerPatience is how long a stream that is open may take to say its kind.
const headerPatience = 10 * time.Second

// Open opens a stream of some kind to the other side.
func (s *Session) Open(kind string, args ...string) (*Stream, error) {
	raw, err := s.mux.OpenStream()
	if err != nil {
		return nil, lost(err)
	}
	if err := writeFrame(raw, header{kind, args}); err != nil {
		raw.Close()
		return nil, lost(err)
	}
	return s.newStream(raw, header{kind, args})
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
	return s.newStream(raw, h)
}

// newStream gives a stream the session's shape.
func (s *Session) newStream(raw *smux.Stream, h header) (*Stream, error) {
	stream := &Stream{Conn: raw, Kind: h.Kind, Args: h.Args, raw: raw, out: raw}
	var ctx context.Context
	ctx, stream.cancel = context.WithCancel(s.alive)
	if s.limiter != nil {
		stream.out = &limited{ctx: ctx, to: raw, limiter: s.limiter}
	}
	if s.compression == "" {
		return stream, nil
	}
	var err error
	stream.packed, err = zstd.NewWriter(stream.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow))
	if err == nil {
		// No goroutine and no reading ahead: an answer comes out as soon as it is in.
		stream.plain, err = zstd.NewReader(readerFunc(stream.readPacked), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
	}
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("compression of a stream: %w", err)
	}
	return stream, nil
}

// Read reads what the other side wrote. What is no compressed data, where it should
// be, is ErrProtocol.
func (s *Stream) Read(b []byte) (int, error) {
	if s.plain == nil {
		return s.raw.Read(b)
	}
	n, err := s.plain.Read(b)
	if err != nil && s.cut == nil {
		err = fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return n, err
}

func (s *Stream) readPacked(b []byte) (int, error) {
	n, err := s.raw.Read(b)
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
