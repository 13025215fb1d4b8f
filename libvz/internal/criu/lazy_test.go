package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLazyNeeds(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"small pipes", lazyDumpNeeds(1<<20, false), false},
		{"small pipes, mighty root", lazyDumpNeeds(1<<20, true), true},
		{"big pipes", lazyDumpNeeds(4<<20, false), true},
		{"no userfaultfd", lazyRestoreNeeds(unix.ENOSYS, false, true), false},
		{"root's own", lazyRestoreNeeds(0, false, false), true},
		{"a user namespace", lazyRestoreNeeds(0, true, false), false},
		{"a user namespace that may", lazyRestoreNeeds(0, true, true), true},
	} {
		var e *Error
		switch {
		case c.ok && c.err != nil, !c.ok && c.err == nil:
			t.Errorf("%s: %v", c.name, c.err)
		case !c.ok && (!errors.As(c.err, &e) || !e.Unsupported || e.Remedy == ""):
			t.Errorf("%s: %#v is not unsupported with a remedy", c.name, c.err)
		}
	}
}

func request(command uint32) []byte {
	b := make([]byte, len(pageMessage{}))
	binary.NativeEndian.PutUint32(b, command)
	if command == psGet {
		binary.NativeEndian.PutUint64(b[8:], 1)
	}
	return b
}

// What the other side says decides what becomes of the source.
func TestPageServerVerdicts(t *testing.T) {
	for _, c := range []struct {
		name string
		says []byte
		want error
	}{
		{"has all", request(psClose), nil},
		{"has all, by descriptor", request(psForceClose), nil},
		{"gave up", request(psGivenUp), ErrPeerFailed},
		{"cut", nil, ErrPeerGone},
		{"cut in a word", request(psClose)[:10], ErrPeerGone},
		{"cut after a request", request(psGet), ErrPeerGone},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := (&DumpOptions{}).prepareLazy()
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			peer, theirs := net.Pipe()
			go func() {
				theirs.SetDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a pipe can
				theirs.Write(c.says)                                 //nolint:errcheck // the verdict tells
				if c.want == nil {
					io.ReadFull(theirs, make([]byte, 4)) //nolint:errcheck // likewise
				}
				theirs.Close()
			}()
			if err := l.server.Serve(context.Background(), peer); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestPageServerRefusesRequestsForNothing(t *testing.T) {
	l, criu := lazyServer(t)
	defer l.close()
	l.server.ReadFrom([]Task{{Pid: os.Getpid(), Guest: 7}})
	peer, theirs := net.Pipe()
	defer theirs.Close()
	q := messageOf(psGet, span{task: 7, address: 0x1000})
	go theirs.Write(q[:]) //nolint:errcheck // the verdict tells
	if err := l.server.Serve(t.Context(), peer); err == nil || errors.Is(err, ErrPeerGone) {
		t.Error(err)
	}
	if err := criu.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := criu.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Errorf("criu heard of it: %d, %v", n, err)
	}
}

// CRIU ends the tasks when it hears a farewell or the end of its connection: it
// must hear neither from the other side.
func TestCriuHearsOnlyRequests(t *testing.T) {
	l, criu := lazyServer(t)
	peer, theirs := net.Pipe()
	go func() {
		theirs.Write(request(psGet))         //nolint:errcheck // the reader tells
		theirs.Write(request(psClose))       //nolint:errcheck // likewise
		io.ReadFull(theirs, make([]byte, 4)) //nolint:errcheck // likewise
		theirs.Close()
	}()
	if err := l.server.Serve(context.Background(), peer); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*len(pageMessage{}))
	if err := criu.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadAtLeast(criu, got, len(pageMessage{})); n != len(pageMessage{}) || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := criu.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := criu.Read(got); n != 0 || !errors.Is(err, unix.EAGAIN) && !isTimeout(err) {
		t.Errorf("criu heard %d bytes more, %v", n, err)
	}
	// The commit.
	if err := l.server.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := criu.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := criu.Read(got); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v; want the end", n, err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
