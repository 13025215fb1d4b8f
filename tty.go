package main

import (
	"errors"
	"io"
	"os"
	"sync"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// endOfFile is what a terminal's line discipline takes for the end of input.
const endOfFile = 4

// terminal shows a guest's terminal on ours.
type terminal struct {
	ours    console.Console
	guest   *console.EpollConsole // nil before join
	epoller *console.Epoller
	output  sync.WaitGroup
}

// findTerminal looks for the terminal we were started from; any of the standard
// streams may have been redirected, even all of them.
func findTerminal() (*terminal, error) {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if c, err := console.ConsoleFromFile(f); err == nil {
			return &terminal{ours: c}, nil
		}
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c, err := console.ConsoleFromFile(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &terminal{ours: c}, nil
}

// join connects the master of the guest's terminal with ours.
func (t *terminal) join(master *os.File) (err error) {
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	guest, err := console.ConsoleFromFile(master)
	if err != nil {
		return err
	}
	// Our own terminal turns newlines into carriage return and newline; a
	// file or pipe that stdout may be should not have them at all.
	if err := console.ClearONLCR(guest.Fd()); err != nil {
		return err
	}
	if t.epoller, err = console.NewEpoller(); err != nil {
		return err
	}
	if t.guest, err = t.epoller.Add(guest); err != nil {
		t.epoller.Close()
		return err
	}
	t.resize()
	if err := t.ours.SetRaw(); err != nil {
		return err
	}
	go t.epoller.Wait() //nolint:errcheck // ends with the process
	go t.copyInput()
	t.output.Go(func() {
		io.Copy(os.Stdout, t.guest) //nolint:errcheck // the reader may have gone, the guest goes on
	})
	return nil
}

// copyInput lives as long as vzrun: there is no way to interrupt a read of
// stdin, and no need to.
func (t *terminal) copyInput() {
	_, err := io.Copy(t.guest, os.Stdin)
	if err == nil && !isTerminal(os.Stdin) {
		t.guest.Write([]byte{endOfFile}) //nolint:errcheck // the guest may have gone
	}
}

// resize gives the guest's terminal the size of ours. Errors do not matter: a
// terminal of the wrong size is better than none.
func (t *terminal) resize() {
	if t != nil && t.guest != nil {
		t.guest.ResizeFrom(t.ours) //nolint:errcheck // see above
	}
}

// beRaw makes ours pass everything on as it is: the guest's terminal has ended
// its lines already.
func (t *terminal) beRaw() error {
	if err := t.ours.SetRaw(); err != nil {
		return err
	}
	fd := int(t.ours.Fd())
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("tcgetattr", err)
	}
	mode.Oflag &^= unix.OPOST
	return os.NewSyscallError("tcsetattr", unix.IoctlSetTermios(fd, unix.TCSETS, mode))
}

// size is for a process that starts before its terminal could be resized.
func (t *terminal) size() *specs.Box {
	if t == nil {
		return nil
	}
	s, err := t.ours.Size()
	if err != nil || s.Width == 0 || s.Height == 0 {
		return nil
	}
	return &specs.Box{Width: uint(s.Width), Height: uint(s.Height)}
}

// leave writes what the guest still had to say and restores our terminal.
func (t *terminal) leave() {
	if t.guest != nil {
		err := t.guest.Shutdown(t.epoller.CloseConsole)
		if err == nil || errors.Is(err, os.ErrClosed) {
			t.output.Wait()
		}
		t.guest.Close()
		t.epoller.Close()
		t.guest = nil
	}
	t.ours.Reset() //nolint:errcheck // it may have been hung up
}
