package archive

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestFrames(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, frameSize - 1, frameSize, frameSize + 1, 3*frameSize + 17, 9 * frameSize} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(random.IntN(4))
		}
		var packed bytes.Buffer
		f, err := newFrames(&packed, 1)
		if err != nil {
			t.Fatal(err)
		}
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(2*frameSize))
			if _, err := f.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		for range 2 {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		f.abandon()
		z, err := zstd.NewReader(&packed)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		z.Close()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes became %d: %v", size, len(got), err)
		}
	}
}

var errFull = errors.New("full")

// full takes so many bytes.
type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.room {
		return 0, errFull
	}
	f.room -= len(p)
	return len(p), nil
}

func TestFramesFail(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	data := make([]byte, frameSize)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	f, err := newFrames(&full{room: 3 * frameSize}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; err == nil; n++ {
		if _, err = f.Write(data); n > 1000 {
			t.Fatal("a full disk is no error")
		}
	}
	if !errors.Is(err, errFull) || !errors.Is(f.Close(), errFull) {
		t.Errorf("%v, then %v", err, f.Close())
	}
}

func TestFramesAbandoned(t *testing.T) {
	var packed bytes.Buffer
	f, err := newFrames(&packed, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := f.Write(make([]byte, frameSize+1)); err != nil {
			t.Fatal(err)
		}
	}
	f.abandon()
	f.abandon()
	if f.Close() == nil {
		t.Error("what was abandoned ends well")
	}
}
