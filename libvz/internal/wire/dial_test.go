package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestTargets(t *testing.T) {
	for _, target := range []string{
		"", "host", "ssh://", "ssh://host/path", "tls://host", "tls://u@host:1", "unix://", "unix://host/path", "unix:path",
		"http://host", "ssh://host?x=y", "ssh://-oProxyCommand=x", "\x00", "tls://host:1/x", "unix:///p#f",
	} {
		conn, err := Dial(t.Context(), target, DialOptions{SSH: []string{"/bin/false"}})
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, ErrTarget) {
			t.Errorf("%q: %v", target, err)
		}
	}
}

func TestSSHIsGivenItsArguments(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "ssh")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(t.Context(), "ssh://me@host:2222", DialOptions{SSH: []string{fake, "-i", "key"}, Remote: "vzrun --root /x receive"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	want := "-i\nkey\n-p\n2222\n-T\n-e\nnone\n--\nme@host\nvzrun --root /x receive\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
}

// Signals that reach all of the process group are vzrun's to handle, over ssh.
func TestSSHOutlivesSignalsToItsGroup(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "ssh")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nexec grep SigIgn /proc/self/status\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(t.Context(), "ssh://host", DialOptions{SSH: []string{fake}, Remote: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	_, mask, _ := strings.Cut(strings.TrimSpace(string(line)), "\t")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGTERM} {
		if ignored&(1<<(s-1)) == 0 {
			t.Errorf("%v is not ignored", s)
		}
	}
}

func TestTLSAsksForNames(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	server := ours.issue(t, "localhost")
	for _, test := range []struct {
		name   string
		client Credentials
		allow  []string
		host   string
		fails  string
	}{
		{"allowed", ours.issue(t, "a.example"), []string{"b.example", "a.example"}, "localhost", ""},
		{"another name", ours.issue(t, "c.example"), []string{"a.example"}, "localhost", "not allowed"},
		{"nobody is allowed", ours.issue(t, "a.example"), nil, "localhost", "no name"},
		{"another authority", other.issue(t, "a.example"), []string{"a.example"}, "localhost", "certificate"},
		{"the server's name", ours.issue(t, "a.example"), []string{"a.example"}, "127.0.0.1", "certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			creds := server
			creds.Allow = test.allow
			served := make(chan error, 1)
			go func() {
				raw, err := l.Accept()
				if err != nil {
					served <- err
					return
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				conn, err := ServeTLS(ctx, raw, creds)
				if err != nil {
					raw.Close()
				} else {
					_, err = io.WriteString(conn, "hello")
					conn.Close()
				}
				served <- err
			}()
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := Dial(t.Context(), "tls://"+test.host+":"+port, DialOptions{TLS: test.client})
			var got []byte
			if err == nil {
				got, err = io.ReadAll(conn)
				conn.Close()
			}
			err = errors.Join(err, <-served)
			switch {
			case test.fails == "" && (err != nil || string(got) != "hello"):
				t.Errorf("got %q, %v", got, err)
			case test.fails != "" && (err == nil || string(got) == "hello" || !strings.Contains(err.Error(), test.fails)):
				t.Errorf("got %q, %v; want %q", got, err, test.fails)
			}
		})
	}
}

// Whoever connects and says nothing must not keep a process for ever: nobody has looked
// at its certificate.
func TestTLSDoesNotWaitForSilence(t *testing.T) {
	creds := newAuthority(t).issue(t, "localhost")
	creds.Allow = []string{"localhost"}
	synctest.Test(t, func(t *testing.T) {
		conn, silent := net.Pipe()
		defer silent.Close()
		begun := time.Now()
		_, err := ServeTLS(t.Context(), conn, creds)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != handshakePatience {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// counted counts what is written to a socket.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// securePair is a connection of TLS within this process, and the socket below its client.
func securePair(t *testing.T) (client, server io.ReadWriteCloser, below *counted) {
	t.Helper()
	creds := newAuthority(t).issue(t, "localhost")
	creds.Allow = []string{"localhost"}
	config, err := creds.config()
	if err != nil {
		t.Fatal(err)
	}
	config.ServerName = "localhost"
	ours, theirs := unixPair(t)
	below = &counted{Conn: ours}
	served := make(chan error, 1)
	go func() {
		var err error
		server, err = ServeTLS(t.Context(), theirs, creds)
		served <- err
	}()
	client, err = secure(t.Context(), below, func(under net.Conn) *tls.Conn { return tls.Client(under, config) })
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	return client, server, below
}

func TestAFrameOverTLSIsOneWrite(t *testing.T) {
	client, server, below := securePair(t)
	defer server.Close()
	defer client.Close()
	before := below.writes.Load()
	l := &link{ReadWriteCloser: client, failed: make(chan struct{})}
	want := bytes.Repeat([]byte("frame "), bulkSize/6)
	wrote := make(chan error, 1)
	go func() {
		_, err := l.writeBulk(want)
		wrote <- err
	}()
	got := make([]byte, headSize+len(want))
	if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got[headSize:], want) {
		t.Fatalf("another frame came: %v", err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if n := below.writes.Load() - before; n != 1 {
		t.Errorf("%d writes", n)
	}
}

// Who closes a connection does not wait for a writer to whom nobody listens.
func TestTLSIsClosedBesideAWriter(t *testing.T) {
	client, server, _ := securePair(t)
	defer server.Close()
	wrote := make(chan error, 1)
	l := &link{ReadWriteCloser: client, failed: make(chan struct{})}
	go func() {
		var err error
		for err == nil {
			_, err = l.writeBulk(make([]byte, bulkSize))
		}
		wrote <- err
	}()
	stuck := client.(*secured).under
	for stuck.mu.TryLock() { // until the socket is full
		stuck.mu.Unlock()
		runtime.Gosched()
	}
	began := time.Now()
	client.Close()
	<-wrote
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("closed after %v", took)
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func (a *authority) issue(t *testing.T, name string) Credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := Credentials{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: a.file}
	writePEM(t, c.Cert, "CERTIFICATE", der)
	writePEM(t, c.Key, "EC PRIVATE KEY", secret)
	return c
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// unixPair is two ends of a socket.
func unixPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}
