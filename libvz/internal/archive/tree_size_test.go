package archive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMostContent(t *testing.T) {
	for _, tc := range []struct {
		blocks uint64
		size   int64
		want   int64
	}{
		{0, 4096, contentMost}, // a tmpfs without a bound
		{1 << 20, 0, contentMost},
		{1 << 20, -1, contentMost},
		{1 << 20, 4096, contentLeast},
		{1 << 28, 4096, contentFactor << 40},
		{1 << 36, 4096, contentMost},
		{1<<64 - 1, 4096, contentMost},
		{1<<64 - 1, 1, contentMost},
	} {
		if got := mostContent(tc.blocks, tc.size); got != tc.want {
			t.Errorf("%d blocks of %d: %d, want %d", tc.blocks, tc.size, got, tc.want)
		}
	}
}

// Holes cost a guest nothing. They are counted and not read, and refused where there
// are too many.
func TestHugeFiles(t *testing.T) {
	dir := t.TempDir()
	long := func(name string, size int64) {
		t.Helper()
		err := os.WriteFile(filepath.Join(dir, name), nil, 0o600)
		if err == nil {
			err = os.Truncate(filepath.Join(dir, name), size)
		}
		if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
			t.Skip("no such files here")
		}
		ok(t, err)
	}
	ctx := context.Background()
	most, err := roomFor(dir)
	ok(t, err)
	long("a", most/2)
	tree := &Tree{Name: Rootfs, Dir: dir}
	ok(t, within(t, func() error { return tree.measure(ctx) }))
	if tree.size < most/2 || tree.size%blockSize != 0 {
		t.Errorf("%d bytes of %d", tree.size, most/2)
	}
	ok(t, CheckSizes(ctx, []*Tree{tree}))
	long("b", most-most/2+1)
	for name, look := range map[string]func() error{
		"writer": func() error {
			_, err := NewWriter(ctx, &into{}, Plan{Trees: []*Tree{tree}}, Options{})
			return err
		},
		"before": func() error { return CheckSizes(ctx, []*Tree{tree}) },
	} {
		if err := within(t, look); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is gone by now is not too large.
	ok(t, CheckSizes(ctx, []*Tree{{Name: Rootfs, Dir: filepath.Join(dir, "gone")}}))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := CheckSizes(ended, []*Tree{tree}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
