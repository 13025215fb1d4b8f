package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/vzrun/vzrun/libvz"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the containers under --root",
		Flags: []cli.Flag{
			formatFlag("table"),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print ids only"},
		},
		Action: list,
	}
}

func list(c *cli.Context) error {
	if err := checkArgs(c, 0, 0); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	host, err := openHost(c)
	if err != nil {
		return err
	}
	states, err := host.List()
	if err != nil && states == nil {
		return err
	}
	warnEach(err)
	switch {
	case c.Bool("quiet"):
		for _, s := range states {
			fmt.Fprintln(c.App.Writer, s.ID)
		}
		return nil
	case asJSON && states == nil:
		return printJSON(c, []libvz.State{}, "")
	case asJSON:
		return printJSON(c, states, "")
	default:
		return printStates(c.App.Writer, states)
	}
}

func printStates(out io.Writer, states []libvz.State) error {
	w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
	for _, s := range states {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n",
			s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return w.Flush()
}

// warnEach logs the errors that an error joins. One container that cannot be
// read must not hide the others.
func warnEach(err error) {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // as List promises
	switch {
	case ok:
		for _, e := range joined.Unwrap() {
			logrus.Warn(e)
		}
	case err != nil:
		logrus.Warn(err)
	}
}
