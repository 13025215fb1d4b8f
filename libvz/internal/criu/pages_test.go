package criu

import (
	"bytes"
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

func getPages(address, count uint64) pageMessage {
	var m pageMessage
	binary.NativeEndian.PutUint32(m[:], psGet)
	binary.NativeEndian.PutUint64(m[8:], count)
	binary.NativeEndian.PutUint64(m[16:], address)
	return m
}

// contents is what the pages at an address hold: where they are.
func contents(address, count uint64) []byte {
	var all []byte
	for range count {
		all = append(all, bytes.Repeat(binary.NativeEndian.AppendUint64(nil, address), os.Getpagesize()/8)...)
		address += uint64(os.Getpagesize())
	}
	return all
}

// answerTo is what CRIU's page server says: it gives no more than most pages.
func answerTo(request pageMessage, most uint64) []byte {
	n := min(request.count(), most)
	binary.NativeEndian.PutUint32(request[:], psAdd|1<<16)
	binary.NativeEndian.PutUint64(request[8:], n)
	return append(request[:], contents(request.address(), n)...)
}

func deadline(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

// sockets is a pair of connections as the real ones: with buffers, and an end.
func sockets(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// serveBytes answers requests, and hangs up after so many bytes.
func serveBytes(conn net.Conn, left int) {
	defer conn.Close()
	for {
		var q pageMessage
		if _, err := io.ReadFull(conn, q[:]); err != nil {
			return
		}
		if q.command() != psGet {
			conn.Write(make([]byte, 4)) //nolint:errcheck // the reader tells
			return
		}
		answer := answerTo(q, 16)
		n := min(len(answer), left)
		left -= n
		if _, err := conn.Write(answer[:n]); err != nil || left == 0 {
			return
		}
	}
}

// The page server's answers are read whole, whether or not anybody has them: the
// next one who asks gets what it asked for.
func TestPageServerAfterALostPeer(t *testing.T) {
	l, err := (&DumpOptions{}).prepareLazy()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	criu, err := net.FileConn(l.theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer criu.Close()
	first, there := sockets(t)
	deadline(t, criu, there)
	served := make(chan error, 1)
	go func() { served <- l.server.Serve(context.Background(), first) }()
	lost := getPages(0x5000, 600)
	if _, err := there.Write(append(lost[:], lost[:]...)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := io.ReadFull(criu, make([]byte, len(lost))); err != nil {
			t.Fatal(err)
		}
	}
	there.Close()
	if err := <-served; !errors.Is(err, ErrPeerGone) {
		t.Fatal(err)
	}
	go func() {
		for range 2 {
			criu.Write(answerTo(lost, 600)) //nolint:errcheck // the reader tells
		}
		var q pageMessage
		io.ReadFull(criu, q[:])      //nolint:errcheck // likewise
		criu.Write(answerTo(q, 600)) //nolint:errcheck // likewise
	}()
	second, there := sockets(t)
	deadline(t, there)
	go func() { served <- l.server.Serve(context.Background(), second) }()
	q := getPages(0x7000, 3)
	if _, err := there.Write(q[:]); err != nil {
		t.Fatal(err)
	}
	want := answerTo(q, 3)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or another answer", err)
	}
	if _, err := there.Write(request(psClose)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
