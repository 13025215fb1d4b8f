// fault stands between vzrun and criu, and lets one of them fail at a stage that
// criu asks vzrun about.
//
//	fault serve SOCKET DIR         relays; DIR/plan says "STAGE WHEN ACTION"
//	fault criu SOCKET REAL ARG...  what vzrun starts as its criu
//
// WHEN is asked (vzrun has not heard of the stage) or told (vzrun has done its
// work for it and criu has not heard that). ACTION is kill-vzrun, kill-criu,
// kill-both, stop-criu or hold, which waits until DIR/gate, a fifo, is written to. DIR/stages
// gets the name of each stage, DIR/done is made when the action has been carried
// out, and the relay has nothing of vzrun's any more unless it goes on.
//
// criu keeps the pid that vzrun knows: the relay is another process, which makes
// the socket for criu, and holds copies of the directories that vzrun has open,
// under their own numbers: criu opens them through the process at the other end.
// Of nothing else: a copy of a lock would be a lock.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "serve":
		err = serve(os.Args[2], os.Args[3])
	case len(os.Args) > 3 && os.Args[1] == "criu":
		err = criu(os.Args[2], os.Args[3], os.Args[3:])
	default:
		err = errors.New("usage: fault serve SOCKET DIR | fault criu SOCKET REAL ARG")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(2)
	}
}

// criu trades vzrun's socket, descriptor 3, for one of the relay's.
func criu(socket, real string, args []string) error {
	if len(args) > 1 && args[1] == "swrk" {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			return err
		}
		pids := fmt.Sprintf("%d %d", os.Getppid(), os.Getpid())
		if _, _, err := conn.WriteMsgUnix([]byte(pids), syscall.UnixRights(3), nil); err != nil {
			return err
		}
		_, theirs, err := receive(conn)
		if err != nil {
			return err
		}
		if err := syscall.Dup3(theirs, 3, 0); err != nil {
			return err
		}
	}
	return syscall.Exec(real, args, os.Environ())
}

// high is above all descriptors that vzrun may have.
const high = 500

func serve(socket, dir string) error {
	// What the Go runtime opens for itself is to be out of the way.
	var low []int
	for {
		fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		low = append(low, fd)
		if fd >= high {
			break
		}
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	for _, fd := range low {
		syscall.Close(fd)
	}
	fmt.Println("listening")
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return err
		}
		pids, vzrun, err := receive(conn)
		if err != nil {
			return err
		}
		r := relay{dir: dir}
		if _, err := fmt.Sscan(string(pids), &r.vzrunPid, &r.criuPid); err != nil {
			return err
		}
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if r.vzrun, err = raise(vzrun); err != nil {
			return err
		}
		if r.criu, err = raise(pair[0]); err != nil {
			return err
		}
		if _, _, err := conn.WriteMsgUnix([]byte("go"), syscall.UnixRights(pair[1]), nil); err != nil {
			return err
		}
		conn.Close()
		syscall.Close(pair[1])
		// One at a time: a fault is one operation's.
		if err := r.run(); err != nil {
			fmt.Fprintln(os.Stderr, "fault:", err)
		}
		syscall.Close(r.vzrun)
		syscall.Close(r.criu)
		if r.acted {
			if err := r.tell("done"); err != nil {
				return err
			}
		}
	}
}

func receive(conn *net.UnixConn) ([]byte, int, error) {
	buf, oob := make([]byte, 64), make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, -1, err
	}
	fds, err := rights(oob[:oobn])
	if err != nil || len(fds) != 1 {
		return nil, -1, fmt.Errorf("no descriptor: %w", err)
	}
	return buf[:n], fds[0], nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 {
		return nil, err
	}
	return syscall.ParseUnixRights(&msgs[0])
}

// raise moves a descriptor out of the way.
func raise(fd int) (int, error) {
	up, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, high)
	syscall.Close(fd)
	if errno != 0 {
		return -1, errno
	}
	return int(up), nil
}

type relay struct {
	dir               string
	vzrun, criu       int
	vzrunPid, criuPid int
	copied            []int
	last              string // the stage that vzrun is asked about
	acted             bool
}

// tell makes a file for the test.
func (r *relay) tell(name string) error {
	return os.WriteFile(filepath.Join(r.dir, name), nil, 0o644)
}

func (r *relay) run() error {
	defer func() {
		for _, fd := range r.copied {
			syscall.Close(fd)
		}
	}()
	for {
		// criu asks only when it has been told what to do, and vzrun answers
		// each question: they take turns.
		if over, err := r.pass(r.vzrun, r.criu); err != nil || over {
			return err
		}
		if over, err := r.pass(r.criu, r.vzrun); err != nil || over {
			return err
		}
	}
}

// pass moves one message, unless the plan has something else in mind, and says
// whether it was the last.
func (r *relay) pass(from, to int) (bool, error) {
	buf, oob := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := syscall.Recvmsg(from, buf, oob, 0)
	if err != nil || n == 0 {
		return true, err
	}
	when := "told"
	if from == r.criu {
		r.last, when = stageOf(buf[:n]), "asked"
		if err := r.note(r.last); err != nil {
			return true, err
		}
	} else if err := r.copyDescriptors(); err != nil {
		return true, err
	}
	if r.last != "" && r.act(r.last, when) {
		return true, nil
	}
	err = syscall.Sendmsg(to, buf[:n], oob[:oobn], nil, 0)
	fds, _ := rights(oob[:oobn]) // they were sent as they are
	for _, fd := range fds {
		syscall.Close(fd)
	}
	return false, err
}

func (r *relay) note(stage string) error {
	f, err := os.OpenFile(filepath.Join(r.dir, "stages"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, stage)
	return err
}

// act carries the plan out if this is the moment, and says whether the relay ends.
func (r *relay) act(stage, when string) bool {
	plan, err := os.ReadFile(filepath.Join(r.dir, "plan"))
	if err != nil {
		return false
	}
	want := strings.Fields(string(plan))
	if len(want) != 3 || want[0] != stage || want[1] != when {
		return false
	}
	os.Remove(filepath.Join(r.dir, "plan"))
	over := true
	switch want[2] {
	case "kill-vzrun":
		err = syscall.Kill(r.vzrunPid, syscall.SIGKILL)
	case "kill-both":
		// criu learns nothing of the first: its other end is here.
		err = errors.Join(syscall.Kill(r.vzrunPid, syscall.SIGKILL), syscall.Kill(r.criuPid, syscall.SIGKILL))
	case "kill-criu":
		err = syscall.Kill(r.criuPid, syscall.SIGKILL)
	case "stop-criu":
		over, err = false, errors.Join(syscall.Kill(r.criuPid, syscall.SIGSTOP), r.tell("held"))
	case "hold":
		over, err = false, r.tell("held")
		if err == nil {
			_, err = os.ReadFile(filepath.Join(r.dir, "gate"))
		}
	default:
		err = fmt.Errorf("unknown action %q", want[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
	}
	r.acted = true
	return over
}

const (
	sysPidfdOpen  = 434
	sysPidfdGetfd = 438
)

// copyDescriptors takes what vzrun has open now, under the same numbers.
func (r *relay) copyDescriptors() error {
	for _, fd := range r.copied {
		syscall.Close(fd)
	}
	r.copied = nil
	low, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(r.vzrunPid), 0, 0)
	if errno != 0 {
		return errno
	}
	pidfd, err := raise(int(low))
	if err != nil {
		return err
	}
	defer syscall.Close(pidfd)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.vzrunPid))
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < 3 || n >= high || open(n) || r.locked(e.Name()) {
			continue
		}
		fd, _, errno := syscall.Syscall(sysPidfdGetfd, uintptr(pidfd), uintptr(n), 0)
		if errno != 0 {
			continue // closed since
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(int(fd), &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			syscall.Close(int(fd))
			continue
		}
		if int(fd) != n {
			if err := syscall.Dup3(int(fd), n, syscall.O_CLOEXEC); err != nil {
				return err
			}
			syscall.Close(int(fd))
		}
		r.copied = append(r.copied, n)
	}
	return nil
}

// locked tells whether vzrun has a lock by that descriptor, as on images.
func (r *relay) locked(fd string) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", r.vzrunPid, fd))
	return err == nil && strings.Contains(string(info), "\nlock:")
}

func open(fd int) bool {
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	return errno == 0
}

// stageOf finds criu_notify.script in a criu_resp: field 5, and 1 in that.
func stageOf(resp []byte) string {
	return string(field(field(resp, 5), 1))
}

// field returns a length-delimited field of a protobuf message, nil if it has none.
func field(b []byte, number uint64) []byte {
	for len(b) > 0 {
		key, n := varint(b)
		if n == 0 {
			return nil
		}
		b = b[n:]
		switch key & 7 {
		case 0:
			_, n := varint(b)
			if n == 0 {
				return nil
			}
			b = b[n:]
		case 2:
			size, n := varint(b)
			if n == 0 || uint64(len(b)-n) < size {
				return nil
			}
			if key>>3 == number {
				return b[n : n+int(size)]
			}
			b = b[n+int(size):]
		default:
			return nil
		}
	}
	return nil
}

func varint(b []byte) (value uint64, n int) {
	for i, c := range b {
		value |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return value, i + 1
		}
		if i == 9 {
			break
		}
	}
	return 0, 0
}
