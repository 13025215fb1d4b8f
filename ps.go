package main

import (
	"bytes"
	"fmt"
	"io"
	osexec "os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func psCommand() *cli.Command {
	return &cli.Command{
		Name:      "ps",
		Usage:     "list the processes of a container, as the host sees them",
		ArgsUsage: "<container-id> [ps options]",
		Flags:     []cli.Flag{formatFlag("table")},
		Action:    ps,
	}
}

func ps(c *cli.Context) error {
	if err := checkArgs(c, 1, unlimited); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	pids, err := ct.Pids()
	if err != nil {
		return err
	}
	if asJSON {
		if pids == nil {
			pids = []int{}
		}
		return printJSON(c, pids, "")
	}
	options := c.Args().Tail()
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	table, err := hostProcesses(c, options)
	if err != nil {
		return err
	}
	return filterByPid(c.App.Writer, table, pids)
}

func hostProcesses(c *cli.Context, options []string) (string, error) {
	var complaint bytes.Buffer
	cmd := osexec.CommandContext(c.Context, "ps", options...)
	cmd.Stderr = &complaint
	table, err := cmd.Output()
	if err == nil {
		return string(table), nil
	}
	if first, _, _ := strings.Cut(complaint.String(), "\n"); first != "" {
		err = fmt.Errorf("%w: %s", err, first)
	}
	return "", &libvz.Error{Op: "ps", ID: c.Args().First(), Err: err, Hint: "vzrun ps --format json needs no ps program"}
}

// filterByPid prints the header of a table from ps and the rows of some pids.
func filterByPid(out io.Writer, table string, pids []int) error {
	header, rows, _ := strings.Cut(table, "\n")
	column := slices.Index(strings.Fields(header), "PID")
	if column < 0 {
		return &usageError{
			msg:  "ps: the options give a table without a PID column",
			hint: "for example: vzrun ps <container-id> -o pid,user,args",
		}
	}
	fmt.Fprintln(out, header)
	for row := range strings.Lines(rows) {
		fields := strings.Fields(row)
		if column >= len(fields) {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprint(out, row)
		}
	}
	return nil
}
