package libvz

import (
	"context"
	"io"
	"os"
	"strconv"

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
	journal, err := c.exec(ExecOptions{Process: p, Stdio: Stdio{Stdout: out, Stderr: out}})
	out.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { journal.Signal(unix.SIGKILL) }) //nolint:errcheck // it may have ended
	defer stop()
	_, copyErr := io.Copy(w, r)
	if copyErr != nil {
		journal.Signal(unix.SIGKILL) //nolint:errcheck // see above
	}
	code, err := journal.Wait()
	switch {
	case ctx.Err() != nil:
		return nil
	case copyErr != nil:
		return copyErr
	case err == nil && code != 0 && c.initExits():
		return nil // followed to the guest's end
	case err == nil && code != 0:
		return withHint("vzrun enter "+c.id+" opens a shell", "journalctl in the guest failed with code %d", code)
	}
	return err
}
