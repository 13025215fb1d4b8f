//go:build !lean

package libvz

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rsync opens what it has listed as a file, and waits for a writer where a pipe has taken
// its name since (fifo(7)): a guest could hold up its own move for ever. It cannot once it
// is stopped.

// pipesTick is how often is looked whether a pipe is waited for.
const pipesTick = time.Second

// errHeldUp is what a pass ends with that has met such a pipe.
var errHeldUp = fmt.Errorf("%w: a pipe had taken the place of a file", errNotWhole)

// watchPipes calls end with errHeldUp if a process, a child of this one, waits in open(2) of
// a pipe. It returns with ctx.
func watchPipes(ctx context.Context, pid int, every time.Duration, end func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if opensPipe(pid) {
			end(errHeldUp)
			return
		}
	}
}

// opensPipe tells whether a process is in a call of openat(2) or openat2(2) for a pipe.
// It is not where that cannot be found out.
func opensPipe(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	if err != nil {
		return false
	}
	at, address, ok := parseOpen(string(text))
	if !ok {
		return false
	}
	name := make([]byte, unix.PathMax)
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &name[0], Len: uint64(len(name))}}, pagesOf(address, len(name)), 0)
	if err != nil {
		return false
	}
	name, _, ok = bytes.Cut(name[:n], []byte{0})
	if !ok {
		return false
	}
	// By the process's own mounts, where no link is followed.
	dir := fmt.Sprintf("/proc/%d/cwd", pid)
	if at != unix.AT_FDCWD {
		dir = fmt.Sprintf("/proc/%d/fd/%d", pid, at)
	}
	if strings.HasPrefix(string(name), "/") {
		dir = fmt.Sprintf("/proc/%d/root", pid)
	}
	st, err := os.Lstat(dir + "/" + string(name))
	return err == nil && st.Mode()&os.ModeNamedPipe != 0
}

// pagesOf divides size bytes from address on by pages: of those that are not there the
// kernel reads none, of those before all (process_vm_readv(2)).
func pagesOf(address uintptr, size int) []unix.RemoteIovec {
	page := os.Getpagesize()
	var out []unix.RemoteIovec
	for size > 0 {
		n := min(size, page-int(address)%page)
		out = append(out, unix.RemoteIovec{Base: address, Len: n})
		address, size = address+uintptr(n), size-n
	}
	return out
}

// parseOpen reads /proc/PID/syscall (proc_pid_syscall(5)): the directory and the address of
// the path, if it is a call that opens one.
func parseOpen(text string) (at int, path uintptr, ok bool) {
	fields := strings.Fields(text)
	if len(fields) < 3 {
		return 0, 0, false // "running", for one
	}
	if call, err := strconv.Atoi(fields[0]); err != nil || call != unix.SYS_OPENAT && call != unix.SYS_OPENAT2 {
		return 0, 0, false
	}
	var args [2]uint64
	for i := range args {
		var err error
		if args[i], err = strconv.ParseUint(fields[1+i], 0, 64); err != nil {
			return 0, 0, false
		}
	}
	return int(int32(args[0])), uintptr(args[1]), true
}
