package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// holder is a process that keeps userfaultfds open, also when we are killed: where nobody
// has one open, the kernel fills what is missing with zeroes, and tasks go on with memory
// that is not theirs. As long as somebody has, tasks that need a missing page wait, and can
// be ended.
type holder struct {
	cmd   *exec.Cmd
	conn  *net.UnixConn
	ended chan struct{} // closed when the process has
	mu    sync.Mutex
	next  uint32
}

// errNoHolder says that nobody would keep tasks from zeroes were we killed.
var errNoHolder = errors.New("the process that holds the memory has ended")

// startHolder starts command, which must call Hold.
func startHolder(command []string) (*holder, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "holder"), os.NewFile(uintptr(fds[1]), "hold")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, fmt.Errorf("socket of the holder: %w", err)
	}
	h := &holder{conn: conn.(*net.UnixConn), ended: make(chan struct{})}
	h.cmd = exec.Command(command[0], command[1:]...)
	h.cmd.Dir, h.cmd.Env = "/", []string{}
	h.cmd.ExtraFiles = []*os.File{theirs}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start a holder of the memory: %w", err)
	}
	go func() {
		h.cmd.Wait() //nolint:errcheck // it ends by being killed
		close(h.ended)
	}()
	return h, nil
}

// add has a descriptor held, and returns by what to drop it.
func (h *holder) add(fd int) (uint32, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	if _, _, err := h.conn.WriteMsgUnix(holdMessage(h.next), unix.UnixRights(fd), nil); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoHolder, err)
	}
	return h.next, nil
}

// drop has a descriptor held no more.
func (h *holder) drop(n uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn.Write(holdMessage(n)) //nolint:errcheck // one that has ended holds nothing
}

// end ends the process, and with it the holding.
func (h *holder) end() {
	h.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-h.ended
	h.conn.Close()
}

func holdMessage(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// Hold is what the command of LazyOptions.Holder does with its descriptor 3: it keeps the
// descriptors open that come over it. It returns where that is not such a socket, and when
// it holds nothing and nothing more can come; else it ends by being killed.
func Hold(socket int) error {
	held := map[uint32]int{}
	message, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(socket, message, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && len(held) == 0:
			return os.NewSyscallError("recvmsg", err)
		case n < len(message) && len(held) == 0:
			return nil
		case err != nil || n < len(message): // whoever let us hold has ended
			for {
				unix.Pause() //nolint:errcheck // it returns after a signal
			}
		}
		number := binary.NativeEndian.Uint32(message)
		if fd, ok := rightOf(rights[:oobn]); ok {
			held[number] = fd
		} else if fd, ok := held[number]; ok {
			unix.Close(fd)
			delete(held, number)
		}
	}
}

// rightOf returns the descriptor that came with a message.
func rightOf(rights []byte) (int, bool) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return -1, false
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, false
	}
	return fds[0], true
}
