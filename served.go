package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	osexec "os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func consoleFlag() cli.Flag {
	return &cli.BoolFlag{Name: "console", Usage: "give the guest a console and hold it, for vzrun console and vzrun logs"}
}

func escapeFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "escape", Value: libvz.DefaultEscape,
		Usage: "`KEY` that three times within a second leaves the console: a character, ^ and a character, or none",
	}
}

// readConsoleFlags understands the flags of verbs that can hold a console.
func (l *launch) readConsoleFlags(c *cli.Context) (err error) {
	l.console, l.root = c.Bool("console"), c.String("root")
	if l.console && l.consoleSocket != "" {
		return &usageError{msg: l.verb + ": --console and --console-socket exclude each other", hint: "with --console vzrun holds the terminal itself"}
	}
	if l.detach && !c.IsSet("escape") {
		return nil // nobody is attached
	}
	l.escape, err = parseEscape(c)
	return err
}

func parseEscape(c *cli.Context) (*libvz.Escape, error) {
	escape, err := libvz.ParseEscape(c.String("escape"))
	if err != nil {
		return nil, &usageError{msg: c.Command.Name + ": --escape: " + err.Error(), hint: "^] is Ctrl-], ^a is Ctrl-a"}
	}
	return escape, nil
}

// holdsConsole decides whether vzrun holds the guest's console, which engines
// do themselves. A whole operating system that is run from a terminal gets one
// unasked.
func (l *launch) holdsConsole(spec *specs.Spec) bool {
	switch {
	case l.consoleSocket != "":
		return false
	case l.console:
		return true
	}
	return !l.detach && libvz.IsSystem(spec) && (spec.Process.Terminal || onTerminal())
}

func onTerminal() bool { return isTerminal(os.Stdin) && isTerminal(os.Stdout) }

// adoptTerminal makes the guest's terminal one like ours.
func adoptTerminal(spec *specs.Spec, t *terminal) {
	spec.Process.Terminal = true
	if t == nil {
		return
	}
	if spec.Process.ConsoleSize == nil {
		spec.Process.ConsoleSize = t.size()
	}
	kind := os.Getenv("TERM")
	if kind == "" || strings.ContainsAny(kind, "/ \n") {
		return
	}
	spec.Process.Env = append(slices.DeleteFunc(spec.Process.Env, func(kv string) bool {
		return strings.HasPrefix(kv, "TERM=")
	}), "TERM="+kind)
}

// openConsole prepares to hold the guest's console: it is shown on our
// terminal if we have one, else on stdout.
func (g *guestIO) openConsole(l *launch) error {
	g.held, g.escape = true, l.escape
	if !l.detach && onTerminal() {
		t, err := findTerminal()
		if err != nil {
			return err
		}
		g.terminal = t
	}
	return g.expectTerminal()
}

// hold is called with the master of the guest's console.
func (g *guestIO) hold(l *launch, master *os.File) error {
	if l.detach {
		return leaveHolder(l.root, l.id, master)
	}
	tuneForLong()
	// Who reads our stdout may go, and must not take the console along. Not
	// ignored: hooks would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	console, err := g.container.ServeConsole(master)
	if err != nil {
		return err
	}
	g.console, g.escaped = console, make(chan struct{})
	if g.terminal == nil {
		console.Attach(libvz.CleanOutput(os.Stdout, false))
		return nil
	}
	g.resize()
	if err := g.terminal.beRaw(); err != nil {
		return err
	}
	console.Attach(os.Stdout)
	go func() {
		if typeOn(g.escape, os.Stdin, inputFunc(console.Input)) {
			close(g.escaped)
		}
	}()
	return nil
}

type inputFunc func([]byte)

func (f inputFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// typeOn copies what is typed until the escape is complete, which it tells from
// the end of the input. The reading of our terminal cannot be interrupted, and
// need not be.
func typeOn(escape *libvz.Escape, from io.Reader, to io.Writer) (escaped bool) {
	typed := make(chan []byte)
	go func() {
		defer close(typed)
		for {
			buffer := make([]byte, 4096)
			n, err := from.Read(buffer)
			if n > 0 {
				typed <- buffer[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		var late <-chan time.Time
		if d := escape.Waits(time.Now()); d > 0 {
			late = time.After(d)
		}
		var out []byte
		select {
		case p, more := <-typed:
			if !more {
				return false
			}
			out, escaped = escape.Find(p, time.Now())
		case now := <-late:
			out = escape.Late(now)
		}
		if _, err := to.Write(out); err != nil && len(out) > 0 {
			return false
		}
		if escaped {
			return true
		}
	}
}

// resize gives the guest's terminal the size of ours. Errors do not matter: a
// terminal of the wrong size is better than none.
func (g *guestIO) resize() {
	if g.console == nil {
		g.terminal.resize()
		return
	}
	if g.terminal == nil {
		return
	}
	if size := g.terminal.size(); size != nil {
		g.console.Resize(uint16(size.Height), uint16(size.Width)) //nolint:errcheck // see above
	}
}

// leaveConsole hands the console to a holder in the background, so that the
// guest goes on as it was.
func (g *guestIO) leaveConsole(l *launch) error {
	master, err := g.console.Release()
	g.console = nil
	if err == nil {
		err = leaveHolder(l.root, l.id, master)
	}
	if err != nil {
		return &libvz.Error{Op: l.verb, ID: l.id, Err: fmt.Errorf("leave the console: %w", err), Hint: "the container goes on without a console"}
	}
	g.terminal.leave()
	fmt.Fprintf(os.Stderr, "\nvzrun: left %s, which goes on; vzrun console %s comes back\n", l.id, l.id)
	return nil
}

// keepOutput is for a detached guest that nobody listens to: what would go to
// our terminal, which is not the guest's, or to /dev/null is kept for vzrun logs.
func (g *guestIO) keepOutput(spec *specs.Spec) error {
	if isTerminal(os.Stdin) {
		g.Stdin = nil
	}
	out, err := nobodyListens(os.Stdout)
	if err != nil {
		return err
	}
	errs, err := nobodyListens(os.Stderr)
	if err != nil || !out && !errs {
		return err
	}
	kept, err := libvz.NewKeptOutput(spec)
	if err != nil {
		return err
	}
	g.handedOn = append(g.handedOn, kept)
	if out {
		g.Stdout = kept
	}
	if errs {
		g.Stderr = kept
	}
	return nil
}

func nobodyListens(f *os.File) (bool, error) {
	if isTerminal(f) {
		return true, nil
	}
	null, err := os.Stat(os.DevNull)
	if err != nil {
		return false, err
	}
	st, err := f.Stat()
	return err == nil && os.SameFile(st, null), err
}

// holderVerb is what leaveHolder runs.
const holderVerb = "hold-console"

// leaveHolder starts a vzrun that holds the console until the guest ends, and
// returns when others can attach. master is closed.
func leaveHolder(root, id string, master *os.File) error {
	defer master.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := osexec.Command("/proc/self/exe", "--root", root, holderVerb, "--", id)
	cmd.Args[0] = "vzrun"
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{master, w}
	cmd.Env = []string{} // sockets that it names are the guest's
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What was handed to us for the guest must not stay open there.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		w.Close()
		return os.NewSyscallError("close_range", err)
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start a holder of the console: %w", err)
	}
	answer := make([]byte, 4096)
	n, _ := r.Read(answer)
	switch text := string(answer[:n]); text {
	case holderReady:
		return cmd.Process.Release()
	case "":
		return fmt.Errorf("the holder of the console ended: %w", cmd.Wait())
	default:
		cmd.Wait() //nolint:errcheck // it has said why
		return errors.New(text)
	}
}

const holderReady = "ready"

func holdConsoleCommand() *cli.Command {
	return &cli.Command{Name: holderVerb, Hidden: true, ArgsUsage: "<container-id>", Action: holdConsole}
}

// holdConsole is the process that leaveHolder starts: descriptor 3 is the
// master, descriptor 4 gets "ready" or an error.
func holdConsole(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	tuneForLong()
	master, answer := os.NewFile(3, "console"), os.NewFile(4, "answer")
	if !isTerminal(master) {
		return &usageError{msg: holderVerb + " is for vzrun itself", hint: "vzrun console attaches to a console"}
	}
	syscall.CloseOnExec(3)
	syscall.CloseOnExec(4)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT) // meant for the caller's session
	ctx, cancel := signal.NotifyContext(c.Context, unix.SIGTERM)
	defer cancel()
	ct, err := loadContainer(c)
	if err == nil {
		err = ct.HoldConsole(ctx, master, func() {
			answer.WriteString(holderReady) //nolint:errcheck // the caller may have been killed
			answer.Close()
		})
	}
	if err != nil {
		answer.WriteString(err.Error()) //nolint:errcheck // see above
		logrus.Debug(err)
	}
	return err
}
