package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	talkInterval = 20 * time.Millisecond
	// talkPatience is longer than any freeze that a test may cause.
	talkPatience = 60 * time.Second
)

func echo(ctx context.Context, addr string, mptcp bool) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(mptcp)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go serve(conn)
	}
}

// serve numbers the lines of one connection; a broken connection is the peer's
// affair.
func serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for n := 1; lines.Scan(); n++ {
		if _, err := fmt.Fprintf(conn, "%d %s\n", n, lines.Text()); err != nil {
			return
		}
	}
}

// talk keeps one connection busy and reports the longest wait for an answer.
func talk(ctx context.Context, stdin io.Reader, w io.Writer, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		cancel()
	}()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	var longest time.Duration
	answers := bufio.NewReader(conn)
	tick := time.NewTicker(talkInterval)
	defer tick.Stop()
	for n := 1; ; n++ {
		waited, err := ask(conn, answers, n)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if n == 1 {
			// Tests wait for this line before they disturb the connection.
			fmt.Fprintln(w, "connected")
		}
		longest = max(longest, waited)
		select {
		case <-ctx.Done():
			_, err := fmt.Fprintf(w, "lines=%d max_wait_ms=%d\n", n, longest.Milliseconds())
			return err
		case <-tick.C:
		}
	}
}

func ask(conn net.Conn, answers *bufio.Reader, n int) (time.Duration, error) {
	start := time.Now()
	if err := conn.SetDeadline(start.Add(talkPatience)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(conn, "line %d\n", n); err != nil {
		return 0, err
	}
	got, err := answers.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if want := fmt.Sprintf("%d line %d\n", n, n); got != want {
		return 0, fmt.Errorf("got %q, want %q", got, want)
	}
	return time.Since(start), nil
}
