package main

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

// errLeft says that the user has left a guest that goes on.
var errLeft = errors.New("left the console")

// attach stays with a process until it ends and returns its exit code. Signals
// that we get are the process's. If the user leaves the guest's console, errLeft
// is returned.
func (g *guestIO) attach(l *launch, p *libvz.Process) (int, error) {
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := p.Wait()
		ended <- end{code, err}
	}()
	for {
		select {
		case e := <-ended:
			return e.code, e.err
		case <-g.escaped:
			if err := g.leaveConsole(l); err != nil {
				return 0, err
			}
			return 0, errLeft
		case s := <-g.signals:
			switch s {
			case unix.SIGCHLD:
				reapOrphans(p.Pid())
			case unix.SIGWINCH:
				g.resize()
			case unix.SIGHUP:
				// Our terminal has gone, not the guest's.
				if g.console != nil && g.terminal != nil {
					if err := g.leaveConsole(l); err != nil {
						return 0, err
					}
					return 0, errLeft
				}
				forward(s, p)
			default:
				forward(s, p)
			}
		}
	}
}

func forward(s os.Signal, p *libvz.Process) {
	sig, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	logrus.Debugf("signal %d goes to process %d", sig, p.Pid())
	if err := p.Signal(sig); err != nil {
		// It may have ended just now.
		logrus.Debugf("signal %d: %v", sig, err)
	}
}

// reapOrphans collects processes that came to us because we are their
// subreaper. It only looks at who is first in line and leaves the process we
// wait for to its waiter: what is behind it goes to init when we exit.
func reapOrphans(ours int) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := pidOf(&info)
		if pid == 0 || pid == ours {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// pidOf reads what the x/sys package leaves unnamed: the union of a siginfo
// follows three ints, aligned for a pointer, and begins with the child's pid.
func pidOf(info *unix.Siginfo) int {
	const threeInts, word = 12, unsafe.Sizeof(uintptr(0))
	const union = (threeInts + word - 1) / word * word
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), union)))
}
