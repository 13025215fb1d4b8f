package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

// guestIO is what a process in a container gets from us, and our ends of it.
type guestIO struct {
	libvz.Stdio
	handedOn []*os.File     // the process has copies, ours are closed then
	receiver *os.File       // where the master of the terminal arrives
	terminal *terminal      // nil unless the process's terminal is shown on ours
	signals  chan os.Signal // nil unless we stay attached
	// allCaught is closed when signals gets all of them; nil as signals is.
	allCaught chan struct{}

	// Of a console that vzrun holds:
	held      bool
	container *libvz.Container // whose it is
	console   *libvz.Console   // nil until it is there, and when it is over
	escape    *libvz.Escape
	escaped   chan struct{} // closed when the user wants to leave; nil = never
}

// openIO prepares what the process gets. It comes before the container is made,
// so that a bad socket or a missing terminal leaves nothing behind. terminal is
// the process's wish for one; held, that vzrun holds it as the guest's console.
func (l *launch) openIO(terminal, held bool) (_ *guestIO, err error) {
	if err := l.check(terminal, held); err != nil {
		return nil, err
	}
	g := &guestIO{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.ExtraFiles, g.Env, err = l.inheritedFiles(); err != nil {
		return nil, err
	}
	g.handedOn = append(g.handedOn, g.ExtraFiles...)
	if l.pidfdSocket != "" {
		if g.PidfdSocket, err = g.connect("pidfd socket", l.pidfdSocket); err != nil {
			return nil, err
		}
	}
	switch {
	case held:
		if err = g.openConsole(l); err != nil {
			return nil, err
		}
	case !terminal:
		g.Stdin, g.Stdout, g.Stderr = os.Stdin, os.Stdout, os.Stderr
	case l.detach:
		if g.ConsoleSocket, err = g.connect("console socket", l.consoleSocket); err != nil {
			return nil, err
		}
	default:
		if err = g.openTerminal(l); err != nil {
			return nil, err
		}
	}
	if !l.detach {
		g.signals, g.allCaught = catchSignals()
		l.becomeSubreaper()
	}
	return g, nil
}

func (g *guestIO) connect(what, path string) (*os.File, error) {
	socket, err := connectUnix(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	g.handedOn = append(g.handedOn, socket)
	return socket, nil
}

// openTerminal finds our terminal and a pair of sockets to get the guest's.
func (g *guestIO) openTerminal(l *launch) error {
	t, err := findTerminal()
	if err != nil {
		return &libvz.Error{
			Op: l.verb, ID: l.id,
			Err:  fmt.Errorf("the process wants a terminal and there is none here: %w", err),
			Hint: "run it from a terminal, or with --detach and --console-socket, or set process.terminal to false",
		}
	}
	g.terminal = t
	return g.expectTerminal()
}

// expectTerminal makes the sockets on which the guest's terminal arrives.
func (g *guestIO) expectTerminal() error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	g.receiver = os.NewFile(uintptr(ends[0]), "console receiver")
	g.ConsoleSocket = os.NewFile(uintptr(ends[1]), "console sender")
	g.handedOn = append(g.handedOn, g.ConsoleSocket)
	return nil
}

// handOver is called once the process exists: it closes our copies, so that the
// process's peers see it close them, and takes over its terminal.
func (g *guestIO) handOver(l *launch) error {
	g.closeHandedOn()
	if g.receiver == nil {
		return nil
	}
	master, err := receiveFile(g.receiver)
	if g.held && errors.Is(err, errNoTerminal) {
		// Restored from images of a guest that had none.
		logrus.Warnf("%s %s: the guest has no console", l.verb, l.id)
		g.held = false
		return nil
	}
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if g.held {
		return g.hold(l, master)
	}
	return g.terminal.join(master)
}

func (g *guestIO) closeHandedOn() {
	for _, f := range g.handedOn {
		f.Close()
	}
	g.handedOn = nil
}

// close waits for the last output of the process and restores our terminal.
func (g *guestIO) close() {
	g.closeHandedOn()
	if g.receiver != nil {
		g.receiver.Close()
	}
	if g.console != nil {
		g.console.Close()
		g.console = nil
	}
	if g.terminal != nil {
		g.terminal.leave()
	}
}

func connectUnix(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

var errNoTerminal = errors.New("the process sent no terminal")

// receiveFile takes the one descriptor that a message on a socket carries.
func receiveFile(socket *os.File) (*os.File, error) {
	name := make([]byte, 4096)
	rights := make([]byte, unix.CmsgSpace(4))
	var n, used int
	for {
		var err error
		n, used, _, _, err = unix.Recvmsg(int(socket.Fd()), name, rights, unix.MSG_CMSG_CLOEXEC)
		if err == nil {
			break
		}
		if err != unix.EINTR { //nolint:errorlint // a bare errno
			return nil, os.NewSyscallError("recvmsg", err)
		}
	}
	messages, err := unix.ParseSocketControlMessage(rights[:used])
	if err != nil || len(messages) != 1 {
		return nil, errNoTerminal
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errNoTerminal
	}
	// Its mode is shared with the sender; whoever reads it sets its own.
	if err := unix.SetNonblock(fds[0], false); err != nil {
		unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}
