// No look at the cgroup's limit of processors each second: it gets two at most,
// see tuneRuntime.
//
//go:debug updatemaxprocs=0

// Command vzrun is an OCI runtime for system containers: it runs whole
// operating systems from OCI bundles, checkpoints and restores them.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// version is set by the linker: -X main.version=1.2.3.
var version = "0.0.0-dev"

func main() {
	logPlainlyToStderr()
	app := newApp()
	if err := handOver(app, os.Args); err != nil {
		os.Exit(report(err))
	}
	tuneRuntime()
	os.Exit(report(app.Run(context.Background(), flagsFirst(app, os.Args))))
}

// tuneRuntime fits the Go runtime to a process that usually lives 20 ms: no
// collection before 32 MB of heap, and no scheduler for all of a big host's
// processors.
func tuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(800)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) > processors {
		runtime.GOMAXPROCS(processors)
	}
}

// tuneForLong is for a vzrun that stays: what a guest writes must not make it
// grow to where tuneRuntime allows it to.
func tuneForLong() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(100)
	}
}

// easeInit lets a container's first process, or one of exec, begin with one
// thread instead of dropping the others: libcontainer hands it $GOMAXPROCS and
// nothing else of our environment. Hooks do get it all, so with some there is no
// such ease.
func easeInit(hooks *specs.Hooks) error {
	if os.Getenv("GOMAXPROCS") != "" || hasRuntimeHooks(hooks) {
		return nil
	}
	return os.Setenv("GOMAXPROCS", "1")
}

// hasRuntimeHooks leaves out those of the container's own processes.
func hasRuntimeHooks(h *specs.Hooks) bool {
	//nolint:staticcheck // engines still use Prestart
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.Poststart)+len(h.Poststop) > 0
}

// report prints an error, the one place that does, and returns the exit code.
// The log gets the error exactly once; stderr gets it even if the log is a file.
func report(err error) int {
	if err == nil || isGuestExit(err) {
		return exitCode(err)
	}
	logrus.Error(err)
	if !logsToStderr() {
		fmt.Fprintf(os.Stderr, "vzrun: %s\n", printableLines(err.Error()))
	}
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", printableLines(hint))
	}
	return exitCode(err)
}

func newApp() *cli.App {
	return &cli.App{
		Name:         "vzrun",
		Usage:        "runs whole operating systems in containers, checkpoints and restores them",
		Version:      version,
		Flags:        globalFlags(),
		Commands:     verbs(),
		Before:       applyGlobalFlags,
		Action:       withoutVerb,
		OnUsageError: asUsageError,
		PrintVersion: printVersion,
	}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", Value: defaultRoot(), Usage: "`DIR` for the state of containers, on a tmpfs"},
		&cli.StringFlag{Name: "id-record", Value: libvz.DefaultIDs, Usage: "`FILE` with the ranges of ids that are taken on this host"},
		&cli.StringFlag{Name: "log", Usage: "write the log to `FILE` (default: stderr)"},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "format of the log: text or json"},
		&cli.BoolFlag{Name: "debug", Usage: "log what is done in detail"},
		&cli.BoolFlag{Name: "systemd-cgroup", Usage: "let systemd manage cgroups; cgroupsPath is then slice:prefix:name"},
		&cli.StringFlag{Name: "criu", Usage: "`PATH` of the criu program (default: search)"},
		&cli.StringFlag{Name: "rootless", Value: "auto", Usage: "make do without cgroups that are not ours: true, false or auto"},
	}
}

// defaultRoot is where state lives if nobody says otherwise.
func defaultRoot() string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" || !actsForUser(os.Geteuid(), libvz.InUserNamespace, os.LookupEnv) {
		return libvz.DefaultRoot
	}
	return filepath.Join(dir, "vzrun")
}

func applyGlobalFlags(c *cli.Context) error {
	if err := configureLog(c.String("log"), c.String("log-format"), c.Bool("debug")); err != nil {
		return err
	}
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return err
	}
	// Also what "." and "" become when the working directory is /.
	if root == "/" || c.String("root") == "" {
		return &usageError{msg: "--root must name a directory of its own, not /"}
	}
	return c.Set("root", root)
}

// withoutVerb runs when the first argument is no verb.
func withoutVerb(c *cli.Context) error {
	if c.NArg() == 0 {
		return cli.ShowAppHelp(c)
	}
	return &usageError{
		msg:  fmt.Sprintf("unknown verb %q", c.Args().First()),
		hint: "vzrun --help lists the verbs",
	}
}

func asUsageError(c *cli.Context, err error, isSubcommand bool) error {
	if isSubcommand {
		return &usageError{msg: c.Command.Name + ": " + err.Error(), hint: "vzrun " + c.Command.Name + " --help lists the flags"}
	}
	return &usageError{msg: err.Error(), hint: "vzrun --help lists the flags"}
}

func printVersion(c *cli.Context) {
	fmt.Fprintln(c.App.Writer, "vzrun version", c.App.Version)
	fmt.Fprintln(c.App.Writer, "spec:", specs.Version)
	fmt.Fprintln(c.App.Writer, "go:", runtime.Version())
	if v := libvz.Features().Annotations["io.github.seccomp.libseccomp.version"]; v != "" {
		fmt.Fprintln(c.App.Writer, "libseccomp:", v)
	}
}
