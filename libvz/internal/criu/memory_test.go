package criu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fill starts what fills the memory of the task from what dial gives, and the task.
// A nil dial is for images.
func fill(t *testing.T, seed uint64, dial func(context.Context) (net.Conn, error)) (*LazyPages, *bufio.Reader, io.Writer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lazy") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	flags := uint64(lazyElsewhere)
	if dial == nil {
		flags = lazyPresent
	}
	var entries []pagemapOf
	var pages []byte
	for _, r := range taskRanges() {
		entries = append(entries, pagemapOf{r.address, 0, uint64(r.pages), flags})
		pages = append(pages, contents(r.address, uint64(r.pages))...)
	}
	writePagemap(t, filepath.Join(dir, "pagemap-7.img"), entries...)
	if dial == nil {
		if err := os.WriteFile(filepath.Join(dir, "pages-7.img"), pages, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := StartLazyPages(LazyOptions{Images: dir, Work: dir, Dial: dial, Holder: []string{"/proc/self/exe", "hold"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	cmd := exec.Command("/proc/self/exe", "task", filepath.Join(dir, lazySocket), strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // likewise
	})
	out.(*os.File).SetReadDeadline(time.Now().Add(60 * time.Second)) //nolint:errcheck // a pipe can
	return l, bufio.NewReader(out), in
}

// heard returns the next line of the task.
func heard(t *testing.T, out *bufio.Reader) string {
	t.Helper()
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func needUserfaultfd(t *testing.T) {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd: %v", errno)
	}
	unix.Close(int(fd))
}

// Whatever a task does to its address space, and wherever connections end: each of its
// pages has what it should, and so have those of its children.
func TestMemoryOfATaskThatChangesIt(t *testing.T) {
	needUserfaultfd(t)
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 2))
		gate := make(chan struct{})
		if seed%3 != 0 {
			close(gate)
		}
		dial := func(context.Context) (net.Conn, error) {
			here, there := sockets(t)
			left := 1 << 30
			if seed%3 == 1 {
				left = random.IntN(4 << 20)
			}
			go func() {
				<-gate
				serveBytes(there, left)
			}()
			return here, nil
		}
		if seed == 4 {
			dial = nil
		}
		l, out, in := fill(t, seed, dial)
		for _, want := range []string{"restored", "half", "right"} {
			if got := heard(t, out); got != want {
				t.Fatalf("seed %d: %q", seed, got)
			}
			if want == "half" {
				in.Write([]byte("\n")) //nolint:errcheck // the reader tells
				if seed%3 == 0 {
					awaitFault(t, l.memory)
					close(gate)
				}
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := l.Wait(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		cancel()
		l.Confirm()
		l.Release()
		// Where all was kept back it has waited.
		if s := l.Faults(); seed%3 == 0 && (s.Count == 0 || s.P50 <= 0) || s.Max < s.P99 {
			t.Errorf("seed %d: %+v", seed, *s)
		}
	}
}

// awaitFault returns when a task waits for memory.
func awaitFault(t *testing.T, m *memory) {
	t.Helper()
	waits := func() bool {
		m.mu.Lock()
		spaces := slices.Clone(m.tasks[7].spaces)
		m.mu.Unlock()
		return slices.ContainsFunc(spaces, func(s *space) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.faults) > 0
		})
	}
	for until := time.Now().Add(20 * time.Second); !waits(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("no task waits for memory")
		}
	}
}

// A task whose memory does not come waits for it, and finds no zeroes, as long as there
// is the holder.
func TestMemoryThatDoesNotCome(t *testing.T) {
	needUserfaultfd(t)
	noMore := errors.New("no more")
	l, out, in := fill(t, 3, func(context.Context) (net.Conn, error) { return nil, noMore })
	heard(t, out)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Wait(ctx); !errors.Is(err, noMore) {
		t.Fatal(err)
	}
	heard(t, out)
	in.Write([]byte("\n")) //nolint:errcheck // it is not heard from again
	out.Reset(strings.NewReader(""))
	l.GiveUp()
}

func TestMemoryWithoutItsHolder(t *testing.T) {
	needUserfaultfd(t)
	l, out, _ := fill(t, 3, func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	heard(t, out)
	if err := unix.Kill(l.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Wait(ctx); !errors.Is(err, errNoHolder) {
		t.Error(err)
	}
}

// What a holder holds outlives whoever has it held, until it is dropped.
func TestHolder(t *testing.T) {
	h, err := startHolder([]string{"/proc/self/exe", "hold"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.end()
	pipe := func() (*os.File, uint32) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		r.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a pipe can
		n, err := h.add(int(w.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r, n
	}
	one, n := pipe()
	two, _ := pipe()
	h.drop(n)
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v in place of the end of what was dropped", err)
	}
	h.conn.Close()
	two.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) //nolint:errcheck // a pipe can
	if _, err := two.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v of what is held", err)
	}
}

// dummy is a descriptor of which nothing is ever heard.
func dummy(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// Where a task waits for zeroes, memory that lacks its pages may be by the time that they
// can be put.
func TestZeroesAreNotForWhatIsLacking(t *testing.T) {
	h, err := startHolder([]string{"/proc/self/exe", "hold"})
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory(func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}, h)
	defer m.release()
	if err := m.add(7, []pageRange{{address: 0x1000, pages: 1}}, dummy(t)); err != nil {
		t.Fatal(err)
	}
	s := m.tasks[7].spaces[0]
	s.mu.Lock()
	s.zeroes = []uint64{0x9000}
	s.lacks.move(0x1000, 0x9000, pageSize)
	s.fillZeroes()
	s.mu.Unlock()
	m.mu.Lock()
	asked := slices.Clone(m.asked)
	m.mu.Unlock()
	if len(asked) != 1 || asked[0].span != (span{7, 0x1000, 1}) {
		t.Errorf("%v is asked for", asked)
	}
}

func TestMemoryOfAStrangeServer(t *testing.T) {
	noMore := errors.New("no more")
	few := messageOf(psAdd, span{7, 0x1000, 1})
	binary.NativeEndian.PutUint64(few[8:], 0)
	for _, c := range []struct {
		name string
		says []byte
		want error
	}{
		{"no connection", nil, noMore},
		{"an answer to nothing", answerTo(messageOf(psGet, span{7, 0x9000, 1}), 1), errForeignPages},
		{"another task's", answerTo(messageOf(psGet, span{8, 0x1000, 1}), 1), errForeignPages},
		{"too many pages", answerTo(messageOf(psGet, span{7, 0x1000, 2}), 2), errForeignPages},
		{"no pages", few[:], errForeignPages},
	} {
		h, err := startHolder([]string{"/proc/self/exe", "hold"})
		if err != nil {
			t.Fatal(err)
		}
		m := newMemory(func(context.Context) (net.Conn, error) {
			if c.says == nil {
				return nil, noMore
			}
			here, there := sockets(t)
			deadline(t, there)
			_, err := there.Write(c.says)
			return here, err
		}, h)
		if err := m.add(7, []pageRange{{address: 0x1000, pages: 1}}, dummy(t)); err != nil {
			t.Fatal(err)
		}
		m.want(7, 0)
		select {
		case <-m.ended:
			if !errors.Is(m.err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, m.err, c.want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: it goes on", c.name)
		}
		if err := m.add(7, nil, dummy(t)); err == nil {
			t.Error("a task may be there twice")
		}
		m.farewell(psGivenUp)
		m.release()
	}
}
