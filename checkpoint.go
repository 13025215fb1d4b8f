package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/vzrun/vzrun/libvz"
)

func checkpointCommand() *cli.Command {
	return &cli.Command{
		Name:      "checkpoint",
		Usage:     "write a running container to image files",
		ArgsUsage: "<container-id>",
		Flags: slices.Concat(imageFlags(), []cli.Flag{
			&cli.StringFlag{Name: "parent-path", Usage: "`DIR` of the previous pre-dump, relative to --image-path"},
			&cli.BoolFlag{Name: "leave-running", Usage: "let the container go on afterwards"},
			&cli.BoolFlag{Name: "link-remap", Usage: "give open files that were deleted a name again"},
			&cli.BoolFlag{Name: "pre-dump", Usage: "write memory only and let the container go on"},
			&cli.BoolFlag{Name: "tcp-skip-in-flight", Hidden: true},
			&cli.BoolFlag{Name: "lazy-pages", Hidden: true},
			&cli.IntFlag{Name: "status-fd", Hidden: true},
			&cli.StringFlag{Name: "page-server", Hidden: true},
			&cli.StringSliceFlag{Name: "empty-ns", Hidden: true},
			&cli.BoolFlag{Name: "auto-dedup", Hidden: true},
		}),
		Action: checkpoint,
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
		&cli.BoolFlag{Name: "print-stats", Usage: "print what it took, as JSON"},
	}
}

func checkpoint(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	if err := refuseFlags(c, "tcp-skip-in-flight", "lazy-pages", "status-fd", "page-server", "empty-ns", "auto-dedup"); err != nil {
		return err
	}
	o, err := checkpointOptions(c)
	if err != nil {
		return err
	}
	p := newProgress()
	defer p.stop()
	ct, err := loadContainerWith(c, p.onEvent)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(c)
	defer cancel()
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
	mode, err := cgroupsMode(c)
	return libvz.CheckpointOptions{
		ImagePath: paths[0], WorkPath: paths[1], ParentPath: c.String("parent-path"),
		LeaveRunning: c.Bool("leave-running"), TCPEstablished: c.Bool("tcp-established"),
		ExtUnixSockets: c.Bool("ext-unix-sk"), ShellJob: c.Bool("shell-job"),
		FileLocks: c.Bool("file-locks"), LinkRemap: c.Bool("link-remap"),
		PreDump: c.Bool("pre-dump"), ManageCgroups: mode,
	}, err
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
