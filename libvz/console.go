package libvz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/console"
)

// Console is a guest's console in the hands of its holder.
type Console = console.Server

// ConsoleClient is attached to a console that another process holds.
type ConsoleClient = console.Client

// ErrConsoleLeft is returned by ConsoleClient.CopyTo where the holder gives the
// console away.
var ErrConsoleLeft = console.ErrLeft

// Escape finds the keys that end being attached to a console.
type Escape = console.Escape

// DefaultEscape is Ctrl-], in the notation of ParseEscape.
const DefaultEscape = console.DefaultEscape

// ParseEscape understands one character, ^ and a character for a control key,
// and "none".
func ParseEscape(s string) (*Escape, error) { return console.ParseEscape(s) }

// CleanOutput returns a writer that passes a guest's output on to w without
// what a terminal would obey; colours stay if wanted.
func CleanOutput(w io.Writer, colours bool) io.Writer {
	return &console.Cleaner{To: w, Colours: colours}
}

// IsSystem tells whether a configuration is that of a whole operating system.
func IsSystem(spec *specs.Spec) bool { return spec.Annotations[annotationGuest] != "" }

func (c *Container) dir() string { return filepath.Join(c.host.opts.Root, c.id) }

// ServeConsole makes the caller the holder of the container's console. master
// is its terminal's (Stdio.ConsoleSocket), and the Console's to close from now
// on, also on an error.
func (c *Container) ServeConsole(master *os.File) (*Console, error) {
	s, err := console.Serve(master, c.dir())
	if err != nil {
		return nil, fail("console", c.id, fmt.Errorf("serve the console: %w", err))
	}
	return s, nil
}

// HoldConsole serves the console until the container's init has ended. serving
// is called as soon as others can attach.
func (c *Container) HoldConsole(ctx context.Context, master *os.File, serving func()) error {
	init, err := c.initPidfd()
	if err != nil {
		master.Close()
		return fail("console", c.id, err)
	}
	defer init.Close()
	s, err := c.ServeConsole(master)
	if err != nil {
		return err
	}
	defer s.Close()
	serving()
	return fail("console", c.id, waitPidfd(ctx, int(init.Fd())))
}

func (c *Container) initPidfd() (*os.File, error) {
	pid, err := c.initPid()
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: it is stopped", ErrStatus)
	}
	if err != nil {
		return nil, fmt.Errorf("open init: %w", err)
	}
	return os.NewFile(uintptr(fd), "init"), nil
}

// OpenConsole attaches to the container's console. The error wraps ErrStatus
// where the container is stopped, and says so where nobody holds a console.
func (c *Container) OpenConsole() (*ConsoleClient, error) {
	if _, err := c.initPid(); err != nil {
		return nil, fail("console", c.id, err)
	}
	client, err := console.Dial(c.dir())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		err = withHint(fmt.Sprintf("`vzrun enter %s` opens a shell, `vzrun logs %[1]s` shows its output; run --console holds a console", c.id),
			"nobody holds a console of it")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = withHint("see whether it was stopped", "who holds the console does not answer")
	}
	return client, fail("console", c.id, err)
}

// LogOptions of CopyLog.
type LogOptions struct {
	// Lines is how many of the last lines are wanted; negative = all.
	Lines int
	// Follow goes on with what is written from now on, until the container
	// ends or ctx does.
	Follow bool
}

// CopyLog writes to w what the guest had to say, from the first of these that
// there is:
//
//   - what the holder of its console keeps, the newest 128 to 256 KiB; also when
//     the container is stopped
//   - what its init wrote to its standard output, where NewKeptOutput was that;
//     as long as the init has it open
//   - the journal since its boot, where its init is systemd and it is running
//
// What a guest writes is hostile: see CleanOutput.
func (c *Container) CopyLog(ctx context.Context, w io.Writer, o LogOptions) error {
	return fail("logs", c.id, c.copyLog(ctx, w, o))
}

func (c *Container) copyLog(ctx context.Context, w io.Writer, o LogOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	init, err := c.initPidfd()
	stopped := errors.Is(err, ErrStatus)
	if err != nil && !stopped {
		return err
	}
	if stopped {
		o.Follow = false // there will be no more
	} else {
		defer init.Close()
	}
	if o.Follow {
		go func() {
			c.awaitLastOutput(ctx, init)
			cancel()
		}()
	}
	err = console.CopyLog(ctx, w, c.dir(), o.Lines, o.Follow)
	if errors.Is(err, fs.ErrNotExist) && !stopped && c.guestInit() != "" {
		err = c.copyKept(ctx, w, init, o)
	}
	if errors.Is(err, fs.ErrNotExist) && !stopped && c.keepsJournal() {
		return c.copyJournal(ctx, w, o)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return withHint("run --console keeps what the guest writes to its console", "no output of it is kept")
	}
	return err
}

func (c *Container) copyKept(ctx context.Context, w io.Writer, init *os.File, o LogOptions) error {
	kept, err := console.OpenKept(init)
	if err != nil {
		return err
	}
	defer kept.Close()
	return console.CopyKept(ctx, w, kept, o.Lines, o.Follow)
}

// NewKeptOutput returns a file to be the standard output of a detached
// container: it keeps the first 256 KiB for CopyLog. The rest is refused, so that
// a guest cannot fill the host's memory. It belongs to the guest's root, since
// CRIU gives it back to its owner with that root's rights.
func NewKeptOutput(spec *specs.Spec) (*os.File, error) {
	f, err := console.NewKept()
	if err != nil {
		return nil, err
	}
	if err := f.Chown(hostID(spec.Linux.UIDMappings), hostID(spec.Linux.GIDMappings)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hostID is the host's id of the container's root; 0 without a mapping.
func hostID(maps []specs.LinuxIDMapping) int {
	for _, m := range maps {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID)
		}
	}
	return 0
}

// awaitLastOutput blocks until all that there will be is in the log: a holder
// says so, after it has read what the guest wrote before its end.
func (c *Container) awaitLastOutput(ctx context.Context, init *os.File) {
	if holder, err := console.Dial(c.dir()); err == nil {
		stop := context.AfterFunc(ctx, func() { holder.Close() })
		holder.CopyTo(io.Discard) //nolint:errcheck // however it ends, the init decides
		stop()
		holder.Close()
	}
	waitPidfd(ctx, int(init.Fd())) //nolint:errcheck // ctx ended
}
