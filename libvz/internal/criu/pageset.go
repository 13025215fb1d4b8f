package criu

import "math/bits"

const wordBits = 64

// pageSet is a set of pages, which are known by numbers from zero on.
type pageSet []uint64

// allPages is the set of the first n pages.
func allPages(n int) pageSet {
	s := make(pageSet, (n+wordBits-1)/wordBits)
	s.each(0, n, func(word *uint64, mask uint64) { *word |= mask })
	return s
}

// each calls f for each word with pages of [from, to), and the mask of those.
func (s pageSet) each(from, to int, f func(word *uint64, mask uint64)) {
	for from < to {
		first := from % wordBits
		n := min(to-from, wordBits-first)
		mask := ^uint64(0) << first
		if first+n < wordBits {
			mask &= 1<<(first+n) - 1
		}
		f(&s[from/wordBits], mask)
		from += n
	}
}

func (s pageSet) has(n int) bool { return s[n/wordBits]&(1<<(n%wordBits)) != 0 }

// add puts the pages of [from, to) into the set.
func (s pageSet) add(from, to int) {
	s.each(from, to, func(word *uint64, mask uint64) { *word |= mask })
}

// remove takes the pages of [from, to) out, and returns how many there were.
func (s pageSet) remove(from, to int) (removed int) {
	s.each(from, to, func(word *uint64, mask uint64) {
		removed += bits.OnesCount64(*word & mask)
		*word &^= mask
	})
	return removed
}

// next returns the first page of [from, to) that is in the set, or to.
func (s pageSet) next(from, to int) int { return s.find(from, to, 0) }

// gap returns the first page of [from, to) that is not in the set, or to.
func (s pageSet) gap(from, to int) int { return s.find(from, to, ^uint64(0)) }

func (s pageSet) find(from, to int, flip uint64) int {
	for from < to {
		if word := (s[from/wordBits] ^ flip) >> (from % wordBits); word != 0 {
			return min(to, from+bits.TrailingZeros64(word))
		}
		from = (from/wordBits + 1) * wordBits
	}
	return to
}
