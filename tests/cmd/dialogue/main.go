// Command dialogue runs a program on a terminal of its own and talks with it,
// as the tests' user:
//
//	dialogue SCRIPT PROGRAM [ARG...]
//
// Each line of the file SCRIPT is one step:
//
//	expect REGEXP     wait until the output has it, behind what the last expect found
//	send TEXT         type it; Go's escapes are understood: \r, \x1d
//	resize ROWS COLS  change the terminal's size
//	hangup            close the terminal
//	end               wait for the program's end
//
// It prints all output and exits with the program's code, or with 125 if a step
// failed or took longer than $VZ_PATIENCE seconds. As nothing but the standard
// library is used, it builds without the module's dependencies.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const failed = 125

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: dialogue SCRIPT PROGRAM [ARG...]")
		os.Exit(2)
	}
	code, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "dialogue:", err)
	}
	os.Exit(code)
}

// session is a program and the output that it has made.
type session struct {
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{}

	mu   sync.Mutex
	text []byte
	news chan struct{}
}

func run(script string, argv []string) (int, error) {
	steps, err := os.ReadFile(script)
	if err != nil {
		return failed, err
	}
	s, err := start(argv)
	if err != nil {
		return failed, err
	}
	for n, line := range strings.Split(strings.TrimRight(string(steps), "\n"), "\n") {
		if err := s.step(strings.TrimSpace(line)); err != nil {
			s.cmd.Process.Kill() //nolint:errcheck // it may have ended
			<-s.ended
			return failed, fmt.Errorf("%s:%d: %s: %w", script, n+1, line, err)
		}
	}
	<-s.ended
	state := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if state.Signaled() {
		return 128 + int(state.Signal()), nil
	}
	return state.ExitStatus(), nil
}

func start(argv []string) (*session, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var unlocked, number int32
	if err := ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlocked)); err != nil {
		return nil, err
	}
	if err := ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number)); err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	s := &session{master: master, ended: make(chan struct{}), news: make(chan struct{}, 1)}
	if err := s.resize(24, 80); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	read := make(chan struct{})
	go func() {
		s.read()
		close(read)
	}()
	go func() {
		s.cmd.Wait() //nolint:errcheck // its state is looked at
		select {
		case <-read:
		case <-time.After(time.Second): // somebody else has the terminal open, too
		}
		close(s.ended)
	}()
	return s, nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) { _, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg)) }); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

func (s *session) resize(rows, columns uint16) error {
	size := [4]uint16{rows, columns}
	return ioctl(s.master, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
}

func (s *session) read() {
	buffer := make([]byte, 4096)
	for {
		n, err := s.master.Read(buffer)
		s.mu.Lock()
		s.text = append(s.text, buffer[:n]...)
		s.mu.Unlock()
		os.Stdout.Write(buffer[:n]) //nolint:errcheck // it is for the reader of a failed test
		select {
		case s.news <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (s *session) step(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "", "#":
		return nil
	case "expect":
		return s.expect(arg)
	case "send":
		text, err := strconv.Unquote(`"` + strings.ReplaceAll(arg, `"`, `\"`) + `"`)
		if err != nil {
			return err
		}
		_, err = s.master.WriteString(text)
		return err
	case "resize":
		var rows, columns uint16
		if _, err := fmt.Sscan(arg, &rows, &columns); err != nil {
			return err
		}
		return s.resize(rows, columns)
	case "hangup":
		return s.master.Close()
	case "end":
		select {
		case <-s.ended:
			return nil
		case <-time.After(patience()):
			return errors.New("the program goes on")
		}
	}
	return errors.New("unknown step")
}

func (s *session) expect(pattern string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	deadline := time.After(patience())
	over := false
	for {
		s.mu.Lock()
		at := re.FindIndex(s.text)
		if at != nil {
			s.text = bytes.Clone(s.text[at[1]:])
		}
		rest := string(s.text)
		s.mu.Unlock()
		if at != nil {
			return nil
		}
		if over {
			return fmt.Errorf("the program ended; its output ends with %q", rest)
		}
		select {
		case <-s.news:
		case <-s.ended:
			over = true
		case <-deadline:
			return fmt.Errorf("not in time; the output ends with %q", rest)
		}
	}
}

func patience() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("VZ_PATIENCE")); err == nil {
		return time.Duration(n) * time.Second
	}
	return time.Minute
}
