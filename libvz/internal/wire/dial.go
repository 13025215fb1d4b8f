package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTarget says that a destination is not written as one.
var ErrTarget = errors.New("not a destination")

// Credentials are the files of a side of a TLS connection, all PEM.
type Credentials struct {
	Cert, Key string // of this side
	CA        string // that signed the other side's
	// Allow are the names, of which the other side's certificate must have
	// one; a client that names none asks for the name of the host it dials.
	Allow []string
}

// DialOptions say how to reach a destination.
type DialOptions struct {
	// SSH is the command of ssh with its options; nil = ssh.
	SSH []string
	// Remote is the command that ssh runs there, as its shell reads it.
	Remote string
	TLS    Credentials
}

// Dial connects to ssh://[user@]host[:port], tls://host:port or unix:///path.
// It returns ErrTarget for anything else.
func Dial(ctx context.Context, target string, o DialOptions) (io.ReadWriteCloser, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("%w: %.200q", ErrTarget, target)
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "":
	case u.Scheme == "ssh" && u.Hostname() != "" && (u.Path == "" || u.Path == "/"):
		return dialSSH(u, o)
	case u.Scheme == "tls" && u.Hostname() != "" && u.Port() != "" && u.Path == "" && u.User == nil:
		return dialTLS(ctx, u, o.TLS)
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return (&net.Dialer{}).DialContext(ctx, "unix", u.Path)
	}
	return nil, fmt.Errorf("%w: %.200q", ErrTarget, target)
}

// dialSSH starts the user's own ssh, with the user's configuration, keys and
// known hosts, and the other vzrun at its end.
func dialSSH(u *url.URL, o DialOptions) (io.ReadWriteCloser, error) {
	args := slices.Clone(o.SSH)
	if len(args) == 0 {
		args = []string{"ssh"}
	}
	if u.Port() != "" {
		args = append(args, "-p", u.Port())
	}
	host := u.Hostname()
	if user := u.User.Username(); user != "" {
		host = user + "@" + host
	}
	if strings.HasPrefix(host, "-") {
		return nil, fmt.Errorf("%w: %.200q", ErrTarget, u.String())
	}
	// Ctrl-C, a terminal that is closed and timeout(1) reach all of the process group.
	// They end the migration in an orderly way, for which the connection is needed:
	// ssh leaves alone what it finds ignored. In another process group it could not
	// ask for a password.
	args = append([]string{"-c", `trap "" INT HUP TERM; exec "$@"`, "sh"}, args...)
	cmd := exec.Command("/bin/sh", append(args, "-T", "-e", "none", "--", host, o.Remote)...)
	cmd.Stderr = os.Stderr // its questions and complaints are for the user
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start ssh: %w", err)
	}
	widenPipe(in)
	widenPipe(out)
	return &command{ReadCloser: out, WriteCloser: in, cmd: cmd}, nil
}

// pipeSize is how many bytes a pipe to ssh takes that have not been read: an unprivileged
// user may have no more (pipe(7), pipe-max-size).
const pipeSize = 1 << 20

// widenPipe makes a pipe so large, so that its two ends work at the same time. One that
// stays as it is will do.
func widenPipe(end any) {
	file, ok := end.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck // see above
		unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) //nolint:errcheck // see above
	})
}

// command is a connection to a program's standard input and output.
type command struct {
	io.ReadCloser
	io.WriteCloser
	cmd  *exec.Cmd
	once sync.Once
}

// closePatience is how long a program has to end that is told to.
const closePatience = 5 * time.Second

// Close ends the program: ssh at the other side's end does so as well. One whose
// connection is dead would wait for it, and is killed.
func (c *command) Close() error {
	c.once.Do(func() {
		c.WriteCloser.Close()                                                  //nolint:errcheck // the program may have ended
		c.ReadCloser.Close()                                                   //nolint:errcheck // see above
		kill := time.AfterFunc(closePatience, func() { c.cmd.Process.Kill() }) //nolint:errcheck // see above
		go func() {
			c.cmd.Wait() //nolint:errcheck // nobody asks how it ended
			kill.Stop()
		}()
	})
	return nil
}
