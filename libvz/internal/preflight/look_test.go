package preflight

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStatus(t *testing.T) {
	var task Task
	parseStatus("Name:\ta b\x1b\nPPid:\t7\nTracerPid:\t9\nNSpid:\t400\t12\t3\nnothing\n", &task)
	if task.Command != "a b?" || task.Parent != 7 || task.Tracer != 9 || task.Guest != 12 {
		t.Errorf("%+v", task)
	}
	parseStatus("NSpid:\t400\n", &task)
	if task.Guest != 400 {
		t.Errorf("without a namespace: %+v", task)
	}
}

func TestSpecialMapping(t *testing.T) {
	const head = "7f0000000000-7f0000001000 rw-p 00000000 08:01 55                         "
	for name, want := range map[string]bool{
		"":                             false,
		"[heap]":                       false,
		"/usr/lib/x.so":                false,
		"/usr/lib/x.so (deleted)":      true,
		"/dev/fb0":                     true,
		"/secretmem (deleted)":         true,
		"anon_inode:[io_uring]":        true,
		"/a anon_inode:x":              false,
		"/memfd:anon_inode: (deleted)": true,
	} {
		area, got, ok := specialMapping(head + name)
		if ok != want || ok && (got != name || area != "7f0000000000-7f0000001000") {
			t.Errorf("%q: %q, %q, %v", name, area, got, ok)
		}
	}
}

// It looks at this test itself.
func TestLook(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Remove(f.Name())
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	facts, err := Look(t.Context(), Guest{Init: os.Getpid(), Pids: []int{os.Getpid(), 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	if len(facts.Tasks) != 1 {
		t.Errorf("%d tasks", len(facts.Tasks))
	}
	task := facts.Tasks[0]
	if task.Parent != os.Getppid() || task.Namespaces["net"] == 0 || task.Command == "" {
		t.Errorf("%+v", task)
	}
	file := func(fd uintptr) File {
		i := slices.IndexFunc(task.Files, func(f File) bool { return f.FD == int(fd) })
		if i < 0 {
			t.Fatalf("descriptor %d is not there", fd)
		}
		return task.Files[i]
	}
	if got := file(f.Fd()); got.Names != 0 || !strings.HasSuffix(got.Link, " (deleted)") ||
		!slices.ContainsFunc(facts.Mounts, func(m Mount) bool { return m.ID == got.Mount }) {
		t.Errorf("a deleted file: %+v", got)
	}
	sock := file(uintptr(pair[0]))
	if s := facts.Sockets[sock.Inode]; !strings.HasPrefix(sock.Protocol, "UNIX") || !s.Peered || !s.Stream || s.Peer != file(uintptr(pair[1])).Inode {
		t.Errorf("a socket: %+v, %+v", sock, s)
	}
}

func TestLookEnds(t *testing.T) {
	if _, err := Look(t.Context(), Guest{Init: 1 << 30}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
	if _, err := Look(t.Context(), Guest{Init: os.Getpid(), Timeout: time.Nanosecond}); !errors.Is(err, ErrStuck) {
		t.Errorf("no time: %v", err)
	}
	// Not however many there are: each has a time of its own.
	many := Guest{Init: os.Getpid(), Pids: slices.Repeat([]int{os.Getppid()}, 1000), Timeout: time.Second}
	for lasted := time.Duration(0); lasted <= many.Timeout; {
		begun := time.Now()
		if _, err := Look(t.Context(), many); err != nil {
			t.Fatalf("%d processes in %v: %v", len(many.Pids), time.Since(begun), err)
		}
		lasted = time.Since(begun)
		many.Pids = append(many.Pids, many.Pids...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Look(ctx, Guest{Init: os.Getpid()}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A lock is the descriptor's, whoever took it and is no more.
func TestLookAtLocks(t *testing.T) {
	name := t.TempDir() + "/x"
	open := func() *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	locked, other := open(), open()
	taker := exec.Command("flock", "--nonblock", "3")
	taker.ExtraFiles = []*os.File{locked}
	if out, err := taker.CombinedOutput(); err != nil {
		t.Fatalf("flock: %v: %s", err, out)
	}
	for _, look := range []bool{true, false} {
		facts, err := Look(t.Context(), Guest{Init: os.Getpid(), Locks: look})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range facts.Tasks[0].Files {
			if want := look && f.FD == int(locked.Fd()); f.Locked != want {
				t.Errorf("descriptor %d (not %d): %v", f.FD, other.Fd(), f.Locked)
			}
		}
	}
}

// Ends of connections by datagrams, too, and sockets with names.
func TestLookAtPeers(t *testing.T) {
	path := t.TempDir() + "/s"
	at, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at)
	to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(to)
	if err := errors.Join(unix.Bind(at, &unix.SockaddrUnix{Name: path}), unix.Connect(to, &unix.SockaddrUnix{Name: path})); err != nil {
		t.Fatal(err)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(at, &a), unix.Fstat(to, &b)); err != nil {
		t.Fatal(err)
	}
	facts, err := Look(t.Context(), Guest{Init: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if s := facts.Sockets[b.Ino]; s.Peer != a.Ino || !s.Peered || s.Stream || s.TCP {
		t.Errorf("%+v, the other end is %d", s, a.Ino)
	}
	if _, ok := facts.Sockets[a.Ino]; !ok {
		t.Error("one with a name is not found")
	}
}

func TestParseUnix(t *testing.T) {
	for _, msg := range [][]byte{nil, make([]byte, 15), {2, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if _, _, ok := parseUnix(msg); ok {
			t.Errorf("accepted %v", msg)
		}
	}
	msg := append([]byte{1, 1, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 5, 0, 6, 0, 1, 0, 0, 0, 8, 0, 2, 0, 7, 0, 0, 0, 255, 255)
	if inode, s, ok := parseUnix(msg); !ok || inode != 9 || s.Peer != 7 || !s.Stream || s.State != 1 {
		t.Errorf("%d, %+v", inode, s)
	}
	if _, s, ok := parseUnix(append(msg[:16:16], 0, 0, 2, 0)); !ok || s.Peer != 0 {
		t.Errorf("a damaged attribute: %+v", s)
	}
}

func TestTerminalIn(t *testing.T) {
	for stat, want := range map[string]uint64{
		"82 (sleep) S 1 82 82 34816 82 4194560 1":       unix.Mkdev(136, 0),
		"82 (a) b (c) S 1 82 82 34819 82 4194560 1":     unix.Mkdev(136, 3),
		"82 (sleep) S 1 82 82 1083400 82 4194560 1":     unix.Mkdev(136, 264),
		"82 (sleep) S 1 82 82 0 -1 4194560 1":           0,
		"82 (sleep) Z 1":                                0,
		"":                                              0,
		"82 (1 2 3 4 5) S 1 82 82 nothing -1 4194560 1": 0,
	} {
		if got := terminalIn(stat); got != want {
			t.Errorf("%q: %#x, want %#x", stat, got, want)
		}
	}
}
