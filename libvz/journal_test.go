package libvz

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// slowly takes its time for each byte, as a pager does.
type slowly struct{ bytes.Buffer }

func (s *slowly) Write(b []byte) (int, error) {
	time.Sleep(lastWords / 5)
	return s.Buffer.Write(b)
}

func TestUntilEndReadsToTheEndOfItsProcess(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close() // somebody keeps it open
	u := &untilEnd{ctx: t.Context(), r: r, ended: make(chan struct{}), left: 1000}
	text := strings.Repeat("x", 400)
	_, err = io.WriteString(w, text)
	must(t, err)
	time.AfterFunc(10*time.Millisecond, func() { close(u.ended); u.wake() })
	got := &slowly{}
	_, err = io.CopyBuffer(struct{ io.Writer }{got}, u, make([]byte, 20)) // 20 reads: longer than lastWords
	must(t, err)
	if got.String() != text {
		t.Errorf("%d bytes of %d", got.Len(), len(text))
	}
	// Who goes on writing is not waited for.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				io.WriteString(w, text) //nolint:errcheck // ends with the pipe
			}
		}
	}()
	left := int64(u.left)
	if n, err := io.Copy(io.Discard, u); n != left || err != nil {
		t.Errorf("%d bytes, %v, want %d", n, err, left)
	}
}

func TestUntilEndGivesUp(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	u := &untilEnd{ctx: ctx, r: r, ended: make(chan struct{}), left: 1000}
	context.AfterFunc(ctx, u.wake)
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := io.Copy(io.Discard, u); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
