package main

import (
	"os"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func enterCommand() *cli.Command {
	return &cli.Command{
		Name:      "enter",
		Usage:     "open a login shell in a container",
		ArgsUsage: "<container-id>",
		Action:    enter,
	}
}

func enter(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	shell, err := ct.LoginProcess()
	if err != nil {
		return err
	}
	// With commands from a pipe or file the shell reads them directly: they
	// end where the input ends, and nothing is echoed.
	shell.Terminal = isTerminal(os.Stdin)
	l := newLaunch(c)
	l.subreaper, l.activation = false, false
	code, err := l.exec(c, ct, libvz.ExecOptions{Process: shell})
	if err != nil {
		return err
	}
	return passOn(code)
}
