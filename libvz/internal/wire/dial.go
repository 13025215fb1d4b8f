package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"time"
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
	// Ctrl-C ends the migration in an orderly way, for which the connection is
	// needed: ssh leaves alone what it finds ignored. In another process group
	// it could not ask for a password.
	args = append([]string{"-c", `trap "" INT; exec "$@"`, "sh"}, args...)
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
	return &command{ReadCloser: out, WriteCloser: in, cmd: cmd}, nil
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

func dialTLS(ctx context.Context, u *url.URL, c Credentials) (io.ReadWriteCloser, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	config.ServerName = u.Hostname()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// ServeTLS makes an accepted connection one of mutual TLS. Without names that
// are allowed nobody is.
func ServeTLS(ctx context.Context, conn net.Conn, c Credentials) (io.ReadWriteCloser, error) {
	if len(c.Allow) == 0 {
		return nil, errors.New("no name of a peer is allowed")
	}
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, config.RootCAs
	server := tls.Server(conn, config)
	if err := server.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return server, nil
}

// config is the part of both sides.
func (c *Credentials) config() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificate authority: no certificate in %s", c.CA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots,
		VerifyConnection: func(s tls.ConnectionState) error { return checkName(s, c.Allow) },
	}, nil
}

// checkName looks for an allowed name in the certificate of a peer, which has
// been verified otherwise.
func checkName(s tls.ConnectionState, allow []string) error {
	if len(allow) == 0 {
		return nil // a client: the host's name has been compared
	}
	if len(s.PeerCertificates) == 0 {
		return errors.New("the peer has no certificate")
	}
	for _, name := range allow {
		if s.PeerCertificates[0].VerifyHostname(name) == nil {
			return nil
		}
	}
	return fmt.Errorf("the peer's certificate is for %q, which is not allowed", s.PeerCertificates[0].DNSNames)
}
