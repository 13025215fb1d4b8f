package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// Stdio is what a process is given by its starter. The files stay the
// caller's to close.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File // nil = /dev/null
	// ConsoleSocket is a connected unix socket that receives the master of
	// the process's terminal (SCM_RIGHTS); needed where it has one.
	ConsoleSocket *os.File
	// PidfdSocket receives a pidfd of the process; nil = nobody asks.
	PidfdSocket *os.File
	ExtraFiles  []*os.File // become descriptors 3 and up
	Env         []string   // beside the specification's
}

// Process is a process in a container and a child of the calling process.
type Process struct {
	lp   *libcontainer.Process
	proc *os.Process // of a restored init, in place of lp
}

// Pid returns the process id in the caller's pid namespace.
func (p *Process) Pid() int {
	if p.proc != nil {
		return p.proc.Pid
	}
	pid, err := p.lp.Pid()
	if err != nil {
		return 0
	}
	return pid
}

// Signal sends sig to the process.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.proc != nil {
		return p.proc.Signal(sig)
	}
	return p.lp.Signal(sig)
}

// Wait blocks until the process ends and returns its exit code, 128+n for
// signal n. It may be called once.
func (p *Process) Wait() (int, error) {
	wait := p.proc.Wait
	if p.proc == nil {
		wait = p.lp.Wait
	}
	ps, err := wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return -1, fmt.Errorf("wait: %w", err)
	}
	if exit != nil {
		ps = exit.ProcessState
	}
	ws, ok := ps.Sys().(syscall.WaitStatus)
	if !ok {
		return -1, fmt.Errorf("wait: no status")
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// RebootCode is what GuestCode makes of a guest's wish to be started again. It is
// what systemd-nspawn ends with, and RestartForceExitStatus= of a unit waits for.
const RebootCode = guest.RebootCode

// GuestCode turns the exit code of the container's init into that of a machine,
// where the container is a whole operating system: 0 for one that has powered
// itself off, RebootCode for one that has rebooted itself, else the code.
func (c *Container) GuestCode(code int) int {
	if c.guestInit() == "" {
		return code
	}
	return guest.ExitCode(code)
}

// ExecOptions say what Exec runs.
type ExecOptions struct {
	Stdio
	Process specs.Process
	// Cgroups are cgroups below the container's to run in, as runc's exec
	// --cgroup: one PATH, or CONTROLLER[,CONTROLLER..]:PATH on cgroup v1.
	Cgroups []string
	// IgnorePaused allows it in a paused container, where the process runs
	// only after Resume.
	IgnorePaused bool
	Detach       bool
	// Insist names capabilities that must be had: they were not asked for
	// by default.
	Insist []string
}

// Exec starts another process in a running container. It takes no lock: a
// checkpoint that is under way has frozen the container, so the status says no.
func (c *Container) Exec(_ context.Context, o ExecOptions) (*Process, error) {
	p, err := c.exec(o)
	return p, fail("exec", c.id, err)
}

func (c *Container) exec(o ExecOptions) (*Process, error) {
	if err := c.need(libcontainer.Running, libcontainer.Created, libcontainer.Paused); err != nil {
		return nil, err
	}
	if is, err := c.lc.Status(); err != nil {
		return nil, err
	} else if is == libcontainer.Paused && !o.IgnorePaused {
		// Engines know runc's words.
		return nil, withHint("resume it first, or give --ignore-paused", "%w: cannot exec in a paused container", ErrStatus)
	}
	if err := checkProcess(&o.Process); err != nil {
		return nil, err
	}
	if err := c.fitExec(&o.Process, o.Insist); err != nil {
		return nil, err
	}
	lp, err := newProcess(&o.Process, o.Stdio)
	if err != nil {
		return nil, err
	}
	lp.LogLevel = c.host.opts.LogLevel
	if lp.SubCgroupPaths, err = subCgroups(o.Cgroups); err != nil {
		return nil, err
	}
	// No learning from a process that others of the container can get at.
	filter := c.host.filterTicket(lp, c.lc.Config().Seccomp, false)
	defer filter.Close()
	if err := c.lc.Run(lp); err != nil {
		return nil, c.endedMeanwhile(err)
	}
	return &Process{lp: lp}, nil
}

// execWithin is exec for who cannot wait: the guest's root can stop a process that is
// about to begin there. When ctx ends first it is left behind, and killed if it begins
// after all. The handle is its own, as libcontainer locks it meanwhile.
func (c *Container) execWithin(ctx context.Context, o ExecOptions) (*Process, error) {
	lc, err := libcontainer.Load(c.host.opts.Root, c.id)
	if err != nil {
		return nil, err
	}
	own := &Container{host: c.host, id: c.id, lc: lc}
	type answer struct {
		p   *Process
		err error
	}
	begun := make(chan answer)
	go func() {
		p, err := own.exec(o)
		select {
		case begun <- answer{p, err}:
		case <-ctx.Done():
			if err == nil {
				p.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
				p.Wait()               //nolint:errcheck // nobody asks any more
			}
		}
	}()
	select {
	case a := <-begun:
		return a.p, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// initExits tells whether the init is on its way out: it takes the others of its
// pid namespace with it and only then counts as ended.
func (c *Container) initExits() bool {
	st, err := c.lc.State()
	if err != nil {
		return false
	}
	exits, err := exiting(st.InitProcessPid)
	return err == nil && exits
}

// endedMeanwhile tells a process that could not be started from one whose
// container was killed under it, which shows as a broken pipe or the like.
func (c *Container) endedMeanwhile(err error) error {
	st, statusErr := c.lc.Status()
	if statusErr == nil && (st == libcontainer.Stopped || c.initExits()) {
		return fmt.Errorf("%w: it has ended meanwhile: %w", ErrStatus, err)
	}
	return err
}

func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("config.json has no process")
	case p.Cwd == "":
		return errors.New("process.cwd is empty")
	case p.Cwd[0] != '/':
		return fmt.Errorf("process.cwd %q is not absolute", p.Cwd)
	case len(p.Args) == 0:
		return errors.New("process.args is empty")
	}
	return nil
}

func newProcess(p *specs.Process, std Stdio) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args: p.Args, Env: append(append([]string{}, p.Env...), std.Env...),
		UID: int(p.User.UID), GID: int(p.User.GID), Cwd: p.Cwd,
		Label: p.SelinuxLabel, AppArmorProfile: p.ApparmorProfile, NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler: p.Scheduler, IOPriority: p.IOPriority,
		ExtraFiles: std.ExtraFiles, ConsoleSocket: std.ConsoleSocket, PidfdSocket: std.PidfdSocket,
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if caps := p.Capabilities; caps != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: caps.Bounding, Effective: caps.Effective, Inheritable: caps.Inheritable,
			Permitted: caps.Permitted, Ambient: caps.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, r := range p.Rlimits {
		number, ok := rlimitNumber(r.Type)
		if !ok {
			return nil, fmt.Errorf("process.rlimits: unknown type %q", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: number, Hard: r.Hard, Soft: r.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("process.execCPUAffinity: %w", err)
	}
	lp.CPUAffinity = affinity
	if !p.Terminal {
		// A nil *os.File in an io.Reader would not be nil.
		if std.Stdin != nil {
			lp.Stdin = std.Stdin
		}
		if std.Stdout != nil {
			lp.Stdout = std.Stdout
		}
		if std.Stderr != nil {
			lp.Stderr = std.Stderr
		}
	} else if std.ConsoleSocket == nil {
		return nil, withHint("use --console-socket, or set process.terminal to false", "a terminal is asked for and nobody is there to take it")
	}
	return lp, nil
}

// rlimitNumber translates the names of getrlimit(2).
func rlimitNumber(name string) (int, bool) {
	n, ok := map[string]int{
		"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	}[name]
	return n, ok
}

// subCgroups reads the --cgroup of exec.
func subCgroups(args []string) (map[string]string, error) {
	paths := make(map[string]string, len(args))
	for _, arg := range args {
		controllers, path, named := strings.Cut(arg, ":")
		if !named {
			if len(args) > 1 {
				return nil, withHint("name the controllers of each: --cgroup memory:A --cgroup cpu,cpuacct:B", "cgroup %q: no controller, and not the only one", arg)
			}
			return map[string]string{"": arg}, nil
		}
		for c := range strings.SplitSeq(controllers, ",") {
			if c == "" {
				return nil, fmt.Errorf("cgroup %q: empty controller name", arg)
			}
			if _, twice := paths[c]; twice {
				return nil, fmt.Errorf("cgroup %q: controller %s is named twice", arg, c)
			}
			paths[c] = path
		}
	}
	return paths, nil
}
