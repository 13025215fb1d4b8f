//go:build !lean

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name:      "restore",
		Usage:     "bring a container back from image files",
		ArgsUsage: "<container-id>",
		Flags: slices.Concat([]cli.Flag{bundleFlag()}, imageFlags(), []cli.Flag{
			&cli.StringFlag{Name: "import", Usage: "restore from an archive, `FILE` or - for standard input"}, identityFlag(),
			consoleSocketFlag(), consoleFlag(), escapeFlag(), detachFlag(), pidFileFlag(), noSubreaperFlag(), noPivotFlag(),
			&cli.StringSliceFlag{Name: "veth", KeepSpace: true, Usage: "connect the container's interface, `INNER=HOST[@BRIDGE]`; may be repeated"},
			&cli.StringFlag{Name: "clone-of", Usage: "make a new container from the checkpoint in `DIR`, beside its origin"},
			&cli.StringFlag{Name: "hostname", Usage: "`NAME` of the clone (default: its id)"},
			&cli.StringFlag{Name: "machine-id", Usage: "identity of the clone, new or `ID` of 32 hex digits"},
			&cli.StringSliceFlag{Name: "net", KeepSpace: true, Usage: "connect the clone's interface, `SPEC` as for run; may be repeated"},
			&cli.BoolFlag{Name: "share-memory", Usage: "let the kernel merge equal memory of the clone and others (KSM)"},
			&cli.BoolFlag{Name: "lazy-pages", Usage: "let the container run before its memory is in place"},
			&cli.StringFlag{Name: "page-server", Usage: "with --lazy-pages fetch memory from the checkpoint at `ADDRESS:PORT`"},
			&cli.StringFlag{Name: "lsm-profile", Usage: "confine processes by `TYPE:NAME` (apparmor, selinux) in place of what they had"},
			&cli.StringFlag{Name: "lsm-mount-context", Usage: "SELinux `CONTEXT` of mounts in place of what they had"},
		}),
		Action: restore,
	}
}

func restore(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	if err := checkCloneFlags(c); err != nil {
		return err
	}
	l := newLaunch(c)
	l.activation = false // the images hold the sockets
	if err := l.readConsoleFlags(c); err != nil {
		return err
	}
	ct, g, err := l.restoreContainer(c)
	if err != nil {
		return err
	}
	defer g.close()
	arrived := make(chan error, 1)
	go func() { arrived <- ct.AwaitMemory(context.WithoutCancel(c.Context)) }()
	code, err := l.tend(g, ct.Init(), func() error { return nil })
	if err != nil && !errors.Is(err, errLeft) {
		ct.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
		if <-arrived == nil {
			discard(c.Context, ct)
		}
		return err
	}
	if lost := <-arrived; lost != nil {
		return lost
	}
	if errors.Is(err, errLeft) {
		return nil
	}
	if !l.detach {
		g.close() // the user's terminal need not wait for the clean-up
		discard(c.Context, ct)
	}
	return passOn(ct.GuestCode(code))
}

func (l *launch) restoreContainer(c *cli.Context) (*libvz.Container, *guestIO, error) {
	o, images, bundle, err := restoreOptions(c)
	if err != nil {
		return nil, nil, err
	}
	archive, err := l.importArchive(c)
	if err != nil {
		return nil, nil, err
	}
	if archive.Imported != nil {
		images, bundle, o.Claim = archive.Images, archive.Bundle, archive.Claim
		if o.WorkPath == "" {
			o.WorkPath = archive.Work
		}
	}
	ct, g, err := l.restoreFrom(c, bundle, images, o)
	if err = archive.end(err); err != nil && ct != nil {
		// The container is there; what is left of the archive must not undo it.
		logrus.Warnf("restore: %v", err)
		err = nil
	}
	return ct, g, err
}

func (l *launch) restoreFrom(c *cli.Context, bundle, images string, o libvz.RestoreOptions) (*libvz.Container, *guestIO, error) {
	spec, err := restoredSpec(c, bundle)
	if err != nil {
		return nil, nil, &libvz.Error{Op: l.verb, ID: l.id, Err: err}
	}
	held := l.holdsConsole(spec)
	g, err := l.openIO(spec.Process.Terminal, held)
	if err != nil {
		return nil, nil, err
	}
	if held {
		// The images may be of a guest without a console.
		g.Stdin, g.Stdout, g.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	o.Stdio, o.Spec = g.Stdio, spec
	ct, stats, err := l.restoreWithProgress(c, bundle, images, o)
	if err != nil {
		g.close()
		return nil, nil, err
	}
	if c.Bool("print-stats") {
		// The container is there; that nobody reads this must not undo it.
		if err := printJSON(c, stats, "  "); err != nil {
			logrus.Warnf("restore: statistics: %v", err)
		}
	}
	g.container = ct
	return ct, g, nil
}

func (l *launch) restoreWithProgress(c *cli.Context, bundle, images string, o libvz.RestoreOptions) (*libvz.Container, *libvz.Stats, error) {
	p := newProgress()
	defer p.stop()
	host, err := openHostWith(c, p.onEvent)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := c.Context, context.CancelFunc(func() {})
	if l.detach { // else signals wait for the container
		ctx, cancel = interruptible(c)
	}
	defer cancel()
	if from := c.String("clone-of"); from != "" {
		o.Spec = nil
		return host.Clone(ctx, l.id, from, cloneOptions(c, bundle, o))
	}
	return host.Restore(ctx, l.id, bundle, images, o)
}

// checkCloneFlags refuses what says nothing without --clone-of, or with it.
func checkCloneFlags(c *cli.Context) error {
	clone := c.String("clone-of") != ""
	for _, name := range []string{"hostname", "machine-id", "net", "share-memory"} {
		if c.IsSet(name) && !clone {
			return &usageError{msg: "restore: --" + name + " goes with --clone-of", hint: "name the checkpoint with --clone-of DIR"}
		}
	}
	for _, name := range []string{"image-path", "tcp-established", "lazy-pages", "page-server"} {
		if c.IsSet(name) && clone {
			return &usageError{msg: "restore: --" + name + " and --clone-of exclude each other", hint: "leave one of them out"}
		}
	}
	return nil
}

// restoredSpec is the configuration that a restore goes by: that of a clone is in
// the checkpoint.
func restoredSpec(c *cli.Context, bundle string) (*specs.Spec, error) {
	if from := c.String("clone-of"); from != "" {
		return libvz.CheckpointSpec(from)
	}
	return libvz.LoadSpec(bundle)
}

func cloneOptions(c *cli.Context, bundle string, o libvz.RestoreOptions) libvz.CloneOptions {
	co := libvz.CloneOptions{
		RestoreOptions: o, Hostname: c.String("hostname"), MachineID: c.String("machine-id"),
		Net: c.StringSlice("net"), ShareMemory: c.Bool("share-memory"),
	}
	if c.IsSet("bundle") {
		co.Bundle = bundle
	}
	return co
}

func restoreOptions(c *cli.Context) (o libvz.RestoreOptions, images, bundle string, err error) {
	paths, err := absolutePaths(c.String("image-path"), c.String("work-path"))
	if err != nil {
		return o, "", "", err
	}
	if bundle, err = bundlePath(c); err != nil {
		return o, "", "", err
	}
	empty, err := emptyNetwork(c)
	if err != nil {
		return o, "", "", err
	}
	mode, err := cgroupsMode(c)
	return libvz.RestoreOptions{
		NoPivot: c.Bool("no-pivot"), WorkPath: paths[1],
		TCPEstablished: c.Bool("tcp-established"), ExtUnixSockets: c.Bool("ext-unix-sk"),
		ShellJob: c.Bool("shell-job"), FileLocks: c.Bool("file-locks"),
		ManageCgroups: mode, Veth: c.StringSlice("veth"),
		LazyPages: c.Bool("lazy-pages"), PageServer: c.String("page-server"),
		EmptyNetwork: empty, AutoDedup: c.Bool("auto-dedup"),
		LSMProfile: c.String("lsm-profile"), LSMMountContext: c.String("lsm-mount-context"),
	}, paths[0], bundle, err
}

// absolutePaths leaves empty paths empty: libvz has a default for them.
func absolutePaths(paths ...string) ([]string, error) {
	absolute := make([]string, len(paths))
	for i, path := range paths {
		if path == "" {
			continue
		}
		var err error
		if absolute[i], err = filepath.Abs(path); err != nil {
			return nil, err
		}
	}
	return absolute, nil
}

// holdMemoryCommand is what libvz starts in a restore with lazy pages.
func holdMemoryCommand() *cli.Command {
	return &cli.Command{Name: libvz.HoldMemoryVerb, Hidden: true, Action: func(*cli.Context) error {
		err := libvz.HoldMemory()
		return &usageError{msg: libvz.HoldMemoryVerb + " is for vzrun itself: " + err.Error(), hint: "vzrun restore --lazy-pages starts it"}
	}}
}
