package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a systemd that does what a test says.
type peer struct {
	f *os.File
	r *bufio.Reader
}

// send sends a message with a body of strings, or whatever prepared bytes.
func (p *peer) send(kind byte, fields func(w *wireWriter), body []byte) {
	w := wireWriter{b: []byte{'l', kind, 0, 1}}
	w.uint32(uint32(len(body)))
	w.uint32(7)
	w.uint32(0)
	fields(&w)
	binary.LittleEndian.PutUint32(w.b[12:], uint32(len(w.b)-16))
	w.align(8)
	p.f.Write(append(w.b, body...)) //nolint:errcheck // the other side may have hung up
}

func (p *peer) signal(iface, member string) {
	p.send(typeSignal, func(w *wireWriter) {
		w.field(fieldPath, "o", busPath)
		w.field(fieldInterface, "s", iface)
		w.field(fieldMember, "s", member)
		w.field(7, "s", iface) // sender
	}, nil)
}

// call reads a call and returns its member and its serial.
func (p *peer) call() (string, uint32, error) {
	head, err := p.r.Peek(16)
	if err != nil {
		return "", 0, err
	}
	serial := binary.LittleEndian.Uint32(head[8:])
	size, err := messageSize(head)
	if err != nil {
		return "", 0, err
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(p.r, raw); err != nil {
		return "", 0, err
	}
	m, err := decode(raw)
	return m.member, serial, err
}

// answer reads a call of member and sends a reply.
func (p *peer) answer(t *testing.T, member, signature string, body func(w *wireWriter)) {
	got, serial, err := p.call()
	if err != nil || got != member {
		t.Errorf("call of %s, want %s: %v", got, member, err)
	}
	var w wireWriter
	body(&w)
	p.send(typeReturn, func(w *wireWriter) {
		w.align(8)
		w.b = append(w.b, fieldReplySerial)
		w.signature("u")
		w.uint32(serial)
		w.field(fieldSignature, "g", signature)
	}, w.b)
}

func (p *peer) property(t *testing.T, value string) {
	p.answer(t, "Get", "v", func(w *wireWriter) { w.signature("s"); w.string(value) })
}

// units answers with a list of name, description and path in turn.
func (p *peer) units(t *testing.T, list ...string) {
	p.answer(t, "ListUnitsFiltered", "a(ssssssouso)", func(w *wireWriter) {
		w.uint32(0)
		w.align(8)
		at := len(w.b)
		for ; len(list) > 0; list = list[3:] {
			w.align(8)
			for _, s := range []string{list[0], list[1], "loaded", "failed", "failed", "", list[2]} {
				w.string(s)
			}
			w.uint32(0)
			w.string("")
			w.string("/")
		}
		binary.LittleEndian.PutUint32(w.b, uint32(len(w.b)-at))
	})
}

// conversation runs ask against a peer, which starts when the client has sent its
// authentication, and hangs up at its end or leaves that to the client.
func conversation(t *testing.T, ctx context.Context, hangUp bool, play func(p *peer)) (Status, error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{f: os.NewFile(uintptr(fds[1]), "peer")}
	p.r = bufio.NewReader(p.f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.f.Close()
		for range 2 {
			if _, err := p.r.ReadString('\n'); err != nil {
				return
			}
		}
		play(p)
		if !hangUp {
			io.Copy(io.Discard, p.r) //nolint:errcheck // until the client has gone
		}
	}()
	st, err := ask(ctx, os.NewFile(uintptr(fds[0]), "client"))
	<-done
	return st, err
}

func (p *peer) ok() { io.WriteString(p.f, "OK 0123\r\n") } //nolint:errcheck // as above

func TestAskWaitsForTheStart(t *testing.T) {
	st, err := conversation(t, context.Background(), false, func(p *peer) {
		p.ok()
		p.signal("org.freedesktop.DBus", "NameLost")
		p.property(t, "starting")
		p.signal(busIface, "UnitNew")
		p.signal(busIface, "StartupFinished")
		p.property(t, "running")
		p.units(t)
	})
	if err != nil || st.State != "running" || st.Failed != nil {
		t.Errorf("%+v %v", st, err)
	}
}

func TestAskNamesWhatFailed(t *testing.T) {
	st, err := conversation(t, context.Background(), false, func(p *peer) {
		p.ok()
		p.property(t, "degraded")
		p.units(t, "bad.service", "red \x1b[31m", "/a", "x.target", "", "/b")
		p.property(t, "exit-code")
	})
	want := []Unit{{"bad.service", "red ?[31m", "exit-code"}, {"x.target", "", ""}}
	if err != nil || st.State != "degraded" || !slices.Equal(st.Failed, want) {
		t.Errorf("%+v %v", st, err)
	}
}

func TestAskRefusesNonsense(t *testing.T) {
	for name, play := range map[string]func(p *peer){
		"rejected":        func(p *peer) { io.WriteString(p.f, "REJECTED EXTERNAL\r\n") },                                        //nolint:errcheck
		"endless line":    func(p *peer) { io.WriteString(p.f, strings.Repeat("x", 2*maxLine)) },                                 //nolint:errcheck
		"huge message":    func(p *peer) { p.ok(); p.f.Write([]byte("l\x04\x00\x01\xff\xff\xff\xff" + "12340000")) },             //nolint:errcheck
		"huge header":     func(p *peer) { p.ok(); p.f.Write([]byte("l\x04\x00\x01\x00\x00\x00\x00" + "1234\xff\xff\xff\xff")) }, //nolint:errcheck
		"no D-Bus at all": func(p *peer) { p.ok(); io.WriteString(p.f, "HTTP/1.1 200 OK\r\n\r\n") },                              //nolint:errcheck
		"state is no text": func(p *peer) {
			p.ok()
			p.answer(t, "Get", "v", func(w *wireWriter) { w.signature("u"); w.uint32(1) })
		},
		"reply of a number": func(p *peer) { p.ok(); p.answer(t, "Get", "u", func(w *wireWriter) { w.uint32(1) }) },
		"string of 4 GiB": func(p *peer) {
			p.ok()
			p.answer(t, "Get", "v", func(w *wireWriter) { w.signature("s"); w.uint32(0xffffffff) })
		},
		"list of 4 GiB": func(p *peer) {
			p.ok()
			p.property(t, "degraded")
			p.answer(t, "ListUnitsFiltered", "a(ssssssouso)", func(w *wireWriter) { w.uint32(0xffffffff) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := conversation(t, context.Background(), false, play); !errors.Is(err, errBus) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := conversation(t, context.Background(), true, func(p *peer) { p.ok() }); !hungUp(err) {
		t.Errorf("hung up: %v", err)
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := conversation(t, ctx, false, func(p *peer) {
		p.ok()
		p.call() //nolint:errcheck // never answered
	})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Whatever the bytes: an error or a message, no panic.
func TestDecodeSurvives(t *testing.T) {
	seed := uint32(1)
	for range 20000 {
		raw := make([]byte, 64)
		for i := range raw {
			seed = seed*1664525 + 1013904223
			raw[i] = byte(seed >> 24)
		}
		copy(raw, "l\x04\x00\x01\x10\x00\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00\x01\x01")
		if m, err := decode(raw); err == nil {
			m.body.string()
		}
	}
}

func TestWaitReadyOfAProcessThatEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to look into /proc/PID/root")
	}
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	errc := make(chan error)
	go func() {
		// An owner that no socket has: the wait ends by what happens to the process.
		w, err := newWatch()
		if err == nil {
			w.Close()
			_, err = WaitReady(context.Background(), Systemd, cmd.Process.Pid, 0xfffffff0, 0xfffffff0)
		}
		errc <- err
	}()
	stdin.Close()
	if err := <-errc; !errors.Is(err, ErrInitGone) && !strings.Contains(err.Error(), "not a socket of the guest's root") {
		t.Errorf("got %v", err)
	}
	cmd.Wait() //nolint:errcheck // it ends by itself
	if _, err := WaitReady(context.Background(), Systemd, cmd.Process.Pid, 0, 0); !errors.Is(err, ErrInitGone) {
		t.Errorf("a process that is no more: %v", err)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"nginx": "nginx", "a\x1b]0;x\a": "a?]0;x?", "é\xff": "é?", "\u009b1m": "?1m", strings.Repeat("x", 300): strings.Repeat("x", 256)} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
