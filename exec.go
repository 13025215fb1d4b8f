package main

import (
	"errors"

	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run one more process in a container",
		ArgsUsage: "<container-id> <command> [args]",
		Flags: []cli.Flag{
			consoleSocketFlag(), pidfdSocketFlag(), detachFlag(), pidFileFlag(), preserveFDsFlag(),
			&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "take the process from `FILE` (process of the OCI specification)"},
			&cli.StringFlag{Name: "cwd", Usage: "working `DIR` in the container"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, KeepSpace: true, Usage: "set `NAME=VALUE`"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `UID[:GID]`"},
			&cli.StringSliceFlag{Name: "additional-gids", Aliases: []string{"g"}, KeepSpace: true, Usage: "one more `GID`"},
			&cli.StringFlag{Name: "process-label", Usage: "SELinux `LABEL` of the process"},
			&cli.StringFlag{Name: "apparmor", Usage: "AppArmor `PROFILE` of the process"},
			&cli.BoolFlag{Name: "no-new-privs", Usage: "forbid the process to gain privileges"},
			&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, KeepSpace: true, Usage: "add a `CAPABILITY`"},
			&cli.StringSliceFlag{Name: "cgroup", KeepSpace: true, Usage: "run in an existing sub-cgroup, `[CONTROLLER:]PATH`; may be repeated"},
			&cli.BoolFlag{Name: "ignore-paused", Usage: "even if the container is paused; the process then waits"},
		},
		Action: exec,
	}
}

// exec turns every failure into runc's code 255, which engines tell from a
// code of the program; only a wrong command line has its own.
func exec(c *cli.Context) error {
	code, err := execProcess(c)
	var usage *usageError
	switch {
	case err == nil:
		return passOn(code)
	case errors.As(err, &usage):
		return err
	default:
		return &execFailure{err}
	}
}

func execProcess(c *cli.Context) (int, error) {
	changes, err := processFlags(c)
	if err != nil {
		return 0, err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return 0, err
	}
	process, err := changes.process(ct)
	if err != nil {
		return 0, err
	}
	l := newLaunch(c)
	l.subreaper, l.activation = false, false
	return l.exec(c, ct, libvz.ExecOptions{
		Process:      *process,
		Cgroups:      changes.cgroups,
		IgnorePaused: c.Bool("ignore-paused"),
		Detach:       l.detach,
		Insist:       changes.caps,
	})
}

// exec is what exec and enter share.
func (l *launch) exec(c *cli.Context, ct *libvz.Container, o libvz.ExecOptions) (int, error) {
	if err := easeInit(nil); err != nil {
		return 0, err
	}
	g, err := l.openIO(o.Process.Terminal, false)
	if err != nil {
		return 0, err
	}
	defer g.close()
	o.Stdio = g.Stdio
	if o.Process.ConsoleSize == nil {
		o.Process.ConsoleSize = g.terminal.size()
	}
	p, err := ct.Exec(c.Context, o)
	if err != nil {
		return 0, err
	}
	code, err := l.tend(g, p, func() error { return nil })
	if err != nil {
		p.Signal(unix.SIGKILL) //nolint:errcheck // the error that matters is there already
	}
	return code, err
}
