package main

import (
	"errors"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func killCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "send a signal (default: TERM) to a container's init",
		ArgsUsage: "<container-id> [signal]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "to all processes; no error if none is left"},
		},
		Action: kill,
	}
}

func kill(c *cli.Context) error {
	if err := checkArgs(c, 1, 2); err != nil {
		return err
	}
	name := c.Args().Get(1)
	if name == "" {
		name = "TERM"
	}
	signal, err := parseSignal(name)
	if err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	err = ct.Kill(c.Context, signal, c.Bool("all"))
	if c.Bool("all") && errors.Is(err, libvz.ErrStatus) {
		return nil
	}
	return err
}
