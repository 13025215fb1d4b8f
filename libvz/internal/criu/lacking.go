package criu

import (
	"cmp"
	"math"
	"os"
	"slices"
	"sort"
)

// lacking is what of the memory of one address space has not come. Its pages are known
// by their numbers in the images; where they belong changes with mremap(2). It is not
// for use by several goroutines at a time.
type lacking struct {
	ranges []pageRange // of the images, by address; never changed
	pages  pageSet
	left   int    // how many pages are lacking
	sites  []site // by address; what is in none has been moved over
}

// site is where a part of the address space of the images is now. Of most, that is
// all of it, where it was.
type site struct{ start, end, image uint64 }

// run is some pages in a row, in the images and in the address space.
type run struct {
	address uint64
	first   int // number of the first page
	count   int
}

// newLacking is of a task that has none of the pages of ranges, which have numbers.
func newLacking(ranges []pageRange) *lacking {
	l := &lacking{ranges: ranges, sites: []site{{0, math.MaxUint64, 0}}}
	l.left = l.count()
	l.pages = allPages(l.left)
	return l
}

// count is how many pages the images have, lacking or not.
func (l *lacking) count() int { return countOf(l.ranges) }

// fork returns what a child lacks.
func (l *lacking) fork() *lacking {
	child := *l
	child.pages, child.sites = slices.Clone(l.pages), slices.Clone(l.sites)
	return &child
}

// at finds the page at an address; false where none is lacking.
func (l *lacking) at(address uint64) (number int, ok bool) {
	i := sort.Search(len(l.sites), func(i int) bool { return l.sites[i].end > address })
	if i == len(l.sites) || address < l.sites[i].start {
		return 0, false
	}
	number, ok = numberAt(l.ranges, l.sites[i].image+address-l.sites[i].start)
	return number, ok && l.pages.has(number)
}

// next returns the first pages among those from one number to before another that are
// lacking and can be filled at once; false where there are none.
func (l *lacking) next(first, end int) (run, bool) {
	for first = l.pages.next(first, end); first < end; first = l.pages.next(first, end) {
		r := rangeOf(l.ranges, first)
		image := r.addressOf(first)
		end := min(end, r.first+r.pages, l.pages.gap(first, end))
		for _, p := range l.sites {
			if image >= p.image && image-p.image < p.end-p.start {
				fits := min(uint64(end-first), (p.end-p.start-(image-p.image))/uint64(os.Getpagesize()))
				return run{p.start + image - p.image, first, int(fits)}, true
			}
		}
		l.came(first, first+1) // it has no place any more
	}
	return run{}, false
}

// came notes that pages from one number to before another are there, or are not needed.
func (l *lacking) came(first, end int) { l.left -= l.pages.remove(first, end) }

// give notes that the task has given up all from start to before end. It returns the
// numbers of pages that may be among that, from each first to before its second.
func (l *lacking) give(start, end uint64) (gone [][2]int) {
	for _, p := range l.sites {
		from, to := max(start, p.start), min(end, p.end)
		if from >= to {
			continue
		}
		first, last := numberFrom(l.ranges, p.image+from-p.start), numberFrom(l.ranges, p.image+to-p.start)
		if first < last {
			l.came(first, last)
			gone = append(gone, [2]int{first, last})
		}
	}
	return gone
}

// move notes that what was in so many bytes at one address is at another. What was there
// is given up; see give.
func (l *lacking) move(from, to, size uint64) (gone [][2]int) {
	if size > math.MaxUint64-max(from, to) {
		return nil // no kernel says so
	}
	gone = l.give(to, to+size)
	l.cut(to, to+size)
	moved := l.cut(from, from+size)
	for i := range moved {
		moved[i].start, moved[i].end = moved[i].start-from+to, moved[i].end-from+to
	}
	l.sites = append(l.sites, moved...)
	slices.SortFunc(l.sites, func(a, b site) int { return cmp.Compare(a.start, b.start) })
	l.tidy()
	return gone
}

// tidy forgets sites where nothing is lacking, and makes one of two that belong together:
// otherwise a task could have us know of ever more of them.
func (l *lacking) tidy() {
	kept := l.sites[:0]
	for _, p := range l.sites {
		first, last := numberFrom(l.ranges, p.image), numberFrom(l.ranges, p.image+p.end-p.start)
		if l.pages.next(first, last) == last {
			continue
		}
		if n := len(kept) - 1; n >= 0 && kept[n].end == p.start && kept[n].image+kept[n].end-kept[n].start == p.image {
			kept[n].end = p.end
			continue
		}
		kept = append(kept, p)
	}
	l.sites = kept
}

// cut takes all from start to before end out of the sites, and returns it.
func (l *lacking) cut(start, end uint64) (taken []site) {
	var left []site
	for _, p := range l.sites {
		from, to := max(start, p.start), min(end, p.end)
		if from >= to {
			left = append(left, p)
			continue
		}
		if p.start < from {
			left = append(left, site{p.start, from, p.image})
		}
		taken = append(taken, site{from, to, p.image + from - p.start})
		if to < p.end {
			left = append(left, site{to, p.end, p.image + to - p.start})
		}
	}
	l.sites = left
	return taken
}

// pageRange is some pages in a row that do not come with the images.
type pageRange struct {
	address uint64
	pages   int
	first   int // number of its first page
}

// addressOf is where a page of the range was, by its number.
func (r *pageRange) addressOf(number int) uint64 {
	return r.address + uint64(number-r.first)*uint64(os.Getpagesize())
}

// end is where the range ends.
func (r *pageRange) end() uint64 { return r.address + uint64(r.pages)*uint64(os.Getpagesize()) }

// number gives the pages of ranges their numbers.
func number(ranges []pageRange) {
	total := 0
	for i := range ranges {
		ranges[i].first = total
		total += ranges[i].pages
	}
}

// countOf is how many pages are in ranges.
func countOf(ranges []pageRange) int {
	if len(ranges) == 0 {
		return 0
	}
	last := ranges[len(ranges)-1]
	return last.first + last.pages
}

// rangeAt finds the range, of those by address, in which there is one; nil if none is.
func rangeAt(ranges []pageRange, address uint64) *pageRange {
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].address > address }) - 1
	if i < 0 || address >= ranges[i].end() {
		return nil
	}
	return &ranges[i]
}

// numberAt finds the number of the page at an address.
func numberAt(ranges []pageRange, address uint64) (int, bool) {
	r := rangeAt(ranges, address)
	if r == nil {
		return 0, false
	}
	return r.first + int((address-r.address)/uint64(os.Getpagesize())), true
}

// numberFrom is the number of the first page that is at an address or after it; how many
// there are, if there is none.
func numberFrom(ranges []pageRange, address uint64) int {
	if n, ok := numberAt(ranges, address); ok {
		return n
	}
	if i := sort.Search(len(ranges), func(i int) bool { return ranges[i].address > address }); i < len(ranges) {
		return ranges[i].first
	}
	return countOf(ranges)
}

// rangeOf finds the range of a page, which is in one.
func rangeOf(ranges []pageRange, number int) *pageRange {
	return &ranges[sort.Search(len(ranges), func(i int) bool { return ranges[i].first > number })-1]
}
