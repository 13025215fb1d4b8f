package wire

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// Zstd is a method of compression: RFC 8878.
const Zstd = "zstd"

// Compresses tells whether a method of compression is known here. "" is none, and
// known.
func Compresses(method string) bool { return method == "" || method == Zstd }

// Shape is what becomes of the bytes of streams on their way. The zero value leaves
// them as they are.
type Shape struct {
	// Compression is a method of compression, in both directions of each stream;
	// both sides must have agreed on it.
	Compression string
	// Rate bounds what all streams of this side send together, in bytes per second
	// as they are on the wire; 0 = it is not bounded.
	Rate int64
}

const (
	// burstTime is for how long a bound may have been unused and is made up for: a
	// timer is late by a millisecond or two, which must not count.
	burstTime = 50 * time.Millisecond
	// zstdWindow is how far back in a stream compression looks, and so what it
	// takes of memory at either end. A reader refuses more.
	zstdWindow = 1 << 20
)

// SetShape sets the shape of streams that are opened or accepted from now on; there
// must be none yet but the dialogue of control messages. That one keeps its own: it
// began before anything was agreed on, and no word is to wait for data.
func (s *Session) SetShape(sh Shape) error {
	if !Compresses(sh.Compression) || sh.Rate < 0 {
		return fmt.Errorf("no shape of streams: %+v", sh)
	}
	s.compression, s.limiter = sh.Compression, nil
	if sh.Rate > 0 {
		s.limiter = rate.NewLimiter(rate.Limit(sh.Rate), burst(sh.Rate))
	}
	return nil
}

// burst is how many bytes may go at once. It is no less than a frame, which goes as
// a whole.
func burst(perSecond int64) int {
	return int(max(frameSize, float64(perSecond)*burstTime.Seconds()))
}

// Sent returns how many bytes this side has put on the wire, all in all.
func (s *Session) Sent() int64 { return s.conn.sent.Load() }

// limited is a writer that a bucket of tokens holds up, until ctx is done.
type limited struct {
	ctx     context.Context
	to      io.Writer
	limiter *rate.Limiter
}

func (l *limited) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		// Not more than a frame at once: streams take turns.
		piece := b[:min(len(b), frameSize)]
		if err := l.limiter.WaitN(l.ctx, len(piece)); err != nil {
			return written, io.ErrClosedPipe
		}
		n, err := l.to.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}
