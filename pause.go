package main

import (
	"github.com/vzrun/vzrun/internal/cli"
)

func pauseCommand() *cli.Command {
	return &cli.Command{
		Name:      "pause",
		Usage:     "freeze all processes of a container",
		ArgsUsage: "<container-id>",
		Action:    pause,
	}
}

func pause(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	return ct.Pause(c.Context)
}
