package console

import (
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

// Find looks at input that came at now and returns how much of it is meant for
// the guest, and whether the escape is complete. The presses before the last
// one have gone to the guest: it is not known of them what they will be.
func (e *Escape) Find(p []byte, now time.Time) (n int, found bool) {
	if !e.on {
		return len(p), false
	}
	for i, c := range p {
		if c != e.key {
			e.times = 0
			continue
		}
		if e.times == 0 || now.Sub(e.window) > escapeWindow {
			e.times, e.window = 0, now
		}
		if e.times++; e.times == escapePresses {
			e.times = 0
			return i, true
		}
	}
	return len(p), false
}
