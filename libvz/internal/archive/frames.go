package archive

import (
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// frameSize is how much is compressed at a time. What is larger compresses hardly
// better, and each processor holds one of them and its result.
const frameSize = 4 << 20

// frames compresses with all processors that Go may use: each piece of the stream
// is a frame of its own, and frames one after the other are a stream of zstd
// (RFC 8878, section 3). The library's own stream has two at work at most.
type frames struct {
	to      io.Writer
	encoder *zstd.Encoder
	piece   *piece
	jobs    chan *piece // to whoever compresses
	ordered chan *piece // to who writes
	free    chan *piece
	ended   chan struct{} // the writer has

	mu     sync.Mutex
	failed error
	closed bool
	some   bool // there was a frame
}

// piece is a part of the stream on its way.
type piece struct {
	plain, packed []byte
	done          chan struct{} // packed is there; nil = it was from the beginning
}

// newEncoder returns what compresses frames, so many at a time.
func newEncoder(level, workers int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(workers))
}

func newFrames(to io.Writer, level int) (*frames, error) {
	workers := runtime.GOMAXPROCS(0)
	enc, err := newEncoder(level, workers)
	if err != nil {
		return nil, err
	}
	pieces := workers + 2 // one that is filled, and one that is written
	f := &frames{
		to: to, encoder: enc, ended: make(chan struct{}),
		jobs: make(chan *piece, pieces), ordered: make(chan *piece, pieces), free: make(chan *piece, pieces),
	}
	for range pieces {
		f.free <- &piece{}
	}
	for range workers {
		go f.compress()
	}
	go f.write()
	return f, nil
}

func (f *frames) compress() {
	for p := range f.jobs {
		p.packed = f.encoder.EncodeAll(p.plain, p.packed[:0])
		close(p.done)
	}
}

func (f *frames) write() {
	defer close(f.ended)
	for p := range f.ordered {
		if p.done != nil {
			<-p.done
		}
		if f.failure() == nil {
			if _, err := f.to.Write(p.packed); err != nil {
				f.fail(err)
			}
		}
		if p.done != nil {
			f.free <- p
		}
	}
}

func (f *frames) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

func (f *frames) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = err
	}
}

// Write returns the error of what was written before, too.
func (f *frames) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := copy(f.space(), rest)
		rest = rest[n:]
		f.advance(n) //nolint:errcheck // see below
	}
	return len(data), f.failure()
}

// space and advance are those of encoder.
func (f *frames) space() []byte {
	if f.piece == nil {
		f.piece = <-f.free
		if f.piece.plain == nil {
			f.piece.plain = make([]byte, 0, frameSize)
		}
		f.piece.plain = f.piece.plain[:0]
	}
	return f.piece.plain[len(f.piece.plain):frameSize]
}

func (f *frames) advance(n int) error {
	f.piece.plain = f.piece.plain[:len(f.piece.plain)+n]
	if len(f.piece.plain) == frameSize {
		f.send()
	}
	return f.failure()
}

// insert puts a frame that was compressed elsewhere into the stream.
func (f *frames) insert(packed []byte) error {
	if f.piece != nil && len(f.piece.plain) > 0 {
		f.send()
	}
	f.some = true
	f.ordered <- &piece{packed: packed}
	return f.failure()
}

func (f *frames) send() {
	p := f.piece
	f.piece, f.some = nil, true
	p.done = make(chan struct{})
	f.jobs <- p
	f.ordered <- p
}

// Close writes the rest. It is idempotent.
func (f *frames) Close() error {
	if f.closed {
		return f.failure()
	}
	if f.piece == nil && !f.some {
		f.piece = <-f.free // even nothing is a frame
	}
	if f.piece != nil && (len(f.piece.plain) > 0 || !f.some) {
		f.send()
	}
	f.stop()
	return f.failure()
}

// abandon ends what is under way, and writes nothing more after it has returned.
func (f *frames) abandon() {
	if f.closed {
		return
	}
	f.fail(io.ErrClosedPipe)
	f.stop()
}

func (f *frames) stop() {
	f.closed = true
	close(f.jobs)
	close(f.ordered)
	<-f.ended
}
