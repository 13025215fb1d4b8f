//go:build !lean

package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// checkCheckpoint is checkpoint --check: it prints all that is in the way, and
// fails as the checkpoint would.
func checkCheckpoint(ctx context.Context, c *cli.Context, ct *libvz.Container, o libvz.CheckpointOptions) error {
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	found, err := ct.Check(ctx, o)
	if err != nil {
		return err
	}
	if asJSON {
		if found == nil {
			found = []libvz.Obstacle{}
		}
		err = printJSON(c, found, "  ")
	} else if len(found) > 0 {
		err = printObstacles(c.App.Writer, found)
	}
	if err != nil || len(found) == 0 {
		return err
	}
	// What --end-sessions would end is listed, but prevents nothing.
	if o.EndSessions && onlySessions(found) {
		return nil
	}
	return &libvz.Error{
		Op: "check", ID: ct.ID(), Hint: "see the remedies that were printed",
		Err: fmt.Errorf("%w: %d in the way of a checkpoint", libvz.ErrRefused, len(found)),
	}
}

func onlySessions(found []libvz.Obstacle) bool {
	for _, o := range found {
		if o.Kind != libvz.ObstacleSession {
			return false
		}
	}
	return true
}

// printObstacles prints two lines for each: what there is, and what to do.
func printObstacles(out io.Writer, found []libvz.Obstacle) error {
	w := tabwriter.NewWriter(out, 0, 1, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tHOSTPID\tUNIT\tCOMMAND\tOBSTACLE")
	for _, o := range found {
		cells := []string{"-", "-", "-", "-", o.What}
		if o.Pid != 0 {
			cells[0], cells[1], cells[3] = strconv.Itoa(o.Pid), strconv.Itoa(o.HostPid), o.Command
		}
		if o.Unit != "" {
			cells[2] = o.Unit
		}
		if o.Count > 1 && o.Pid != 0 {
			cells[4] += fmt.Sprintf(" (%d times)", o.Count)
		}
		fmt.Fprintf(w, "%s\n\t\t\t\t  remedy: %s\n", strings.Join(cells, "\t"), o.Remedy)
	}
	return w.Flush()
}
