package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// StopSignal returns the signal that makes an init shut the guest down in an
// orderly way and end. sysvinit and runit take it for Ctrl-Alt-Del, which their
// stock configuration answers with a reboot; see [BeginStop].
//
// Sources: systemd(1), init(8) of sysvinit, init/init.c of busybox,
// openrc-init(8), runit(8). The number for systemd is SIGRTMIN+3 as C libraries
// count it: 34+3.
func StopSignal(i Init) syscall.Signal {
	switch i {
	case Systemd:
		return syscall.Signal(37)
	case SysVInit, Runit:
		return syscall.SIGINT
	case Busybox:
		return syscall.SIGUSR2 // poweroff; SIGTERM would be a reboot
	case OpenRC:
		return syscall.SIGTERM
	}
	// What an OCI engine sends to a program that it knows nothing about.
	return syscall.SIGTERM
}

// BeginStop asks the init, process pid as the host counts, to power the guest
// off, as far as that takes more than a signal. It returns the signal that is
// still to be sent, 0 for none. uid and gid are the host's ids of the guest's
// root, with whose rights the guest's files are used.
//
// sysvinit is told to go to run level 0 through its fifo, as telinit(8) does.
// runit looks for a flag, as runit-init(8) sets it. Where that fails, as in a
// guest that has just started, the answer is [StopSignal].
func BeginStop(i Init, pid, uid, gid int) syscall.Signal {
	root, err := openRoot(pid)
	if err != nil {
		return StopSignal(i)
	}
	defer root.Close()
	switch i {
	case SysVInit:
		err = asFsUser(uid, gid, func() error { return requestRunLevel(root, '0') })
		if err == nil {
			return 0
		}
	case Runit:
		err = asFsUser(uid, gid, func() error { return flagPowerOff(root) })
		if err == nil {
			return syscall.SIGCONT
		}
	}
	// The signal is the way that always is there, so that this is no failure.
	return StopSignal(i)
}

// requestRunLevel writes a struct init_request (initreq.h of sysvinit).
func requestRunLevel(root *os.File, level byte) error {
	const (
		size     = 384
		magic    = 0x03091969
		runLevel = 1 // INIT_CMD_RUNLVL
	)
	var err error
	for _, name := range []string{"/run/initctl", "/dev/initctl"} {
		var fifo int
		if fifo, err = openFifo(root, name); err != nil {
			continue
		}
		defer unix.Close(fifo)
		request := make([]byte, size)
		binary.NativeEndian.PutUint32(request, magic)
		binary.NativeEndian.PutUint32(request[4:], runLevel)
		binary.NativeEndian.PutUint32(request[8:], uint32(level))
		// At once or not at all, pipe(7). An os.File would wait for room in one that
		// the guest has filled.
		_, err = unix.Write(fifo, request)
		return os.NewSyscallError("write", err)
	}
	return err
}

// openFifo opens a fifo that somebody reads from, for writing without waiting.
// Nothing else is opened on the way, as that alone can have effects.
func openFifo(root *os.File, name string) (int, error) {
	p, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer p.Close()
	if fi, err := p.Stat(); err != nil {
		return -1, err
	} else if fi.Mode().Type() != os.ModeNamedPipe {
		return -1, fmt.Errorf("%s of the guest is no fifo", name)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.Fd()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("open", err)
}

// flagPowerOff tells runit, at its next SIGCONT, to end, and not to reboot then:
// whoever may execute the files says so.
func flagPowerOff(root *os.File) error {
	err := chmodIn(root, "/etc/runit/reboot", 0)
	if err != nil && !absent(err) {
		return err
	}
	return chmodIn(root, "/etc/runit/stopit", 0o100)
}

func chmodIn(root *os.File, name string, mode uint32) error {
	p, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer p.Close()
	if fi, err := p.Stat(); err != nil {
		return err
	} else if !fi.Mode().IsRegular() {
		return &os.PathError{Op: "chmod", Path: name, Err: errors.New("not a regular file")}
	}
	// fchmod(2) does not take a descriptor of that kind.
	return os.NewSyscallError("chmod", unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", p.Fd()), mode))
}

// RebootCode is what an init that has asked for a reboot ends with, for a
// service manager to start the guest again. systemd-nspawn and its units have the
// same.
const RebootCode = 133

// ExitCode says what the end of a guest's init means. code is 128+n if signal n
// has ended it. Of a PID namespace the kernel ends the init with SIGHUP where a
// process in it has called reboot(2) to restart, with SIGINT to halt or to power
// off (reboot(2)); in no other way do these end the init of a namespace.
func ExitCode(code int) int {
	switch code {
	case 128 + int(unix.SIGHUP):
		return RebootCode
	case 128 + int(unix.SIGINT):
		return 0
	}
	return code
}
