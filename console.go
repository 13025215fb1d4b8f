package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func consoleCommand() *cli.Command {
	return &cli.Command{
		Name:      "console",
		Usage:     "attach to the console of a running guest",
		ArgsUsage: "<container-id>",
		Flags:     []cli.Flag{escapeFlag()},
		Action:    attachConsole,
	}
}

func attachConsole(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	escape, err := parseEscape(c)
	if err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	client, err := ct.OpenConsole()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	if isTerminal(os.Stdin) {
		t, err := findTerminal()
		if err != nil {
			return err
		}
		if key := c.String("escape"); key != "none" {
			fmt.Fprintf(os.Stderr, "console of %s; %s three times within a second leaves it\n", ct.ID(), key)
		}
		if err := t.beRaw(); err != nil {
			return err
		}
		defer t.leave()
		keepSize(ctx, t, client)
	}
	return useConsole(ctx, cancel, client, escape, ct.ID())
}

// keepSize gives the console the size of our terminal, now and each time that
// it changes.
func keepSize(ctx context.Context, t *terminal, client *libvz.ConsoleClient) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	set := func() {
		if size := t.size(); size != nil {
			client.Resize(uint16(size.Height), uint16(size.Width)) //nolint:errcheck // who holds the console may have gone
		}
	}
	set()
	go func() {
		for {
			select {
			case <-changed:
				set()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// useConsole ends with the guest, the escape, or ctx, which leave ends.
func useConsole(ctx context.Context, leave func(), client *libvz.ConsoleClient, escape *libvz.Escape, id string) error {
	go func() {
		if typeOn(escape, os.Stdin, client) {
			leave()
		}
	}()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	err := client.CopyTo(os.Stdout)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, libvz.ErrConsoleLeft):
		return &libvz.Error{Op: "console", ID: id, Err: err, Hint: "attach again"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &libvz.Error{Op: "console", ID: id, Err: errors.New("who held the console has ended"), Hint: "vzrun list shows whether the container goes on; vzrun enter opens a shell"}
	}
	return err
}
