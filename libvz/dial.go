//go:build !lean

package libvz

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// DialOptions say how to reach the other host of a migration.
type DialOptions = wire.DialOptions

// Credentials are the files of one side of a TLS connection.
type Credentials = wire.Credentials

// Dial connects to the host at target, for Migrate and Resolve:
// ssh://[user@]host[:port] starts the command o.Remote there, with the caller's
// own ssh; tls://host:port is mutual TLS 1.3; unix:///path is a socket of this
// host.
func Dial(ctx context.Context, target string, o DialOptions) (io.ReadWriteCloser, error) {
	conn, err := wire.Dial(ctx, target, o)
	switch {
	case errors.Is(err, wire.ErrTarget):
		err = withHint("write it as ssh://[user@]host[:port], tls://host:port or unix:///path", "%w", err)
	case err != nil:
		err = withHint("see that `vzrun receive` answers there", "connect to %s: %w", target, err)
	}
	return conn, err
}

// ServeTLS makes a connection that was accepted one of mutual TLS 1.3, for
// Receive. c.Allow must name somebody.
func ServeTLS(ctx context.Context, conn net.Conn, c Credentials) (io.ReadWriteCloser, error) {
	tls, err := wire.ServeTLS(ctx, conn, c)
	if err != nil {
		return nil, withHint("see --tls-cert, --tls-key, --tls-ca and --allow on both sides", "%w", err)
	}
	return tls, nil
}
