package guest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dial connects to a socket of the guest as its root. sock is an O_PATH descriptor
// of the socket, pidfd one of the guest's init, uid and gid are the host's ids of
// the guest's root.
//
// systemd authenticates a peer by SO_PEERCRED, and rejects one whose pid has no
// number in its own PID namespace. The kernel notes the credentials of the
// process that calls connect(2), so that call is made by a child that is a member
// of the guest's PID namespace and has the guest root's effective ids. The child
// shares the socket with us and needs nothing else from us: it is forked, makes
// three system calls and ends, without running another program, so a program
// that links libvz need not offer an entry point to re-execute.
//
// The guest sees the child for that moment but can neither trace nor signal it:
// its real and saved ids stay the host's root (ptrace(2), kill(2)).
//
// The error is the errno of the call that failed, unix.EAGAIN when the socket's
// backlog is full.
func dial(sock *os.File, pidfd int, uid, gid uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	errc := make(chan error)
	go func() {
		// The thread changes the namespace of its children and blocks all
		// signals. It is not unlocked, so it ends with this goroutine and nobody
		// inherits that.
		runtime.LockOSThread()
		errc <- connectInGuest(fd, int(sock.Fd()), pidfd, uid, gid)
	}()
	if err := <-errc; err != nil {
		unix.Close(fd)
		return nil, err
	}
	runtime.KeepAlive(sock)
	return os.NewFile(uintptr(fd), sock.Name()), nil
}

// connectInGuest must run on a locked thread that is thrown away afterwards.
func connectInGuest(fd, sock, pidfd int, uid, gid uint32) error {
	if err := unix.Setns(pidfd, unix.CLONE_NEWPID); err != nil {
		return os.NewSyscallError("setns", err)
	}
	// A signal must not start one of the Go runtime's handlers in the child.
	all := unix.Sigset_t{}
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return os.NewSyscallError("rt_sigprocmask", err)
	}
	// The path is short where /run/systemd/private as seen from here may not be.
	addr := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	name := fmt.Sprintf("/proc/self/fd/%d", sock)
	for i := range len(name) {
		addr.Path[i] = int8(name[i])
	}
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD)}
	pid, errno := forkConnect(&args, fd, &addr, uid, gid)
	if errno != 0 {
		return os.NewSyscallError("clone3", errno)
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(int(pid), &status, 0, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("wait4", err)
		}
	}
	switch {
	case !status.Exited():
		return fmt.Errorf("connect: helper process died of %v", status.Signal())
	case status.ExitStatus() != 0:
		return os.NewSyscallError("connect", unix.Errno(status.ExitStatus()))
	}
	return nil
}

// cloneArgs is the first version of struct clone_args (clone(2)). clone3 has the
// same order of arguments on every architecture, clone has not.
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// forkConnect forks a child that connects fd to addr and exits with 0 or an
// errno. The child is a copy of this one thread: the runtime does not know of it
// and any lock may be held for ever, so until it exits it must not allocate, grow
// its stack or be preempted. It only makes raw system calls.
//
//go:nosplit
//go:norace
func forkConnect(args *cloneArgs, fd int, addr *unix.RawSockaddrUnix, uid, gid uint32) (uintptr, unix.Errno) {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	// Effective ids only. Group first: without uid 0 it would be refused.
	const keep = ^uintptr(0)
	_, _, errno = unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
	}
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(addr)), unsafe.Sizeof(*addr))
	}
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0) //nolint:errcheck // does not return
	}
}
