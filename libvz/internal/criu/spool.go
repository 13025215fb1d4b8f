package criu

import (
	"net"
	"os"
	"slices"
	"sort"
)

const (
	// spoolMost is how many bytes of pages are kept that CRIU has not asked for, for
	// each of the reasons to ask before it does.
	spoolMost = 16 << 20
	// piecePages is how many pages are asked for at a time before CRIU does.
	piecePages = 256
)

// reason is why pages were asked for.
type reason int

const (
	wanted  reason = iota // CRIU has asked for them
	near                  // a task has waited for others before them
	inTurn                // they are the next of their task
	reasons               // how many there are
)

// spool keeps pages that have come until CRIU asks for them. It is not for use by
// several goroutines at a time.
type spool struct {
	tasks map[uint64][]*piece // by address
	sizes [reasons]int        // bytes of all buffers in use
	free  [][]byte            // buffers for whole pieces
}

// piece is some pages of a task in a row.
type piece struct {
	address uint64
	data    []byte // what is left of it
	word    uint32 // the first word of the answer that it came with
	how     reason
	buffer  []byte
	users   int // who still reads data
	dropped bool
}

// buffer returns room for so many bytes.
func (s *spool) buffer(size int) []byte {
	whole := piecePages * os.Getpagesize()
	if size > whole || size <= whole/2 {
		return make([]byte, size)
	}
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b[:size]
	}
	return make([]byte, size, whole)
}

// put takes pages over, in a buffer of its own.
func (s *spool) put(task, address uint64, how reason, word uint32, data []byte) {
	if s.tasks == nil {
		s.tasks = map[uint64][]*piece{}
	}
	pieces := s.tasks[task]
	i := sort.Search(len(pieces), func(i int) bool { return pieces[i].address > address })
	s.tasks[task] = slices.Insert(pieces, i, &piece{address: address, word: word, how: how, data: data, buffer: data})
	s.sizes[how] += cap(data)
}

// find returns the place of a piece with a page, -1 if there is none.
func (s *spool) find(task, address uint64) int {
	pieces := s.tasks[task]
	i := sort.Search(len(pieces), func(i int) bool { return pieces[i].address > address }) - 1
	if i < 0 || address-pieces[i].address >= uint64(len(pieces[i].data)) {
		return -1
	}
	return i
}

func (s *spool) has(task, address uint64) bool { return s.find(task, address) >= 0 }

// answer is pages in a row from some pieces, to be read until release.
type answer struct {
	word   uint32
	pages  net.Buffers
	size   int // bytes
	pieces []*piece
}

// take returns pages from an address on, count at most; false: there are none.
//
// CRIU asks for a task's pages by their addresses, but for single ones that a task
// waits for: what is left below others is not needed any more, or it is asked for again.
func (s *spool) take(task, address, count uint64) (a answer, ok bool) {
	i := s.find(task, address)
	if i < 0 {
		return a, false
	}
	if count > 1 {
		s.dropFirst(task, i)
		i = 0
	}
	a.word = s.tasks[task][i].word
	most := int(count) * os.Getpagesize()
	for i >= 0 && a.size < most {
		p := s.tasks[task][i]
		from := int(address - p.address)
		size := min(len(p.data)-from, most-a.size)
		p.users++
		a.pieces, a.pages, a.size = append(a.pieces, p), append(a.pages, p.data[from:from+size]), a.size+size
		address += uint64(size)
		if count > 1 || from == 0 {
			s.cut(task, i, from+size)
		}
		i = s.find(task, address)
	}
	return a, true
}

// cut removes bytes from the front of a piece.
func (s *spool) cut(task uint64, i, size int) {
	p := s.tasks[task][i]
	if size == len(p.data) {
		s.tasks[task] = slices.Delete(s.tasks[task], i, i+1)
		s.drop(p)
		return
	}
	p.data, p.address = p.data[size:], p.address+uint64(size)
}

// dropFirst drops the first n pieces of a task.
func (s *spool) dropFirst(task uint64, n int) {
	if n == 0 {
		return // of a task that has none there may be no list
	}
	for _, p := range s.tasks[task][:n] {
		s.drop(p)
	}
	s.tasks[task] = slices.Delete(s.tasks[task], 0, n)
}

// forget drops what there is of a task.
func (s *spool) forget(task uint64) {
	s.dropFirst(task, len(s.tasks[task]))
	delete(s.tasks, task)
}

// clear drops all.
func (s *spool) clear() {
	for task := range s.tasks {
		s.forget(task)
	}
}

func (s *spool) drop(p *piece) {
	p.dropped = true
	s.reuse(p)
}

// release gives the pieces of an answer back.
func (s *spool) release(a answer) {
	for _, p := range a.pieces {
		p.users--
		s.reuse(p)
	}
}

func (s *spool) reuse(p *piece) {
	if !p.dropped || p.users > 0 {
		return
	}
	s.sizes[p.how] -= cap(p.buffer)
	if cap(p.buffer) == piecePages*os.Getpagesize() {
		s.free = append(s.free, p.buffer)
	}
	p.buffer, p.data = nil, nil
}
