package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func readyCommand() *cli.Command {
	return &cli.Command{
		Name:      "ready",
		Usage:     "wait until a guest's init says that it is up",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			timeoutFlag("60s", "give up after `TIME`"),
			formatFlag("text"),
		},
		Action: ready,
	}
}

func ready(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "text")
	if err != nil {
		return err
	}
	timeout, err := timeoutOf(c)
	if err != nil {
		return err
	}
	p := newProgress()
	defer p.stop()
	ct, err := loadContainerWith(c, p.onEvent)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(c)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	readiness, err := ct.WaitReady(ctx)
	p.stop()
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(c, readyReport(readiness), "  ")
	} else {
		err = printReadiness(c.App.Writer, readiness)
	}
	if err != nil {
		return err
	}
	return judgeReadiness(ct.ID(), readiness)
}

// judgeReadiness makes a guest that is up with failed units an error.
func judgeReadiness(id string, r libvz.Readiness) error {
	if len(r.Failed) == 0 && r.State != "degraded" {
		return nil
	}
	names := make([]string, len(r.Failed))
	for i, unit := range r.Failed {
		names[i] = unit.Name
	}
	e := &libvz.Error{Op: "ready", ID: id, Err: errors.New("the guest is up, but degraded")}
	if len(names) > 0 {
		e.Err = fmt.Errorf("the guest is up, but these units failed: %s", strings.Join(names, ", "))
		e.Hint = fmt.Sprintf("vzrun exec %s %s", id, statusCommand(r.Init, names[0]))
	}
	return e
}

// statusCommand is how a guest's own tools show what became of a service. OpenRC
// has its services under other inits, too.
func statusCommand(init, service string) string {
	switch init {
	case "systemd":
		return "systemctl status " + service
	case "runit":
		return "sv status " + service
	}
	return "rc-service " + service + " status"
}

func printReadiness(out io.Writer, r libvz.Readiness) error {
	fmt.Fprintln(out, r.State)
	w := tabwriter.NewWriter(out, 0, 1, 2, ' ', 0)
	for _, unit := range r.Failed {
		fmt.Fprintf(w, "%s\t%s\t%s\n", unit.Name, unit.Result, unit.Description)
	}
	return w.Flush()
}

type failedUnitJSON struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Result      string `json:"result"`
}

type readinessJSON struct {
	State  string           `json:"state"`
	Failed []failedUnitJSON `json:"failed"`
	Took   float64          `json:"took"` // seconds, as in --print-stats
}

func readyReport(r libvz.Readiness) readinessJSON {
	report := readinessJSON{State: r.State, Failed: []failedUnitJSON{}, Took: r.Took.Seconds()}
	for _, unit := range r.Failed {
		report.Failed = append(report.Failed, failedUnitJSON{unit.Name, unit.Description, unit.Result})
	}
	return report
}

func timeoutFlag(initial, usage string) cli.Flag {
	return &cli.StringFlag{Name: "timeout", Value: initial, Usage: usage + ", such as 90s, 2m or a number of seconds"}
}

func timeoutOf(c *cli.Context) (time.Duration, error) {
	return parseTimeout(c.Command.Name, c.String("timeout"))
}

func parseTimeout(verb, s string) (time.Duration, error) {
	if _, err := strconv.Atoi(s); err == nil {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, &usageError{
			msg:  fmt.Sprintf("%s: --timeout %q is no span of time", verb, s),
			hint: "write 90s, 2m or a number of seconds",
		}
	}
	return d, nil
}
