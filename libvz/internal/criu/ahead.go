package criu

import (
	"os"
	"slices"
	"sort"
)

const (
	// pipePages is how many pages CRIU's page server keeps in a pipe: an answer ends
	// where the pipe does (PIPE_MAX_SIZE in its page-pipe.h, rounded up by the kernel).
	pipePages = 1024
	// Where a task waits for a page, those after it are asked for, too: so many the
	// first time, and twice as many each time that the next fault is among them.
	nearFirst, nearMost = 16, 512
)

// ahead says which pages are to be asked for before CRIU does. It knows all pages that
// have to come; each is given once. It is not for use by several goroutines at a time.
type ahead struct {
	tasks map[uint64]*aheadTask
	// turn are the tasks of which something is left, the next one first: CRIU fills
	// the memory of all tasks at the same time, each by address.
	turn []*aheadTask
	near []*aheadTask // those with something left of where they wait
}

// aheadTask is one task's share. Its pages are known by their number in ranges.
type aheadTask struct {
	task   uint64
	ranges []pageRange
	asked  []bool
	next   int // those before it have been asked for
	inTurn bool

	// Pages from faulted to nearEnd are where the task waits, those before near have
	// been asked for.
	faulted, near, nearEnd int
	inNear                 bool
}

// span is some pages of a task in a row.
type span struct {
	task, address uint64
	count         int
}

// expect adds a task with the pages that have to come.
func (a *ahead) expect(task uint64, ranges []pageRange) {
	total := number(ranges)
	if total == 0 || a.tasks[task] != nil {
		return
	}
	if a.tasks == nil {
		a.tasks = map[uint64]*aheadTask{}
	}
	t := &aheadTask{task: task, ranges: ranges, asked: make([]bool, total), inTurn: true}
	a.tasks[task] = t
	a.turn = append(a.turn, t)
}

// begin notes that CRIU asks for pages, and returns how many of them are to be asked
// for: those in a row that have not been, most at most, and the first in any case. All,
// if the task is not known.
func (a *ahead) begin(s span, most int) int {
	t := a.tasks[s.task]
	if t == nil {
		return s.count
	}
	for n := range min(s.count, most) {
		i, known := numberAt(t.ranges, s.address+uint64(n*os.Getpagesize()))
		if n > 0 && (!known || t.asked[i]) {
			return n
		}
		if known {
			t.asked[i] = true
		}
	}
	return min(s.count, most)
}

// missed notes that pages which were asked for have not come.
func (a *ahead) missed(s span) {
	t := a.tasks[s.task]
	if t == nil {
		return
	}
	for n := range s.count {
		if i, known := numberAt(t.ranges, s.address+uint64(n*os.Getpagesize())); known {
			t.asked[i], t.next = false, min(t.next, i)
		}
	}
	if !t.inTurn {
		t.inTurn = true
		a.turn = append(a.turn, t)
	}
}

// fault notes that a task waits for a page: what comes after it is likely to be next.
func (a *ahead) fault(task, address uint64) {
	t := a.tasks[task]
	if t == nil {
		return
	}
	i, known := numberAt(t.ranges, address)
	if !known {
		return
	}
	length := nearFirst
	if i > t.faulted && i <= t.nearEnd {
		length = min(2*(t.nearEnd-t.faulted), nearMost)
	} else {
		t.near = i
	}
	t.faulted, t.nearEnd = i, min(i+length, len(t.asked))
	t.near = max(t.near, i)
	if !t.inNear {
		t.inNear = true
		a.near = append(a.near, t)
	}
}

// forget gives no more pages of a task.
func (a *ahead) forget(task uint64) {
	is := func(t *aheadTask) bool { return t.task == task }
	a.turn, a.near = slices.DeleteFunc(a.turn, is), slices.DeleteFunc(a.near, is)
	delete(a.tasks, task)
}

// pickNear gives pages to ask for where tasks wait, most at a time; false: there are no
// more.
func (a *ahead) pickNear(most int) (span, bool) {
	for len(a.near) > 0 {
		t := a.near[0]
		if s, ok := t.take(&t.near, t.nearEnd, most); ok {
			return s, true
		}
		a.near, t.inNear = a.near[1:], false
	}
	return span{}, false
}

// pick gives pages to ask for of the tasks in turn, most at a time; false: there are
// no more.
func (a *ahead) pick(most int) (span, bool) {
	for len(a.turn) > 0 {
		t := a.turn[0]
		a.turn = a.turn[1:]
		if s, ok := t.take(&t.next, len(t.asked), most); ok {
			a.turn = append(a.turn, t)
			return s, true
		}
		t.inTurn = false
	}
	return span{}, false
}

// take gives pages from a place on, before the end, and moves the place behind them.
func (t *aheadTask) take(from *int, end, most int) (span, bool) {
	for *from < end && t.asked[*from] {
		*from++
	}
	if *from >= end {
		return span{}, false
	}
	first := *from
	r := t.ranges[sort.Search(len(t.ranges), func(i int) bool { return t.ranges[i].first > first })-1]
	end = min(end, first+most, r.first+r.pages, (first/pipePages+1)*pipePages)
	for *from < end && !t.asked[*from] {
		t.asked[*from] = true
		*from++
	}
	return span{t.task, r.address + uint64((first-r.first)*os.Getpagesize()), *from - first}, true
}

// number gives the pages of ranges, which are in the order of their addresses, their
// numbers, and returns how many there are.
func number(ranges []pageRange) int {
	total := 0
	for i := range ranges {
		ranges[i].first = total
		total += ranges[i].pages
	}
	return total
}

// numberAt finds the number of the page at an address.
func numberAt(ranges []pageRange, address uint64) (int, bool) {
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].address > address }) - 1
	if i < 0 {
		return 0, false
	}
	n := int((address - ranges[i].address) / uint64(os.Getpagesize()))
	return ranges[i].first + n, n < ranges[i].pages
}
