package criu

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

// Fields of images/pagemap.proto, and the flags of an entry whose pages may come when the
// task runs, and of one whose pages are in the images.
const (
	pagemapPagesID = 1 // of the head
	pagemapAddress = 1
	pagemapCompat  = 2 // the number of pages as older versions wrote it
	pagemapFlags   = 4
	pagemapPages   = 5
	pagemapLazy    = 1 << 1
	pagemapPresent = 1 << 2
)

// IsPages tells whether an image of this name holds pages, and nothing else. CRIU
// appends to such a file and never goes back in it.
func IsPages(name string) bool {
	return strings.HasPrefix(name, "pages-") && strings.HasSuffix(name, ".img")
}

// pagemap is an image that says which pages a task had.
type pagemap struct {
	pages   uint64 // what the file with those that are in the images is called by
	entries []pagemapEntry
}

// pagemapEntry is some pages in a row.
type pagemapEntry struct {
	pageRange
	flags uint64
}

// mostPages bounds what is believed of an image: 4 TiB.
const mostPages = 1 << 30

func readPagemap(path string) (*pagemap, error) {
	messages, err := readImage(path)
	if err != nil {
		return nil, err
	}
	if len(messages) == 0 {
		return nil, fmt.Errorf("%s: %w", path, errImage)
	}
	p := &pagemap{pages: varintsOf(messages[0])[pagemapPagesID]}
	total := uint64(0)
	for _, m := range messages[1:] {
		fields := varintsOf(m)
		pages, address := fields[pagemapPages], fields[pagemapAddress]
		if pages == 0 {
			pages = fields[pagemapCompat]
		}
		size := uint64(os.Getpagesize())
		if total += pages; pages > mostPages || total > mostPages || address%size != 0 || address > math.MaxInt64-pages*size {
			return nil, fmt.Errorf("%s: %w", path, errImage)
		}
		if pages > 0 {
			p.entries = append(p.entries, pagemapEntry{pageRange{address: address, pages: int(pages)}, fields[pagemapFlags]})
		}
	}
	return p, nil
}

func varintsOf(message []byte) map[uint64]uint64 {
	fields := map[uint64]uint64{}
	each(message, func(tag uint64, value []byte) {
		if tag&7 == wireVarint {
			fields[tag>>3], _ = protobuf.ConsumeVarint(value)
		}
	})
	return fields
}

// lazyRanges reads what an image says of pages that may come when the task runs, by
// address.
func lazyRanges(path string) ([]pageRange, error) {
	p, err := readPagemap(path)
	if err != nil {
		return nil, err
	}
	var out []pageRange
	for _, e := range p.entries {
		if e.flags&pagemapLazy != 0 {
			out = append(out, e.pageRange)
		}
	}
	slices.SortFunc(out, byAddress)
	for i := 1; i < len(out); i++ {
		if out[i].address < out[i-1].end() {
			return nil, fmt.Errorf("%s: %w", path, errImage)
		}
	}
	return out, nil
}

func byAddress(a, b pageRange) int { return cmp.Compare(a.address, b.address) }
