package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// httpConn is a connection that is made once: an http.Client would make another
// where this one is lost.
type httpConn struct {
	conn    net.Conn
	answers *bufio.Reader
	host    string
}

func dialHTTP(address string) (*httpConn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("tcp", u.Host, patience)
	if err != nil {
		return nil, err
	}
	// Small, so that a server is never far ahead of who reads slowly.
	if err := conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		return nil, err
	}
	return &httpConn{conn, bufio.NewReader(conn), u.Host}, nil
}

// get returns the answer; its body is to be read to the end before the next one.
func (c *httpConn) get(address string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if err := req.Write(c.conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.answers, req)
	if err != nil {
		return nil, noEOF(err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, errors.New(resp.Status)
	}
	return resp, nil
}

type requests struct {
	*httpConn
	url, want string
}

func newHTTP(address, want string) (session, error) {
	c, err := dialHTTP(address)
	return &requests{c, address, want}, err
}

func (r *requests) step(n int) error {
	resp, err := r.get(numbered(r.url, n))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return noEOF(err)
	}
	if want := numbered(r.want, n); !strings.Contains(string(body), want) {
		return fmt.Errorf("%q is not in the answer %.200q", want, body)
	}
	if resp.Close {
		return errors.New("the server does not keep the connection")
	}
	return nil
}

func (r *requests) close() (string, error) { return "", r.conn.Close() }

// download reads one body in pieces, one a step.
type download struct {
	*httpConn
	body io.ReadCloser
	sum  hash.Hash
	left int64
}

// piece makes it 1.6 MB a second at the most: what tests take lasts two minutes
// then, and it is still under way after a restore on a slow machine.
const piece = 8 << 10

func newDownload(address string) (session, error) {
	c, err := dialHTTP(address)
	if err != nil {
		return nil, err
	}
	resp, err := c.get(address)
	if err != nil {
		return nil, err
	}
	return &download{c, resp.Body, sha256.New(), resp.ContentLength}, nil
}

func (d *download) step(int) error {
	if err := d.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := io.CopyN(d.sum, d.body, piece)
	d.left -= n
	if errors.Is(err, io.EOF) && d.left > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// close reads what is left, at once.
func (d *download) close() (string, error) {
	n, err := io.Copy(d.sum, d.body)
	if d.left -= n; err == nil && d.left != 0 {
		err = fmt.Errorf("%d bytes are missing", d.left)
	}
	return fmt.Sprintf("sha256=%x\n", d.sum.Sum(nil)), errors.Join(err, d.conn.Close())
}
