package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

// launch is what create, run, restore, exec and enter have in common: how the
// process that they start is tied to the caller.
type launch struct {
	verb, id      string
	detach        bool   // leave the process to itself once it is there
	subreaper     bool   // adopt what the process leaves behind
	pidFile       string // gets the process's pid
	consoleSocket string // gets the master of the process's terminal
	pidfdSocket   string // gets a pidfd of the process
	preserveFDs   int    // so many of our descriptors from 3 on go to the process
	activation    bool   // sockets that systemd opened for us go to the process, too

	console bool          // hold a console for the guest
	escape  *libvz.Escape // what ends being attached to it
	root    string        // the state directory, for who holds it later
}

// Which of the flags a verb has differs, their names do not.
func newLaunch(c *cli.Context) launch {
	pidFile := c.String("pid-file")
	// Absolute where that can be told: create enters the bundle.
	if abs, err := filepath.Abs(pidFile); err == nil && pidFile != "" {
		pidFile = abs
	}
	return launch{
		verb:          c.Command.Name,
		id:            c.Args().First(),
		detach:        c.Bool("detach"),
		subreaper:     !c.Bool("no-subreaper"),
		pidFile:       pidFile,
		consoleSocket: c.String("console-socket"),
		pidfdSocket:   c.String("pidfd-socket"),
		preserveFDs:   c.Int("preserve-fds"),
		activation:    true,
	}
}

func detachFlag() cli.Flag {
	return &cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return as soon as the process is there"}
}

func pidFileFlag() cli.Flag {
	return &cli.StringFlag{Name: "pid-file", Usage: "write the process's pid to `FILE`"}
}

func consoleSocketFlag() cli.Flag {
	return &cli.StringFlag{Name: "console-socket", Usage: "unix socket at `PATH` that receives the master of the terminal"}
}

func pidfdSocketFlag() cli.Flag {
	return &cli.StringFlag{Name: "pidfd-socket", Usage: "unix socket at `PATH` that receives a pidfd of the process"}
}

func preserveFDsFlag() cli.Flag {
	return &cli.IntFlag{Name: "preserve-fds", Usage: "hand `N` more descriptors on, after stdio and those of $LISTEN_FDS"}
}

func noSubreaperFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-subreaper", Usage: "do not adopt processes that lose their parent"}
}

func noPivotFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-pivot", Usage: "move the root instead of pivoting, for a rootfs on a ramdisk"}
}

func netFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "net", Usage: "make a network interface, `SPEC` as in bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1 or routed,ip=10.2.0.5; may be repeated"}
}

func noNewKeyringFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-new-keyring", Usage: "inherit the caller's session keyring"}
}

// check holds the flags against the process's wish for a terminal, which vzrun
// itself may hold.
func (l *launch) check(terminal, held bool) error {
	fail := func(msg, hint string) error {
		return &libvz.Error{Op: l.verb, ID: l.id, Err: fmt.Errorf("%s", msg), Hint: hint}
	}
	switch {
	case l.preserveFDs < 0:
		return &usageError{msg: l.verb + ": --preserve-fds must not be negative"}
	case held:
	case l.detach && terminal && l.consoleSocket == "":
		return fail("the process wants a terminal and nobody would hold it",
			"give --console-socket, or --console to hold it, or set process.terminal to false in config.json")
	case l.consoleSocket != "" && !terminal:
		return fail("--console-socket was given and the process wants no terminal",
			"leave out --console-socket, or ask for a terminal (process.terminal in config.json, exec --tty)")
	case l.consoleSocket != "" && !l.detach:
		return fail("--console-socket was given and the terminal would stay here", "add --detach")
	}
	return nil
}

// inheritedFiles returns the descriptors that go to the process as 3 and up,
// and the environment that tells it about those from systemd.
func (l *launch) inheritedFiles() (files []*os.File, env []string, err error) {
	listen := 0
	if l.activation {
		listen = listenFDs(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getpid())
	}
	for fd := 3; fd < 3+listen+l.preserveFDs; fd++ {
		// What we have inherited cannot be close-on-exec; what we opened
		// ourselves always is, and must not leak into a guest.
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			return nil, nil, &libvz.Error{
				Op: l.verb, ID: l.id,
				Err:  fmt.Errorf("file descriptor %d was to be handed on and is not open", fd),
				Hint: fmt.Sprintf("the caller must leave descriptors 3 to %d open", 2+listen+l.preserveFDs),
			}
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited:"+strconv.Itoa(fd)))
	}
	if listen > 0 {
		env = []string{"LISTEN_FDS=" + strconv.Itoa(listen), "LISTEN_PID=1"}
	}
	return files, env, nil
}

// listenFDs tells how many sockets systemd opened for us.
func listenFDs(listenPid, listenFds string, self int) int {
	if pid, err := strconv.Atoi(listenPid); err != nil || pid != self {
		return 0
	}
	n, err := strconv.Atoi(listenFds)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func (l *launch) becomeSubreaper() {
	if l.detach || !l.subreaper {
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		logrus.Warnf("cannot become a subreaper: %v", err)
	}
}

// writePidFile writes the pid file in one step, since callers poll for it.
func (l *launch) writePidFile(pid int) error {
	if l.pidFile == "" {
		return nil
	}
	dir, name := filepath.Split(l.pidFile)
	temporary := filepath.Join(dir, fmt.Sprintf(".%s.%d", name, os.Getpid()))
	if err := os.WriteFile(temporary, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	if err := os.Rename(temporary, l.pidFile); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}

// tend sees a new process to the end of what the verb promises: started, its
// pid written down and, unless detached, over. It returns the exit code.
func (l *launch) tend(g *guestIO, p *libvz.Process, start func() error) (int, error) {
	if err := g.handOver(l); err != nil {
		return 0, err
	}
	if g.allCaught != nil {
		<-g.allCaught // from here on no signal for the guest ends us
	}
	if err := start(); err != nil {
		return 0, err
	}
	if err := l.writePidFile(p.Pid()); err != nil {
		return 0, err
	}
	if l.detach {
		return 0, nil
	}
	return g.attach(l, p)
}

// discard removes a container whose time is over. There is an error or an exit
// code to return already, so that a failure is only worth a warning.
func discard(ctx context.Context, ct *libvz.Container) {
	err := ct.Discard(ctx)
	if err != nil && !errors.Is(err, libvz.ErrNotExist) {
		logrus.Warn(err)
	}
}
