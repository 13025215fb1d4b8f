package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInitGone says that the guest's init ended before the system was up.
var ErrInitGone = errors.New("the guest's init has ended")

const (
	privateSocket = "/run/systemd/private"
	// maxFailed is how many failed units are described, one more call each.
	maxFailed = 64
	// maxDials bounds a guest that accepts and hangs up again and again. systemd
	// hangs up when it re-executes itself, at most once or twice in a boot.
	maxDials = 32
	// retryAfter is for what no event is sent for: a socket that is bound but not
	// yet listened on, and a full backlog.
	retryAfter = 20 * time.Millisecond
)

// Unit is a unit of systemd, or a service of another init, that has failed.
type Unit struct {
	Name        string // "nginx.service"; of another init "nginx"
	Description string // the unit's own; empty of another init
	// Result says why: of systemd "exit-code", "timeout", ... (systemd.exec(5),
	// $SERVICE_RESULT), empty if the unit's type has none; "failed" of OpenRC,
	// "exited" of runit, whose services are started again and again.
	Result string
}

// Status is what an init says of itself.
type Status struct {
	// State is systemd's SystemState, as in systemctl(1) under is-system-running:
	// "running", "degraded", "maintenance" or "stopping". Of another init it is the
	// word that fits.
	State  string
	Failed []Unit        // at most 64; nil unless units have failed
	Took   time.Duration // since the call of WaitReady
}

// SaysReady tells whether WaitReady can recognise the end of an init's start.
func SaysReady(init Init) bool { return init == Systemd || (&waiter{}).bootOf(init) != nil }

// WaitReady waits until the init, process pid as the host counts, has done its
// start, and returns how it went. A degraded system is an answer, not an error.
// uid and gid are the host's ids of the guest's root.
//
// systemd is asked itself, on its private socket /run/systemd/private, so neither
// a D-Bus daemon nor any program in the guest is needed. The socket is looked up
// as the guest's root would, must be a socket that the guest's root owns, and what
// comes out of it is bounded in length and stripped of control characters.
//
// Other inits answer no questions, so their marks are read, with the same
// caution:
//
//	sysvinit     utmp: the scripts of the run level that was entered have ended
//	openrc-init  the fifo /run/openrc/init.ctl, made after the default run level
//	runit        runsvdir runs, and each of its services is up for half a second
//	busybox      init waits as it does after the boot, or runs a service
//
// Services that failed are known of systemd, OpenRC (under any init) and runit.
//
// WaitReady needs root in the host's user namespace. Errors: [ErrInitGone] when
// pid ends or is no process; the cause of ctx when that ends first (it should have
// a deadline: a guest can be silent for ever); else what failed. The caller must
// not ask for an init that [SaysReady] does not know.
func WaitReady(ctx context.Context, init Init, pid int, uid, gid uint32) (Status, error) {
	start := time.Now()
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return Status{}, ErrInitGone
	} else if err != nil {
		return Status{}, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(pidfd), "pidfd")
	defer process.Close()
	// After the pidfd: when the process lives at the end of the look-up, the
	// directory is its own and not that of a successor of its pid.
	root, err := openRoot(pid)
	// One that has no root any more is about to have ended (exit_fs comes before
	// exit_notify in the kernel's do_exit).
	if ended(pidfd) || errors.Is(err, fs.ErrNotExist) {
		return Status{}, ErrInitGone
	} else if err != nil {
		return Status{}, err
	}
	defer root.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		if waitEnd(process) {
			cancel(ErrInitGone)
		}
	}()
	defer func() {
		process.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // a pidfd is pollable
		<-watching
	}()

	w := waiter{root: root, pid: pid, pidfd: pidfd, uid: uid, gid: gid}
	st, err := w.wait(ctx, init)
	// ESRCH: it is ending and its namespaces are gone already.
	if err != nil && (ended(pidfd) || errors.Is(err, unix.ESRCH)) {
		return Status{}, ErrInitGone
	}
	if ctx.Err() != nil && err != nil {
		return Status{}, context.Cause(ctx)
	}
	st.Took = time.Since(start)
	return st, err
}

// ended says whether the process of a pidfd has.
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// waitEnd returns true when the process has ended, false when the read deadline
// of the pidfd is set.
func waitEnd(pidfd *os.File) bool {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool { return ended(int(fd)) }) == nil
}

// waiter is one WaitReady.
type waiter struct {
	root     *os.File
	pid      int
	pidfd    int
	uid, gid uint32
}

func (w *waiter) wait(ctx context.Context, init Init) (Status, error) {
	if b := w.bootOf(init); b != nil {
		return w.waitBoot(ctx, b)
	}
	return w.waitSystemd(ctx)
}

func (w *waiter) waitSystemd(ctx context.Context) (Status, error) {
	events, err := newWatch()
	if err != nil {
		return Status{}, err
	}
	defer events.Close()
	for range maxDials {
		conn, err := w.connect(ctx, events)
		if err != nil {
			return Status{}, err
		}
		st, err := ask(ctx, conn)
		if !hungUp(err) {
			return st, err
		}
	}
	return Status{}, fmt.Errorf("%s of the guest: %w: hangs up", privateSocket, errBus)
}

// hungUp tells a systemd that re-executes itself from one that answers badly.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// connect waits for the socket to be there and connects to it.
func (w *waiter) connect(ctx context.Context, events *os.File) (*os.File, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// Watch first, look then: what comes in between is not missed.
		if err := w.watchDirs(events, path.Dir(privateSocket), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ATTRIB); err != nil {
			return nil, err
		}
		conn, err := w.tryConnect()
		var timeout time.Duration // none
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EAGAIN):
			timeout = retryAfter
		case !absent(err):
			return nil, fmt.Errorf("%s of the guest: %w", privateSocket, err)
		}
		if err := waitEvent(ctx, events, timeout); err != nil {
			return nil, err
		}
	}
}

func (w *waiter) tryConnect() (*os.File, error) {
	sock, err := openIn(w.root, privateSocket, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(sock.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != w.uid {
		return nil, errors.New("not a socket of the guest's root")
	}
	return dial(sock, w.pidfd, w.uid, w.gid)
}

// ask has the whole conversation. It ends with ctx.
func ask(ctx context.Context, conn *os.File) (Status, error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a socket is pollable
	defer stop()
	b, err := newBus(conn)
	if err != nil {
		return Status{}, err
	}
	for {
		// systemd sends its signals to each private connection unasked, so one
		// that comes after this answer is not missed.
		state, err := b.property(busPath, busIface, "SystemState")
		if err != nil {
			return Status{}, err
		}
		if isUp(state) {
			failed, err := describe(b)
			return Status{State: state, Failed: failed}, err
		}
		b.finished = false
		if err := b.waitFinished(); err != nil {
			return Status{}, err
		}
	}
}

// isUp says whether a start is over: well, badly, or because the end has begun.
func isUp(state string) bool {
	switch state {
	case "running", "degraded", "maintenance", "stopping":
		return true
	}
	return false
}

// describe asks for the failed units and why each has failed.
func describe(b *bus) ([]Unit, error) {
	list, err := b.failedUnits()
	if err != nil {
		return nil, err
	}
	var units []Unit
	for _, l := range list {
		u := Unit{Name: l.name, Description: l.description}
		if iface := resultIface(l.name); iface != "" {
			result, err := b.property(l.path, iface, "Result")
			// A unit can be gone by now; its name is worth reporting still.
			if err != nil && !errors.As(err, new(answerError)) {
				return nil, err
			}
			u.Result = result
		}
		units = append(units, u)
	}
	return units, nil
}

// resultIface returns the D-Bus interface with the property Result for a unit
// (org.freedesktop.systemd1(5)).
func resultIface(unit string) string {
	kind := strings.TrimPrefix(path.Ext(unit), ".")
	switch kind {
	case "service", "socket", "mount", "automount", "swap", "timer", "path", "scope":
		return busName + "." + strings.ToUpper(kind[:1]) + kind[1:]
	}
	return ""
}
