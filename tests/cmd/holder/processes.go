package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func processes() []thing {
	return []thing{
		{"zombie", zombie},
		{"attributes", attributes},
	}
}

// other is a process of ours that is spoken with through pipes.
type other struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// startChild runs this program as `holder child ROLE`, with files from 3 on.
func startChild(role string, files ...*os.File) (*other, error) {
	c := &other{cmd: exec.Command("/proc/self/exe", "child", role)}
	c.cmd.ExtraFiles = files
	c.cmd.Stderr = os.Stderr
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdout = bufio.NewReader(out)
	return c, c.cmd.Start()
}

func (c *other) say(line string) error {
	_, err := fmt.Fprintln(c.stdin, line)
	return err
}

func (c *other) hear() (string, error) {
	line, err := c.stdout.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (c *other) end() error { return errors.Join(c.stdin.Close(), c.cmd.Wait()) }

// child is the other process; it returns its exit code.
func child(role string) int {
	stdin := bufio.NewReader(os.Stdin)
	kind, isLock := strings.CutPrefix(role, "lock-")
	switch {
	case isLock:
		fmt.Println(tryLock(kind, os.NewFile(3, "file")))
	case role == "memory":
		memory, err := syscall.Mmap(3, 0, 1<<20, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			return 1
		}
		line, _ := stdin.ReadString('\n')
		at, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return 1
		}
		fmt.Println(string(memory[at]))
	case role == "signals":
		if err := pendingSignal(stdin); err != nil {
			fmt.Println(err)
		}
	case role == "dead":
		return 42
	}
	_, _ = io.Copy(io.Discard, stdin)
	return 0
}

// siginfo is what sigqueue(3) sends: signal, error, code, and after a gap the
// sender and the value.
type siginfo struct {
	signal, errno, code, _ int32
	pid, uid               int32
	value                  uint64
	_                      [96]byte
}

// pendingSignal blocks a signal in its thread, sends it to this thread and, when
// it is told to, reads it from a signalfd.
func pendingSignal(stdin *bufio.Reader) error {
	runtime.LockOSThread()
	const queued = -1 // SI_QUEUE
	set := uint64(1) << (syscall.SIGUSR1 - 1)
	if _, err := call(syscall.SYS_RT_SIGPROCMASK, 0, uintptr(unsafe.Pointer(&set)), 0, 8, 0); err != nil {
		return err
	}
	info := siginfo{signal: int32(syscall.SIGUSR1), code: queued, pid: int32(os.Getpid()), value: 4711}
	if _, err := call(syscall.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGUSR1),
		uintptr(unsafe.Pointer(&info)), 0); err != nil {
		return err
	}
	fd, err := call(syscall.SYS_SIGNALFD4, ^uintptr(0), uintptr(unsafe.Pointer(&set)), 8, 0, 0)
	if err != nil {
		return err
	}
	fmt.Println("pending")
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	var got [128]byte
	if _, err := syscall.Read(int(fd), got[:]); err != nil {
		return err
	}
	// signalfd_siginfo: the signal first, the integer value at 44.
	fmt.Println(*(*uint32)(unsafe.Pointer(&got[0])), *(*int32)(unsafe.Pointer(&got[44])))
	return nil
}

// zombie has ended, and nobody has asked for its exit code yet.
func zombie(string) (func() error, error) {
	c, err := startChild("dead")
	if err != nil {
		return nil, err
	}
	// It has ended when its output has.
	if _, err := c.stdout.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the child: %w", err)
	}
	return func() error {
		err := c.cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("wait: %w", err)
		}
		return same("exit code", exit.ExitCode(), 42)
	}, nil
}

// attributes of a process that nobody looks at until they are gone.
func attributes(string) (func() error, error) {
	limit := syscall.Rlimit{Cur: 1000, Max: 1000}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return nil, err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	syscall.Umask(0o027)
	if err := os.Chdir("/var/tmp"); err != nil {
		return nil, err
	}
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 5); err != nil {
		return nil, err
	}
	state := func() (string, error) {
		var files, core syscall.Rlimit
		err := errors.Join(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files), syscall.Getrlimit(syscall.RLIMIT_CORE, &core))
		dir, err2 := os.Getwd()
		mask := syscall.Umask(0o027)
		group, err3 := syscall.Getpgid(0)
		return fmt.Sprint(files, core, dir, mask, group, os.Getpid(), os.Getppid()), errors.Join(err, err2, err3)
	}
	before, err := state()
	if err != nil {
		return nil, err
	}
	return func() error {
		after, err := state()
		return errors.Join(err, same("state", after, before))
	}, nil
}
