package criu

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPageSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 63, 64, 65, 1000} {
		s, model := allPages(size), make([]bool, size)
		for i := range model {
			model[i] = true
		}
		first := func(from, to int, want bool) int {
			for from < to && model[from] != want {
				from++
			}
			return from
		}
		for range 500 {
			from := random.IntN(size + 1)
			to := from + random.IntN(size+1-from)
			switch random.IntN(4) {
			case 0:
				s.add(from, to)
				for i := from; i < to; i++ {
					model[i] = true
				}
			case 1:
				removed := 0
				for i := from; i < to; i++ {
					if model[i] {
						removed++
					}
					model[i] = false
				}
				if n := s.remove(from, to); n != removed {
					t.Fatalf("%d removed of %d", n, removed)
				}
			case 2:
				if n := s.next(from, to); n != first(from, to, true) {
					t.Fatalf("next of [%d, %d) is %d", from, to, n)
				}
			default:
				if n := s.gap(from, to); n != first(from, to, false) {
					t.Fatalf("gap of [%d, %d) is %d", from, to, n)
				}
			}
		}
		for i := range model {
			if s.has(i) != model[i] {
				t.Fatalf("page %d of %d", i, size)
			}
		}
	}
}

// lackingAt is what is lacking, one page each: where, and its number.
func lackingAt(l *lacking) (at [][2]int) {
	for first := 0; ; {
		r, ok := l.next(first, l.count())
		if !ok {
			break
		}
		for i := range r.count {
			at = append(at, [2]int{int(r.address/pageSize) + i, r.first + i})
		}
		first = r.first + r.count
	}
	slices.SortFunc(at, func(a, b [2]int) int { return a[0] - b[0] })
	return at
}

func TestLacking(t *testing.T) {
	type step func(l *lacking) [][2]int
	give := func(first, end uint64) step {
		return func(l *lacking) [][2]int { return l.give(first*pageSize, end*pageSize) }
	}
	move := func(from, to, pages uint64) step {
		return func(l *lacking) [][2]int { return l.move(from*pageSize, to*pageSize, pages*pageSize) }
	}
	came := func(first, end int) step {
		return func(l *lacking) [][2]int { l.came(first, end); return nil }
	}
	// Pages 10 to 12 have the numbers 0 to 2, pages 20 to 21 have 3 and 4.
	for _, c := range []struct {
		name  string
		steps []step
		gone  [][2]int // by the last step
		want  [][2]int
	}{
		{"all", nil, nil, [][2]int{{10, 0}, {11, 1}, {12, 2}, {20, 3}, {21, 4}}},
		{"some came", []step{came(1, 4)}, nil, [][2]int{{10, 0}, {21, 4}}},
		{"in the middle", []step{give(11, 12)}, [][2]int{{1, 2}}, [][2]int{{10, 0}, {12, 2}, {20, 3}, {21, 4}}},
		{"beyond both ends", []step{give(0, 1000)}, [][2]int{{0, 5}}, nil},
		{"where nothing was", []step{give(13, 20)}, nil, [][2]int{{10, 0}, {11, 1}, {12, 2}, {20, 3}, {21, 4}}},
		{"moved", []step{move(11, 100, 2)}, nil, [][2]int{{10, 0}, {20, 3}, {21, 4}, {100, 1}, {101, 2}}},
		{"moved with what is around", []step{move(5, 105, 10)}, nil, [][2]int{{20, 3}, {21, 4}, {110, 0}, {111, 1}, {112, 2}}},
		{"moved twice", []step{move(10, 100, 3), move(101, 50, 1)}, nil, [][2]int{{20, 3}, {21, 4}, {50, 1}, {100, 0}, {102, 2}}},
		{"moved back", []step{move(10, 100, 3), move(100, 10, 3)}, nil, [][2]int{{10, 0}, {11, 1}, {12, 2}, {20, 3}, {21, 4}}},
		{"moved to where others were", []step{move(10, 20, 1)}, [][2]int{{3, 4}}, [][2]int{{11, 1}, {12, 2}, {20, 0}, {21, 4}}},
		{"given up where it was", []step{move(10, 100, 3), give(10, 13)}, nil, [][2]int{{20, 3}, {21, 4}, {100, 0}, {101, 1}, {102, 2}}},
		{"given up where it is", []step{move(10, 100, 3), give(101, 200)}, [][2]int{{1, 3}}, [][2]int{{20, 3}, {21, 4}, {100, 0}}},
		{"no kernel says so", []step{move(10, 1<<52-1, 3)}, nil, [][2]int{{10, 0}, {11, 1}, {12, 2}, {20, 3}, {21, 4}}},
	} {
		ranges := []pageRange{pagesAt(10, 3), pagesAt(20, 2)}
		number(ranges)
		l := newLacking(ranges)
		var gone [][2]int
		for _, s := range c.steps {
			gone = s(l)
		}
		if !slices.Equal(gone, c.gone) {
			t.Errorf("%s: gone are %v, want %v", c.name, gone, c.gone)
		}
		if got := lackingAt(l); !slices.Equal(got, c.want) || l.left != len(got) {
			t.Errorf("%s: %v are lacking (%d), want %v", c.name, got, l.left, c.want)
		}
		for at := range 130 {
			number, ok := l.at(uint64(at) * pageSize)
			if i := slices.IndexFunc(c.want, func(w [2]int) bool { return w[0] == at }); ok != (i >= 0) || ok && number != c.want[i][1] {
				t.Errorf("%s: at page %d: %d, %v", c.name, at, number, ok)
			}
		}
	}
}

func TestLackingOfAChild(t *testing.T) {
	ranges := []pageRange{pagesAt(10, 3)}
	number(ranges)
	parent := newLacking(ranges)
	parent.move(10*pageSize, 50*pageSize, pageSize)
	child := parent.fork()
	parent.came(0, 3)
	parent.move(50*pageSize, 90*pageSize, pageSize)
	if got, want := lackingAt(child), [][2]int{{11, 1}, {12, 2}, {50, 0}}; !slices.Equal(got, want) || child.left != 3 {
		t.Errorf("a child lacks %v", got)
	}
}

func TestLackingOfATaskThatMovesOnAndOn(t *testing.T) {
	ranges := []pageRange{pagesAt(10, 30)}
	number(ranges)
	l := newLacking(ranges)
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		l.move((10+random.Uint64N(30))*pageSize, (100+random.Uint64N(30))*pageSize, pageSize)
		l.move((100+random.Uint64N(30))*pageSize, (10+random.Uint64N(30))*pageSize, pageSize)
	}
	if len(l.sites) > 31 || len(lackingAt(l)) != l.left {
		t.Errorf("%d pages are lacking, in %d places", l.left, len(l.sites))
	}
}

func TestLackingOfNothing(t *testing.T) {
	l := newLacking(nil)
	if _, ok := l.at(pageSize); ok || l.left != 0 || l.give(0, 1<<40) != nil {
		t.Error("something is lacking")
	}
}
