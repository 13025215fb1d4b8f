// Command recvtty stands at the other end of --console-socket and
// --pidfd-socket in the tests: it takes the one descriptor that is sent there.
//
//	recvtty tty SOCKET     a terminal's master: connect it with stdin and stdout
//	recvtty pidfd SOCKET   a pidfd: print the pid it stands for
//
// It prints "listening" once the socket is there. As nothing but the standard
// library is used, it builds without the module's dependencies.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) != 3 || (os.Args[1] != "tty" && os.Args[1] != "pidfd") {
		fmt.Fprintln(os.Stderr, "usage: recvtty tty|pidfd SOCKET")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "recvtty:", err)
		os.Exit(1)
	}
}

func run(kind, path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("listening")
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := receive(conn.(*net.UnixConn))
	if err != nil {
		return err
	}
	defer f.Close()
	if kind == "pidfd" {
		return printPid(f)
	}
	fmt.Println("terminal received")
	go io.Copy(f, os.Stdin) //nolint:errcheck // ends with the program
	// A terminal whose last user has gone is read with EIO.
	if _, err := io.Copy(os.Stdout, f); err != nil && !errors.Is(err, syscall.EIO) {
		return err
	}
	return nil
}

func receive(conn *net.UnixConn) (*os.File, error) {
	name, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
	n, used, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:used])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages, 1 expected", len(messages))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors, 1 expected", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

func printPid(f *os.File) error {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		if pid, ok := strings.CutPrefix(line, "Pid:"); ok {
			fmt.Println(strings.TrimSpace(pid))
			return nil
		}
	}
	return errors.New("the descriptor is no pidfd")
}
