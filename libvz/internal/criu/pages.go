package criu

import (
	"encoding/binary"
	"errors"
	"os"
	"time"
)

// Commands of the page server's protocol, the lower half of the first word, and
// one that is ours. CRIU does not know it, and fails as it should.
const (
	psAdd        = 6
	psGet        = 7
	psClose      = 0x1023
	psForceClose = 0x1024
	psGivenUp    = 0x7a77
)

// pageMessage is CRIU's struct page_server_iov: a request, or what comes before the
// pages of an answer. There is one answer to each request, in the same order, with
// at most the pages that were asked for.
type pageMessage [32]byte

func (m *pageMessage) command() uint32 { return binary.NativeEndian.Uint32(m[:]) & 0xffff }
func (m *pageMessage) count() uint64   { return binary.NativeEndian.Uint64(m[8:]) }
func (m *pageMessage) address() uint64 { return binary.NativeEndian.Uint64(m[16:]) }
func (m *pageMessage) task() uint64    { return binary.NativeEndian.Uint64(m[24:]) }

// messageOf is a request or an answer.
func messageOf(command uint32, s span) pageMessage {
	var m pageMessage
	binary.NativeEndian.PutUint32(m[:], command)
	binary.NativeEndian.PutUint64(m[8:], uint64(s.count))
	binary.NativeEndian.PutUint64(m[16:], s.address)
	binary.NativeEndian.PutUint64(m[24:], s.task)
	return m
}

// maxPages bounds what is believed of a message: CRIU asks for 4 MiB at most.
const maxPages = 1 << 20

// bytes is how much memory comes after an answer's head.
func (m *pageMessage) bytes() int64 {
	return int64(min(m.count(), maxPages)) * int64(os.Getpagesize())
}

// errForeignPages says that a page server answered something else than it was
// asked.
var errForeignPages = errors.New("the page server sent what it was not asked for")

const (
	// mostAsked bounds how many requests are under way for which no task waits.
	mostAsked = 32
	// piecePages is how many pages are asked for at a time.
	piecePages = 256
)

// asking is a request to the page server.
type asking struct {
	span
	urgent bool // a task waits for it
	since  time.Time
}

// fill makes requests for which no task waits, as far as there is room.
func (m *memory) fill() {
	if m.peer == nil || m.over || !m.restored {
		return
	}
	size, count := 0, 0
	for i := range m.asked {
		if !m.asked[i].urgent {
			size += m.asked[i].bytes()
			count++
		}
	}
	for ; size < m.pace.window && count < mostAsked; count++ {
		s, ok := m.ahead.pickNear(m.pieceMost())
		if !ok {
			s, ok = m.ahead.pick(m.pieceMost())
		}
		if !ok {
			return
		}
		m.ask(asking{span: s})
		size += s.bytes()
	}
}

// pieceMost is how many pages are asked for at a time.
func (m *memory) pieceMost() int {
	return max(1, min(m.pace.piece()/os.Getpagesize(), piecePages))
}

// ask notes a request and, where there is a connection, makes it.
func (m *memory) ask(a asking) {
	a.since = time.Now()
	m.asked = append(m.asked, a)
	if m.peer == nil {
		return
	}
	q := messageOf(psGet, a.span)
	if _, err := m.peer.Write(q[:]); err != nil {
		m.peer.Close() // its reader notices
	}
}
