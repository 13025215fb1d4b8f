package main

import (
	"io"
	"os"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a guest wrote to its console",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with what it writes, until it ends"},
			&cli.IntFlag{Name: "tail", Aliases: []string{"n"}, Value: -1, Usage: "only the last `N` lines"},
		},
		Action: logs,
	}
}

func logs(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	lines := c.Int("tail")
	if lines < 0 && c.IsSet("tail") {
		return &usageError{msg: "logs: --tail must not be negative", hint: "without --tail, all that is kept is printed"}
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	// A pipe gets the bytes as they are; a terminal must not obey a guest.
	var out io.Writer = os.Stdout
	if isTerminal(os.Stdout) {
		out = libvz.CleanOutput(os.Stdout, true)
	}
	ctx, cancel := interruptible(c)
	defer cancel()
	return ct.CopyLog(ctx, out, libvz.LogOptions{Lines: lines, Follow: c.Bool("follow")})
}
