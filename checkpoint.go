//go:build !lean

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func checkpointCommand() *cli.Command {
	return &cli.Command{
		Name:      "checkpoint",
		Usage:     "write a running container to image files",
		ArgsUsage: "<container-id>",
		Flags: slices.Concat(imageFlags(), exportFlags(), []cli.Flag{
			&cli.StringFlag{Name: "parent-path", Usage: "`DIR` of the previous pre-dump, relative to --image-path"},
			&cli.BoolFlag{Name: "leave-running", Usage: "let the container go on afterwards"},
			&cli.BoolFlag{Name: "link-remap", Usage: "give open files that were deleted a name again"},
			&cli.BoolFlag{Name: "pre-dump", Usage: "write memory only and let the container go on"},
			&cli.BoolFlag{Name: "tcp-skip-in-flight", Usage: "leave out TCP connections that are being opened"},
			&cli.BoolFlag{Name: "check", Usage: "only list what would prevent it, with remedies"},
			&cli.BoolFlag{Name: "end-sessions", Usage: "end what was started from outside (exec, enter) instead of refusing it"},
			formatFlag("table"),
			&cli.BoolFlag{Name: "lazy-pages", Usage: "serve memory at --page-server when a restore elsewhere asks for it"},
			&cli.IntFlag{Name: "status-fd", Value: -1, Usage: "write a zero byte to descriptor `FD` when memory can be asked for"},
			&cli.StringFlag{Name: "page-server", Usage: "with --lazy-pages listen at `ADDRESS:PORT`, else send memory to the criu page-server there"},
		}),
		Action:      checkpoint,
		Subcommands: []*cli.Command{inspectCommand()},
	}
}

// imageFlags are the flags that checkpoint and restore share.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "image-path", Value: "checkpoint", Usage: "`DIR` of the image files"},
		&cli.StringFlag{Name: "work-path", Usage: "`DIR` for CRIU's logs and statistics"},
		&cli.BoolFlag{Name: "tcp-established", Usage: "keep open TCP connections"},
		&cli.BoolFlag{Name: "ext-unix-sk", Usage: "allow unix sockets that lead out of the container"},
		&cli.BoolFlag{Name: "shell-job", Usage: "allow a terminal that the container does not own"},
		&cli.BoolFlag{Name: "file-locks", Usage: "keep file locks"},
		&cli.StringFlag{Name: "manage-cgroups-mode", Usage: "`MODE`: soft, full, strict or ignore"},
		&cli.StringSliceFlag{Name: "empty-ns", Usage: "leave out what is in the namespace `NS`: network"},
		&cli.BoolFlag{Name: "auto-dedup", Usage: "give back the room of memory images that are not needed any more"},
		&cli.BoolFlag{Name: "print-stats", Usage: "print what it took, as JSON"},
	}
}

func checkpoint(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	o, err := checkpointOptions(c)
	if err != nil {
		return err
	}
	if o.Export, err = exportOptions(c); err != nil {
		return err
	}
	if o.Export != nil {
		workHard()
		if !c.IsSet("image-path") {
			o.ImagePath = "" // none that stays
		}
	}
	p := newProgress()
	defer p.stop()
	ct, err := loadContainerWith(c, p.onEvent)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(c)
	defer cancel()
	if c.Bool("check") {
		return checkCheckpoint(ctx, c, ct, o)
	}
	stats, err := ct.Checkpoint(ctx, o)
	p.stop()
	if err != nil {
		return err
	}
	if c.Bool("print-stats") {
		return printJSON(c, stats, "  ")
	}
	return nil
}

func checkpointOptions(c *cli.Context) (libvz.CheckpointOptions, error) {
	paths, err := absolutePaths(c.String("image-path"), c.String("work-path"))
	if err != nil {
		return libvz.CheckpointOptions{}, err
	}
	serving, err := statusWriter(c)
	if err != nil {
		return libvz.CheckpointOptions{}, err
	}
	empty, err := emptyNetwork(c)
	if err != nil {
		return libvz.CheckpointOptions{}, err
	}
	mode, err := cgroupsMode(c)
	return libvz.CheckpointOptions{
		ImagePath: paths[0], WorkPath: paths[1], ParentPath: c.String("parent-path"),
		LeaveRunning: c.Bool("leave-running"), TCPEstablished: c.Bool("tcp-established"),
		ExtUnixSockets: c.Bool("ext-unix-sk"), ShellJob: c.Bool("shell-job"),
		FileLocks: c.Bool("file-locks"), LinkRemap: c.Bool("link-remap"), EndSessions: c.Bool("end-sessions"),
		PreDump: c.Bool("pre-dump"), ManageCgroups: mode,
		TCPSkipInFlight: c.Bool("tcp-skip-in-flight"), EmptyNetwork: empty, AutoDedup: c.Bool("auto-dedup"),
		LazyPages: c.Bool("lazy-pages"), PageServer: c.String("page-server"), Serving: serving,
	}, err
}

// statusWriter returns what tells the owner of --status-fd that memory can be
// asked for, as runc does; nil without that flag, and without lazy pages.
func statusWriter(c *cli.Context) (func() error, error) {
	fd := c.Int("status-fd")
	if fd == -1 || !c.Bool("lazy-pages") {
		return nil, nil
	}
	fail := func(err error) error {
		return &libvz.Error{Op: c.Command.Name, ID: c.Args().First(), Err: fmt.Errorf("--status-fd %d: %w", fd, err), Hint: "give a descriptor that is open for writing"}
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fail(err)
	}
	if access := flags & unix.O_ACCMODE; access != unix.O_WRONLY && access != unix.O_RDWR {
		return nil, fail(unix.EBADF)
	}
	unix.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "status-fd")
	return func() error {
		_, err := file.Write([]byte{0})
		return errors.Join(err, file.Close())
	}, nil
}

// emptyNetwork reads --empty-ns, of which runc, too, knows the network alone.
func emptyNetwork(c *cli.Context) (bool, error) {
	names := c.StringSlice("empty-ns")
	for _, name := range names {
		if name != "network" {
			return false, &usageError{msg: fmt.Sprintf("%s: --empty-ns %q is not supported", c.Command.Name, name), hint: "the only one is network"}
		}
	}
	return len(names) > 0, nil
}

func cgroupsMode(c *cli.Context) (string, error) {
	mode := c.String("manage-cgroups-mode")
	if !slices.Contains([]string{"", "soft", "full", "strict", "ignore"}, mode) {
		return "", &usageError{
			msg:  fmt.Sprintf("%s: unknown --manage-cgroups-mode %q", c.Command.Name, mode),
			hint: "modes are soft, full, strict and ignore",
		}
	}
	return mode, nil
}
