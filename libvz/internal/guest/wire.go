package guest

import (
	"encoding/binary"
	"fmt"
)

// What systemd's private socket needs of the D-Bus wire format (D-Bus
// specification, section Message Format), and no more. It is written here because
// what is read comes from a guest: godbus allocates what a length field of the
// message asks for, up to 4 GiB, before it looks whether the bytes are there,
// and its connection panics on messages that no message bus would send.

// Message types and header fields that are used.
const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

// message is a message that was read. Header fields it has not are zero.
type message struct {
	kind        byte
	iface       string
	member      string
	errorName   string
	replySerial uint32
	signature   string
	body        *wireReader
}

// wireWriter builds a message, little-endian.
type wireWriter struct{ b []byte }

func (w *wireWriter) align(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *wireWriter) uint32(v uint32) {
	w.align(4)
	w.b = binary.LittleEndian.AppendUint32(w.b, v)
}

func (w *wireWriter) string(s string) {
	w.uint32(uint32(len(s)))
	w.b = append(append(w.b, s...), 0)
}

func (w *wireWriter) signature(s string) {
	w.b = append(append(append(w.b, byte(len(s))), s...), 0)
}

func (w *wireWriter) field(code byte, kind, value string) {
	w.align(8)
	w.b = append(w.b, code)
	w.signature(kind)
	if kind == "g" {
		w.signature(value)
		return
	}
	w.string(value)
}

// encodeCall returns a method call. An argument is a string, a list of strings
// shorter than 64 KiB, or a number.
func encodeCall(serial uint32, path, iface, member string, args []any) []byte {
	var body wireWriter
	signature := ""
	for _, a := range args {
		switch a := a.(type) {
		case string:
			signature += "s"
			body.string(a)
		case []string:
			signature += "as"
			body.uint32(0)
			at := len(body.b)
			for _, s := range a {
				body.string(s)
			}
			binary.LittleEndian.PutUint32(body.b[at-4:], uint32(len(body.b)-at))
		case int32:
			signature += "i"
			body.uint32(uint32(a))
		}
	}
	w := wireWriter{b: []byte{'l', typeCall, 0, 1}}
	w.uint32(uint32(len(body.b)))
	w.uint32(serial)
	w.uint32(0)
	w.field(fieldPath, "o", path)
	w.field(fieldInterface, "s", iface)
	w.field(fieldMember, "s", member)
	w.field(fieldDestination, "s", busName)
	if signature != "" {
		w.field(fieldSignature, "g", signature)
	}
	binary.LittleEndian.PutUint32(w.b[12:], uint32(len(w.b)-16))
	w.align(8)
	return append(w.b, body.b...)
}

// messageSize returns the length of a message from its first 16 bytes.
func messageSize(head []byte) (int, error) {
	order, err := byteOrder(head[0])
	if err != nil {
		return 0, err
	}
	body, fields := uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[12:]))
	size := 16 + (fields+7)/8*8 + body
	if size > maxMessage {
		return 0, fmt.Errorf("%w: message of %d bytes", errBus, size)
	}
	return int(size), nil
}

func byteOrder(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("%w: byte order %#x", errBus, mark)
}

// decode reads a whole message, as long as messageSize says.
func decode(raw []byte) (message, error) {
	if len(raw) < 16 {
		return message{}, fmt.Errorf("%w: short message", errBus)
	}
	order, err := byteOrder(raw[0])
	if err != nil {
		return message{}, err
	}
	m := message{kind: raw[1]}
	r := &wireReader{order: order, b: raw, pos: 12}
	end := int(r.uint32()) + 16
	for r.pos < end && !r.bad {
		r.align(8)
		m.field(r)
	}
	r.align(8)
	if r.bad || r.pos < end {
		return message{}, fmt.Errorf("%w: malformed header", errBus)
	}
	m.body = r
	return m, nil
}

// field reads one header field.
func (m *message) field(r *wireReader) {
	code := r.byte()
	var text string
	var number uint32
	switch r.signature() {
	case "s", "o":
		text = r.string()
	case "g":
		text = r.signature()
	case "u":
		number = r.uint32()
	default:
		r.bad = true
	}
	switch code {
	case fieldInterface:
		m.iface = text
	case fieldMember:
		m.member = text
	case fieldErrorName:
		m.errorName = text
	case fieldReplySerial:
		m.replySerial = number
	case fieldSignature:
		m.signature = text
	}
}

// wireReader reads values from a message. Once bytes are missing it is bad and
// returns zero values; it never reads or allocates beyond b.
type wireReader struct {
	order binary.ByteOrder
	b     []byte
	pos   int // from the start of the message, which alignment counts from
	bad   bool
}

// take returns the next n bytes, nil if there are not as many.
func (r *wireReader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)-r.pos) {
		r.bad = true
		return nil
	}
	got := r.b[r.pos : r.pos+int(n)]
	r.pos += int(n)
	return got
}

func (r *wireReader) align(n int) { r.take(uint64((n - r.pos%n) % n)) }

func (r *wireReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *wireReader) uint32() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *wireReader) string() string {
	n := uint64(r.uint32())
	return r.text(n)
}

func (r *wireReader) signature() string { return r.text(uint64(r.byte())) }

// text reads n bytes and the zero byte after them.
func (r *wireReader) text(n uint64) string {
	b := r.take(n + 1)
	if b == nil || b[n] != 0 {
		r.bad = true
		return ""
	}
	return string(b[:n])
}
