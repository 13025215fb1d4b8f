package criu

import (
	"bytes"
	"testing"
)

// heldPages are pages from number first on, each filled with its own number.
func heldPages(s *spool, first uint64, count int) []byte {
	data := s.buffer(count * int(pageSize))
	for n := range count {
		copy(data[n*int(pageSize):], bytes.Repeat([]byte{byte(first) + byte(n)}, int(pageSize)))
	}
	return data
}

func TestSpool(t *testing.T) {
	var s spool
	s.forget(7) // nothing is known of it
	put := func(first uint64, count int, how reason) {
		s.put(1, first*pageSize, how, 6, heldPages(&s, first, count))
	}
	take := func(first, count uint64, want int) {
		t.Helper()
		a, ok := s.take(1, first*pageSize, count)
		if ok != (want > 0) || a.size != want*int(pageSize) {
			t.Fatalf("%d pages from %d: %v, %d bytes", count, first, ok, a.size)
		}
		got := bytes.Join(a.pages, nil)
		for n := range want {
			if got[n*int(pageSize)] != byte(first)+byte(n) {
				t.Fatalf("page %d is %d", int(first)+n, got[n*int(pageSize)])
			}
		}
		s.release(a)
	}
	put(20, 10, inTurn)
	put(10, 10, inTurn)
	put(40, 10, near)
	take(5, 1, 0)
	take(30, 1, 0)
	take(12, 1, 1)
	take(12, 1, 1) // a page in the middle stays
	take(10, 1, 1)
	take(10, 1, 0) // one at the front does not
	take(11, 100, 19)
	take(11, 100, 0)
	take(44, 2, 2)
	take(40, 1, 0) // what is below is not needed any more
	put(100, piecePages, inTurn)
	put(60, 2, wanted)
	if s.sizes[near] == 0 || s.sizes[wanted] != 2*int(pageSize) || s.sizes[inTurn] != piecePages*int(pageSize) {
		t.Errorf("sizes: %v", s.sizes)
	}
	a, _ := s.take(1, 100*pageSize, piecePages)
	kept := a.pages[0]
	s.clear()
	if other := s.buffer(piecePages * int(pageSize)); &other[0] == &kept[0] {
		t.Error("a buffer that is read is given away")
	}
	s.release(a)
	if other := s.buffer(piecePages * int(pageSize)); &other[0] != &kept[0] {
		t.Error("a buffer is not used again")
	}
	if s.sizes != [reasons]int{} || s.has(1, 60*pageSize) {
		t.Errorf("there is something left: %v", s.sizes)
	}
}
