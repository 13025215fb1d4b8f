package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// dial connects; every answer has its time from then on, see asked.
func dial(addr string) (net.Conn, *bufio.Reader, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, nil, err
	}
	return conn, bufio.NewReader(conn), nil
}

// ask writes a request and reads a line.
func ask(conn net.Conn, answers *bufio.Reader, request string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	line, err := answers.ReadString('\n')
	return strings.TrimSpace(line), noEOF(err)
}

// noEOF: a connection that ends too early is an error, not the end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// redis speaks its protocol, RESP.
type redis struct {
	conn    net.Conn
	answers *bufio.Reader
	key     string
}

func newRedis(addr, key string) (session, error) {
	conn, answers, err := dial(addr)
	return &redis{conn, answers, key}, err
}

func (r *redis) step(n int) error {
	value := strconv.Itoa(n)
	request := fmt.Sprintf("*3\r\n$5\r\nRPUSH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(r.key), r.key, len(value), value)
	answer, err := ask(r.conn, r.answers, request)
	if err == nil && answer != ":"+value {
		err = fmt.Errorf("redis answers %q", answer)
	}
	return err
}

func (r *redis) close() (string, error) { return "", r.conn.Close() }

// memcached speaks its text protocol.
type memcached struct {
	conn    net.Conn
	answers *bufio.Reader
}

// kept is how many values are in the cache at a time.
const kept = 500

func newMemcached(addr string) (session, error) {
	conn, answers, err := dial(addr)
	if err != nil {
		return nil, err
	}
	answer, err := ask(conn, answers, "set count 0 0 1\r\n0\r\n")
	if err == nil && answer != "STORED" {
		err = fmt.Errorf("memcached answers %q", answer)
	}
	return &memcached{conn, answers}, err
}

func (m *memcached) step(n int) error {
	if err := m.expect("incr count 1\r\n", strconv.Itoa(n)); err != nil {
		return err
	}
	value := strings.Repeat(strconv.Itoa(n)+".", 200)
	if err := m.expect(fmt.Sprintf("set v%d 0 0 %d\r\n%s\r\n", n%kept, len(value), value), "STORED"); err != nil {
		return err
	}
	// The oldest, so that most look-ups after a restore are of before.
	old := n - kept + 1
	if old < 1 {
		old = 1
	}
	value = strings.Repeat(strconv.Itoa(old)+".", 200)
	if err := m.expect(fmt.Sprintf("get v%d\r\n", old%kept), fmt.Sprintf("VALUE v%d 0 %d", old%kept, len(value))); err != nil {
		return err
	}
	if err := m.expect("", value); err != nil {
		return err
	}
	return m.expect("", "END")
}

func (m *memcached) expect(request, want string) error {
	answer, err := ask(m.conn, m.answers, request)
	if err == nil && answer != want {
		err = fmt.Errorf("memcached answers %.80q to %.40q", answer, request)
	}
	return err
}

func (m *memcached) close() (string, error) { return "", m.conn.Close() }

// talk is a connection to a server that numbers its lines.
type talk struct {
	conn    net.Conn
	answers *bufio.Reader
}

func newTalk(addr string) (session, error) {
	conn, answers, err := dial(addr)
	return &talk{conn, answers}, err
}

func (t *talk) step(n int) error {
	answer, err := ask(t.conn, t.answers, fmt.Sprintf("line %d\n", n))
	if want := fmt.Sprintf("%d line %d", n, n); err == nil && answer != want {
		err = fmt.Errorf("answer %.80q", answer)
	}
	return err
}

func (t *talk) close() (string, error) { return "", t.conn.Close() }

// lines is a command that is written to and read from.
type lines struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	output   chan string
	template string
	answer   *regexp.Regexp
	recent   []string
}

func newLines(template, answer string, command []string) (session, error) {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(answer), "%d", `(\d+)`)
	re, err := regexp.Compile("^" + pattern + "$")
	if err != nil {
		return nil, err
	}
	l := &lines{cmd: exec.Command(command[0], command[1:]...), template: template, answer: re, output: make(chan string, 1000)}
	l.cmd.Stderr = os.Stderr
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(l.output)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			l.output <- strings.TrimSpace(sc.Text())
		}
	}()
	return l, nil
}

func (l *lines) step(n int) error {
	if _, err := io.WriteString(l.stdin, numbered(l.template, n)+"\n"); err != nil {
		return err
	}
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-l.output:
			if !ok {
				return fmt.Errorf("the command ended; its last lines: %q", l.recent)
			}
			l.recent = append(l.recent[max(0, len(l.recent)-10):], line)
			m := l.answer.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			for _, number := range m[1:] {
				if number != strconv.Itoa(n) {
					return fmt.Errorf("answer %q", line)
				}
			}
			return nil
		case <-deadline:
			return fmt.Errorf("no answer; the last lines: %q", l.recent)
		}
	}
}

// close says "exit", as a terminal hands no end of input on.
func (l *lines) close() (string, error) {
	_, err := io.WriteString(l.stdin, "exit\n")
	if err := errors.Join(err, l.stdin.Close()); err != nil {
		return "", err
	}
	for range l.output { //nolint:revive // until the command has closed it
	}
	return "", l.cmd.Wait()
}
