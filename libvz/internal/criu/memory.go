package criu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// memory fills the address spaces of restored tasks from a page server, and those of
// tasks that they fork meanwhile. It asks for a page when a task waits for it, for those
// behind it, and for all others in turn, and puts what comes in place at once.
//
// A connection may end at any moment and another one follow: an answer counts only when
// it is whole, and what has none is asked again, so that the tasks notice nothing but time
// that goes by.
type memory struct {
	// dial is called when the first task is known, and each time that a connection has
	// ended.
	dial   func(context.Context) (net.Conn, error)
	holder *holder
	ctx    context.Context // of dial
	cancel context.CancelFunc

	mu       sync.Mutex // may be locked when that of a space is, not the other way round
	tasks    map[uint64]*family
	lacking  int  // spaces that are not whole
	restored bool // all tasks are known, and all of their memory is registered
	ahead    ahead
	pace     pace
	asked    []asking // requests that have no answer, in order
	peer     net.Conn // nil: there is no connection
	begun    bool     // fetch has been started
	tried    bool     // dial has been called
	over     bool     // nothing is asked for any more
	released bool     // no space is held any more
	waits    []float64
	err      error         // why not all is in place; valid when ended is closed
	ended    chan struct{} // closed when over
	idle     chan struct{} // closed when fetch has ended, after which it uses peer no more
	follows  sync.WaitGroup
}

// family is a task that was restored and those which have its memory since they were
// forked.
type family struct {
	*aheadTask
	spaces []*space
	live   int // of spaces: how many have not been let go
}

func newMemory(dial func(context.Context) (net.Conn, error), h *holder) *memory {
	m := &memory{dial: dial, holder: h, tasks: map[uint64]*family{}, ended: make(chan struct{}), idle: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// add takes over the userfaultfd of a task that lacks the pages of ranges.
func (m *memory) add(task uint64, ranges []pageRange, fd int) error {
	number(ranges)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tasks[task] != nil {
		return errors.Join(fmt.Errorf("task %d was restored twice", task), os.NewFile(uintptr(fd), "userfaultfd").Close())
	}
	f := &family{aheadTask: m.ahead.expect(task, ranges)}
	m.tasks[task] = f
	if !m.begun && !m.over {
		m.begun = true
		go m.fetch()
	}
	return m.join(f, fd, newLacking(ranges))
}

// join adds a space to a family.
func (m *memory) join(f *family, fd int, lacks *lacking) error {
	s := &space{task: f.task, mem: m, uffd: newUserfault(fd), lacks: lacks}
	f.spaces = append(f.spaces, s)
	f.live++
	if s.whole = lacks.left == 0; !s.whole {
		m.lacking++
	}
	if s.whole && m.restored || m.released {
		s.letGo()
	}
	held, err := m.holder.add(fd)
	m.follows.Go(func() {
		err := s.follow()
		s.mu.Lock()
		over := s.over
		s.mu.Unlock()
		if !over {
			m.fail(fmt.Errorf("userfaultfd of task %d: %w", s.task, err))
			return
		}
		m.close(f, s, held)
	})
	return err
}

// close lets a space go, for which nothing can be put in place any more: the kernel
// sees to it from now on.
func (m *memory) close(f *family, s *space, held uint32) {
	m.holder.drop(held)
	s.uffd.file.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.closed = true
	f.live--
}

// fork adds the child of a task, whose space is locked.
func (m *memory) fork(parent *space, fd int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.join(m.tasks[parent.task], fd, parent.lacks.fork())
}

// begin tells that the restore has finished: until then a task gets no more than what
// it waits for, as what comes after that may not be registered yet.
func (m *memory) begin() {
	m.mu.Lock()
	m.restored = true
	var whole []*space
	for _, f := range m.tasks {
		whole = append(whole, f.spaces...)
	}
	m.fill()
	m.mu.Unlock()
	for _, s := range whole {
		s.mu.Lock()
		if s.whole {
			s.letGo()
		}
		s.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lacking == 0 {
		m.finish(nil)
	}
}

// isWhole notes that nothing is lacking in a space, which is locked, and tells whether it
// is to be let go.
func (m *memory) isWhole() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lacking--
	if m.lacking == 0 && m.restored {
		m.finish(nil)
	}
	return m.restored
}

// want notes that a task waits for a page.
func (m *memory) want(task uint64, number int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return
	}
	t := m.tasks[task].aheadTask
	most := 1
	if m.restored {
		m.ahead.fault(t, number)
		most = nearFirst
	}
	if s, ok := m.ahead.begin(t, number, most); ok {
		m.ask(asking{span: s, urgent: true})
	}
	m.fill()
}

// gaveUp notes that pages are not needed in a space, which is locked. Where there are
// others, they may be needed there.
func (m *memory) gaveUp(s *space, gone [][2]int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.tasks[s.task]
	if f.live > 1 {
		return
	}
	for _, g := range gone {
		f.open.remove(g[0], g[1])
	}
}

// put puts pages in place, in all spaces that lack them. No other put may be at work.
func (m *memory) put(a asking, pages []byte) error {
	m.mu.Lock()
	f := m.tasks[a.task]
	f.spaces = slices.DeleteFunc(f.spaces, func(s *space) bool { return s.closed })
	m.mu.Unlock()
	first, _ := numberAt(f.ranges, a.address)
	for i := 0; ; i++ {
		m.mu.Lock()
		if i == len(f.spaces) { // also of those that were forked meanwhile
			m.mu.Unlock()
			return nil
		}
		s := f.spaces[i]
		m.mu.Unlock()
		waited, err := s.put(first, pages)
		m.mu.Lock()
		m.waits = append(m.waits, waited...)
		if errors.Is(err, unix.EAGAIN) {
			m.ahead.missed(f.aheadTask, first, first+a.count) // they come once more
			m.fill()
			err = nil
		}
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// fail ends the filling, where it has not ended. Tasks go on waiting for what they lack.
func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finish(err)
}

// finish ends the asking. The connection is left as it is, but for the answers that are
// under way: they are read first, so that the farewell finds its own.
func (m *memory) finish(err error) {
	if m.over {
		return
	}
	m.over, m.err = true, err
	m.wind()
	m.cancel() // a dial; connections have been told
	close(m.ended)
}

// release lets go of the tasks' memory.
func (m *memory) release() {
	m.mu.Lock()
	m.finish(errStopped)
	m.released = true
	var all []*space
	for _, f := range m.tasks {
		all = append(all, f.spaces...)
	}
	m.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		s.letGo()
		s.mu.Unlock()
	}
	m.holder.end()
	m.follows.Wait()
	for _, s := range all {
		s.uffd.file.Close() // of those that have failed
	}
}

// isOver tells whether nothing is to be put in place any more.
func (m *memory) isOver() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.over
}

// faults tells how tasks have waited.
func (m *memory) faults() *FaultStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return summarize(slices.Clone(m.waits))
}
