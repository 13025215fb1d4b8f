package libvz

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// keepsJournal tells whether the guest keeps what it has to say itself: without
// a terminal, systemd writes nothing anywhere else.
func (c *Container) keepsJournal() bool { return guest.Init(c.guestInit()) == guest.Systemd }

// copyJournal writes the journal since the guest's boot to w. It is read by the
// guest's own program in the guest, with the guest's rights: its files are
// whatever its root has made of them.
func (c *Container) copyJournal(ctx context.Context, w io.Writer, o LogOptions) error {
	args := []string{"journalctl", "--boot", "--no-pager", "--quiet"}
	if o.Lines >= 0 {
		args = append(args, "--lines="+strconv.Itoa(o.Lines))
	} else if o.Follow {
		args = append(args, "--no-tail")
	}
	if o.Follow {
		args = append(args, "--follow")
	}
	p, err := c.loginProcess()
	if err != nil {
		return err
	}
	p.Terminal, p.Args = false, args
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	journal, err := c.execWithin(ctx, ExecOptions{Process: p, Stdio: Stdio{Stdout: out, Stderr: out}})
	out.Close()
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	code, err := copyOutput(ctx, w, r, journal)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil && code != 0 && c.initExits():
		return nil // followed to the guest's end
	case err == nil && code != 0:
		return withHint("vzrun enter "+c.id+" opens a shell", "journalctl in the guest failed with code %d", code)
	}
	return err
}

// copyOutput copies what a process in the guest writes to a pipe until it ends, and
// returns its exit code. When ctx ends, or w takes no more, the process is killed.
func copyOutput(ctx context.Context, w io.Writer, r *os.File, p *Process) (int, error) {
	from := &untilEnd{ctx: ctx, r: r, ended: make(chan struct{}), left: maxPipe}
	var code int
	var waitErr error
	go func() {
		code, waitErr = p.Wait()
		close(from.ended)
		from.wake()
	}()
	stop := context.AfterFunc(ctx, func() {
		p.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
		from.wake()
	})
	defer stop()
	if _, err := io.Copy(w, from); err != nil {
		p.Signal(unix.SIGKILL) //nolint:errcheck // see above
		return 0, err
	}
	select {
	case <-from.ended:
		return code, waitErr
	case <-ctx.Done(): // it has closed the pipe and goes on
		return 0, context.Cause(ctx)
	}
}

const (
	// maxPipe is the most that a pipe holds (fs.pipe-max-size): so much may be left in
	// it by a process that has ended.
	maxPipe = 1 << 20
	// lastWords is how long what is left is looked for.
	lastWords = 100 * time.Millisecond
)

// untilEnd reads a pipe until the process for which it was made has ended, and then
// what it has left: another one in the guest may keep the pipe open, and write.
type untilEnd struct {
	ctx   context.Context
	r     *os.File
	ended chan struct{} // closed when it has
	left  int
}

func (u *untilEnd) Read(b []byte) (int, error) {
	ended := false
	select {
	case <-u.ended:
		ended = true
		// For each read: who takes the bytes may be slow.
		u.wake()
	default:
	}
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	if ended {
		if u.left == 0 {
			return 0, io.EOF
		}
		b = b[:min(len(b), u.left)]
	}
	n, err := u.r.Read(b)
	if ended {
		u.left -= n
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if !ended { // woken: look again
			return n, nil
		}
		err = io.EOF
	}
	return n, err
}

// wake ends a read that waits.
func (u *untilEnd) wake() {
	u.r.SetReadDeadline(time.Now().Add(lastWords)) //nolint:errcheck // a pipe can
}
