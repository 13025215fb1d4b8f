package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLogKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var all bytes.Buffer
	for i := range 40000 {
		line := fmt.Sprintf("line %d of many\n", i)
		all.WriteString(line)
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil {
		t.Fatal(err)
	}
	if kept.Len() < generation || kept.Len() > MaxLog {
		t.Errorf("%d bytes are kept, want %d to %d", kept.Len(), generation, MaxLog)
	}
	if !bytes.HasSuffix(all.Bytes(), kept.Bytes()) {
		t.Error("what is kept is not the end of what was written")
	}
	var size int64
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		st, _ := e.Info()
		size += st.Size()
	}
	if size > MaxLog {
		t.Errorf("%d bytes on disk, want %d at most", size, MaxLog)
	}
	kept.Reset()
	if err := CopyLog(context.Background(), &kept, dir, 2, false); err != nil {
		t.Fatal(err)
	}
	if want := "line 39998 of many\nline 39999 of many\n"; kept.String() != want {
		t.Errorf("the last two lines are %q, want %q", kept.String(), want)
	}
}

func TestLogGoesOn(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []string{"one\n", "two\n"} {
		l, err := OpenLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		l.Write([]byte(s)) //nolint:errcheck // seen below
		l.Close()
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "one\ntwo\n" {
		t.Errorf("kept %q, %v", kept.String(), err)
	}
	if err := CopyLog(context.Background(), &kept, t.TempDir(), -1, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a log: %v", err)
	}
}

// Every byte comes through to a follower that is fast enough, across turns.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := CopyLog(ctx, w, dir, -1, true)
		w.Close()
		done <- err
	}()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	got := make([]byte, len(line))
	for range 1000 { // seven generations
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, line) {
			t.Fatalf("followed %q, %v", got, err)
		}
	}
	l.Close()
	cancel()
	rest, _ := io.ReadAll(r)
	if err := <-done; err != nil || len(rest) > 0 {
		t.Errorf("the end of following: %q, %v", rest, err)
	}
}

func TestFollowEndsWithTheLog(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.Write([]byte("last words")) //nolint:errcheck // seen below
	l.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- CopyLog(context.Background(), w, dir, -1, true) }()
	got := make([]byte, 10)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, LogName)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"", -1, ""},
		{"", 3, ""},
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nlogin: ", 1, "login: "},
		{"a\n\n\n", 2, "\n\n"},
		{"no newline", 1, "no newline"},
	} {
		if got := string(Tail([]byte(c.text), c.n)); got != c.want {
			t.Errorf("Tail(%q, %d) = %q, want %q", c.text, c.n, got, c.want)
		}
	}
}

func TestEscape(t *testing.T) {
	begin := time.Unix(1000, 0)
	type typed struct {
		text string
		at   time.Duration
	}
	for name, c := range map[string]struct {
		key   string
		typed []typed
		found bool
		want  string // for the guest
	}{
		"at once":             {"^]", []typed{{"ls\r\x1d\x1d\x1dmore", 0}}, true, "ls\r"},
		"one by one":          {"^]", []typed{{"\x1d", 0}, {"\x1d", 400 * time.Millisecond}, {"\x1d", 900 * time.Millisecond}}, true, ""},
		"too slow":            {"^]", []typed{{"\x1d", 0}, {"\x1d", 400 * time.Millisecond}, {"\x1d", 1100 * time.Millisecond}}, false, "\x1d\x1d"},
		"something between":   {"^]", []typed{{"\x1d\x1dx\x1d", 0}, {"y", 0}}, false, "\x1d\x1dx\x1dy"},
		"one, and then none":  {"^]", []typed{{"a\x1d", 0}, {"", 999 * time.Millisecond}}, false, "a"},
		"one, and it is late": {"^]", []typed{{"a\x1d", 0}, {"", time.Second}}, false, "a\x1d"},
		"a control key":       {"^a", []typed{{"\x01\x01\x01", 0}}, true, ""},
		"a letter":            {"q", []typed{{"qqq", 0}}, true, ""},
		"none":                {"none", []typed{{"\x1d\x1d\x1d", 0}}, false, "\x1d\x1d\x1d"},
		"another key's":       {"^a", []typed{{"\x1d\x1d\x1d", 0}}, false, "\x1d\x1d\x1d"},
		"begun again":         {"^]", []typed{{"\x1d", 0}, {"\x1d\x1d\x1d", 2 * time.Second}}, true, "\x1d"},
	} {
		e, err := ParseEscape(c.key)
		if err != nil {
			t.Fatal(err)
		}
		got, found := "", false
		for _, x := range c.typed {
			now := begin.Add(x.at)
			if x.text == "" {
				got += string(e.Late(now))
				continue
			}
			out, f := e.Find([]byte(x.text), now)
			got, found = got+string(out), found || f
		}
		if found != c.found || got != c.want {
			t.Errorf("%s: found %v, passed on %q; want %v, %q", name, found, got, c.found, c.want)
		}
	}
	for _, bad := range []string{"", "ab", "^^^", " ", "^\x01", "\x1d", "é"} {
		if _, err := ParseEscape(bad); err == nil {
			t.Errorf("ParseEscape(%q) took it", bad)
		}
	}
}

func TestCleaner(t *testing.T) {
	for _, c := range []struct{ in, plain, coloured string }{
		{"plain\ttext\n", "plain\ttext\n", ""},
		{"line\r\n", "line\n", ""},
		{"\x1b[0;32m  OK  \x1b[0m Started\r\n", "  OK   Started\n", "\x1b[0;32m  OK  \x1b[0m Started\n"},
		{"\x1b[2J\x1b[1;1Hclear", "clear", ""},
		{"\x1b]0;a title\x07after", "after", ""},
		{"\x1b]52;c;cm0gLXJm\x1b\\after", "after", ""},
		{"\x1bP+q544e\x1b\\after", "after", ""},
		{"\x1b]0;never ends\nnext line", "\nnext line", ""},
		{"\x1b[>4;2mprivate", "private", ""},
		{"\x1b[6n\x1b[c\x1b[?2004hask", "ask", ""},
		{"\x1b(B\x1b=\x1b7saved", "saved", ""},
		{"a\x00b\x07c\x7fd\x08e", "abcde", ""},
		{"grüße – 你好", "grüße – 你好", ""},
		{"bad \xff\xfe utf-8 \xc3", "bad \uFFFD\uFFFD utf-8 ", ""},
		{"c1 \u009b31m csi", "c1 31m csi", ""},
		{"raw c1 \x9b31m", "raw c1 \uFFFD31m", ""},
		{"\x1b[" + strings.Repeat("1;", 200) + "mlong", "long", ""},
		{"\x1b\x1b[31mtwo", "two", "\x1b[31mtwo"},
		{"\x1b[3\x1b[31mcut", "cut", "\x1b[31mcut"},
	} {
		if c.coloured == "" {
			c.coloured = c.plain
		}
		for _, step := range []int{1, 3, 1000} {
			if got := cleaned(c.in, step, false); got != c.plain {
				t.Errorf("%q in steps of %d: %q, want %q", c.in, step, got, c.plain)
			}
			if got := cleaned(c.in, step, true); got != c.coloured {
				t.Errorf("%q with colours: %q, want %q", c.in, got, c.coloured)
			}
		}
	}
}

func cleaned(in string, step int, colours bool) string {
	var out bytes.Buffer
	c := &Cleaner{To: &out, Colours: colours}
	for len(in) > 0 {
		n := min(step, len(in))
		c.Write([]byte(in[:n])) //nolint:errcheck // a buffer takes everything
		in = in[n:]
	}
	return out.String()
}

// Whatever a guest writes, what is left of it is harmless.
func FuzzCleaner(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b]0;t\x07\x9b\xc2\x9b\r\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, colours bool) {
		out := cleaned(string(in), 7, colours)
		for i, r := range out {
			switch {
			case r == '\n' || r == '\t':
			case r == 0x1b && colours:
				rest := out[i:]
				end := strings.IndexByte(rest, 'm')
				if end < 2 || rest[1] != '[' || strings.Trim(rest[2:end], "0123456789;:") != "" {
					t.Fatalf("%q became %q", in, out)
				}
			case r < 0x20 || r >= 0x7f && r < 0xa0:
				t.Fatalf("%q became %q", in, out)
			}
		}
	})
}

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

func TestKept(t *testing.T) {
	f, err := NewKept()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	say(t, f, "one\ntwo\n")
	pidfd := self(t)
	if _, err := OpenKept(pidfd); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a process that has none: %v", err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Stdout = f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()         //nolint:errcheck // it was killed
	defer cmd.Process.Kill() //nolint:errcheck // it is ours
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := OpenKept(os.NewFile(uintptr(fd), "pidfd"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()

	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := CopyKept(ctx, w, kept, 1, true)
		w.Close()
		done <- err
	}()
	got := make([]byte, 6)
	if _, err := io.ReadFull(r, got[:4]); err != nil || string(got[:4]) != "two\n" {
		t.Errorf("the last line is %q, %v", got[:4], err)
	}
	say(t, f, "three\n")
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "three\n" {
		t.Errorf("followed %q, %v", got, err)
	}
	cancel()
	if rest, _ := io.ReadAll(r); len(rest) > 0 || <-done != nil {
		t.Errorf("the end of following: %q", rest)
	}

	// Its size is what it is, whoever tries.
	if n, err := f.Write(make([]byte, 2*KeptSize)); n > KeptSize || err == nil {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	for _, size := range []int64{0, KeptSize - 1, KeptSize + 1} {
		if err := f.Truncate(size); err == nil {
			t.Errorf("truncated to %d", size)
		}
	}
}

func self(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// A writer that died between the two steps of a turn leaves a log all the same.
func TestLogWithoutItsNewestFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, oldName), []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "old\n" {
		t.Errorf("kept %q, %v", kept.String(), err)
	}
}
