//go:build !lean

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	osexec "os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

func receiveCommand() *cli.Command {
	return &cli.Command{
		Name:  "receive",
		Usage: "take in a container that lazy-migrate sends",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "serve migrations at `ADDRESS`, unix:///path or tls://host:port, instead of one on stdin and stdout"},
			&cli.StringFlag{Name: "bundles", Value: libvz.DefaultBundles, Usage: "`DIR` for the bundles that come"},
			&cli.StringFlag{Name: "cgroup-parent", Usage: "`CGROUP` below which received containers go, instead of where their config.json says"},
			&cli.StringSliceFlag{Name: "allow", Usage: "`NAME` of a host in whose certificate's name containers may come; may be repeated"},
			&cli.BoolFlag{Name: "tls", Usage: "speak TLS on a connection or socket that was handed over (LISTEN_FDS)"},
			&cli.IntFlag{Name: "connection", Hidden: true},
		}, tlsFlags()),
		Action: receive,
	}
}

// relayRsyncCommand is how rsync calls us, see libvz.RelayRsync.
func relayRsyncCommand() *cli.Command {
	return &cli.Command{
		Name: libvz.RelayVerb, Hidden: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			if c.Args().Get(1) != "rsync" {
				return &usageError{msg: libvz.RelayVerb + ": rsync is to start it, not you"}
			}
			return libvz.RelayRsync(c.Args().Slice())
		},
	}
}

func receive(c *cli.Context) error {
	if err := checkArgs(c, 0, 0); err != nil {
		return err
	}
	// Whoever hangs up on us must not kill us with a signal: there may be a
	// guest to clean up after, or to let run.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	ctx, cancel := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	activated := listenFDs(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getpid())
	const first = 3
	switch {
	case c.IsSet("connection"):
		return receiveOn(ctx, c, c.Int("connection"))
	case activated > 1:
		return &usageError{msg: "receive: more than one socket was handed over"}
	case activated == 1 && isListening(first):
		l, err := net.FileListener(os.NewFile(first, "socket"))
		if err != nil {
			return err
		}
		return serveMigrations(ctx, l)
	case activated == 1:
		return receiveOn(ctx, c, first)
	case c.String("listen") != "":
		l, err := listen(ctx, c.String("listen"))
		if err != nil {
			return err
		}
		return serveMigrations(ctx, l)
	}
	return receiveFrom(ctx, c, &stdio{in: pollable(0), out: pollable(1)})
}

func isListening(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n != 0
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil:
	case u.Scheme == "unix" && strings.HasPrefix(u.Path, "/") && u.Host == "":
		// Who may connect may be root here.
		old := unix.Umask(0o077)
		defer unix.Umask(old)
		return (&net.ListenConfig{}).Listen(ctx, "unix", u.Path)
	case u.Scheme == "tls" && u.Port() != "":
		return (&net.ListenConfig{}).Listen(ctx, "tcp", u.Host)
	}
	return nil, &usageError{msg: fmt.Sprintf("receive: --listen %q", address), hint: "write it as unix:///path or tls://host:port"}
}

// serveMigrations gives each connection a process of its own: it becomes the
// parent of the guest that comes.
func serveMigrations(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var children sync.WaitGroup
	defer children.Wait()
	room := make(chan struct{}, mostConnections)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		cmd, err := serveApart(conn)
		conn.Close()
		if err != nil {
			logrus.Errorf("receive: %v", err)
			<-room
			continue
		}
		children.Go(func() {
			cmd.Wait() //nolint:errcheck // it has said itself what was wrong
			<-room
		})
	}
}

// mostConnections is how many are served at a time, each by a process; others wait to be
// accepted. Anybody who reaches the address may make them.
const mostConnections = 64

func serveApart(conn net.Conn) (*osexec.Cmd, error) {
	filer, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, errors.New("a connection without a descriptor")
	}
	file, err := filer.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	const first = 3
	cmd := osexec.Command("/proc/self/exe", append(os.Args[1:], "--connection="+strconv.Itoa(first))...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd, cmd.Start()
}

// receiveOn serves the connection that is open as fd.
func receiveOn(ctx context.Context, c *cli.Context, fd int) error {
	file := os.NewFile(uintptr(fd), "connection")
	conn, err := net.FileConn(file)
	if err != nil {
		return &usageError{msg: fmt.Sprintf("receive: descriptor %d is no connection: %v", fd, err)}
	}
	file.Close()
	if !c.Bool("tls") && !strings.HasPrefix(c.String("listen"), "tls:") {
		if conn.LocalAddr().Network() != "unix" {
			conn.Close()
			return &usageError{msg: "receive: a connection of the network without TLS", hint: "add --tls and --allow"}
		}
		return receiveFrom(ctx, c, conn)
	}
	creds := credentials(c)
	creds.Allow = c.StringSlice("allow")
	tls, err := libvz.ServeTLS(ctx, conn, creds)
	if err != nil {
		return &libvz.Error{Op: "receive", Err: err}
	}
	return receiveFrom(ctx, c, tls)
}

func receiveFrom(ctx context.Context, c *cli.Context, conn io.ReadWriteCloser) error {
	host, err := openHost(c)
	if err != nil {
		conn.Close()
		return err
	}
	_, err = host.Receive(ctx, conn, libvz.ReceiveOptions{Bundles: c.String("bundles"), CgroupParent: c.String("cgroup-parent")})
	return err
}

// stdio is a connection made of two pipes.
type stdio struct{ in, out *os.File }

func (s *stdio) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *stdio) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

// pollable lets Close end a Read that waits: os.Stdin knows that only of what
// does not block already.
func pollable(fd int) *os.File {
	if err := unix.SetNonblock(fd, true); err != nil {
		logrus.Debugf("descriptor %d: %v", fd, err)
	}
	// So that sshd writes on while this reads; an unprivileged pipe may have no more
	// (pipe(7)), and what is no pipe stays as it is.
	unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20) //nolint:errcheck // see above
	return os.NewFile(uintptr(fd), "stdio")
}
