package main

import (
	"github.com/vzrun/vzrun/internal/cli"
)

func stopCommand() *cli.Command {
	return &cli.Command{
		Name:      "stop",
		Usage:     "shut a guest down in order, kill it if that takes too long",
		ArgsUsage: "<container-id>",
		Flags:     []cli.Flag{timeoutFlag("90s", "kill after `TIME`")},
		Action:    stop,
	}
}

func stop(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	grace, err := timeoutOf(c)
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
	return ct.Stop(ctx, grace)
}
