// tripwire runs a command and does something to it at the moment at which it
// changes what others find of it:
//
//	tripwire LOG PREFIX N:WHEN ACTION COMMAND...
//
// A change is a file that is made or opened to be made, a directory, a name that is
// given by rename or link, or a name that is removed, where the path begins with
// PREFIX, one or more with a comma in between. LOG gets a line for each, and "acted" when
// the N-th is there: before it (the call has begun), or after it (the call has returned,
// and the command does not know that yet). ACTION is kill, or fill=FILE, which makes the
// disk of FILE full. N is counted from 1; 0 lets the command alone.
//
// All threads of the command are traced. Its children are not: criu traces some of them
// itself. tripwire ends with the command's exit code, 137 where it was killed.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "usage: tripwire LOG PREFIX N:before|after kill|fill=FILE COMMAND...")
		os.Exit(2)
	}
	code, err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "tripwire:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(log, prefixes, point, action string, command []string) (int, error) {
	w := wire{prefixes: strings.Split(prefixes, ","), action: action, inside: map[int]int{}}
	number, when, _ := strings.Cut(point, ":")
	var err error
	if w.at, err = strconv.Atoi(number); err != nil || when != "before" && when != "after" {
		return 0, fmt.Errorf("%q is no N:before and no N:after", point)
	}
	w.after = when == "after"
	if w.log, err = os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		return 0, err
	}
	// Only the thread that began it may trace.
	runtime.LockOSThread()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	w.pid = cmd.Process.Pid
	return w.follow()
}

type wire struct {
	prefixes []string
	action   string
	at       int
	after    bool
	log      *os.File
	pid      int
	seen     int         // changes so far
	inside   map[int]int // which of them a thread is in
}

// Of ptrace(2) and wait(2).
const (
	exitKill = 0x100000 // the command does not outlive us
	waitAll  = 0x40000000
	callStop = syscall.SIGTRAP | 0x80
)

// follow goes with the command to its end.
func (w *wire) follow() (int, error) {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(w.pid, &status, waitAll, nil); err != nil {
		return 0, err
	}
	if err := syscall.PtraceSetOptions(w.pid, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE|syscall.PTRACE_O_TRACEEXEC|exitKill); err != nil {
		return 0, err
	}
	if err := syscall.PtraceSyscall(w.pid, 0); err != nil {
		return 0, err
	}
	for {
		tid, err := syscall.Wait4(-1, &status, waitAll, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, err
		case tid == w.pid && status.Exited():
			return status.ExitStatus(), nil
		case tid == w.pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case !status.Stopped():
			continue
		}
		deliver := 0
		switch stop := status.StopSignal(); {
		case stop == callStop:
			if err := w.look(tid); err != nil && !errors.Is(err, syscall.ESRCH) {
				return 0, err
			}
		case stop == syscall.SIGTRAP && status.TrapCause() > 0, stop == syscall.SIGSTOP:
			// A thread is made, or begins, or the command is another program now.
		default:
			deliver = int(stop)
		}
		if err := syscall.PtraceSyscall(tid, deliver); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, err
		}
	}
}

// callInfo is struct ptrace_syscall_info of ptrace(2).
type callInfo struct {
	op     uint8
	_      [23]byte
	number uint64 // at the end of a call: what it returned
	args   [6]uint64
	_      uint64
}

const (
	getCallInfo = 0x420e
	callBegins  = 1
	callEnds    = 2
)

// look sees a thread at the beginning or the end of a call.
func (w *wire) look(tid int) error {
	var i callInfo
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, getCallInfo, uintptr(tid), unsafe.Sizeof(i), uintptr(unsafe.Pointer(&i)), 0, 0)
	if errno != 0 {
		return errno
	}
	if i.op == callEnds {
		n := w.inside[tid]
		delete(w.inside, tid)
		if n != 0 && n == w.at && w.after {
			return w.act()
		}
		return nil
	}
	what, at := change(i)
	if i.op != callBegins || what == "" {
		return nil
	}
	path, err := readString(tid, uintptr(at))
	if err != nil || !w.meant(path) {
		return err
	}
	w.seen++
	w.inside[tid] = w.seen
	fmt.Fprintln(w.log, w.seen, what, path)
	if w.seen == w.at && !w.after {
		return w.act()
	}
	return nil
}

// change says what a call does, and where in the command's memory the path is.
func change(i callInfo) (what string, path uint64) {
	renameat2 := map[string]uint64{"amd64": 316, "arm64": 276}
	switch i.number {
	case syscall.SYS_OPENAT:
		if i.args[2]&syscall.O_CREAT != 0 {
			return "create", i.args[1]
		}
	case syscall.SYS_MKDIRAT:
		return "mkdir", i.args[1]
	case syscall.SYS_RENAMEAT, renameat2[runtime.GOARCH]:
		return "rename", i.args[3]
	case syscall.SYS_LINKAT:
		return "link", i.args[3]
	case syscall.SYS_UNLINKAT:
		return "remove", i.args[1]
	}
	return "", 0
}

func readString(tid int, at uintptr) (string, error) {
	var s []byte
	word := make([]byte, 8)
	for len(s) < 4096 {
		// Aligned words never lead into a page that is not there.
		skip := (at + uintptr(len(s))) % 8
		if _, err := syscall.PtracePeekData(tid, at+uintptr(len(s))-skip, word); err != nil {
			return "", err
		}
		text, _, ended := strings.Cut(string(word[skip:]), "\x00")
		s = append(s, text...)
		if ended {
			break
		}
	}
	return string(s), nil
}

func (w *wire) meant(path string) bool {
	for _, p := range w.prefixes {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

func (w *wire) act() error {
	fmt.Fprintln(w.log, "acted")
	if file, ok := strings.CutPrefix(w.action, "fill="); ok {
		return fill(file)
	}
	if w.action != "kill" {
		return fmt.Errorf("unknown action %q", w.action)
	}
	return syscall.Kill(w.pid, syscall.SIGKILL)
}

// fill writes until there is no space left.
func fill(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<16); len(block) > 0; {
		_, err := f.Write(block)
		if errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2] // the rest, down to the last byte
		} else if err != nil {
			return err
		}
	}
	return nil
}
