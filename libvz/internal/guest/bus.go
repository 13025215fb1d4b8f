package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	busName   = "org.freedesktop.systemd1"
	busPath   = "/org/freedesktop/systemd1"
	busIface  = busName + ".Manager"
	propIface = "org.freedesktop.DBus.Properties"

	// What a guest may send. systemd's messages to us are below 10 KB; a boot
	// of a thousand units sends some 20 MB of signals.
	maxLine    = 1 << 10
	maxMessage = 1 << 20
	maxTotal   = 256 << 20
)

// errBus says that the peer does not speak as systemd does.
var errBus = errors.New("not the answer of a systemd")

// answerError is an error that systemd answers to a call: its D-Bus name.
type answerError string

func (e answerError) Error() string { return "systemd answers " + string(e) }

// bus is a conversation with the systemd of a guest on its private socket: one
// call at a time, by one goroutine.
type bus struct {
	w        io.Writer
	r        *bufio.Reader
	left     int64 // bytes that the peer may still send
	serial   uint32
	finished bool // the signal StartupFinished has come
}

// newBus authenticates as uid 0, which is what the guest sees us as (D-Bus
// specification, section Authentication Protocol).
func newBus(conn io.ReadWriter) (*bus, error) {
	b := &bus{w: conn, left: maxTotal, r: bufio.NewReaderSize(conn, 16<<10)}
	// 30 is "0" in hexadecimal. BEGIN goes along, as with systemd's own clients.
	// Sent later, it can be read together with the first call, and systemd then
	// leaves that call in its buffer until something else arrives.
	if _, err := io.WriteString(conn, "\x00AUTH EXTERNAL 30\r\nBEGIN\r\n"); err != nil {
		return nil, err
	}
	line, err := b.readLine()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(line, "OK ") {
		return nil, fmt.Errorf("%w: authentication: %q", errBus, printable(line))
	}
	return b, nil
}

func (b *bus) readLine() (string, error) {
	var line []byte
	for len(line) < maxLine {
		c, err := b.r.ReadByte()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, c)
	}
	return "", fmt.Errorf("%w: line too long", errBus)
}

// call calls a method and returns its answer, whose signature is want; signals
// that come meanwhile are noted.
func (b *bus) call(path, iface, member, want string, args ...any) (*wireReader, error) {
	b.serial++
	if _, err := b.w.Write(encodeCall(b.serial, path, iface, member, args)); err != nil {
		return nil, err
	}
	for {
		m, err := b.next()
		if err != nil {
			return nil, err
		}
		if m.replySerial != b.serial {
			continue
		}
		switch {
		case m.kind == typeError:
			return nil, answerError(printable(m.errorName))
		case m.kind == typeReturn && m.signature == want:
			return m.body, nil
		case m.kind == typeReturn:
			return nil, fmt.Errorf("%w: %s returns %q", errBus, member, printable(m.signature))
		}
	}
}

// property returns a property that is a string.
func (b *bus) property(path, iface, name string) (string, error) {
	r, err := b.call(path, propIface, "Get", "v", iface, name)
	if err != nil {
		return "", err
	}
	kind, value := r.signature(), ""
	if kind == "s" {
		value = r.string()
	}
	if kind != "s" || r.bad {
		return "", fmt.Errorf("%w: property %s", errBus, name)
	}
	return printable(value), nil
}

// listedUnit is what of a unit in systemd's list is used.
type listedUnit struct{ name, description, path string }

// failedUnits returns at most maxFailed of the units in state "failed".
func (b *bus) failedUnits() ([]listedUnit, error) {
	return b.listUnits(maxFailed, "ListUnitsFiltered", []string{"failed"})
}

// listUnits returns at most that many of the units that a method lists.
func (b *bus) listUnits(most int, method string, args ...any) ([]listedUnit, error) {
	r, err := b.call(busPath, busIface, method, "a(ssssssouso)", args...)
	if err != nil {
		return nil, err
	}
	size := int(r.uint32())
	r.align(8)
	var units []listedUnit
	for end := r.pos + size; r.pos < end && !r.bad && len(units) < most; {
		r.align(8)
		u := listedUnit{name: printable(r.string()), description: printable(r.string())}
		for range 4 { // load, active and sub state, followed unit
			r.string()
		}
		u.path = r.string()
		r.uint32() // job, its type and path
		r.string()
		r.string()
		units = append(units, u)
	}
	if r.bad {
		return nil, fmt.Errorf("%w: list of units", errBus)
	}
	return units, nil
}

// waitFinished reads until the signal that ends systemd's start.
func (b *bus) waitFinished() error {
	for !b.finished {
		if _, err := b.next(); err != nil {
			return err
		}
	}
	return nil
}

// next reads one message. The lengths in its header are checked before anything
// is allocated for it.
func (b *bus) next() (message, error) {
	head, err := b.r.Peek(16)
	if err != nil {
		return message{}, err
	}
	size, err := messageSize(head)
	if err != nil {
		return message{}, err
	}
	if b.left -= int64(size); b.left < 0 {
		return message{}, fmt.Errorf("%w: more than %d bytes", errBus, int64(maxTotal))
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(b.r, raw); err != nil {
		return message{}, err
	}
	m, err := decode(raw)
	if m.kind == typeSignal && m.iface == busIface && m.member == "StartupFinished" {
		b.finished = true
	}
	return m, err
}

// printable makes a guest's text safe for a terminal and a log line.
func printable(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
