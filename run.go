package main

import (
	"errors"

	"github.com/vzrun/vzrun/internal/cli"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "create and start a container, stay with it, delete it when it ends",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			bundleFlag(), consoleSocketFlag(), pidfdSocketFlag(), detachFlag(), waitFlag(), waitTimeoutFlag(),
			&cli.BoolFlag{Name: "keep", Usage: "do not delete the container when it ends"},
			pidFileFlag(), noSubreaperFlag(), noPivotFlag(), noNewKeyringFlag(), preserveFDsFlag(),
			consoleFlag(), escapeFlag(), netFlag(),
		},
		Action: run,
	}
}

func run(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := newWait(c)
	if err != nil {
		return err
	}
	l := newLaunch(c)
	if err := l.readConsoleFlags(c); err != nil {
		return err
	}
	ct, g, err := l.createContainer(c)
	if err != nil {
		return err
	}
	defer g.close()
	if err := w.check(ct); err != nil {
		discard(c.Context, ct)
		return err
	}
	n, err := listenNotify(ct)
	if err != nil {
		discard(c.Context, ct)
		return err
	}
	defer n.close()
	code, err := l.tend(g, ct.Init(), func() error {
		if !l.detach {
			n.follow()
		}
		return ct.Start(c.Context)
	})
	if errors.Is(err, errLeft) {
		return nil
	}
	if err != nil {
		discard(c.Context, ct)
		return err
	}
	if l.detach {
		n.untilReady(ct.Init().Pid())
	}
	if !l.detach && !c.Bool("keep") {
		g.close() // the user's terminal need not wait for the clean-up
		discard(c.Context, ct)
	}
	if w != nil {
		return w.wait(c, ct)
	}
	return passOn(ct.GuestCode(code))
}
