package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

// maxNotification is what systemd itself takes (NOTIFY_BUFFER_MAX).
const maxNotification = 4096

// notifier passes on what a container says on its $NOTIFY_SOCKET, sd_notify(3),
// to the $NOTIFY_SOCKET that vzrun was given, usually systemd's. It says for the
// container which process is the service's main one: the container's own pids
// mean nothing outside.
//
// A nil notifier does nothing, so callers need not ask whether there is one.
type notifier struct {
	host   string
	socket *net.UnixConn
	once   sync.Once
}

// wantsNotify tells whether somebody waits for the container to be ready.
func wantsNotify() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// listenNotify makes the container's socket, before the container runs. It is
// nil where nobody waits, or the container was created when nobody did.
func listenNotify(ct *libvz.Container) (*notifier, error) {
	path := ct.NotifySocket()
	if !wantsNotify() || path == "" {
		return nil, nil
	}
	// One that a killed start left behind.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	// The service in the container may be any of its users.
	if err := os.Chmod(path, 0o777); err != nil {
		socket.Close()
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	return &notifier{host: os.Getenv("NOTIFY_SOCKET"), socket: socket}, nil
}

func (n *notifier) close() {
	if n != nil {
		n.once.Do(func() { n.socket.Close() })
	}
}

// follow passes all messages on, for as long as vzrun stays with the container:
// it is the service's main process then.
func (n *notifier) follow() {
	if n == nil {
		return
	}
	go func() {
		if err := n.relay(os.Getpid(), false); err != nil {
			logrus.Warnf("notify socket: %v", err)
		}
	}()
}

// untilReady passes messages on until the container is ready or over: vzrun
// leaves then, and the container's first process is the service's main one. The
// container runs; that nobody could be told is worth a warning.
func (n *notifier) untilReady(pid int) {
	if n == nil {
		return
	}
	defer n.close()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	go n.endWith(fd)
	if err := n.relay(pid, true); err != nil {
		logrus.Warnf("notify socket: %v", err)
	}
}

// waitFor is untilReady for a container whose pid is not at hand.
func (n *notifier) waitFor(ct *libvz.Container) error {
	if n == nil {
		return nil
	}
	state, err := ct.State()
	if err != nil {
		return err
	}
	n.untilReady(state.Pid)
	return nil
}

// endWith closes the socket when the process of the pidfd has ended.
func (n *notifier) endWith(fd int) {
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// Its last words may still be in the socket.
	if err := n.socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		n.close()
	}
}

// relay ends with the container's readiness, if asked for, or with the socket.
func (n *notifier) relay(mainPID int, untilReady bool) error {
	host, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.host, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer host.Close()
	buffer := make([]byte, maxNotification)
	for {
		size, err := n.socket.Read(buffer)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		message, ready := notification(buffer[:size], mainPID)
		if len(message) == 0 {
			continue
		}
		if _, err := host.Write(message); err != nil {
			return err
		}
		if ready && untilReady {
			return notifyBarrier(host)
		}
	}
}

// forwarded are the variables of sd_notify(3) that a container may set. Pids,
// descriptors and bus names of its own would be taken for the host's.
var forwarded = []string{"READY", "STATUS", "ERRNO", "EXIT_STATUS", "STOPPING", "RELOADING", "MONOTONIC_USEC", "WATCHDOG", "EXTEND_TIMEOUT_USEC"}

// notification returns what of a container's message goes to the host, and
// whether it says that the container is ready.
func notification(message []byte, mainPID int) (out []byte, ready bool) {
	for line := range bytes.SplitSeq(message, []byte("\n")) {
		name, value, _ := bytes.Cut(line, []byte("="))
		for _, known := range forwarded {
			if string(name) == known {
				// systemctl shows it to people.
				out = append(append(out, printable(string(line))...), '\n')
				ready = ready || known == "READY" && string(value) == "1"
			}
		}
	}
	if ready {
		out = append(out, "MAINPID="+strconv.Itoa(mainPID)+"\n"...)
	}
	return out, ready
}

// barrierPatience is for a listener that does not know barriers.
const barrierPatience = 30 * time.Second

// notifyBarrier waits until the listener has handled what it was sent
// (sd_notify_barrier(3)): systemd drops messages of a process that has exited
// before it could see whose it was.
func notifyBarrier(host *net.UnixConn) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = sendWithFile(host, "BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierPatience)); err != nil {
		return err
	}
	_, err = r.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		logrus.Warn("notify socket: nobody has confirmed that the container is ready")
		return nil
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// sendWithFile does what (*net.UnixConn).WriteMsgUnix refuses to do on a
// datagram socket that is connected.
func sendWithFile(conn *net.UnixConn, message string, f *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(f.Fd()))
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), []byte(message), rights, nil, 0)
		return sendErr != unix.EAGAIN //nolint:errorlint // a bare errno
	})
	if err == nil && sendErr != nil {
		err = os.NewSyscallError("sendmsg", sendErr)
	}
	return err
}
