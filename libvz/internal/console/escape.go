package console

import (
	"bytes"
	"fmt"
	"time"
)

// Escape finds the key that, pressed three times within a second, ends being
// attached. The zero value finds none.
type Escape struct {
	key    byte
	on     bool
	times  int
	window time.Time // when the first of the presses was
}

const (
	escapePresses = 3
	escapeWindow  = time.Second
)

// DefaultEscape is Ctrl-], which machinectl(1) and systemd-nspawn(1) have too.
const DefaultEscape = "^]"

// ParseEscape understands one character, ^ and a character for a control key
// (^] is Ctrl-]), and "none". Upper and lower case of a control key are the
// same key.
func ParseEscape(s string) (*Escape, error) {
	switch {
	case s == "none":
		return &Escape{}, nil
	case len(s) == 1 && s[0] > ' ' && s[0] < 0x7f:
		return &Escape{key: s[0], on: true}, nil
	case len(s) == 2 && s[0] == '^':
		c := s[1]
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c >= '@' && c <= '_' {
			return &Escape{key: c ^ 0x40, on: true}, nil
		}
	}
	return nil, fmt.Errorf("escape key %q: want one character, ^ and a character for a control key, or none", s)
}

// Find takes input that came at now. It returns what is meant for the guest, and
// whether the escape is complete. Presses of the key are held back until it is
// known what they are: by the next other key, or by Late.
func (e *Escape) Find(p []byte, now time.Time) (out []byte, found bool) {
	if !e.on {
		return p, false
	}
	for _, c := range p {
		if c != e.key {
			out = append(append(out, e.held()...), c)
			continue
		}
		if e.times > 0 && now.Sub(e.window) > escapeWindow {
			out = append(out, e.held()...)
		}
		if e.times == 0 {
			e.window = now
		}
		if e.times++; e.times == escapePresses {
			e.times = 0
			return out, true
		}
	}
	return out, false
}

// Late returns the presses that are no escape any more at now.
func (e *Escape) Late(now time.Time) []byte {
	if e.times == 0 || now.Sub(e.window) < escapeWindow {
		return nil
	}
	return e.held()
}

// Waits tells how long presses are held back, 0 where there are none.
func (e *Escape) Waits(now time.Time) time.Duration {
	if e.times == 0 {
		return 0
	}
	return max(time.Millisecond, escapeWindow-now.Sub(e.window))
}

// held gives up what is held back.
func (e *Escape) held() []byte {
	keys := bytes.Repeat([]byte{e.key}, e.times)
	e.times = 0
	return keys
}
