package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/console"
	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name:      "top",
		Usage:     "show what containers use, and go on showing it",
		ArgsUsage: "[container-id...]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "batch", Aliases: []string{"b"}, Usage: "print tables one after another, for a file or a pipe"},
			&cli.IntFlag{Name: "iterations", Aliases: []string{"n"}, Usage: "end after `N` tables; 0 = go on"},
			&cli.StringFlag{Name: "delay", Aliases: []string{"d"}, Value: "3", Usage: "look again after `TIME`, such as 500ms or a number of seconds"},
			&cli.StringFlag{Name: "sort", Aliases: []string{"s"}, Value: "cpu", Usage: "sort by `COLUMN`: " + strings.Join(topOrders(), ", ")},
			formatFlag("table"),
		},
		Action: top,
	}
}

// firstDelay is for the first rates, for which nobody wants to wait long.
const firstDelay = time.Second

// watcher is one top.
type watcher struct {
	host       *libvz.Host
	ids        []string // those to show; nil = all
	delay      time.Duration
	iterations int // 0 = no end
	view       topView
	before     topSample
}

func top(c *cli.Context) error {
	// Any number of ids, but no flag among them.
	if err := checkArgs(c, 0, math.MaxInt); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	w := &watcher{iterations: c.Int("iterations"), view: topView{sort: c.String("sort")}}
	if w.delay, err = parseDelay(c.String("delay")); err != nil {
		return err
	}
	switch {
	case w.iterations < 0:
		return &usageError{msg: "top: --iterations must not be negative"}
	case !slices.Contains(topOrders(), w.view.sort):
		return &usageError{msg: fmt.Sprintf("top: --sort: no column %q", w.view.sort), hint: "one of: " + strings.Join(topOrders(), ", ")}
	}
	if w.host, err = openHost(c); err != nil {
		return err
	}
	// One that is not there is an error now; one that ends later is not.
	for _, id := range c.Args().Slice() {
		if _, err := w.host.Load(id); err != nil {
			return err
		}
		w.ids = append(w.ids, id)
	}
	ctx, stop := interruptible(c)
	defer stop()
	if c.Bool("batch") || asJSON {
		return w.batch(ctx, c.App.Writer, asJSON)
	}
	if !isTerminal(os.Stdin) || !isTerminal(os.Stdout) {
		return &usageError{msg: "top: standard input and output are no terminal", hint: "vzrun top --batch prints tables"}
	}
	return w.interactive(ctx)
}

// minDelay keeps top from being what uses most.
const minDelay = 100 * time.Millisecond

func parseDelay(s string) (time.Duration, error) {
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minDelay {
		return 0, &usageError{msg: fmt.Sprintf("top: --delay %q is no span of time of %v or more", s, minDelay), hint: "write 500ms, 2s or a number of seconds"}
	}
	return d, nil
}

// look takes a sample and returns what has happened since the one before.
func (w *watcher) look(ctx context.Context) (topReport, error) {
	all, err := w.host.Survey(ctx, libvz.Facts{Usage: true})
	if err != nil && all == nil {
		return topReport{}, err
	}
	if w.ids != nil {
		all = slices.DeleteFunc(all, func(o libvz.Overview) bool { return !slices.Contains(w.ids, o.ID) })
	}
	after := topSample{at: time.Now(), all: all}
	report := compareSamples(w.before, after)
	w.before = after
	return report, nil
}

// batch prints until the iterations are over or ctx ends.
func (w *watcher) batch(ctx context.Context, out io.Writer, asJSON bool) error {
	if _, err := w.look(ctx); err != nil {
		return err
	}
	wait := time.NewTimer(min(w.delay, firstDelay))
	defer wait.Stop()
	for n := 0; w.iterations == 0 || n < w.iterations; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		wait.Reset(w.delay)
		report, err := w.look(ctx)
		if err != nil {
			return err
		}
		w.view.arrange(report.Containers)
		if asJSON {
			err = json.NewEncoder(out).Encode(report)
		} else {
			_, err = io.WriteString(out, strings.Join(w.view.table(report), "\n")+"\n\n")
		}
		if err != nil {
			return err // who reads it has gone
		}
	}
	return nil
}

// Control sequences of every terminal of the last decades, console_codes(4).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // another screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	restOfLine  = "\x1b[K"
	restOfAll   = "\x1b[J"
	inverse     = "\x1b[7m"
	plain       = "\x1b[m"
)

// interactive shows tables until a key says that it is enough.
func (w *watcher) interactive(ctx context.Context) error {
	tty, err := console.ConsoleFromFile(os.Stdin)
	if err != nil {
		return err
	}
	if err := tty.SetRaw(); err != nil {
		return err
	}
	defer tty.Reset() //nolint:errcheck // it may have been hung up
	fmt.Fprint(os.Stdout, enterScreen)
	defer fmt.Fprint(os.Stdout, leaveScreen)

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	keys := make(chan key)
	go readKeys(os.Stdin, keys)
	var report topReport
	wait := time.NewTimer(0)
	defer wait.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case k, open := <-keys:
			if !open || w.view.press(k) {
				return nil
			}
		case <-resized:
		case <-wait.C:
			if report, err = w.look(ctx); err != nil {
				return err
			}
			if n++; w.iterations != 0 && n > w.iterations {
				return nil
			}
			if wait.Reset(w.delay); n == 1 {
				wait.Reset(min(w.delay, firstDelay))
			}
		}
		w.draw(tty, report)
	}
}

// draw paints over what is there, without clearing it first: that would flicker.
func (w *watcher) draw(tty console.Console, report topReport) {
	width, height := 80, 24
	if s, err := tty.Size(); err == nil && s.Width > 0 && s.Height > 0 {
		width, height = int(s.Width), int(s.Height)
	}
	lines := w.view.screen(report, width, height)
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if i == topHeaderLine {
			line = inverse + line + plain
		}
		b.WriteString(line + restOfLine)
	}
	b.WriteString(restOfAll)
	io.WriteString(os.Stdout, b.String()) //nolint:errcheck // a terminal that is gone ends us by a signal
}
