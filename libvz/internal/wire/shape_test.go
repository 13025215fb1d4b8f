package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/xtaci/smux"
	"golang.org/x/time/rate"
)

// dialogue asks over one stream and answers, word by word, as rsyncs do, and
// returns what came of it.
func dialogue(t *testing.T, s, d *Session, words []string) {
	t.Helper()
	answered := make(chan error, 1)
	go func() {
		stream, err := d.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer stream.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := stream.Read(buffer)
			if n > 0 {
				_, werr := stream.Write(bytes.ToUpper(buffer[:n]))
				err = errors.Join(err, werr)
			}
			if errors.Is(err, io.EOF) {
				answered <- stream.CloseWrite()
				return
			}
			if err != nil {
				answered <- err
				return
			}
		}
	}()
	stream, err := s.Open("words")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, word := range words {
		if _, err := io.WriteString(stream, word); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(word))
		// The other side answers before the end of anything.
		if _, err := io.ReadFull(stream, got); err != nil || string(got) != string(bytes.ToUpper([]byte(word))) {
			t.Fatalf("%.40q: %.40q, %v", word, got, err)
		}
	}
	if err := stream.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(stream); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %d bytes, %v", len(rest), err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func shaped(t *testing.T, source, destination Shape) (s, d *Session) {
	t.Helper()
	s, d = pair(t)
	if err := errors.Join(s.SetShape(source), d.SetShape(destination)); err != nil {
		t.Fatal(err)
	}
	return s, d
}

func TestShapesChangeNoByte(t *testing.T) {
	zeroes := string(make([]byte, 1<<20))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte('0' + rand.IntN(10))
	}
	words := []string{"a", "bc", zeroes, string(noise), "d"}
	for _, sh := range []Shape{{}, {Compression: Zstd}, {Rate: 64 << 20}, {Compression: Zstd, Rate: 64 << 20}} {
		s, d := shaped(t, sh, Shape{Compression: sh.Compression})
		dialogue(t, s, d, words)
		dialogue(t, s, d, nil) // nothing at all
		sent := s.Sent()
		if sh.Compression == "" && sent < 1<<20+300<<10 || sh.Compression != "" && sent > 600<<10 {
			t.Errorf("%+v: %d bytes on the wire", sh, sent)
		}
	}
}

func TestWhatIsNoShapeIsRefused(t *testing.T) {
	s, _ := pair(t)
	for _, sh := range []Shape{{Compression: "lz4"}, {Rate: -1}} {
		if s.SetShape(sh) == nil {
			t.Errorf("%+v was taken", sh)
		}
	}
}

func TestGarbageInPlaceOfCompressedData(t *testing.T) {
	for name, data := range map[string][]byte{
		"plain text":        []byte("this is no zstd, however long it is"),
		"a broken frame":    {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"a window too wide": {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00},
	} {
		s, d := shaped(t, Shape{}, Shape{Compression: Zstd})
		stream, err := s.Open("images")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			stream.Write(data)  //nolint:errcheck // the other side closes early
			stream.CloseWrite() //nolint:errcheck // see above
		}()
		got, err := d.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := io.ReadAll(got); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
}

func TestAStreamThatIsCutOffIsNoProtocolError(t *testing.T) {
	s, d := shaped(t, Shape{Compression: Zstd}, Shape{Compression: Zstd})
	stream, err := s.Open("images")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	got, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(got, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := got.Read(make([]byte, 1)); err == nil || errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

// TestTheBucket looks at what the limiter would make wait, without waiting.
func TestTheBucket(t *testing.T) {
	for _, perSecond := range []int64{1 << 10, 1 << 20, 10 << 20, 1 << 30} {
		n := burst(perSecond)
		if n < frameSize {
			t.Errorf("%d bytes/s: a frame does not fit into %d bytes", perSecond, n)
		}
		l := rate.NewLimiter(rate.Limit(perSecond), n)
		now := time.Now()
		l.ReserveN(now, n)
		// Ten seconds' worth takes ten seconds, in whatever pieces.
		var wait time.Duration
		for left := 10 * perSecond; left > 0; left -= int64(min(frameSize, left)) {
			wait = l.ReserveN(now, int(min(frameSize, left))).DelayFrom(now)
		}
		if wait < 9900*time.Millisecond || wait > 10100*time.Millisecond {
			t.Errorf("%d bytes/s: %v", perSecond, wait)
		}
	}
}

func TestABoundHoldsUpDataAndNoWord(t *testing.T) {
	source, destination, s, d := controls(t)
	if err := s.SetShape(Shape{Rate: 1}); err != nil { // no second frame in a day
		t.Fatal(err)
	}
	stream, err := s.Open("images")
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := stream.Write(make([]byte, 2*frameSize))
		wrote <- err
	}()
	got, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(got, make([]byte, frameSize)); err != nil {
		t.Fatal(err)
	}
	// The rest waits; a message goes past it.
	go source.Send(Offer, nil) //nolint:errcheck // the other side tells
	if _, err := destination.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream.Close()
	if err := <-wrote; err == nil {
		t.Error("a write that waits did not end with its stream")
	}
}

func TestTheEndOfTheConnectionEndsWhatWaits(t *testing.T) {
	s, d := shaped(t, Shape{Rate: 1}, Shape{})
	stream, err := s.Open("images")
	if err != nil {
		t.Fatal(err)
	}
	go d.Accept() //nolint:errcheck // nobody reads
	wrote := make(chan error, 1)
	go func() {
		_, err := stream.Write(make([]byte, 2*frameSize))
		wrote <- err
	}()
	d.Close()
	select {
	case err := <-wrote:
		if err == nil {
			t.Error("all of it went")
		}
	case <-time.After(linkPatience):
		t.Error("it waits for a connection that is gone")
	}
}

// FuzzPacked gives a compressed stream anything to read.
func FuzzPacked(f *testing.F) {
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x19, 0x00, 0x00, 'a', 'b', 'c'})
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &Session{compression: Zstd, alive: context.Background()}
		stream := s.streamOf(&smux.Stream{}, header{})
		if err := s.fit(stream); err != nil {
			t.Fatal(err)
		}
		in := bytes.NewReader(data)
		if err := stream.plain.Reset(readerFunc(func(b []byte) (int, error) {
			n, err := in.Read(b)
			stream.cut = err
			return n, err
		})); err != nil {
			t.Fatal(err)
		}
		const most = 64 << 20
		_, err := io.Copy(io.Discard, io.LimitReader(stream, most))
		if err != nil && stream.cut == nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}
