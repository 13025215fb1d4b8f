package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the two of what an archive can be written to.
func ends(t *testing.T, kind string) (from, to *os.File) {
	t.Helper()
	fds := make([]int, 2)
	if kind == "socket" {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		ok(t, err)
		fds = pair[:]
	} else {
		ok(t, unix.Pipe2(fds, unix.O_CLOEXEC))
	}
	from, to = os.NewFile(uintptr(fds[0]), kind), os.NewFile(uintptr(fds[1]), kind)
	t.Cleanup(func() {
		from.Close()
		to.Close()
	})
	return from, to
}

// toEnd is a target there; an "old pipe" could not be opened once more.
func toEnd(ctx context.Context, t *testing.T, kind string, f *os.File) *stream {
	t.Helper()
	target, err := ToStream(ctx, f)
	ok(t, err)
	s := target.(*stream)
	t.Cleanup(s.Discard)
	if (s.own >= 0) != (kind != "socket") {
		t.Errorf("%s was opened once more: %v", kind, s.own >= 0)
	}
	if kind == "old pipe" {
		s.Discard()
	}
	return s
}

var streamKinds = []string{"pipe", "old pipe", "socket"}

// noise is a file that no compression makes smaller.
func noise(t *testing.T, size int) *os.File {
	t.Helper()
	random := rand.New(rand.NewPCG(5, 6))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	path := filepath.Join(t.TempDir(), "noise")
	ok(t, os.WriteFile(path, data, 0o600))
	f, err := os.Open(path)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// within returns what fn returns, which must not take for ever.
func within(t *testing.T, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
		return nil
	}
}

// A reader that stalls does not hold up who gives up, and gets no more then.
func TestStalledStream(t *testing.T) {
	const size = 40 << 20 // more than all buffers on the way
	image := noise(t, size)
	for _, kind := range streamKinds {
		for _, level := range []int{0, 1} {
			_, err := image.Seek(0, io.SeekStart)
			ok(t, err)
			ctx, cancel := context.WithCancel(context.Background())
			from, to := ends(t, kind)
			target := toEnd(ctx, t, kind, to)
			time.AfterFunc(200*time.Millisecond, cancel)
			err = within(t, func() error {
				w, err := NewWriter(ctx, target, Plan{Images: size}, Options{Level: level})
				if err != nil {
					return err
				}
				defer w.Discard()
				return w.AddImage(ctx, "pages-1.img", image, size)
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s, level %d: %v", kind, level, err)
			}
			flags, err := unix.FcntlInt(to.Fd(), unix.F_GETFL, 0)
			if err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("%s: flags %o, %v", kind, flags, err)
			}
			to.Close()
			if n, err := io.Copy(io.Discard, from); err != nil || n > 4<<20 {
				t.Errorf("%s, level %d: %d bytes came, %v", kind, level, n, err)
			}
		}
	}
}

// Slow readers get all of it, and one that goes away is an error.
func TestStream(t *testing.T) {
	const size = 3 << 20
	image := noise(t, size)
	for _, kind := range streamKinds {
		ctx := context.Background()
		from, to := ends(t, kind)
		target := toEnd(ctx, t, kind, to)
		_, err := image.Seek(0, io.SeekStart)
		ok(t, err)
		written := make(chan error, 1)
		go func() {
			defer to.Close()
			w, err := NewWriter(ctx, target, Plan{Images: size}, Options{})
			if err == nil {
				err = w.AddImage(ctx, "inventory.img", image, size)
			}
			if err == nil {
				_, err = w.Commit()
			}
			written <- err
		}()
		r, err := ReadFile(ctx, from, nil)
		ok(t, err)
		time.Sleep(20 * time.Millisecond)
		if c, err := r.Unpack(ctx, Unpack{}); err != nil || c.Digest == "" {
			t.Error(kind, err)
		}
		r.Close()
		ok(t, <-written)

		from, to = ends(t, kind)
		target = toEnd(ctx, t, kind, to)
		from.Close()
		if _, err := target.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// A writer that stalls has not damaged anything.
func TestStalledSource(t *testing.T) {
	var whole into
	write(t, &whole, Options{Level: 1}, "")
	for _, kind := range streamKinds {
		for _, n := range []int{0, 10, whole.Len() - 20} {
			ctx, cancel := context.WithCancel(context.Background())
			from, to := ends(t, kind)
			_, err := to.Write(bytes.Clone(whole.Bytes()[:n]))
			ok(t, err)
			time.AfterFunc(100*time.Millisecond, cancel)
			err = within(t, func() error {
				r, err := ReadFile(ctx, from, nil)
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = r.Unpack(ctx, Unpack{})
				return err
			})
			if !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
				t.Errorf("%s, %d bytes: %v", kind, n, err)
			}
		}
	}
}
