//go:build !lean

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "say what works on this host, what does not, and what to do",
		ArgsUsage: "[directory...]",
		Flags:     []cli.Flag{formatFlag("table")},
		Action:    examine,
	}
}

func examine(c *cli.Context) error {
	// Directories, but no flag among them.
	if err := checkArgs(c, 0, math.MaxInt); err != nil {
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
	ctx, stop := interruptible(c)
	defer stop()
	findings := host.Examine(ctx, c.Args().Slice()...)
	if asJSON {
		err = printJSON(c, findings, "  ")
	} else {
		err = printFindings(c.App.Writer, findings)
	}
	if err != nil {
		return err
	}
	var lacking []string
	for _, f := range findings {
		if !f.Works() {
			lacking = append(lacking, f.Name)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	return &libvz.Error{
		Op: "doctor", Hint: "see the remedies that were printed",
		Err: fmt.Errorf("what is needed is missing: %s", strings.Join(lacking, ", ")),
	}
}

// printFindings prints a table, with what follows and what to do below each line
// that is not ok.
func printFindings(out io.Writer, findings []libvz.Finding) error {
	w := tabwriter.NewWriter(out, 0, 1, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tSTATE\tNEEDED\tFOUND")
	for _, f := range findings {
		needed := "no"
		if f.Required {
			needed = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Name, f.State, needed, f.Found)
		if f.Means != "" {
			fmt.Fprintf(w, "\t\t\t  means: %s\n\t\t\t  remedy: %s\n", f.Means, f.Remedy)
		}
	}
	return w.Flush()
}
