package criu

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

var pageSize = uint64(os.Getpagesize())

// pagesAt is a range at the address of page number first.
func pagesAt(first uint64, pages int) pageRange {
	return pageRange{address: first * pageSize, pages: pages}
}

func spanAt(task, first uint64, count int) span { return span{task, first * pageSize, count} }

// expectPages adds a task whose ranges have no numbers yet.
func expectPages(a *ahead, task uint64, ranges ...pageRange) *aheadTask {
	number(ranges)
	return a.expect(task, ranges)
}

func TestAheadGoesByTheTasksInTurn(t *testing.T) {
	var a ahead
	one := expectPages(&a, 1, pagesAt(10, 3), pagesAt(100, 5))
	two := expectPages(&a, 2, pagesAt(10, 2))
	expectPages(&a, 3)
	for _, c := range []struct {
		number, most int
		want         span
	}{
		{4, 2, spanAt(1, 101, 2)}, // as many as there may be
		{3, 9, spanAt(1, 100, 1)}, // up to those that are under way
		{4, 9, span{}},            // which are
	} {
		if s, ok := a.begin(one, c.number, c.most); s != c.want || ok != (c.want.count > 0) {
			t.Errorf("%v for a fault at %d", s, c.number)
		}
	}
	var got []span
	for s, ok := a.pick(4); ok; s, ok = a.pick(4) {
		got = append(got, s)
	}
	if want := []span{spanAt(1, 10, 3), spanAt(2, 10, 2), spanAt(1, 103, 2)}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	a.missed(two, 1, 2)
	if s, ok := a.pick(4); !ok || s != spanAt(2, 11, 1) {
		t.Errorf("%v %v in place of what has not come", s, ok)
	}
	a.missed(one, 0, 3)
	one.open.remove(0, 3)
	if s, ok := a.pick(4); ok {
		t.Errorf("%v, which nobody needs", s)
	}
}

func TestAheadFollowsFaults(t *testing.T) {
	var a ahead
	task := expectPages(&a, 1, pagesAt(0, 3000))
	near := func() (first uint64, count int) {
		for s, ok := a.pickNear(64); ok; s, ok = a.pickNear(64) {
			if count == 0 {
				first = s.address / pageSize
			}
			count += s.count
		}
		return first, count
	}
	for _, c := range []struct {
		fault int
		first uint64
		count int
	}{
		{1000, 1000, 16}, // nobody knows
		{1001, 1016, 17}, // on it goes, so twice as many
		{1002, 1033, 33},
		{50, 50, 16}, // elsewhere
		{2990, 2990, 10},
	} {
		a.fault(task, c.fault)
		if first, count := near(); first != c.first || count != c.count {
			t.Errorf("after a fault at %d: %d pages from %d, want %d from %d", c.fault, count, first, c.count, c.first)
		}
	}
	for i := range 200 {
		a.fault(task, 1003+i)
	}
	if _, count := near(); count > nearMost+200 {
		t.Errorf("%d pages ahead", count)
	}
}

// Whatever is asked for in between, each page is given once, and none across two pipes.
func TestAheadGivesEachPageOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var a ahead
		var tasks []*aheadTask
		left := map[span]bool{}
		for task := range uint64(3) {
			at := uint64(1)
			var ranges []pageRange
			for range random.IntN(20) {
				r := pagesAt(at, 1+random.IntN(2000))
				ranges = append(ranges, r)
				for n := range r.pages {
					left[spanAt(task, at+uint64(n), 1)] = true
				}
				at += uint64(r.pages + random.IntN(3))
			}
			tasks = append(tasks, expectPages(&a, task, ranges...))
		}
		given := func(s span) {
			for n := range s.count {
				one := span{s.task, s.address + uint64(n)*pageSize, 1}
				if !left[one] {
					t.Fatalf("%v is given twice, or there is none", one)
				}
				delete(left, one)
			}
			first, _ := numberAt(tasks[s.task].ranges, s.address)
			if first/pipePages != (first+s.count-1)/pipePages {
				t.Fatalf("%v is in two pipes", s)
			}
		}
		for len(left) > 0 {
			task := tasks[random.IntN(3)]
			switch random.IntN(4) {
			case 0:
				if task.total > 0 {
					a.fault(task, random.IntN(task.total))
				}
			case 1:
				if task.total > 0 {
					if s, ok := a.begin(task, random.IntN(task.total), 256); ok {
						given(s)
					}
				}
			case 2:
				if s, ok := a.pickNear(256); ok {
					given(s)
				}
			default:
				s, ok := a.pick(1 + random.IntN(256))
				if !ok {
					t.Fatalf("%d pages are never given", len(left))
				}
				given(s)
			}
		}
	}
}

func TestPace(t *testing.T) {
	for _, c := range []struct {
		name              string
		bandwidth, tripMS int
		atLeast, atMost   int
	}{
		{"a fast connection", 4 << 30, 0, windowMost, windowMost},
		{"a gigabit", 118 << 20, 1, 256 << 10, 2 << 20},
		{"far away", 118 << 20, 50, 1 << 20, windowMost},
		{"a slow connection", 1 << 20, 1, windowLeast, 2 * windowLeast},
	} {
		var p pace
		p.begin()
		now := time.Unix(1000, 0)
		for range 500 {
			if p.piece() <= 0 || p.piece() > p.window {
				t.Fatalf("%s: pieces of %d in a window of %d", c.name, p.piece(), p.window)
			}
			// A window under way fills the connection from some size on.
			trip := float64(c.tripMS) / 1000
			queue := max(float64(p.window)/float64(c.bandwidth), trip)
			asked := now
			now = now.Add(time.Duration((queue + 0.0001) * float64(time.Second)))
			p.answered(asked, now)
		}
		if p.window < c.atLeast || p.window > c.atMost {
			t.Errorf("%s: a window of %d", c.name, p.window)
		}
	}
}

// A machine that stands still for a while holds up all that is under way.
func TestPaceAfterAStandstill(t *testing.T) {
	var p pace
	p.begin()
	now := time.Unix(1000, 0)
	for range 100 {
		p.answered(now, now.Add(time.Millisecond))
		now = now.Add(time.Millisecond)
	}
	if p.window != windowMost {
		t.Fatalf("a window of %d before", p.window)
	}
	asked := now
	now = now.Add(time.Second)
	for range mostAsked {
		p.answered(asked, now)
		now = now.Add(100 * time.Microsecond)
	}
	if p.window < windowMost*7/8 {
		t.Errorf("a window of %d after one standstill", p.window)
	}
	for range 100 {
		asked = now
		now = now.Add(100 * time.Millisecond)
		p.answered(asked, now)
	}
	if p.window != windowLeast {
		t.Errorf("a window of %d where answers stay late", p.window)
	}
}
