package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"time"
)

func dialTLS(ctx context.Context, u *url.URL, c Credentials) (io.ReadWriteCloser, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	config.ServerName = u.Hostname()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return secure(ctx, conn, func(under net.Conn) *tls.Conn { return tls.Client(under, config) })
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
	return secure(ctx, conn, func(under net.Conn) *tls.Conn { return tls.Server(under, config) })
}

// handshakePatience bounds a handshake: a few messages, over a slow link as well.
const handshakePatience = 20 * time.Second

// secured is a connection of TLS. Its records are of 16 KiB at most, each of which package
// tls writes and reads by itself, waking up the other side for it.
type secured struct {
	*tls.Conn
	under *gathered
}

func secure(ctx context.Context, conn net.Conn, tlsOver func(net.Conn) *tls.Conn) (io.ReadWriteCloser, error) {
	under := &gathered{Conn: conn, reader: bufio.NewReaderSize(conn, bulkSize)}
	s := &secured{tlsOver(under), under}
	// Whoever has not shown a certificate yet holds a process as long as this lasts.
	ctx, cancel := context.WithTimeout(ctx, handshakePatience)
	defer cancel()
	if err := s.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return s, nil
}

// writeTogether writes all of parts at once. It is called by one at a time.
func (s *secured) writeTogether(parts net.Buffers) (int64, error) {
	s.under.hold()
	n, err := parts.WriteTo(s.Conn)
	return n, errors.Join(err, s.under.letGo())
}

// Close does not wait for a writer, nor does it say farewell beside one.
func (s *secured) Close() error {
	if !s.under.mu.TryLock() {
		return s.under.Close()
	}
	s.under.mu.Unlock()
	return s.Conn.Close()
}

// gathered is a socket that keeps what is written to it for a while, to write it at once,
// and reads as much as there is.
type gathered struct {
	net.Conn
	reader *bufio.Reader
	mu     sync.Mutex
	held   bool
	kept   []byte
}

func (g *gathered) Read(b []byte) (int, error) { return g.reader.Read(b) }

func (g *gathered) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.held {
		return g.Conn.Write(b)
	}
	g.kept = append(g.kept, b...)
	return len(b), nil
}

func (g *gathered) hold() {
	g.mu.Lock()
	g.held = true
	g.mu.Unlock()
}

// letGo writes what has been kept.
func (g *gathered) letGo() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(g.kept)
	g.held, g.kept = false, g.kept[:0]
	return err
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
		MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true, Certificates: []tls.Certificate{cert}, RootCAs: roots,
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
