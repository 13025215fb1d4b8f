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
	// One that runs already is refused below, and has a use for its socket.
	state, err := ct.State()
	if err != nil {
		return err
	}
	var n *notifier
	if state.Status == "created" {
		if n, err = listenNotify(ct); err != nil {
			return err
		}
	}
	defer n.close()
	if err := ct.Start(c.Context); err != nil {
		return err
	}
	return n.waitFor(ct)
}
