package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the socket in a container's state directory at which its
// console is served.
const SocketName = "console.sock"

const (
	chunk       = 4096 // bytes; the kernel gives no more of a terminal at once
	queueLength = 64   // chunks that a client may be behind
	localQueue  = 256  // the same for output that goes to our own stdout
	maxClients  = 16
	maxRecent   = 1024 // bytes of the line that is being written
	// inputPatience is how long a guest may not read its input before what
	// was typed is lost, as with a serial line.
	inputPatience = time.Second
	// farewell is how long clients have to take the last output.
	farewell = 2 * time.Second
)

// Server holds the master of a guest's console: it reads all output, keeps the
// newest of it in a Log, and hands it to any number of clients, of which none
// can make the guest wait.
type Server struct {
	master *os.File
	dir    *os.File
	log    *Log
	socket *net.UnixListener

	inputs sync.Mutex // one write of the master at a time

	mu      sync.Mutex
	peer    *os.File // the guest's side, see readAll
	closing bool
	clients map[*client]bool
	recent  []byte // the line that is being written
	all     sync.WaitGroup
	ended   chan struct{} // the reader has
}

// Serve begins to serve the console whose master it is given, which is its own
// from now on. dir is the container's state directory.
func Serve(master *os.File, dir string) (_ *Server, err error) {
	s := &Server{clients: map[*client]bool{}, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			s.release()
			master.Close()
		}
	}()
	if s.dir, err = os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	// By its descriptor: another container may have the path once this one
	// is deleted, and paths of sockets must be short.
	at := fmt.Sprintf("/proc/self/fd/%d", s.dir.Fd())
	if s.log, err = OpenLog(at); err != nil {
		return nil, err
	}
	s.rememberLine(at)
	if s.master, err = nonblocking(master); err != nil {
		return nil, err
	}
	if s.peer, err = openPeer(s.master); err != nil {
		return nil, err
	}
	if s.socket, err = listen(at + "/" + SocketName); err != nil {
		return nil, err
	}
	go s.readAll()
	go s.accept()
	return s, nil
}

// listen replaces the socket of a server that was killed.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// nonblocking takes a file over such that reads and writes of it have
// deadlines.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f.Close()
	return os.NewFile(uintptr(fd), "console"), nil
}

// openPeer opens the other side of a master, whatever mount namespace it is
// in (ioctl_tty(2), TIOCGPTPEER).
func openPeer(master *os.File) (*os.File, error) {
	var peer uintptr
	err := control(master, func(fd int) error {
		var errno unix.Errno
		peer, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			return os.NewSyscallError("TIOCGPTPEER", errno)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(peer, "console peer"), nil
}

// control calls f with the descriptor; (*os.File).Fd would make it block.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// readAll reads until the console is over or given away.
//
// A master whose other side nobody has open is read with EIO, and at once: a
// guest's init opens its console for each line that it writes. So we have it
// open ourselves. A guest that hangs its terminal up (vhangup(2), as getty
// does) hangs up our side, too; then it is opened again.
func (s *Server) readAll() {
	defer close(s.ended)
	buffer := make([]byte, chunk)
	for {
		n, err := s.master.Read(buffer)
		if n > 0 {
			s.output(buffer[:n])
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EIO) && !errors.Is(err, io.EOF) || !s.reopen() {
			return
		}
	}
}

func (s *Server) reopen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	peer, err := openPeer(s.master)
	if err != nil {
		return false
	}
	s.peer.Close()
	s.peer = peer
	return true
}

func (s *Server) output(p []byte) {
	// A container that is deleted has no log any more; its last output is
	// still somebody's.
	s.log.Write(p) //nolint:errcheck // see above
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remember(p)
	for c := range s.clients {
		c.offer(p)
	}
}

// rememberLine goes on with the line that the last holder's log ends with.
func (s *Server) rememberLine(dir string) {
	var last bytes.Buffer
	if CopyLog(context.Background(), &last, dir, 1, false) == nil {
		s.remember(last.Bytes())
	}
}

// remember keeps the line that is being written, which is the prompt that
// somebody who comes later would miss.
func (s *Server) remember(p []byte) {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '\n' {
			s.recent, p = s.recent[:0], p[i+1:]
			break
		}
	}
	s.recent = append(s.recent, p...)
	if more := len(s.recent) - maxRecent; more > 0 {
		s.recent = append(s.recent[:0], s.recent[more:]...)
	}
}

// Attach shows the output on w, too, from now on and until Close.
func (s *Server) Attach(w io.Writer) {
	s.add(&client{queue: make(chan []byte, localQueue), out: w}, 1<<30)
}

// add begins to serve a client, unless there are limit of them already.
func (s *Server) add(c *client, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || len(s.clients) >= limit {
		return false
	}
	if len(s.recent) > 0 {
		c.offer(s.recent)
	}
	s.clients[c] = true
	s.all.Go(c.serve)
	return true
}

func (s *Server) remove(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients[c] {
		delete(s.clients, c)
		close(c.queue)
	}
}

// Input types p on the console.
func (s *Server) Input(p []byte) {
	s.inputs.Lock()
	defer s.inputs.Unlock()
	// What the guest does not read is lost, see inputPatience.
	s.master.SetWriteDeadline(time.Now().Add(inputPatience)) //nolint:errcheck // a master can be polled
	s.master.Write(p)                                        //nolint:errcheck // see above
}

// Resize sets the terminal's size in characters. Zero changes nothing.
func (s *Server) Resize(rows, columns uint16) error {
	if rows == 0 || columns == 0 {
		return nil
	}
	return control(s.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
}

// Close takes what the guest has still written, gives clients a moment to take
// it, and ends. The guest must have ended.
func (s *Server) Close() {
	s.shut()
	// Nobody has the other side open now, so reading comes to an end by
	// itself; a process that somebody started from outside may have it.
	s.master.SetReadDeadline(time.Now().Add(farewell)) //nolint:errcheck // a master can be polled
	<-s.ended
	s.dismiss(packetEnd)
	s.release()
}

// Release gives the master back, while the guest goes on: whoever serves it
// next has all output that no client has had.
func (s *Server) Release() (*os.File, error) {
	s.shut()
	s.master.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // a master can be polled
	<-s.ended
	s.dismiss(packetLeft)
	fd := -1
	err := control(s.master, func(from int) (err error) {
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	s.release()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "console"), nil
}

// shut lets nobody in any more, and lets go of the guest's side.
func (s *Server) shut() {
	s.mu.Lock()
	s.closing = true
	s.peer.Close()
	s.mu.Unlock()
}

// dismiss sends the clients away once they have what is in their queues.
func (s *Server) dismiss(why byte) {
	s.mu.Lock()
	for c := range s.clients {
		c.dismiss(why)
		delete(s.clients, c)
		close(c.queue)
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		s.all.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(farewell): // our own stdout may take nothing
	}
}

// release closes all that there is, as far as Serve has come.
func (s *Server) release() {
	// The socket last: who follows the log looks whether it is there.
	if s.log != nil {
		s.log.Close()
	}
	if s.master != nil {
		s.master.Close()
	}
	if s.peer != nil {
		s.peer.Close()
	}
	if s.socket != nil {
		s.socket.Close()
	}
	if s.dir != nil {
		s.dir.Close()
	}
}
