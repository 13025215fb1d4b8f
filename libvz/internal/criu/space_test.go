package criu

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// registered is memory of this process that lacks pages, and its userfaultfd.
func registered(t *testing.T, pages int) ([]byte, *userfault) {
	t.Helper()
	needUserfaultfd(t)
	area, err := unix.Mmap(-1, 0, pages*int(pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(area) }) //nolint:errcheck // it was mapped
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	u := newUserfault(int(fd))
	t.Cleanup(func() { u.file.Close() })
	const requestAPI, requestRegister, version, removals, missing = 0xc018aa3f, 0xc020aa00, 0xaa, 1 << 3, 1
	if err := u.ioctl(requestAPI, unsafe.Pointer(&[3]uint64{version, removals, 0})); err != nil {
		t.Fatal(err)
	}
	start := uint64(uintptr(unsafe.Pointer(&area[0])))
	if err := u.ioctl(requestRegister, unsafe.Pointer(&[4]uint64{start, uint64(len(area)), missing, 0})); err != nil {
		t.Fatal(err)
	}
	return area, u
}

// As long as nobody reads that a task gives up memory, the kernel refuses pages. A task
// whose threads do so in circles must not hold up others.
func TestPutDoesNotWaitForATaskThatNeverStopsChanging(t *testing.T) {
	area, u := registered(t, 4)
	start := uint64(uintptr(unsafe.Pointer(&area[0])))
	go func() {
		runtime.LockOSThread()
		unix.Madvise(area[3*pageSize:], unix.MADV_DONTNEED) //nolint:errcheck // it waits until it is heard of
	}()
	events := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(events, 10_000); n != 1 || err != nil {
		t.Fatalf("nothing was given up: %d, %v", n, err)
	}
	ranges := []pageRange{{address: start, pages: 2}}
	number(ranges)
	m := newMemory(nil, nil)
	m.restored = true
	f := &family{aheadTask: m.ahead.expect(7, ranges), live: 1}
	m.tasks[7] = f
	f.spaces = []*space{{task: 7, mem: m, uffd: u, lacks: newLacking(ranges)}}
	m.lacking = 1
	asked, ok := m.ahead.pick(2)
	if !ok || asked.count != 2 {
		t.Fatalf("asked for %+v", asked)
	}
	begun := time.Now()
	if err := m.put(asking{span: asked}, make([]byte, 2*pageSize)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	again, ok := m.ahead.pick(2)
	if !ok || again != asked {
		t.Errorf("%+v are asked for again, not %+v", again, asked)
	}
	// When it is heard of, they can be put.
	if err := f.spaces[0].hear(func() ([]userfaultEvent, error) {
		var batch [1]userfaultEvent
		_, err := unix.Read(u.fd, batch[0][:])
		return batch[:], err
	}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); f.spaces[0].lacks.left > 0 && time.Now().Before(end); {
		if err := m.put(asking{span: again}, make([]byte, 2*pageSize)); err != nil {
			t.Fatal(err)
		}
	}
	if !f.spaces[0].whole {
		t.Error("they are not in place")
	}
}
