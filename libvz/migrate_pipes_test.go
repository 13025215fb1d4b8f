//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseOpen(t *testing.T) {
	openat := fmt.Sprint(unix.SYS_OPENAT)
	for _, l := range []struct {
		text string
		at   int
		path uintptr
		ok   bool
	}{
		{openat + " 0xffffff9c 0x7ffd1000 0x0 0x0 0x0 0x0 0x7ffd0 0x7f00\n", unix.AT_FDCWD, 0x7ffd1000, true},
		{openat + " 0xffffffffffffff9c 0x10 0x0\n", unix.AT_FDCWD, 0x10, true},
		{fmt.Sprint(unix.SYS_OPENAT2) + " 0x5 0x10 0x20 0x18\n", 5, 0x10, true},
		{fmt.Sprint(unix.SYS_READ) + " 0x5 0x10 0x20\n", 0, 0, false},
		{"running\n", 0, 0, false},
		{"-1 0x7ffd0 0x7f00\n", 0, 0, false},
		{openat + " x y z\n", 0, 0, false},
		{"", 0, 0, false},
	} {
		at, path, ok := parseOpen(l.text)
		if at != l.at || path != l.path || ok != l.ok {
			t.Errorf("%q: %d, %#x, %v", l.text, at, path, ok)
		}
	}
}

// waiter starts a shell that waits for what it does in dir, and returns it when it does.
func waiter(t *testing.T, dir, script, call string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() }) //nolint:errcheck // it is killed
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", cmd.Process.Pid))
		if err != nil {
			t.Skipf("this kernel does not tell in which call a process is: %v", err)
		}
		if strings.HasPrefix(string(text), call+" ") {
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", script, text)
		}
	}
}

func TestWhoWaitsForAPipeIsFound(t *testing.T) {
	dir := t.TempDir()
	// As long as a path may be: it may go over a page's end.
	long := filepath.Join(strings.Repeat(strings.Repeat("d", 200)+"/", 10), "pipe")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(long)), 0o755),
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600), unix.Mkfifo(filepath.Join(dir, long), 0o600)); err != nil {
		t.Fatal(err)
	}
	openat := fmt.Sprint(unix.SYS_OPENAT)
	for _, name := range []string{"pipe", "./pipe", long, filepath.Join(dir, "pipe")} {
		if cmd := waiter(t, dir, "exec 3<"+name, openat); !opensPipe(cmd.Process.Pid) {
			t.Errorf("%s is not seen", name)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cmd := waiter(t, dir, "exec 3<pipe", openat)
	watchPipes(ctx, cmd.Process.Pid, time.Millisecond, cancel)
	if err := context.Cause(ctx); !errors.Is(err, errHeldUp) || !errors.Is(err, errNotWhole) {
		t.Errorf("the watch ended with: %v", err)
	}
	// It has one, and waits for what may come in it.
	if cmd := waiter(t, dir, "exec 3<>pipe; read line <&3", fmt.Sprint(unix.SYS_READ)); opensPipe(cmd.Process.Pid) {
		t.Error("a read is taken for an open")
	}
}
