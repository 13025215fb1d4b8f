//go:build !lean

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func lazyMigrateCommand() *cli.Command {
	return &cli.Command{
		Name:      "lazy-migrate",
		Usage:     "move a running container to another host",
		ArgsUsage: "<container-id> <destination>",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "mode", Value: libvz.ModeLazy, Usage: "how memory moves: lazy, pre-copy, hybrid or cold"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only ask the destination what is in the way"},
			&cli.DurationFlag{Name: "frozen-budget", Usage: "for how long the guest may stand still, with --mode pre-copy or hybrid: `DURATION`, such as 300ms"},
			&cli.StringFlag{Name: "compress", Usage: "compress what is sent: zstd"},
			&cli.StringFlag{Name: "bandwidth", Usage: "send no more than `RATE` bytes per second, such as 50M"},
			&cli.StringFlag{Name: "new-id", Usage: "`ID` of the container there"},
			&cli.StringSliceFlag{Name: "net", Usage: "connect an interface there, `INNER=HOST[@BRIDGE]`; may be repeated"},
			&cli.BoolFlag{Name: "shared-storage", Usage: "the bundle is there already, at the same path on shared storage"},
			&cli.BoolFlag{Name: "keep-source", Usage: "leave the container's files here"},
			&cli.DurationFlag{
				Name: "link-timeout", Value: defaultLinkTimeout,
				Usage: "`TIME` for which a lost connection is made again while memory is on the way; 0 = not at all",
			},
			&cli.BoolFlag{Name: "resolve", Usage: "find out what became of a migration whose outcome is not known"},
			&cli.StringFlag{Name: "decide", Usage: "with --resolve, where the destination is gone for good: here or there"},
			&cli.StringFlag{Name: "progress", Value: "auto", Usage: "auto (a line on a terminal) or json (lines on stdout)"},
			&cli.StringFlag{Name: "stats", Usage: "write what it took to `FILE`, as JSON"},
			&cli.StringFlag{Name: "ssh", Value: "ssh", Usage: "`COMMAND` with options in place of ssh"},
			&cli.StringFlag{Name: "remote-command", Value: "vzrun receive", Usage: "`COMMAND` that ssh runs at the destination"},
		}, tlsFlags()),
		Action: lazyMigrate,
	}
}

// defaultLinkTimeout outlasts a router that starts again; by then clients have given
// up.
const defaultLinkTimeout = 5 * time.Minute

func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tls-cert", Value: "/etc/vzrun/tls/cert.pem", Usage: "`FILE` with this host's certificate"},
		&cli.StringFlag{Name: "tls-key", Value: "/etc/vzrun/tls/key.pem", Usage: "`FILE` with its key"},
		&cli.StringFlag{Name: "tls-ca", Value: "/etc/vzrun/tls/ca.pem", Usage: "`FILE` with the authority of the other host's certificate"},
	}
}

func credentials(c *cli.Context) libvz.Credentials {
	return libvz.Credentials{Cert: c.String("tls-cert"), Key: c.String("tls-key"), CA: c.String("tls-ca")}
}

func lazyMigrate(c *cli.Context) error {
	least := 2
	if c.Bool("resolve") {
		least = 1
	}
	if err := checkArgs(c, least, 2); err != nil {
		return err
	}
	if err := checkMigrateFlags(c); err != nil {
		return err
	}
	bandwidth, err := parseBandwidth(c.String("bandwidth"))
	if err != nil {
		return err
	}
	if c.Bool("resolve") {
		return resolveMigration(c)
	}
	p := newMigrationProgress(c)
	defer p.stop()
	ct, err := loadContainerWith(c, p.onEvent)
	if err != nil {
		return err
	}
	ctx, giveUp, cancel := untilInterrupted(c.Context)
	defer cancel()
	conn, err := dial(ctx, c, c.Args().Get(1))
	if err != nil {
		return err
	}
	stats, err := ct.Migrate(ctx, conn, libvz.MigrateOptions{
		LinkTimeout: c.Duration("link-timeout"), GiveUp: giveUp,
		Redial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			return libvz.Dial(ctx, c.Args().Get(1), dialOptions(c))
		},
		Mode: c.String("mode"), Target: c.Args().Get(1), NewID: c.String("new-id"), Veth: c.StringSlice("net"),
		SharedStorage: c.Bool("shared-storage"), KeepSource: c.Bool("keep-source"), DryRun: c.Bool("dry-run"),
		Compress: c.String("compress"), Bandwidth: bandwidth, FrozenBudget: c.Duration("frozen-budget"),
	})
	p.stop()
	if err != nil {
		return err
	}
	return reportMigration(c, stats)
}

func checkMigrateFlags(c *cli.Context) error {
	usage := func(format string, args ...any) error {
		return &usageError{msg: "lazy-migrate: " + fmt.Sprintf(format, args...), hint: "vzrun lazy-migrate --help lists the flags"}
	}
	if p := c.String("progress"); p != "auto" && p != "json" {
		return usage("--progress %q is neither auto nor json", p)
	}
	if d := c.String("decide"); d != "" && (!c.Bool("resolve") || d != string(libvz.DecideHere) && d != string(libvz.DecideThere)) {
		return usage("--decide goes with --resolve, and is here or there")
	}
	if m := c.String("compress"); m != "" && m != libvz.CompressZstd {
		return usage("unknown --compress %q", m)
	}
	switch mode := c.String("mode"); {
	case mode == libvz.ModePreCopy || mode == libvz.ModeHybrid:
		if c.IsSet("frozen-budget") && c.Duration("frozen-budget") <= 0 {
			return usage("--frozen-budget %v is no time", c.Duration("frozen-budget"))
		}
	case mode != libvz.ModeCold && mode != libvz.ModeLazy:
		return usage("unknown --mode %q", mode)
	case c.IsSet("frozen-budget"):
		return usage("--frozen-budget goes with --mode pre-copy or hybrid")
	}
	return nil
}

// parseBandwidth understands bytes per second, with k, M or G, powers of 1024, behind
// the number; "" is 0.
func parseBandwidth(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < leastBandwidth {
		return 0, &usageError{
			msg:  fmt.Sprintf("lazy-migrate: --bandwidth %q is no rate of at least %s per second", s, units.BytesSize(leastBandwidth)),
			hint: "write a number of bytes, or 512k or 50M",
		}
	}
	return n, nil
}

// leastBandwidth is what a wrong unit does not reach: bits for bytes, or M left out.
const leastBandwidth = 16 << 10

func dial(ctx context.Context, c *cli.Context, target string) (io.ReadWriteCloser, error) {
	conn, err := libvz.Dial(ctx, target, dialOptions(c))
	if err != nil {
		return nil, &libvz.Error{Op: "migrate", ID: c.Args().First(), Err: err}
	}
	return conn, nil
}

func dialOptions(c *cli.Context) libvz.DialOptions {
	return libvz.DialOptions{SSH: strings.Fields(c.String("ssh")), Remote: c.String("remote-command"), TLS: credentials(c)}
}

func resolveMigration(c *cli.Context) error {
	host, err := openHost(c)
	if err != nil {
		return err
	}
	id, target := c.Args().First(), c.Args().Get(1)
	was, err := host.Unconfirmed(id)
	if err != nil {
		return err
	}
	if target == "" {
		target = was
	}
	decision := libvz.Decision(c.String("decide"))
	var conn io.ReadWriteCloser
	if decision == "" {
		if conn, err = dial(c.Context, c, target); err != nil {
			return err
		}
	}
	res, err := host.Resolve(c.Context, id, conn, decision)
	if err != nil {
		return err
	}
	if c.String("progress") == "json" {
		return printJSON(c, res, "")
	}
	if res.Moved {
		fmt.Fprintf(c.App.Writer, "%s has moved: nothing of it is left here but its files\n", id)
	} else {
		fmt.Fprintf(c.App.Writer, "%s has not moved: it runs here again\n", id)
	}
	return nil
}

// reportMigration prints what was found out or done, and writes it down.
func reportMigration(c *cli.Context, stats *libvz.MigrationStats) error {
	if file := c.String("stats"); file != "" {
		data, err := json.MarshalIndent(stats, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("statistics: %w", err)
		}
	}
	if c.String("progress") == "json" {
		return printJSON(c, map[string]any{"stats": stats}, "")
	}
	if !c.Bool("dry-run") {
		fmt.Fprintf(c.App.Writer, "%s runs at %s as %s: frozen %.2f s, there after %.2f s, %.2f s in all\n",
			stats.ID, c.Args().Get(1), stats.NewID, stats.Frozen, stats.Run, stats.Total)
		if err := printRounds(c.App.Writer, stats); err != nil {
			return err
		}
		return printMemory(c.App.Writer, stats)
	}
	return printChecks(c.App.Writer, stats.Check)
}

// printMemory tells how the memory came that did not come with the guest.
func printMemory(out io.Writer, stats *libvz.MigrationStats) error {
	if stats.Mode != libvz.ModeLazy && stats.Mode != libvz.ModeHybrid {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "memory sent then\t%s in %.2f s\n", units.BytesSize(float64(stats.Memory)), stats.Pull)
	if f := stats.Faults; f != nil {
		ms := func(s float64) string { return fmt.Sprintf("%.1f", s*1000) }
		fmt.Fprintf(w, "waits for memory\t%d; 50 %%, 95 %%, 99 %%, longest: %s, %s, %s, %s ms\n", f.Count, ms(f.P50), ms(f.P95), ms(f.P99), ms(f.Max))
	}
	if stats.LinksLost > 0 {
		fmt.Fprintf(w, "connection lost\t%d times, for %.2f s in all\n", stats.LinksLost, stats.LinkDown)
	}
	return w.Flush()
}

// printRounds prints what went over before the guest was stopped, and after it.
func printRounds(out io.Writer, stats *libvz.MigrationStats) error {
	if len(stats.Rounds) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROUND\tPAGES\tSENT\tFROZEN\tTOOK")
	for i, r := range stats.Rounds {
		fmt.Fprintf(w, "%d\t%d\t%s\t%.3f s\t%.2f s\n", i+1, r.Pages, units.BytesSize(float64(r.Bytes)), r.Frozen, r.Took)
	}
	fmt.Fprintf(w, "stopped\t%d\t%s\t%.3f s\t%.2f s\n", stats.Pages, units.BytesSize(float64(stats.Images+stats.Memory)), stats.Frozen, stats.Frozen+stats.Pull)
	return w.Flush()
}

// printChecks prints a table; what is in the way makes the verb fail.
func printChecks(out io.Writer, checks []libvz.Check) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tHERE\tTHERE\tOK")
	var bad *libvz.Check
	for i, k := range checks {
		ok := "yes"
		if !k.OK {
			ok = "NO"
			if bad == nil {
				bad = &checks[i]
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(k.What), printable(k.Here), printable(k.There), ok)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bad != nil {
		return &libvz.Error{Op: "migrate", Err: fmt.Errorf("%w by the other side: %s", libvz.ErrRefused, bad.What), Hint: bad.Hint}
	}
	return nil
}
