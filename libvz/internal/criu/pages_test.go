package criu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
	"unsafe"

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

// lazyServer is a page server with the end of its socket that is CRIU's.
func lazyServer(t *testing.T) (*lazyDump, net.Conn) {
	t.Helper()
	l, err := (&DumpOptions{}).prepareLazy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	criu, err := net.FileConn(l.theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { criu.Close() })
	return l, criu
}

// The page server's answers are read whole, whether or not anybody has them: the
// next one who asks gets what it asked for.
func TestPageServerAfterALostPeer(t *testing.T) {
	l, criu := lazyServer(t)
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

// What can be read of a task CRIU is not asked for, and what cannot it is.
func TestPageServerOfStoppedTasks(t *testing.T) {
	l, criu := lazyServer(t)
	size := os.Getpagesize()
	memory, err := unix.Mmap(-1, 0, 4*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) }) //nolint:errcheck // it was mapped
	address := uint64(uintptr(unsafe.Pointer(&memory[0])))
	copy(memory, contents(address, 4))
	if err := unix.Mprotect(memory[3*size:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	l.server.ReadFrom([]Task{{os.Getpid(), 7}, {os.Getpid(), 8}, {os.Getppid(), 8}})
	peer, there := sockets(t)
	deadline(t, criu, there)
	served := make(chan error, 1)
	go func() { served <- l.server.Serve(context.Background(), peer) }()
	for _, c := range []struct {
		name                 string
		task, address, count uint64
		want                 uint64 // pages that are not CRIU's
	}{
		{"a page", 7, address, 1, 1},
		{"pages, and one that is not to be read", 7, address + uint64(size), 3, 2},
		{"that one", 7, address + 3*uint64(size), 1, 0},
		{"an unknown task", 9, address, 1, 0},
		{"one of two tasks", 8, address, 1, 0},
		{"pages, afterwards", 7, address, 2, 2},
	} {
		q := messageOf(psGet, span{c.task, c.address, int(c.count)})
		if _, err := there.Write(q[:]); err != nil {
			t.Fatal(err)
		}
		if c.want == 0 {
			c.want = c.count
			var asked pageMessage
			if _, err := io.ReadFull(criu, asked[:]); err != nil || asked != q {
				t.Fatalf("%s: criu was asked %v, %v", c.name, asked, err)
			}
			if _, err := criu.Write(answerTo(q, c.count)); err != nil {
				t.Fatal(err)
			}
		}
		var head pageMessage
		if _, err := io.ReadFull(there, head[:]); err != nil || head.command() != psAdd || head.count() != c.want ||
			head.task() != c.task || head.address() != c.address {
			t.Fatalf("%s: %v, %v", c.name, head, err)
		}
		want := contents(c.address, c.want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, or other pages", c.name, err)
		}
	}
	there.Close()
	if err := <-served; !errors.Is(err, ErrPeerGone) {
		t.Error(err)
	}
}

// A task that has ended may have given its pid to another process.
func TestStoppedTaskThatHasEnded(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tasks := stoppedOf([]Task{{cmd.Process.Pid, 7}})
	defer tasks.close()
	cmd.Process.Kill() //nolint:errcheck // it is waited for
	cmd.Wait()         //nolint:errcheck // it was killed
	memory := contents(0x1000, 1)
	address := uint64(uintptr(unsafe.Pointer(&memory[0])))
	room := make([]byte, os.Getpagesize())
	for _, c := range []struct {
		handle int
		want   int
	}{{tasks[7].handle, 0}, {stoppedOf([]Task{{os.Getpid(), 7}})[7].handle, len(room)}} {
		// As if the pid had come to us.
		if n := (stopped{7: {os.Getpid(), c.handle}}).read(7, address, room); n != c.want {
			t.Errorf("%d bytes, want %d", n, c.want)
		}
	}
}
