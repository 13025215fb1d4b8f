package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guest is the other side of a terminal.
func guest(t *testing.T) (master, slave *os.File) {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return m, openGuest(t, fmt.Sprintf("/dev/pts/%d", n))
}

func openGuest(t *testing.T, path string) *os.File {
	t.Helper()
	s, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tio, err := unix.IoctlGetTermios(int(s.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tio.Oflag &^= unix.OPOST
	tio.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(s.Fd()), unix.TCSETS, tio); err != nil {
		t.Fatal(err)
	}
	return s
}

func say(t *testing.T, to *os.File, text string) {
	t.Helper()
	if _, err := to.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// screen is a client's output.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func newScreen() *screen { return &screen{news: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	select {
	case s.news <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		select {
		case <-s.news:
		case <-deadline:
			t.Fatalf("no %q in %q", want, text)
		}
	}
}

func serve(t *testing.T, master *os.File) (*Server, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Serve(master, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func dial(t *testing.T, dir string) (*Client, *screen, chan error) {
	t.Helper()
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	view, end := newScreen(), make(chan error, 1)
	go func() { end <- c.CopyTo(view) }()
	return c, view, end
}

func TestServer(t *testing.T) {
	master, slave := guest(t)
	s, dir := serve(t, master)
	local := newScreen()
	s.Attach(local)
	say(t, slave, "hello\nlogin: ")
	local.await(t, "login: ")

	// Who comes later sees the prompt, and only that.
	one, oneView, oneEnd := dial(t, dir)
	oneView.await(t, "login: ")
	_, twoView, twoEnd := dial(t, dir)
	twoView.await(t, "login: ")
	if strings.Contains(twoView.text.String(), "hello") {
		t.Error("a new client got an old line")
	}

	// What one types goes to the guest, what that says to all.
	fmt.Fprintf(one, "root\n")
	typed := make([]byte, 100)
	if n, err := slave.Read(typed); err != nil || string(typed[:n]) != "root\n" {
		t.Errorf("the guest read %q, %v", typed[:n], err)
	}
	say(t, slave, "welcome\n")
	for _, view := range []*screen{local, oneView, twoView} {
		view.await(t, "welcome\n")
	}

	if err := one.Resize(33, 99); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(one, "size\n") // packets come in order
	slave.Read(typed)          //nolint:errcheck // see below
	if ws, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || ws.Row != 33 || ws.Col != 99 {
		t.Errorf("size %+v, %v", ws, err)
	}

	say(t, slave, "goodbye\n")
	slave.Close()
	s.Close()
	for _, end := range []chan error{oneEnd, twoEnd} {
		if err := <-end; err != nil {
			t.Errorf("a client ended with %v", err)
		}
	}
	twoView.await(t, "goodbye\n")
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "hello\nlogin: welcome\ngoodbye\n" {
		t.Errorf("the log is %q, %v", kept.String(), err)
	}
	if _, err := Dial(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

// A guest closes its console between two lines, and hangs it up.
func TestServerOutlivesHangups(t *testing.T) {
	master, slave := guest(t)
	path := slave.Name()
	s, dir := serve(t, master)
	_, view, _ := dial(t, dir)
	say(t, slave, "one\n")
	slave.Close()
	view.await(t, "one\n")
	for i := range 3 {
		slave = openGuest(t, path)
		fmt.Fprintf(slave, "again %d\n", i)
		view.await(t, fmt.Sprintf("again %d\n", i))
		slave.Close()
	}
	s.mu.Lock()
	s.peer.Close() // what vhangup(2) comes to: nobody has it open
	s.mu.Unlock()
	slave = openGuest(t, path)
	say(t, slave, "after it\n")
	view.await(t, "after it\n")
	slave.Close()
	s.Close()
}

// A client that takes nothing delays neither the guest nor the others.
func TestSlowClient(t *testing.T) {
	master, slave := guest(t)
	s, dir := serve(t, master)
	slow, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Attach(io.Discard)
	line := []byte(strings.Repeat("y", 1023) + "\n")
	for range 8 << 10 { // far more than all buffers
		if _, err := slave.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	_, view, _ := dial(t, dir)
	say(t, slave, "it lives\n")
	view.await(t, "it lives\n")
	// It reads at last, and is told that it missed something.
	late := newScreen()
	go slow.CopyTo(late) //nolint:errcheck // it is closed
	late.await(t, "bytes of output skipped]")
	slow.Close()
	slave.Close()
	s.Close()
}

// A guest that reads nothing does not keep others from watching.
func TestDeafGuest(t *testing.T) {
	master, slave := guest(t)
	tio, _ := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	tio.Lflag &^= unix.ICANON
	unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, tio) //nolint:errcheck // then it reads lines, and less is tested
	s, dir := serve(t, master)
	typist, _, _ := dial(t, dir)
	go func() {
		for range 64 {
			typist.Write(bytes.Repeat([]byte("z"), 4096)) //nolint:errcheck // it is left in the middle
		}
	}()
	_, view, _ := dial(t, dir)
	say(t, slave, "busy\n")
	view.await(t, "busy\n")
	typist.Close()
	slave.Close()
	s.Close()
}

func TestRelease(t *testing.T) {
	master, slave := guest(t)
	s, dir := serve(t, master)
	_, view, end := dial(t, dir)
	say(t, slave, "before\n")
	view.await(t, "before\n")
	master, err := s.Release()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-end; !errors.Is(err, ErrLeft) {
		t.Errorf("a client ended with %v", err)
	}
	say(t, slave, "between\n")
	s, err = Serve(master, dir)
	if err != nil {
		t.Fatal(err)
	}
	_, view, _ = dial(t, dir)
	say(t, slave, "after")
	view.await(t, "after")
	if master, err = s.Release(); err != nil {
		t.Fatal(err)
	}
	if s, err = Serve(master, dir); err != nil {
		t.Fatal(err)
	}
	_, view, _ = dial(t, dir)
	view.await(t, "after") // the prompt, of the holder before
	slave.Close()
	s.Close()
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "before\nbetween\nafter" {
		t.Errorf("the log is %q, %v", kept.String(), err)
	}
}

func TestTooManyClients(t *testing.T) {
	master, slave := guest(t)
	s, dir := serve(t, master)
	views := []*screen{}
	for range maxClients {
		_, view, _ := dial(t, dir)
		views = append(views, view)
	}
	say(t, slave, "all")
	for _, view := range views {
		view.await(t, "all")
	}
	if _, err := Dial(dir); !errors.Is(err, ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	slave.Close()
	s.Close()
}
