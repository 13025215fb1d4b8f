package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// fetch gets pages until finish, over one connection after another.
func (m *memory) fetch() {
	defer close(m.idle)
	p, err := m.startPlacing()
	if err != nil {
		m.fail(err)
		return
	}
	defer p.stop()
	for {
		m.mu.Lock()
		m.tried = true
		over := m.over
		m.mu.Unlock()
		if over {
			return
		}
		peer, err := m.dial(m.ctx)
		if err != nil {
			if m.ctx.Err() == nil {
				m.fail(fmt.Errorf("connect to the page server: %w", err))
			}
			return
		}
		err = m.talk(peer, p)
		if err == nil {
			return
		}
		if !isLost(err) {
			m.fail(err)
			return
		}
	}
}

// lost is the end of a connection, after which there may be another one.
type lost struct{ error }

func isLost(err error) bool {
	var l lost
	return errors.As(err, &l)
}

// talk asks on a new connection for all that has no answer, and takes answers in until
// that ends (an error), or finish is called (nil).
func (m *memory) talk(peer net.Conn, p *placing) error {
	if err := m.takeUp(peer); err != nil {
		peer.Close()
		return err
	}
	for {
		err := m.takeIn(peer, p)
		m.mu.Lock()
		if m.over && (err != nil || len(m.asked) == 0) {
			m.mu.Unlock()
			return nil
		}
		if isLost(err) || errors.Is(err, errForeignPages) {
			m.peer = nil
			peer.Close()
		}
		m.mu.Unlock()
		if err != nil {
			return err // the farewell has the connection, where it is of use
		}
	}
}

func (m *memory) takeUp(peer net.Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pace.begin()
	for i := range m.asked {
		m.asked[i].since = time.Now()
		q := messageOf(psGet, m.asked[i].span)
		if _, err := peer.Write(q[:]); err != nil {
			return lost{err}
		}
	}
	m.peer = peer
	m.fill()
	if m.over {
		m.wind()
	}
	return nil
}

// takeIn reads one answer, and has the pages put in place.
func (m *memory) takeIn(peer net.Conn, p *placing) error {
	var head pageMessage
	if _, err := io.ReadFull(peer, head[:]); err != nil {
		return lost{err}
	}
	m.mu.Lock()
	fits := len(m.asked) > 0 && head.task() == m.asked[0].task && head.address() == m.asked[0].address &&
		head.count() > 0 && head.count() <= uint64(m.asked[0].count)
	m.mu.Unlock()
	if !fits {
		return errForeignPages
	}
	room := <-p.free
	data := room[:head.bytes()]
	if _, err := io.ReadFull(peer, data); err != nil {
		p.free <- room
		return lost{err}
	}
	m.mu.Lock()
	a, got := m.asked[0], int(head.count())
	m.asked = m.asked[1:]
	if m.over {
		m.mu.Unlock()
		p.free <- room
		return nil
	}
	m.pace.answered(a.since, time.Now())
	if got < a.count {
		t := m.tasks[a.task].aheadTask
		first, _ := numberAt(t.ranges, a.address)
		m.ahead.missed(t, first+got, first+a.count)
	}
	m.fill()
	m.mu.Unlock()
	p.full <- piece{a, data}
	return nil
}

// placing puts pages in place while the next ones come.
type placing struct {
	free   chan []byte // each has room for the pages of an answer
	full   chan piece  // whose data are in one of them
	memory []byte      // of all
	ended  chan struct{}
}

// piece is an answer.
type piece struct {
	asking
	data []byte
}

// rooms is how many pieces there may be that are not in place: one that comes and one
// that is being put.
const rooms = 2

func (m *memory) startPlacing() (*placing, error) {
	size := piecePages * os.Getpagesize()
	memory, err := unix.Mmap(-1, 0, rooms*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	p := &placing{free: make(chan []byte, rooms), full: make(chan piece, rooms), memory: memory, ended: make(chan struct{})}
	for i := range rooms {
		p.free <- memory[i*size:][:size:size]
	}
	go func() {
		defer close(p.ended)
		for got := range p.full {
			if err := m.put(got.asking, got.data); err != nil {
				m.fail(err)
			}
			p.free <- got.data[:size]
		}
	}()
	return p, nil
}

// stop returns when all that has come is in place.
func (p *placing) stop() {
	close(p.full)
	<-p.ended
	unix.Munmap(p.memory) //nolint:errcheck // it was mapped
}

// wind bounds how long what is under way at the end is waited for.
func (m *memory) wind() {
	if m.peer == nil {
		return
	}
	until := time.Unix(1, 0)
	if len(m.asked) > 0 {
		until = time.Now().Add(farewellTimeout)
	}
	m.peer.SetReadDeadline(until) //nolint:errcheck // one that is gone has ended
}

// farewell tells the page server how it went, after finish: psClose or psGivenUp.
func (m *memory) farewell(command uint32) {
	m.mu.Lock()
	begun := m.begun
	m.mu.Unlock()
	if begun {
		<-m.idle
	}
	if m.peer == nil && !m.tried {
		// Not a task was restored; the other side waits all the same.
		ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
		defer cancel()
		m.peer, _ = m.dial(ctx) //nolint:errcheck // then it is not told
	}
	m.tried = true
	if m.peer == nil {
		return
	}
	var word pageMessage
	binary.NativeEndian.PutUint32(word[:], command)
	m.peer.SetDeadline(time.Now().Add(farewellTimeout)) //nolint:errcheck // then without
	if _, err := m.peer.Write(word[:]); err == nil && command == psClose {
		io.ReadFull(m.peer, make([]byte, 4)) //nolint:errcheck // a courtesy
	}
	m.peer.Close()
	m.peer = nil
}

// farewellTimeout bounds the last words.
const farewellTimeout = 10 * time.Second
