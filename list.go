package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the containers under --root",
		Flags: []cli.Flag{
			formatFlag("table"),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print ids only"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "print these `COLUMNS`, such as id,init,ip; help lists them, all means all"},
			&cli.StringFlag{Name: "sort", Aliases: []string{"s"}, Usage: "sort by `COLUMN`; from the end with a dash before it"},
			&cli.BoolFlag{Name: "no-header", Aliases: []string{"H"}, Usage: "print no names of columns"},
			&cli.BoolFlag{Name: "system", Usage: "whole operating systems only, and how they are"},
		},
		Action: list,
	}
}

// list prints what runc does unless columns are chosen, since engines read it.
func list(c *cli.Context) error {
	if err := checkArgs(c, 0, 0); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	if c.String("output") == "help" {
		return printColumns(c.App.Writer)
	}
	if c.IsSet("output") || c.Bool("system") || c.IsSet("sort") || c.Bool("no-header") {
		return listColumns(c, asJSON)
	}
	if err := needNamedRoot(c); err != nil {
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

// needNamedRoot refuses a --root that is not there, as runc does; the one that
// nobody named is made by the first container.
func needNamedRoot(c *cli.Context) error {
	root := c.String("root")
	if root == defaultRoot() {
		return nil
	}
	if _, err := os.Stat(root); err != nil {
		return &libvz.Error{Op: "list", Err: fmt.Errorf("state directory: %w", err), Hint: "see what --root names"}
	}
	return nil
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

// listColumns prints chosen columns, or ids only, of chosen containers.
func listColumns(c *cli.Context, asJSON bool) error {
	columns, err := chosenColumns(c.String("output"), c.Bool("system"), asJSON)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		columns = columns[:0]
	}
	order, err := parseOrder(c.String("sort"))
	if err != nil {
		return err
	}
	facts := order.by.facts
	for _, col := range columns {
		facts = facts.Or(col.facts)
	}
	host, err := openHost(c)
	if err != nil {
		return err
	}
	all, err := host.Survey(c.Context, facts)
	if err != nil && all == nil {
		return err
	}
	warnEach(err)
	if c.Bool("system") {
		all = slices.DeleteFunc(all, func(o libvz.Overview) bool { return o.Guest == "" })
	}
	order.sort(all)
	switch {
	case c.Bool("quiet"):
		for _, o := range all {
			fmt.Fprintln(c.App.Writer, o.ID)
		}
		return nil
	case asJSON:
		return printJSON(c, columnObjects(columns, all), "")
	default:
		return printTable(c.App.Writer, columns, all, !c.Bool("no-header"))
	}
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
