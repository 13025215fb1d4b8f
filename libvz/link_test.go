//go:build !lean

package libvz

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// come connects to the socket of a link as dialLink does.
func come(t *testing.T, dir string, word byte) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(dir, linkSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{word}); err != nil {
		t.Fatal(err)
	}
	if word != linkPages {
		return conn
	}
	if answer, err := io.ReadAll(io.LimitReader(conn, 1)); err != nil || string(answer) != string(linkTaken) {
		t.Fatalf("%q, %v", answer, err)
	}
	return conn
}

// closer notes that it was closed.
type closer chan struct{}

func (c closer) Close() error { close(c); return nil }

func TestNewLinkTakesThePlaceOfTheOld(t *testing.T) {
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := openLink(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close(dir)
	first := make(closer)
	l.use(first, false)
	for i := range 50 {
		theirs := come(t, dir, linkPages)
		ours, err := l.await(context.Background(), 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			<-first
		}
		// It is the new one, and stays.
		if _, err := ours.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
			t.Fatalf("link %d was ended: %v", i, err)
		}
	}
	if !l.wasRenewed() {
		t.Error("it was not renewed")
	}
	if _, err := l.await(context.Background(), time.Millisecond); !errors.Is(err, wire.ErrLost) {
		t.Error(err)
	}
	come(t, dir, linkGiveUp)
	if _, err := l.await(context.Background(), 20*time.Second); !errors.Is(err, wire.ErrLost) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&pageLink{next: make(chan net.Conn)}).await(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
