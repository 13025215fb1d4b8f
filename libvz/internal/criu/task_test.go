package criu

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain is also the holder, and the task whose memory comes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "hold":
			fmt.Fprintln(os.Stderr, Hold(3))
			os.Exit(1)
		case "task":
			if err := playTask(os.Args[2], os.Args[3]); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// Where the memory of the task is, and how much of it. The pages that are lacking are
// those of taskRanges; of the others it never had any.
const (
	taskBase  = 0x200000000000
	taskPages = 3000
)

func taskRanges() []pageRange {
	first := taskBase / pageSize
	return []pageRange{pagesAt(first+10, 1), pagesAt(first+100, 1500), pagesAt(first+1700, 900), pagesAt(first+2700, 1)}
}

// task is a process that was "restored". It knows what is to be on each of its pages.
type task struct {
	random *rand.Rand
	page   []slot
	wrote  uint64
}

// slot is one page: whether it is mapped, by the first mapping of all, and its first word.
type slot struct {
	mapped, first bool
	word          uint64
}

// playTask does what criu restore does with one task, and then what a hostile one does:
// it changes its address space while its memory comes.
func playTask(socket, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	t := &task{random: rand.New(rand.NewPCG(n, 1)), page: make([]slot, taskPages)}
	for i := range t.page {
		t.page[i] = slot{mapped: true, first: true}
	}
	for _, r := range taskRanges() {
		for i := range r.pages {
			address := r.address + uint64(i)*pageSize
			t.page[(address-taskBase)/pageSize].word = address
		}
	}
	if err := t.restore(socket); err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("restored")
	for step := range 400 {
		if step == 200 { // the driver may have kept the memory back
			fmt.Println("half")
			if _, err := in.ReadString('\n'); err != nil {
				return err
			}
		}
		if err := t.step(step < 200); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	for i := range t.page {
		if err := t.check(i); err != nil {
			return fmt.Errorf("in the end: %w", err)
		}
	}
	fmt.Println("right")
	_, err = in.ReadString('\n')
	return err
}

// restore registers the memory, and says what CRIU says.
func (t *task) restore(socket string) error {
	const fixed = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE
	if err := t.mmap(0, taskPages, fixed); err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	u := &userfault{fd: int(fd)}
	const (
		requestAPI, requestRegister = 0xc018aa3f, 0xc020aa00
		version, events             = 0xaa, 1<<1 | 1<<2 | 1<<3 | 1<<6 // fork, remap, remove, unmap
		missing                     = 1
	)
	if err := u.ioctl(requestAPI, unsafe.Pointer(&[3]uint64{version, events, 0})); err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	if err := u.ioctl(requestRegister, unsafe.Pointer(&[4]uint64{taskBase, taskPages * pageSize, missing, 0})); err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	number := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	if _, err := conn.Write(append(number(-3), number(7)...)); err != nil { // the first one is dead
		return err
	}
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil); err != nil {
		return err
	}
	_, err = conn.Write(number(restoreFinished))
	unix.Close(int(fd))
	return err
}

func (t *task) address(i int) uintptr { return taskBase + uintptr(i)*uintptr(pageSize) }

func (t *task) word(i int) *uint64 { return (*uint64)(unsafe.Add(nil, t.address(i))) }

func (t *task) mmap(i, n, flags int) error {
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, t.address(i), uintptr(n)*uintptr(pageSize), unix.PROT_READ|unix.PROT_WRITE, uintptr(flags), ^uintptr(0), 0)
	if errno != 0 {
		return fmt.Errorf("mmap: %w", errno)
	}
	return nil
}

func (t *task) check(i int) error {
	if !t.page[i].mapped {
		return nil
	}
	if got := *t.word(i); got != t.page[i].word {
		return fmt.Errorf("page %d at %#x has %#x, not %#x", i, t.address(i), got, t.page[i].word)
	}
	return nil
}

// step does one thing. Where the memory is kept back, nothing may be touched.
func (t *task) step(kept bool) error {
	n := 1 + t.random.IntN(60)
	from, to := t.random.IntN(taskPages-n), t.random.IntN(taskPages-n)
	size := uintptr(n) * uintptr(pageSize)
	what := t.random.IntN(10)
	if kept {
		what = t.random.IntN(4)
	}
	switch what {
	case 0: // give the content up
		if t.all(from, n) {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, t.address(from), size, unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("madvise: %w", errno)
			}
			t.set(from, n, slot{mapped: true})
		}
	case 1:
		return t.unmap(from, n)
	case 2:
		return t.move(from, to, n)
	case 3:
		if err := t.unmap(from, n); err != nil {
			return err
		}
		t.set(from, n, slot{mapped: true})
		return t.mmap(from, n, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
	case 4:
		if t.random.IntN(4) == 0 {
			return t.fork()
		}
	case 5, 6:
		if t.page[from].mapped {
			t.wrote++
			*t.word(from), t.page[from].word = t.wrote, t.wrote
		}
	default:
		return t.check(from)
	}
	return nil
}

func (t *task) all(from, n int) bool {
	for _, s := range t.page[from : from+n] {
		if !s.mapped {
			return false
		}
	}
	return true
}

func (t *task) set(from, n int, s slot) {
	for i := range n {
		t.page[from+i] = s
	}
}

func (t *task) unmap(from, n int) error {
	t.set(from, n, slot{})
	if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, t.address(from), uintptr(n)*uintptr(pageSize), 0); errno != 0 {
		return fmt.Errorf("munmap: %w", errno)
	}
	return nil
}

// move moves pages to where others may be. Newer kernels move several mappings in part.
func (t *task) move(from, to, n int) error {
	if !t.all(from, n) || from < to+n && to < from+n {
		return nil
	}
	if err := t.unmap(to, n); err != nil {
		return err
	}
	piece := n
	if slices.ContainsFunc(t.page[from:from+n], func(s slot) bool { return !s.first }) {
		piece = 1
	}
	for i := 0; i < n; i += piece {
		size := uintptr(piece) * uintptr(pageSize)
		_, _, errno := unix.Syscall6(unix.SYS_MREMAP, t.address(from+i), size, size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, t.address(to+i), 0)
		if errno != 0 {
			return fmt.Errorf("mremap: %w", errno)
		}
	}
	for i := range n {
		t.page[to+i] = slot{mapped: true, word: t.page[from+i].word}
	}
	t.set(from, n, slot{})
	return nil
}

// fork has a child look at all of the memory. It must do nothing else, as it has one
// thread of a Go program.
//
//go:norace
func (t *task) fork() error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	if pid == 0 {
		for i := range t.page {
			if t.page[i].mapped && *t.word(i) != t.page[i].word {
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0) //nolint:errcheck // it does not return
			}
		}
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) //nolint:errcheck // likewise
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("the memory of a child is wrong: %d", status)
	}
	return nil
}
