package console

import (
	"io"
	"unicode/utf8"
)

// Cleaner passes text on without what a terminal would obey: carriage returns,
// control characters and escape sequences (ECMA-48). Newlines and tabs stay,
// and colours do where Colours says so. A guest's output could otherwise
// retitle, paste into or reprogram the terminal of whoever reads it.
type Cleaner struct {
	To io.Writer
	// Colours lets SGR sequences pass, which set colours and weights only.
	Colours bool

	state    state
	sequence []byte // of the SGR candidate that is being read
	partial  []byte // of a UTF-8 sequence that is not whole yet
}

type state int

const (
	text state = iota
	escape
	inControl // ESC [ ... up to a final byte
	skipText  // ESC ], P, X, ^, _ ... up to ST or BEL
	skipEnd   // ESC within one of those
	skipOne   // ESC and an intermediate byte: one more follows
)

// maxSequence bounds an SGR sequence; one that sets all there is has 30 bytes.
const maxSequence = 64

// Write takes all of p, whatever of it is passed on.
func (c *Cleaner) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+len(c.partial))
	for _, b := range p {
		out = c.step(out, b)
	}
	if len(out) > 0 {
		if _, err := c.To.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (c *Cleaner) step(out []byte, b byte) []byte {
	switch c.state {
	case text:
		return c.text(out, b)
	case escape:
		c.begin(b)
	case inControl:
		return c.control(out, b)
	case skipText:
		switch b {
		case 0x07:
			c.state = text
		case 0x1b:
			c.state = skipEnd
		case '\n':
			// A sequence that never ends must not swallow all that follows.
			c.state = text
			return append(out, b)
		}
	case skipEnd:
		c.state = text
		if b != '\\' {
			c.begin(b)
		}
	case skipOne:
		c.state = text
	}
	return out
}

func (c *Cleaner) begin(b byte) {
	switch {
	case b == '[':
		c.state, c.sequence = inControl, append(c.sequence[:0], 0x1b, '[')
	case b == ']' || b == 'P' || b == 'X' || b == '^' || b == '_':
		c.state = skipText
	case b >= 0x20 && b <= 0x2f:
		c.state = skipOne
	case b == 0x1b:
		c.state = escape
	default:
		c.state = text
	}
}

func (c *Cleaner) control(out []byte, b byte) []byte {
	switch {
	case b == 0x1b:
		c.state = escape
		return out
	case b < 0x20:
		c.state = text
		return c.text(out, b)
	}
	if len(c.sequence) <= maxSequence {
		c.sequence = append(c.sequence, b)
	}
	if b < 0x40 {
		return out
	}
	c.state = text
	if c.Colours && b == 'm' && plainSGR(c.sequence) {
		return append(out, c.sequence...)
	}
	return out
}

// plainSGR tells SGR from the private sequences that end with m, too.
func plainSGR(sequence []byte) bool {
	if len(sequence) > maxSequence {
		return false
	}
	for _, b := range sequence[2 : len(sequence)-1] {
		if (b < '0' || b > '9') && b != ';' && b != ':' {
			return false
		}
	}
	return true
}

func (c *Cleaner) text(out []byte, b byte) []byte {
	if len(c.partial) > 0 || b >= utf8.RuneSelf {
		return c.rune(out, b)
	}
	switch {
	case b == 0x1b:
		c.state = escape
	case b == '\n' || b == '\t' || b >= 0x20 && b != 0x7f:
		return append(out, b)
	}
	return out
}

// rune gathers UTF-8. What is none is replaced; C1 control characters, which
// some terminals obey in either encoding, go.
func (c *Cleaner) rune(out []byte, b byte) []byte {
	if len(c.partial) > 0 && utf8.RuneStart(b) {
		out = utf8.AppendRune(out, utf8.RuneError)
		c.partial = c.partial[:0]
		return c.text(out, b)
	}
	c.partial = append(c.partial, b)
	if !utf8.FullRune(c.partial) {
		return out
	}
	r, _ := utf8.DecodeRune(c.partial)
	c.partial = c.partial[:0]
	if r >= 0x80 && r < 0xa0 {
		return out
	}
	return utf8.AppendRune(out, r)
}
