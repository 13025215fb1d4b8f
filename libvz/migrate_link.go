//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// While memory is on the way, a lost connection loses nothing: the guest waits at
// the destination for what it lacks, and here all of it is kept. The source makes
// another one, on which it says the migration's token, and goes on: see
// docs/decisions/0025.

// maxLinkTimeout bounds how long a guest waits for its memory.
const maxLinkTimeout = 24 * time.Hour

const (
	// rejoinPatience bounds one attempt, redialPause is the time until the next.
	rejoinPatience = time.Minute
	redialPause    = 500 * time.Millisecond
)

// recordWaiting is what a destination says where the guest runs and waits for its
// memory. It is no state of a record: the process that waits must be there.
const recordWaiting = "waiting"

// rejoin is the message Rejoin.
type rejoin struct {
	Token string `json:"token"`
	// Compress is what offer and answer said.
	Compress string `json:"compress,omitempty"`
}

// arrivedAll is the message Arrived.
type arrivedAll struct {
	Faults *FaultStats `json:"faults,omitempty"`
}

// canRejoin tells whether a lost connection is to be made again.
func (m *migration) canRejoin() bool {
	return isLazy(m.o.Mode) && m.o.Redial != nil && m.o.LinkTimeout > 0
}

// rejoin makes a new connection in place of one that was lost, with an error that
// says how, for as long as LinkTimeout says. It returns the stream for pages, or
// nil where no more are needed. errNeverRan says that the guest goes on here; with
// any other error its fate is not known.
func (m *migration) rejoin(serving context.Context, lost error) (*wire.Stream, error) {
	h, id, since := m.c.host, m.c.id, time.Now()
	h.warn(id, "the connection is lost, and is tried again for %v: %v", m.o.LinkTimeout, lost)
	h.event(Event{ID: id, Step: "reconnecting"})
	m.session.Close() // what is left of it
	ctx, cancel := context.WithTimeout(serving, m.o.LinkTimeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	m.awaitGiveUp(ctx, giveUp)
	for {
		state, err := m.tryRejoin(ctx)
		if err == nil {
			var stream *wire.Stream
			if stream, err = m.resumeAs(state); !errors.Is(err, wire.ErrLost) {
				m.stats.LinksLost++
				m.stats.LinkDown += time.Since(since).Seconds()
				return stream, err
			}
			m.session.Close() // as short as that was
		}
		select {
		case <-time.After(redialPause):
			continue
		case <-ctx.Done():
		}
		if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%w: %w", lost, cause)
		}
		// What an attempt was answered is no answer to who has the guest.
		return nil, fmt.Errorf("%w; there was no other within %v: %v", lost, m.o.LinkTimeout, err) //nolint:errorlint // see above
	}
}

// awaitGiveUp calls giveUp when the caller does not want to wait any more. What the
// caller wanted before the connection was lost does not count: then the guest ran there
// already, and would be lost for a word that had no effect.
func (m *migration) awaitGiveUp(ctx context.Context, giveUp context.CancelCauseFunc) {
	switch {
	case m.o.GiveUp != nil:
		go func() {
			select {
			case <-m.o.GiveUp:
				giveUp(context.Canceled)
			case <-ctx.Done():
			}
		}()
	case m.caller.Err() == nil:
		stop := context.AfterFunc(m.caller, func() { giveUp(context.Cause(m.caller)) })
		context.AfterFunc(ctx, func() { stop() })
	}
}

// tryRejoin makes one attempt, and returns what the destination says of the guest.
func (m *migration) tryRejoin(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, rejoinPatience)
	defer cancel()
	conn, err := m.o.Redial(ctx)
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	session, err := greet(ctx, conn)
	if err != nil {
		return "", err
	}
	control, err := session.Control()
	if err == nil {
		err = control.Send(wire.Rejoin, rejoin{Token: m.token, Compress: m.o.Compress})
	}
	var msg *wire.Message
	if err == nil {
		msg, err = control.Receive(ctx)
	}
	var o outcome
	if err == nil {
		err = msg.Decode(&o)
	}
	if err == nil {
		err = session.SetShape(wire.Shape{Compression: m.o.Compress, Rate: m.o.Bandwidth})
	}
	if err != nil {
		session.Close()
		return "", err
	}
	m.stats.Sent += m.session.Sent()
	m.session, m.control = session, control
	return o.State, nil
}

// resumeAs goes on with a guest of which the destination has said how it is.
func (m *migration) resumeAs(state string) (*wire.Stream, error) {
	switch state {
	case recordWaiting, recordRunning:
		if m.entry.Operation.Step != stepHanded {
			m.runsThere()
		}
		if state == recordRunning {
			return nil, nil
		}
		return m.session.OpenBulk(streamPages)
	case recordAborted:
		if m.entry.Operation.Step == stepHanded {
			return nil, errLost // it has run there, whatever is said now
		}
		return nil, errNeverRan
	case recordLost:
		return nil, errLost
	}
	return nil, errors.New("the destination has no record of it")
}

// errNeverRan says that the destination has not let the guest run, and never will.
var errNeverRan = errors.New("the connection was lost before the other side had the word")

// errLost is the end of a guest whose memory did not arrive.
var errLost = errors.New("it ran there and was ended, as its memory did not arrive")
