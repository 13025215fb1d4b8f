package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func sockets() []thing {
	return []thing{
		{"unix-stream", unixStream},
		{"unix-dgram", unixDgram},
		{"unix-seqpacket", unixSeqpacket},
		{"unix-abstract", unixAbstract},
		{"unix-passed", unixPassed},
		{"tcp-loopback", tcpLoopback},
		{"udp", func(string) (func() error, error) { return udp(0) }},
		{"udp-queued", func(string) (func() error, error) { return udp(1) }},
		{"pipe", pipe},
		{"fifo", fifo},
	}
}

var payload = strings.Repeat("in flight ", 3000)

// pair returns two connected unix sockets.
func pair(kind int) (a, b *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b"), nil
}

// unixStream has data under way in both directions; one side has said its last
// word.
func unixStream(string) (func() error, error) {
	a, b, err := pair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(a, payload); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(b, "back"); err != nil {
		return nil, err
	}
	if err := syscall.Shutdown(int(a.Fd()), syscall.SHUT_WR); err != nil {
		return nil, err
	}
	return func() error {
		got, err := io.ReadAll(b)
		if err := errors.Join(err, same("data", string(got), payload)); err != nil {
			return err
		}
		if _, err := io.WriteString(b, " again"); err != nil {
			return err
		}
		back := make([]byte, 10)
		_, err = io.ReadFull(a, back)
		return errors.Join(err, same("data", string(back), "back again"))
	}, nil
}

// unixDgram has datagrams queued, with their bounds. CRIU does not keep who sent
// those; of one that is sent later it is known.
func unixDgram(dir string) (func() error, error) {
	to, err := net.ListenPacket("unixgram", filepath.Join(dir, "to"))
	if err != nil {
		return nil, err
	}
	from, err := net.ListenPacket("unixgram", filepath.Join(dir, "from"))
	if err != nil {
		return nil, err
	}
	for i := range 3 {
		if _, err := from.WriteTo([]byte(payload[:100*(i+1)]), to.LocalAddr()); err != nil {
			return nil, err
		}
	}
	return func() error {
		buf := make([]byte, len(payload))
		for i := range 4 {
			if i == 3 { // and one that is sent now
				if _, err := from.WriteTo([]byte(payload[:400]), to.LocalAddr()); err != nil {
					return err
				}
			}
			n, sender, err := to.ReadFrom(buf)
			if err != nil {
				return err
			}
			if err := same("size", n, 100*(i+1)); err != nil {
				return err
			}
			if i == 3 {
				return same("sender", fmt.Sprint(sender), from.LocalAddr().String())
			}
		}
		return nil
	}, nil
}

func unixSeqpacket(string) (func() error, error) {
	a, b, err := pair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	for _, record := range []string{"one", "second", "the third"} {
		if _, err := io.WriteString(a, record); err != nil {
			return nil, err
		}
	}
	return func() error {
		buf := make([]byte, 100)
		for _, record := range []string{"one", "second", "the third"} {
			n, err := b.Read(buf)
			if err := errors.Join(err, same("record", string(buf[:n]), record)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// unixAbstract listens on a name of the network namespace, and has a client.
func unixAbstract(string) (func() error, error) {
	l, err := net.Listen("unix", "@vz-holder")
	if err != nil {
		return nil, err
	}
	client, err := net.Dial("unix", "@vz-holder")
	if err != nil {
		return nil, err
	}
	server, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := exchange(client, server); err != nil {
			return err
		}
		again, err := net.Dial("unix", "@vz-holder")
		if err != nil {
			return err
		}
		accepted, err := l.Accept()
		if err != nil {
			return err
		}
		return exchange(again, accepted)
	}, nil
}

// exchange says a word in each direction.
func exchange(a, b net.Conn) error {
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := io.WriteString(p[0], "word"); err != nil {
			return err
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(p[1], buf); err != nil {
			return err
		}
		if err := same("data", string(buf), "word"); err != nil {
			return err
		}
	}
	return nil
}

// unixPassed is a descriptor that came through a socket: it shares its position
// with the one that was sent.
func unixPassed(dir string) (func() error, error) {
	a, b, err := pair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Sendmsg(int(a.Fd()), []byte("x"), syscall.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return nil, err
	}
	oob := make([]byte, 100)
	_, n, _, _, err := syscall.Recvmsg(int(b.Fd()), make([]byte, 1), oob, 0)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	passed := os.NewFile(uintptr(fds[0]), "passed")
	if _, err := io.ReadFull(f, make([]byte, 4)); err != nil {
		return nil, err
	}
	return func() error {
		buf := make([]byte, 3)
		_, err := io.ReadFull(passed, buf)
		if err := errors.Join(err, same("data", string(buf), "456")); err != nil {
			return err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		return errors.Join(err, same("position", at, int64(7)))
	}, nil
}

// tcpLoopback has data under way in both directions.
func tcpLoopback(string) (func() error, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return nil, err
	}
	server, err := l.Accept()
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(client, payload); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(server, "back"); err != nil {
		return nil, err
	}
	return func() error {
		if err := client.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(server)
		if err := errors.Join(err, same("data", string(got), payload)); err != nil {
			return err
		}
		back := make([]byte, 4)
		_, err = io.ReadFull(client, back)
		return errors.Join(err, same("data", string(back), "back"))
	}, nil
}

// udp is bound and connected, and so many datagrams wait to be read.
func udp(queued int) (func() error, error) {
	to, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	from, err := net.Dial("udp4", to.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	for range queued {
		if _, err := io.WriteString(from, "datagram"); err != nil {
			return nil, err
		}
	}
	return func() error {
		if _, err := io.WriteString(from, "datagram"); err != nil {
			return err
		}
		if err := to.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		buf := make([]byte, 100)
		for range queued + 1 {
			n, sender, err := to.ReadFrom(buf)
			if err != nil {
				return err
			}
			if err := errors.Join(same("data", string(buf[:n]), "datagram"), same("sender", sender.String(), from.LocalAddr().String())); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// setPipeSize of fcntl(2), F_SETPIPE_SZ and F_GETPIPE_SZ.
const setPipeSize, getPipeSize = 1031, 1032

func pipe(string) (func() error, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	size, err := call(syscall.SYS_FCNTL, w.Fd(), setPipeSize, 128<<10, 0, 0)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, payload); err != nil {
		return nil, err
	}
	return func() error {
		now, err := call(syscall.SYS_FCNTL, w.Fd(), getPipeSize, 0, 0, 0)
		if err := errors.Join(err, same("size", now, size), w.Close()); err != nil {
			return err
		}
		got, err := io.ReadAll(r)
		return errors.Join(err, same("data", string(got), payload))
	}, nil
}

func fifo(dir string) (func() error, error) {
	path := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(f, "waits"); err != nil {
		return nil, err
	}
	return func() error {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, " more"); err != nil {
			return err
		}
		buf := make([]byte, 10)
		_, err = io.ReadFull(f, buf)
		return errors.Join(err, same("data", string(buf), "waits more"))
	}, nil
}
