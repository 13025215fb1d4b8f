package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	busName   = "org.freedesktop.systemd1"
	busPath   = dbus.ObjectPath("/org/freedesktop/systemd1")
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

// bus is a conversation with the systemd of a guest on its private socket: one
// call at a time, by one goroutine. Only the codec of godbus is used: its
// connection type starts goroutines for what the peer sends and panics on
// messages that a message bus would not send, but a hostile guest would.
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

// call calls a method and stores what it returns; signals that come meanwhile
// are noted. An error that systemd answers is returned as a [dbus.Error].
func (b *bus) call(path dbus.ObjectPath, iface, member string, args []any, ret ...any) error {
	b.serial++
	msg := &dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(busName),
			dbus.FieldPath:        dbus.MakeVariant(path),
			dbus.FieldInterface:   dbus.MakeVariant(iface),
			dbus.FieldMember:      dbus.MakeVariant(member),
		},
		Body: args,
	}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	var buf bytes.Buffer
	if err := msg.EncodeTo(&buf, binary.LittleEndian); err != nil {
		return err
	}
	// Message has no setter for its serial: bytes 8 to 11 of the header.
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], b.serial)
	if _, err := b.w.Write(buf.Bytes()); err != nil {
		return err
	}
	for {
		m, err := b.next()
		if err != nil {
			return err
		}
		if serial, ok := m.Headers[dbus.FieldReplySerial].Value().(uint32); !ok || serial != b.serial {
			continue
		}
		switch m.Type {
		case dbus.TypeError:
			name, _ := m.Headers[dbus.FieldErrorName].Value().(string)
			return dbus.Error{Name: printable(name), Body: m.Body}
		case dbus.TypeMethodReply:
			if err := dbus.Store(m.Body, ret...); err != nil {
				return fmt.Errorf("%w: %s: %w", errBus, member, err)
			}
			return nil
		}
	}
}

func (b *bus) property(path dbus.ObjectPath, iface, name string) (string, error) {
	var v dbus.Variant
	if err := b.call(path, propIface, "Get", []any{iface, name}, &v); err != nil {
		return "", err
	}
	s, ok := v.Value().(string)
	if !ok {
		return "", fmt.Errorf("%w: property %s", errBus, name)
	}
	return printable(s), nil
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
func (b *bus) next() (*dbus.Message, error) {
	head, err := b.r.Peek(16)
	if err != nil {
		return nil, err
	}
	size, err := messageSize(head)
	if err != nil {
		return nil, err
	}
	if b.left -= int64(size); b.left < 0 {
		return nil, fmt.Errorf("%w: more than %d bytes", errBus, int64(maxTotal))
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(b.r, raw); err != nil {
		return nil, err
	}
	m, err := decode(raw)
	if err != nil {
		return nil, err
	}
	if m.Type == dbus.TypeSignal {
		iface, _ := m.Headers[dbus.FieldInterface].Value().(string)
		member, _ := m.Headers[dbus.FieldMember].Value().(string)
		b.finished = b.finished || iface == busIface && member == "StartupFinished"
	}
	return m, nil
}

// messageSize returns the length of a message from its first 16 bytes (D-Bus
// specification, section Message Format).
func messageSize(head []byte) (int, error) {
	var order binary.ByteOrder
	switch head[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return 0, fmt.Errorf("%w: byte order %#x", errBus, head[0])
	}
	body, fields := uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[12:]))
	size := 16 + (fields+7)/8*8 + body
	if size > maxMessage {
		return 0, fmt.Errorf("%w: message of %d bytes", errBus, size)
	}
	return int(size), nil
}

// decode is the one place where bytes of the guest meet a parser that was not
// written for hostile ones, hence the recover.
func decode(raw []byte) (m *dbus.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			m, err = nil, fmt.Errorf("%w: malformed message", errBus)
		}
	}()
	m, err = dbus.DecodeMessage(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBus, err)
	}
	return m, nil
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
