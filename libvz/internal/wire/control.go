package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Message is a control message. Body is a JSON value of the callers'.
type Message struct {
	Kind Kind            `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Decode reads the body, strictly: a field that v does not have is an error.
func (m *Message) Decode(v any) error { return decode(m.Body, v) }

// Aborted is the error of a side that gets the message Abort in place of
// another.
type Aborted struct {
	Reason string `json:"reason"`
	Hint   string `json:"hint,omitempty"`
}

func (a *Aborted) Error() string { return "the other side gave up: " + a.Reason }

// controlKind is that of the stream of control messages, the first to be opened.
const controlKind = "control"

// Control is the dialogue of control messages. One goroutine sends and receives.
type Control struct {
	stream *Stream
	role   Role
	mu     sync.Mutex
	state  State
	// heardLast says that the dialogue is over by a word of the other side.
	heardLast atomic.Bool
}

// Control opens the dialogue: the source once, before any other stream, and the
// destination waits for it.
func (s *Session) Control() (*Control, error) {
	stream, err := s.controlStream()
	if err != nil {
		return nil, err
	}
	c := &Control{stream: stream, role: s.role, state: Begin}
	s.dialogue.Store(c)
	return c, nil
}

func (s *Session) controlStream() (*Stream, error) {
	if s.role == Source {
		return s.Open(controlKind)
	}
	stream, err := s.Accept()
	if err != nil {
		return nil, err
	}
	if stream.Kind != controlKind {
		return nil, fmt.Errorf("%w: it began with a stream of kind %.32q", ErrProtocol, stream.Kind)
	}
	return stream, nil
}

// State returns how far this side is.
func (c *Control) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// sendPatience bounds the sending of one message to a side that reads nothing.
const sendPatience = 10 * time.Second

// Send sends a message; body nil is none. The state is the one after the message
// even where sending it failed: it may have arrived.
func (c *Control) Send(kind Kind, body any) error {
	m := Message{Kind: kind}
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		m.Body = data
	}
	if err := c.step(kind, c.role == Source); err != nil {
		return err
	}
	if err := c.stream.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return lost(err)
	}
	return lost(writeFrame(c.stream, m))
}

// Receive waits for the next message. One of kind Abort is returned as an error,
// *Aborted; ErrProtocol is one that must not come now, ErrLost a connection that
// is gone.
func (c *Control) Receive(ctx context.Context) (*Message, error) {
	if err := c.stream.SetReadDeadline(time.Time{}); err != nil {
		return nil, lost(err)
	}
	stop := context.AfterFunc(ctx, func() {
		c.stream.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // a stream that is gone ends the read, too
	})
	defer stop()
	m := &Message{}
	if err := readFrame(c.stream, m); err != nil {
		if ctx.Err() != nil && !errors.Is(err, ErrProtocol) {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	if err := c.step(m.Kind, c.role != Source); err != nil {
		return nil, err
	}
	c.heardLast.Store(c.State() == Over)
	if m.Kind == Abort {
		a := &Aborted{}
		if err := m.Decode(a); err != nil {
			return nil, err
		}
		return nil, a
	}
	return m, nil
}

// awaitEnd waits until the other side says no more, as Linger does, or is gone.
func (c *Control) awaitEnd() {
	if err := c.stream.SetReadDeadline(time.Now().Add(lingerPatience)); err != nil {
		return
	}
	io.Copy(io.Discard, c.stream) //nolint:errcheck // however it ends
}

func (c *Control) step(kind Kind, bySource bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	to, err := c.state.after(kind, bySource)
	if err != nil {
		return err
	}
	c.state = to
	return nil
}
