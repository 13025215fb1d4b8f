package main

import (
	"github.com/urfave/cli/v2"
)

func startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "start a container that create made",
		ArgsUsage: "<container-id>",
		Action:    start,
	}
}

// Issue 4 passes $NOTIFY_SOCKET on: made by create, served from here on.
func start(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	return ct.Start(c.Context)
}
