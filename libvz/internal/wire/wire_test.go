package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// pair returns the two sides of one connection.
func pair(t *testing.T) (source, destination *Session) {
	t.Helper()
	a, b := net.Pipe()
	made := make(chan error, 1)
	go func() {
		var err error
		destination, err = New(b, Destination)
		made <- err
	}()
	source, err := New(a, Source)
	if err := errors.Join(err, <-made); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close(); destination.Close() })
	return source, destination
}

func controls(t *testing.T) (source, destination *Control, s, d *Session) {
	t.Helper()
	s, d = pair(t)
	made := make(chan error, 1)
	go func() {
		var err error
		destination, err = d.Control()
		made <- err
	}()
	source, err := s.Control()
	if err := errors.Join(err, <-made); err != nil {
		t.Fatal(err)
	}
	return source, destination, s, d
}

func TestDialogue(t *testing.T) {
	source, destination, s, d := controls(t)
	ctx := t.Context()
	say := func(from, to *Control, kind Kind, body any) *Message {
		t.Helper()
		sent := make(chan error, 1)
		go func() { sent <- from.Send(kind, body) }()
		m, err := to.Receive(ctx)
		if err := errors.Join(err, <-sent); err != nil || m.Kind != kind {
			t.Fatalf("%s: %v, %v", kind, m, err)
		}
		return m
	}
	type offer struct{ Name string }
	m := say(source, destination, Offer, offer{"web"})
	var got offer
	if err := m.Decode(&got); err != nil || got.Name != "web" {
		t.Errorf("offer: %v, %v", got, err)
	}
	var other struct{ Title string }
	if err := m.Decode(&other); !errors.Is(err, ErrProtocol) {
		t.Errorf("an unknown field: %v", err)
	}
	say(destination, source, Answer, nil)

	// Streams go beside it, several at a time.
	payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	done := make(chan error, 1)
	go func() {
		stream, err := d.Accept()
		if err != nil {
			done <- err
			return
		}
		data, err := io.ReadAll(stream)
		if err == nil && (stream.Kind != "images" || len(stream.Args) != 1 || !bytes.Equal(data, payload)) {
			err = errors.New("the stream arrived as another")
		}
		done <- errors.Join(err, stream.Report(len(data)))
	}()
	stream, err := s.Open("images", "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := stream.Result(&n); err != nil || n != len(payload) {
		t.Errorf("result: %d, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}

	say(source, destination, Restore, nil)
	say(destination, source, Ready, nil)
	if err := destination.Send(Committed, nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("committed without a word: %v", err)
	}
	say(source, destination, Commit, nil)
	say(destination, source, Committed, nil)
	say(source, destination, Done, nil)
	if source.State() != Over || destination.State() != Over {
		t.Errorf("states at the end: %s, %s", source.State(), destination.State())
	}
}

func TestAbortIsAnErrorWithItsReason(t *testing.T) {
	source, destination, _, _ := controls(t)
	go source.Send(Offer, nil) //nolint:errcheck // the other side tells
	if _, err := destination.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	go destination.Send(Abort, Aborted{Reason: "no room", Hint: "make some"}) //nolint:errcheck // see above
	_, err := source.Receive(t.Context())
	var gone *Aborted
	if !errors.As(err, &gone) || gone.Reason != "no room" || gone.Hint != "make some" {
		t.Errorf("got %v", err)
	}
}

func TestLossAndCancellationEndAReceive(t *testing.T) {
	source, _, s, d := controls(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, err := source.Receive(ctx); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	d.Close()
	if _, err := source.Receive(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("lost: %v", err)
	}
	select {
	case <-s.Lost():
	case <-time.After(linkPatience / 2): // before the keepalive has noticed
		t.Error("nobody was told of the loss")
	}
}

// late is a connection that tells of the last word it has written only when it has
// seen the other side hang up, or does not for a while.
type late struct {
	io.ReadWriteCloser
	word     []byte
	hungUp   chan struct{}
	tooEarly chan bool
}

func (l *late) Read(b []byte) (int, error) {
	n, err := l.ReadWriteCloser.Read(b)
	if err != nil {
		close(l.hungUp)
	}
	return n, err
}

func (l *late) Write(b []byte) (int, error) {
	n, err := l.ReadWriteCloser.Write(b)
	if bytes.Contains(b, l.word) {
		select {
		case <-l.hungUp:
			l.tooEarly <- true
		case <-time.After(200 * time.Millisecond):
			l.tooEarly <- false
		}
	}
	return n, err
}

func TestNobodyHangsUpWhileTheLastWordIsBeingSaid(t *testing.T) {
	a, b := net.Pipe()
	slow := &late{a, []byte("it is off"), make(chan struct{}), make(chan bool, 1)}
	heard := make(chan error, 1)
	go func() {
		d, err := New(b, Destination)
		if err != nil {
			heard <- err
			return
		}
		c, err := d.Control()
		if err == nil {
			_, err = c.Receive(t.Context())
		}
		var gone *Aborted
		if err == nil {
			_, err = c.Receive(t.Context())
		}
		if errors.As(err, &gone) {
			err = nil
		}
		d.Close()
		heard <- err
	}()
	s, err := New(slow, Source)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := s.Control()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Send(Offer, nil), c.Send(Abort, Aborted{Reason: "it is off"})); err != nil {
		t.Errorf("what was heard was not known to be said: %v", err)
	}
	if <-slow.tooEarly {
		t.Error("the other side hung up before the last word was said")
	}
	s.Linger()
	select {
	case <-s.Lost():
	default:
		t.Error("the other side did not hang up")
	}
	if err := <-heard; err != nil {
		t.Error(err)
	}
}

func TestForeignersAreToldApart(t *testing.T) {
	for _, text := range []string{
		"SSH-2.0-OpenSSH_9.2 Debian", "bash: vzrun: command not found", "vzrun-migration/9\nxxxxxxxxxxxxx",
		strings.Repeat("\x00", 64), "GET / HTTP/1.1\r\n\r\n", "x",
	} {
		for _, role := range []Role{Source, Destination} {
			a, b := net.Pipe()
			go func() {
				go io.Copy(io.Discard, b) //nolint:errcheck // until it is closed
				io.WriteString(b, text)   //nolint:errcheck // the other side closes early
				b.Close()
			}()
			s, err := New(a, role)
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, ErrForeign) {
				t.Errorf("%.30q: %v", text, err)
			}
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x10{\"kind\":\"offer\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Message
		err := readFrame(iotest.OneByteReader(bytes.NewReader(data)), &m)
		if err == nil {
			var again bytes.Buffer
			if err := writeFrame(&again, m); err != nil {
				t.Fatal(err)
			}
			var same Message
			if err := readFrame(&again, &same); err != nil || same.Kind != m.Kind {
				t.Fatalf("%v: %v, then %v", err, m, same)
			}
		} else if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrLost) {
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}

// FuzzHandshake lets anything talk to a destination, up to its first message.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte("vzrun-migration/1\n"))
	f.Add([]byte("vzrun-migration/1\n\x02\x00\x00\x00\x03\x00\x00\x00\x02\x02\x14\x00\x03\x00\x00\x00\x00\x00\x00\x12{\"kind\":\"control\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		go func() {
			go io.Copy(io.Discard, b) //nolint:errcheck // until it is closed
			b.Write(data)             //nolint:errcheck // the other side closes early
			b.Close()
		}()
		s, err := New(a, Destination)
		if err != nil {
			return
		}
		defer s.Close()
		c, err := s.Control()
		if err != nil {
			return
		}
		if m, err := c.Receive(t.Context()); err == nil && m.Kind != Offer && m.Kind != Query {
			t.Fatalf("message %q to begin with", m.Kind)
		}
	})
}
