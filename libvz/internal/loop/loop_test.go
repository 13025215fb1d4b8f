package loop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// with returns 128 KiB of zeroes with text at an offset.
func with(offset int, text string) []byte {
	image := make([]byte, 128<<10)
	copy(image[offset:], text)
	return image
}

func TestFileSystem(t *testing.T) {
	for _, c := range []struct {
		name  string
		image []byte
		want  string // a file system, or a part of the error
		fails bool
	}{
		{"ext4", with(0x438, "\x53\xef"), "ext4", false},
		{"ext4 with a boot sector", append(with(510, "\x55\xaa")[:0x438], with(0x438, "\x53\xef")[0x438:]...), "ext4", false},
		{"xfs", with(0, "XFSB"), "xfs", false},
		{"btrfs", with(0x10040, "_BHRfS_M"), "btrfs", false},
		{"nothing", nil, "no ext4", true},
		{"zeroes", with(0, ""), "no ext4", true},
		{"ends in a magic", with(0, "")[:0x439], "no ext4", true},
		{"partitions", with(510, "\x55\xaa"), "a disk with partitions", true},
		{"luks", with(0, "LUKS\xba\xbe"), "a LUKS volume", true},
		{"qcow2", with(0, "QFI\xfb"), "a qcow2 image", true},
		{"squashfs", with(0, "hsqs"), "a squashfs", true},
	} {
		got, err := FileSystem(bytes.NewReader(c.image))
		switch {
		case c.fails && (!errors.Is(err, ErrNoFileSystem) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %q, %v; want an error with %q", c.name, got, err, c.want)
		case !c.fails && (err != nil || got != c.want):
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLockIsForOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	first := open(t, path)
	if err := Lock(first); err != nil {
		t.Fatal(err)
	}
	if err := Lock(open(t, path)); !errors.Is(err, ErrInUse) {
		t.Fatalf("the second lock: %v", err)
	}
	first.Close()
	if err := Lock(open(t, path)); err != nil {
		t.Fatalf("after the first is gone: %v", err)
	}
}

// The lock of an image outlives who took it, and ends with the device.
func TestAttachKeepsTheLock(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	path := filepath.Join(t.TempDir(), "image")
	image := open(t, path)
	if err := image.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := Lock(image); err != nil {
		t.Fatal(err)
	}
	device, err := Attach(image, false)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	image.Close()
	if err := Lock(open(t, path)); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a device: %v", err)
	}
	if name, err := deviceOf(open(t, path)); name != device.Name() || err != nil {
		t.Errorf("found %q, %v; want %s", name, err, device.Name())
	}
	device.Close()
	// The kernel clears a device some time after its last close.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := Lock(open(t, path))
		if err == nil {
			return
		}
		if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
			t.Fatalf("when the device is gone: %v", err)
		}
	}
}

// A device that was attached without the lock is found all the same.
func TestLockSeesForeignDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	path := filepath.Join(t.TempDir(), "image")
	image := open(t, path)
	if err := image.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	device, err := Attach(image, true)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := unix.Flock(int(image.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := Lock(open(t, path)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), device.Name()) {
		t.Errorf("got %v, want one that names %s", err, device.Name())
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	const size = 96 << 20
	dir := t.TempDir()
	from, err := os.Create(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if err := from.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, size - 5} {
		if _, err := from.WriteAt([]byte("data!"), at); err != nil {
			t.Fatal(err)
		}
	}
	to, err := os.Create(filepath.Join(dir, "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	var copied int64
	if err := Copy(context.Background(), to, from, func(done int64) { copied = done }); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(from.Name())
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.ReadFile(to.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, is) {
		t.Error("the copy differs")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > size/2 {
		t.Errorf("%d bytes on disk of %d", st.Blocks*512, size)
	}
	if copied > size/2 {
		t.Errorf("copied %d", copied)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := to.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := Copy(ctx, to, from, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	first, second, owner := open(), open(), open()
	for _, f := range []*os.File{first, second} {
		if err := Share(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := Lock(owner); !errors.Is(err, ErrInUse) {
		t.Errorf("somebody reads it: %v", err)
	}
	first.Close()
	second.Close()
	if err := Lock(owner); err != nil {
		t.Fatal(err)
	}
	if err := Share(open()); !errors.Is(err, ErrInUse) {
		t.Errorf("it has an owner: %v", err)
	}
}
