package main

import (
	"github.com/vzrun/vzrun/internal/cli"
)

func startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "start a container that create made",
		ArgsUsage: "<container-id>",
		Action:    start,
	}
}

func start(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	n, err := listenNotify(ct)
	if err != nil {
		return err
	}
	defer n.close()
	if err := ct.Start(c.Context); err != nil {
		return err
	}
	return n.waitFor(ct)
}
