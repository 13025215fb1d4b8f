package console

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

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
