package archive

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"runtime"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// What a stream begins with.
var (
	magicAge  = []byte("age-encryption.org/")
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicGzip = []byte{0x1f, 0x8b}
)

// maxWindow bounds the memory that a stream may ask its reader for. zstd itself
// has windows of 8 MiB up to level 19.
const maxWindow = 128 << 20

// encoder is the way of a stream's bytes to where it is written.
type encoder struct {
	io.Writer
	layers []io.Closer // the outermost last
	frames *frames     // what compresses; nil = nothing does
	buffer []byte      // what is read into then
	// abandon ends what works for it without writing what is left. It is
	// idempotent, and does nothing after Close.
	abandon func()
}

// encode compresses (level as zstd's, 0 = not) and then encrypts.
func encode(w io.Writer, level int, recipients []age.Recipient) (*encoder, error) {
	e := &encoder{Writer: w, abandon: func() {}}
	if len(recipients) > 0 {
		sealed, err := age.Encrypt(w, recipients...)
		if err != nil {
			return nil, err
		}
		e.Writer, e.layers = sealed, append(e.layers, sealed)
	}
	if level == 0 {
		e.buffer = make([]byte, copySize)
		return e, nil
	}
	z, err := newFrames(e.Writer, level)
	if err != nil {
		return nil, err
	}
	e.Writer, e.layers, e.frames, e.abandon = z, append(e.layers, z), z, z.abandon
	return e, nil
}

// space is where the next bytes of the stream may be put, at least one: advance
// says how many were. Between the two nothing else is written.
func (e *encoder) space() []byte {
	if e.frames != nil {
		return e.frames.space()
	}
	return e.buffer
}

func (e *encoder) advance(n int) error {
	if e.frames != nil {
		return e.frames.advance(n)
	}
	_, err := e.Write(e.buffer[:n])
	return err
}

// Close writes what is left, the innermost layer first.
func (e *encoder) Close() error {
	for i := len(e.layers) - 1; i >= 0; i-- {
		if err := e.layers[i].Close(); err != nil {
			return err
		}
	}
	e.layers = nil
	return nil
}

// decoder is a stream without its encryption and compression.
type decoder struct {
	io.Reader
	// Encrypted and Compression ("", gzip or zstd) are what was found.
	encrypted   bool
	compression string
	source      *bufio.Reader // under all of it
	close       func()
}

// decode looks at a stream and undoes what was done to it.
func decode(r io.Reader, identities []age.Identity) (*decoder, error) {
	d := &decoder{source: bufio.NewReaderSize(r, 1<<20), close: func() {}}
	in := d.source
	begin, err := in.Peek(len(magicAge))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.Equal(begin, magicAge) {
		if len(identities) == 0 {
			return nil, ErrIdentity
		}
		open, err := age.Decrypt(in, identities...)
		var no *age.NoIdentityMatchError
		if errors.As(err, &no) {
			return nil, fmt.Errorf("%w to others", ErrIdentity)
		}
		if err != nil {
			return nil, damaged("%w", err)
		}
		d.encrypted = true
		in = bufio.NewReaderSize(open, 1<<20)
	}
	begin, err = in.Peek(len(magicZstd))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, damaged("%w", err)
	case bytes.HasPrefix(begin, magicZstd):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, damaged("%w", err)
		}
		d.Reader, d.compression, d.close = z, "zstd", z.Close
	case bytes.HasPrefix(begin, magicGzip):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, damaged("%w", err)
		}
		d.Reader, d.compression = z, "gzip"
	default:
		d.Reader = in
	}
	return d, nil
}
