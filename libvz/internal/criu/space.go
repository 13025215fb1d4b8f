package criu

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// copyPages is how many pages are put in place at a time: what a task asks meanwhile
// waits for it.
const copyPages = 64

// space is the address space of a restored task, or of one that was forked since: what it
// lacks, and the userfaultfd by which that is put in place and by which the kernel tells
// what the task does.
//
// The kernel lets a task go on with what it does to its memory (unmap it, move it, fork)
// as soon as the event is read. So mu is held from before the reading to when it is known
// what that means, and while pages are put in place: no page can come to where it does not
// belong any more.
type space struct {
	task   uint64 // pid in the images
	mem    *memory
	mu     sync.Mutex
	uffd   *userfault
	lacks  *lacking
	faults faults
	zeroes []uint64 // where zeroes could not be put yet
	whole  bool     // nothing is lacking, which mem knows
	over   bool     // nothing is put in place any more
	closed bool     // the userfaultfd is; guarded by mem.mu
}

// follow sees to what the kernel tells, until there is nothing more to do.
func (s *space) follow() error {
	return s.uffd.follow(func(read func() ([]userfaultEvent, error)) error {
		for {
			err := s.hear(read)
			if errors.Is(err, unix.EAGAIN) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

// hear takes some events in. A task may make them without an end: in between pages can be
// put in place.
func (s *space) hear(read func() ([]userfaultEvent, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	events, err := read()
	if err != nil {
		return err
	}
	for i := range events {
		if err := s.heard(&events[i]); err != nil {
			return err
		}
	}
	s.fillZeroes()
	return nil
}

// heard is called with mu locked.
func (s *space) heard(e *userfaultEvent) error {
	switch e.kind() {
	case eventPagefault:
		address := e.word(1) &^ uint64(os.Getpagesize()-1)
		if !s.want(address) {
			s.zeroes = append(s.zeroes, address)
		}
	case eventFork:
		return s.mem.fork(s, e.fork())
	case eventRemap:
		from, to, size := e.word(0), e.word(1), e.word(2)
		s.gaveUp(s.lacks.move(from, to, size))
		s.uffd.wake(from, from+size) //nolint:errcheck // nobody may be waiting there
	case eventRemove, eventUnmap:
		// After a removal, too, the kernel goes on telling us: by now it may be another
		// memory that is there, and lacks pages.
		start, end := e.word(0), e.word(1)
		s.gaveUp(s.lacks.give(start, end))
		s.uffd.wake(start, end) //nolint:errcheck // nobody may be waiting there
	}
	return nil
}

// want notes that a task waits for the page at an address; false where none is lacking.
func (s *space) want(address uint64) bool {
	number, ok := s.lacks.at(address)
	if ok {
		s.faults.begin(number, time.Now())
		s.mem.want(s.task, number)
	}
	return ok
}

// gaveUp notes that pages are not needed here any more.
func (s *space) gaveUp(gone [][2]int) {
	for _, g := range gone {
		s.faults.end(g[0], g[1], time.Time{})
	}
	if len(gone) > 0 {
		s.mem.gaveUp(s, gone)
		s.check()
	}
}

// fillZeroes puts zeroes where tasks wait and nothing was. While the kernel is about to
// change the address space, it refuses; it does not tell when it is done.
func (s *space) fillZeroes() {
	var later []uint64
	for _, address := range s.zeroes {
		if s.want(address) {
			continue // it was moved there since
		}
		switch err := s.uffd.zero(address); {
		case err == nil || isGone(err):
		case errors.Is(err, unix.EAGAIN):
			later = append(later, address)
		default: // something is there by now, or nothing can be
			s.uffd.wake(address, address+uint64(os.Getpagesize())) //nolint:errcheck // likewise
		}
	}
	s.zeroes = later
	if len(later) > 0 {
		time.AfterFunc(changing, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.over {
				s.fillZeroes()
			}
		})
	}
}

// changing is how long to wait before another look whether the kernel has done what it
// has told of, or is about to tell of.
const changing = 100 * time.Microsecond

// changingLong is for how long in all pages wait that cannot be put in place for that: a
// task whose threads give up memory in circles must not hold up all others.
const changingLong = 100 * time.Millisecond

// put puts pages in place that have come, from the number first on, where they are
// lacking. It returns how long tasks have waited for them, and EAGAIN where the address
// space has been changing all the time: then some of them may not be in place.
func (s *space) put(first int, pages []byte) (waited []float64, err error) {
	end := first + len(pages)/os.Getpagesize()
	var changed time.Duration
	for {
		s.mu.Lock()
		more, err := s.putSome(first, end, pages, &waited)
		s.mu.Unlock()
		if err == nil && !more {
			return waited, nil
		}
		if errors.Is(err, unix.EAGAIN) && !s.mem.isOver() && changed < changingLong {
			time.Sleep(changing) // see fillZeroes
			changed += changing
			continue
		}
		if err != nil {
			return waited, err
		}
	}
}

// putSome is one step of put; false when there is no more to do. It returns EAGAIN where
// the address space is about to change.
func (s *space) putSome(first, end int, pages []byte, waited *[]float64) (more bool, err error) {
	if s.over {
		return false, nil
	}
	r, ok := s.lacks.next(first, end)
	if !ok {
		return false, nil
	}
	size := os.Getpagesize()
	r.count = min(r.count, copyPages)
	data := pages[(r.first-first)*size:][:r.count*size]
	for len(data) > 0 {
		n, err := s.uffd.copy(r.address, data)
		s.came(r.first, n/size, waited)
		if err == nil {
			return true, nil
		}
		if n > 0 { // what is in the way of the next one?
			r.first, r.address, data = r.first+n/size, r.address+uint64(n), data[n:]
			continue
		}
		switch {
		case isGone(err):
			s.lose(0, s.lacks.count())
			return false, nil
		case errors.Is(err, unix.EEXIST):
			s.uffd.wake(r.address, r.address+uint64(size)) //nolint:errcheck // nobody may be waiting
			s.came(r.first, 1, waited)
			return true, nil
		case !errors.Is(err, unix.ENOENT):
			if errors.Is(err, unix.EAGAIN) {
				return true, err
			}
			return true, errMemory(s.task, r.address, err)
		case len(data) == size: // nothing can be there any more
			s.lose(r.first, r.first+1)
			return true, nil
		}
		data = data[:(len(data)/size+1)/2*size] // it may be two mappings by now
	}
	return true, nil
}

// came notes pages that are in place.
func (s *space) came(first, count int, waited *[]float64) {
	if count == 0 {
		return
	}
	s.lacks.came(first, first+count)
	*waited = append(*waited, s.faults.end(first, first+count, time.Now())...)
	s.check()
}

// lose notes pages that cannot be put anywhere any more.
func (s *space) lose(first, end int) {
	s.lacks.came(first, end)
	s.gaveUp([][2]int{{first, end}})
}

// check tells the memory once when nothing is lacking here any more. A space of a task
// that runs is let go then.
func (s *space) check() {
	if s.lacks.left == 0 && !s.whole {
		s.whole = true
		if s.mem.isWhole() {
			s.letGo()
		}
	}
}

// letGo makes follow return.
func (s *space) letGo() {
	s.over = true
	s.uffd.file.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // it can
}
