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
	room, err := unix.Mmap(-1, 0, piecePages*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		m.fail(os.NewSyscallError("mmap", err))
		return
	}
	defer unix.Munmap(room) //nolint:errcheck // it was mapped
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
		err = m.talk(peer, room)
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
func (m *memory) talk(peer net.Conn, room []byte) error {
	if err := m.takeUp(peer); err != nil {
		peer.Close()
		return err
	}
	for {
		err := m.takeIn(peer, room)
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

// takeIn reads one answer, and puts the pages in place.
func (m *memory) takeIn(peer net.Conn, room []byte) error {
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
	data := room[:head.bytes()]
	if _, err := io.ReadFull(peer, data); err != nil {
		return lost{err}
	}
	m.mu.Lock()
	a, got := m.asked[0], int(head.count())
	m.asked = m.asked[1:]
	if m.over {
		m.mu.Unlock()
		return nil
	}
	m.pace.answered(time.Since(a.since))
	if got < a.count {
		t := m.tasks[a.task].aheadTask
		first, _ := numberAt(t.ranges, a.address)
		m.ahead.missed(t, first+got, first+a.count)
	}
	m.fill()
	m.mu.Unlock()
	return m.put(a, data)
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
