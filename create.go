package main

import (
	"fmt"
	"os"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func createCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a container from a bundle, ready to start",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			bundleFlag(), consoleSocketFlag(), pidfdSocketFlag(), pidFileFlag(),
			noPivotFlag(), noNewKeyringFlag(), preserveFDsFlag(), consoleFlag(), netFlag(),
		},
		Action: create,
	}
}

func create(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	l := newLaunch(c)
	l.detach = true
	if err := l.readConsoleFlags(c); err != nil {
		return err
	}
	ct, g, err := l.createContainer(c)
	if err != nil {
		return err
	}
	defer g.close()
	if _, err := l.tend(g, ct.Init(), func() error { return nil }); err != nil {
		discard(c.Context, ct)
		return err
	}
	return nil
}

// createContainer is the first half of run, too.
func (l *launch) createContainer(c *cli.Context) (*libvz.Container, *guestIO, error) {
	bundle, err := bundlePath(c)
	if err != nil {
		return nil, nil, err
	}
	spec, err := libvz.LoadSpec(bundle)
	if err != nil {
		return nil, nil, &libvz.Error{Op: l.verb, ID: l.id, Err: err}
	}
	if err := easeInit(spec.Hooks); err != nil {
		return nil, nil, err
	}
	held := l.holdsConsole(spec)
	g, err := l.openIO(spec.Process.Terminal, held)
	if err != nil {
		return nil, nil, err
	}
	if held {
		adoptTerminal(spec, g.terminal)
	} else if l.detach && libvz.IsSystem(spec) && !spec.Process.Terminal {
		if err := g.keepOutput(spec); err != nil {
			g.close()
			return nil, nil, err
		}
	}
	host, err := openHost(c)
	if err != nil {
		g.close()
		return nil, nil, err
	}
	// Hooks run there, as with runc.
	if err := os.Chdir(bundle); err != nil {
		g.close()
		return nil, nil, fmt.Errorf("enter bundle: %w", err)
	}
	ct, err := host.Create(c.Context, l.id, bundle, libvz.CreateOptions{
		Stdio:        g.Stdio,
		NoPivot:      c.Bool("no-pivot"),
		NoNewKeyring: c.Bool("no-new-keyring"),
		Notify:       wantsNotify(),
		Spec:         spec,
		Net:          c.StringSlice("net"),
	})
	if err != nil {
		g.close()
		return nil, nil, err
	}
	g.container = ct
	return ct, g, nil
}
