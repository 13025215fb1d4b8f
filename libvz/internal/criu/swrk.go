package criu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Stage is a moment at which CRIU waits for its caller's consent, named as in
// criu.org/Action_scripts: pre-dump, post-dump, network-lock, network-unlock,
// pre-restore, setup-namespaces, post-setup-namespaces, post-restore,
// pre-resume, post-resume.
type Stage struct {
	Name string
	// Pid is the restored init where CRIU says it (setup-namespaces and
	// later), in the pid namespace of the caller; 0 elsewhere.
	Pid int
	// then is what Then was told.
	then *func()
	// File comes with orphan-pts-master: the master side of the restored
	// terminal. It is closed after the call.
	File *os.File
}

// Then has fn called once consent to this stage is on its way to CRIU, which goes
// on from there whatever becomes of its caller.
func (s Stage) Then(fn func()) { *s.then = fn }

// server is one `criu swrk` process.
type server struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
	// working says that it is CRIU's turn, and not its caller's.
	working atomic.Bool
}

// serve starts criu, with inherit as its descriptors 4 and up. Its working environment is the caller's: a caller on a
// locked OS thread gives it that thread's mount namespace. The process is not
// bound to the caller's life: a criu that is killed in the middle leaves its
// victims traced and half replaced, whereas one that loses its caller undoes
// its work by itself when it next asks for consent.
func serve(path string, stdio [3]*os.File, inherit ...*os.File) (*server, error) {
	fds, err := unix.Socketpair(unix.AF_LOCAL, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "criu-rpc"), os.NewFile(uintptr(fds[1]), "criu-rpc-peer")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, fmt.Errorf("criu socket: %w", err)
	}
	cmd := exec.Command(path, "swrk", "3")
	cmd.ExtraFiles = append([]*os.File{theirs}, inherit...)
	// A nil *os.File in an io.Reader would not be nil.
	if stdio[0] != nil {
		cmd.Stdin = stdio[0]
	}
	if stdio[1] != nil {
		cmd.Stdout = stdio[1]
	}
	if stdio[2] != nil {
		cmd.Stderr = stdio[2]
	}
	// A process group of its own: Ctrl-C on vzrun is vzrun's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start criu: %w", err)
	}
	return &server{cmd: cmd, conn: conn.(*net.UnixConn)}, nil
}

// close ends the conversation and waits for the process. criu has no reason to
// stay once its socket is closed.
func (s *server) close() error {
	s.conn.Close()
	return s.cmd.Wait()
}

// kill ends the process in the middle of its work. Only for where it cannot be
// asked to undo it, and leaves its tasks whole.
func (s *server) kill() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill criu: %w", err)
	}
	return nil
}

// abortGrace is how long a dump that is cancelled may go on until CRIU asks for
// consent, learns that there is none and undoes its work. The longest that it
// goes without asking is while it reads the tasks.
const abortGrace = 30 * time.Second

// abortLooks is how often in that time it is looked whose turn it is.
const abortLooks = 30

// abortAfter ends a criu that does not end by itself after ctx has. Somebody may
// have stopped it. The function returned ends the watch.
func (s *server) abortAfter(ctx context.Context) func() {
	finished := make(chan struct{})
	go func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		s.cmd.Process.Signal(unix.SIGCONT) //nolint:errcheck // it may have ended
		tick := time.NewTicker(abortGrace / abortLooks)
		defer tick.Stop()
		for looks := 0; looks < abortLooks; {
			select {
			case <-finished:
				return
			case <-tick.C:
			}
			// It waits for us otherwise, and learns in a moment that there is no consent.
			if s.working.Load() {
				looks++
			}
		}
		s.kill() //nolint:errcheck // likewise
	}()
	return func() { close(finished) }
}

// do sends one request and answers CRIU's notifications until the final
// response. An error of stage, and a cancelled ctx, refuse consent at the next
// notification: CRIU then undoes what it did and fails.
func (s *server) do(ctx context.Context, req *rpc.CriuReq, stage func(Stage) error) (*rpc.CriuResp, error) {
	if err := s.send(req); err != nil {
		return nil, err
	}
	var refused error
	for {
		resp, file, err := s.receive()
		if err != nil {
			return nil, errors.Join(refused, err)
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if !resp.GetSuccess() {
				return resp, errors.Join(refused, &failure{errno: syscall.Errno(resp.GetCrErrno()), msg: resp.GetCrErrmsg()})
			}
			return resp, refused
		}
		n := resp.GetNotify()
		then := func() {}
		if err = ctx.Err(); err == nil || isDecided(n.GetScript()) {
			err = stage(Stage{Name: n.GetScript(), Pid: int(n.GetPid()), File: file, then: &then})
		}
		if file != nil {
			file.Close()
		}
		if err != nil {
			refused = &refusal{err}
		}
		answer := &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: new(err == nil)}
		if err := s.send(answer); err != nil {
			return nil, errors.Join(refused, err)
		}
		if err == nil {
			then()
		}
	}
}

// isDecided tells of a stage that it comes when nothing can be refused any more: the tasks
// are about to run, or do, whatever is answered. So all that belongs to it is done, also
// where nobody wants it any more.
func isDecided(script string) bool {
	return script == "network-unlock" || script == "pre-resume" || script == "post-resume"
}

// refusal is our own word that an operation must not go on.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// failure is CRIU's own word that an operation failed.
type failure struct {
	errno syscall.Errno
	msg   string
}

func (f *failure) Error() string {
	switch {
	case f.msg != "" && !harmless().MatchString(f.msg):
		return strings.TrimSpace(f.msg)
	case f.errno != 0:
		return f.errno.Error()
	}
	return "operation failed"
}

func (s *server) send(req *rpc.CriuReq) error {
	data, err := req.MarshalVT()
	if err != nil {
		return fmt.Errorf("encode criu request: %w", err)
	}
	s.working.Store(true)
	if _, err := s.conn.Write(data); err != nil {
		return fmt.Errorf("criu went away: %w", err)
	}
	return nil
}

func (s *server) receive() (*rpc.CriuResp, *os.File, error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
	s.working.Store(false)
	if err != nil {
		return nil, nil, fmt.Errorf("criu went away: %w", err)
	}
	if n == 0 {
		return nil, nil, errors.New("criu went away without an answer")
	}
	file, err := receivedFile(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	resp := &rpc.CriuResp{}
	if err := resp.UnmarshalVT(buf[:n]); err != nil {
		if file != nil {
			file.Close()
		}
		return nil, nil, fmt.Errorf("decode criu response: %w", err)
	}
	return resp, file, nil
}

func receivedFile(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("criu control message: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil || len(fds) == 0 {
			continue
		}
		unix.CloseOnExec(fds[0])
		return os.NewFile(uintptr(fds[0]), "orphan-pts-master"), nil
	}
	return nil, nil
}
