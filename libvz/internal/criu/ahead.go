package criu

import "os"

const (
	// pipePages is how many pages CRIU's page server keeps in a pipe: an answer ends
	// where the pipe does (PIPE_MAX_SIZE in its page-pipe.h, rounded up by the kernel).
	pipePages = 1024
	// Where a task waits for a page, those after it are asked for, too: so many the
	// first time, and twice as many each time that the next fault is among them.
	nearFirst, nearMost = 16, 512
)

// ahead says which pages are to be asked for. It knows all pages that have to come; each
// is given once. It is not for use by several goroutines at a time.
type ahead struct {
	// turn are the tasks of which something is left, the next one first: the memory of
	// all tasks is filled at the same time, each by address.
	turn []*aheadTask
	near []*aheadTask // those with something left of where they wait
}

// aheadTask is one task's share. Its pages are known by their number in ranges.
type aheadTask struct {
	task   uint64
	ranges []pageRange
	total  int
	open   pageSet // those that are needed and have not been asked for
	next   int     // those before it are not open
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

// expect adds a task with the pages that have to come, which have their numbers.
func (a *ahead) expect(task uint64, ranges []pageRange) *aheadTask {
	t := &aheadTask{task: task, ranges: ranges, total: countOf(ranges), inTurn: true}
	t.open = allPages(t.total)
	a.turn = append(a.turn, t)
	return t
}

// missed notes that pages which were asked for have not come.
func (a *ahead) missed(t *aheadTask, first, end int) {
	t.open.add(first, end)
	t.next = min(t.next, first)
	if !t.inTurn {
		t.inTurn = true
		a.turn = append(a.turn, t)
	}
}

// fault notes that a task waits for a page: what comes after it is likely to be next.
func (a *ahead) fault(t *aheadTask, number int) {
	length := nearFirst
	if number > t.faulted && number <= t.nearEnd {
		length = min(2*(t.nearEnd-t.faulted), nearMost)
	} else {
		t.near = number
	}
	t.faulted, t.nearEnd = number, min(number+length, t.total)
	t.near = max(t.near, number)
	if !t.inNear {
		t.inNear = true
		a.near = append(a.near, t)
	}
}

// begin gives a page for which a task waits, and those after it, most at most; false
// where it has been asked for.
func (a *ahead) begin(t *aheadTask, number, most int) (span, bool) {
	if !t.open.has(number) {
		return span{}, false
	}
	return t.take(&number, t.total, most)
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
		if s, ok := t.take(&t.next, t.total, most); ok {
			a.turn = append(a.turn, t)
			return s, true
		}
		t.inTurn = false
	}
	return span{}, false
}

// take gives pages from the first open one on that is at a place or after it, and before
// the end, and moves the place behind them.
func (t *aheadTask) take(from *int, end, most int) (span, bool) {
	first := t.open.next(*from, end)
	if *from = first; first >= end {
		return span{}, false
	}
	r := rangeOf(t.ranges, first)
	last := min(end, first+max(most, 1), r.first+r.pages, (first/pipePages+1)*pipePages)
	*from = t.open.gap(first, last)
	t.open.remove(first, *from)
	return span{t.task, r.addressOf(first), *from - first}, true
}

// bytes is how much memory a span is.
func (s *span) bytes() int { return s.count * os.Getpagesize() }
