package criu

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
)

// holds are the userfaultfds of tasks that lack memory. One is let go when the last
// of its task's pages is handed to CRIU, not later: CRIU closes its own then, and
// believes that it hears of that task no more; but an epoll(7) forgets a descriptor
// only when nobody has the file open. It would read of a fault, such as one on a page
// that the task never had, with a pointer to memory that it has freed.
type holds struct {
	images string
	mu     sync.Mutex
	tasks  map[uint64]*heldTask // by their pid in the guest
	order  []int                // descriptors of tasks that are not known by a pid
}

// heldTask is one task's.
type heldTask struct {
	fd     int
	known  bool        // the ranges have been read
	ranges []pageRange // by address
	arrive []bool      // of all pages in ranges, in their order
	left   int         // pages that have not
}

// pageRange is some pages in a row that do not come with the images.
type pageRange struct {
	address uint64
	pages   int
	first   int // number of its first page
}

// add takes a descriptor over.
func (h *holds) add(pid uint64, fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tasks == nil {
		h.tasks = map[uint64]*heldTask{}
	}
	if _, twice := h.tasks[pid]; twice || pid == 0 {
		h.order = append(h.order, fd)
		return
	}
	h.tasks[pid] = &heldTask{fd: fd}
}

// arrived notes that pages of a task are about to be handed on, or that the task has
// given them up.
func (h *holds) arrived(pid, address, count uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tasks[pid]
	if t == nil {
		return
	}
	if !t.known {
		t.known = true
		ranges, err := lazyRanges(filepath.Join(h.images, fmt.Sprintf("pagemap-%d.img", pid)))
		if err != nil {
			return // it is kept to the end
		}
		t.expect(ranges)
	}
	if t.note(address, count) {
		unix.Close(t.fd)
		delete(h.tasks, pid)
	}
}

// expect sets the ranges, which are in the order of their addresses.
func (t *heldTask) expect(ranges []pageRange) {
	t.left = number(ranges)
	t.ranges, t.arrive = ranges, make([]bool, t.left)
}

// note marks pages, which may have come before (a child of the task asks for them
// again), and tells whether that were the last.
func (t *heldTask) note(address, count uint64) bool {
	if t.left == 0 {
		return false
	}
	size := uint64(os.Getpagesize())
	for ; count > 0; count, address = count-1, address+size {
		if i, known := numberAt(t.ranges, address); known && !t.arrive[i] {
			t.arrive[i] = true
			t.left--
		}
	}
	return t.left == 0
}

// end lets go of a task's that CRIU is done with, where arrived has not: it says so
// just before it closes its own.
func (h *holds) end(pid uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.tasks[pid]; t != nil {
		unix.Close(t.fd)
		delete(h.tasks, pid)
	}
}

// release lets go of all.
func (h *holds) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tasks {
		unix.Close(t.fd)
	}
	for _, fd := range h.order {
		unix.Close(fd)
	}
	h.tasks, h.order = nil, nil
}

// Fields of images/pagemap.proto, and the flag of an entry whose pages are elsewhere.
const (
	pagemapAddress = 1
	pagemapCompat  = 2 // the number of pages as older versions wrote it
	pagemapFlags   = 4
	pagemapPages   = 5
	pagemapLazy    = 1 << 1
)

// lazyRanges reads what an image says of pages that do not come with it.
func lazyRanges(path string) ([]pageRange, error) {
	entries, err := readImage(path)
	if err != nil {
		return nil, err
	}
	const most = 1 << 40 // pages: more than any address space has
	var out []pageRange
	total := uint64(0)
	for _, e := range entries {
		fields := map[uint64]uint64{}
		each(e, func(tag uint64, value []byte) {
			if tag&7 == wireVarint {
				fields[tag>>3], _ = protobuf.ConsumeVarint(value)
			}
		})
		pages := fields[pagemapPages]
		if pages == 0 {
			pages = fields[pagemapCompat]
		}
		if fields[pagemapFlags]&pagemapLazy == 0 || pages == 0 {
			continue
		}
		if total += pages; pages > most || total > most {
			return nil, fmt.Errorf("%s: %w", path, errImage)
		}
		out = append(out, pageRange{address: fields[pagemapAddress], pages: int(pages)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].address < out[j].address })
	return out, nil
}
