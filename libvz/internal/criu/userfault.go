package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of ioctl_userfaultfd(2), as linux/userfaultfd.h composes them.
const (
	uffdWake     = 0x8010aa02
	uffdCopy     = 0xc028aa03
	uffdZeropage = 0xc020aa04
)

// What a userfaultfd tells of, userfaultfd(2).
const (
	eventPagefault = 0x12
	eventFork      = 0x13
	eventRemap     = 0x14
	eventRemove    = 0x15
	eventUnmap     = 0x16
)

// userfaultEvent is a struct uffd_msg: what happened, and up to three words.
type userfaultEvent [32]byte

func (e *userfaultEvent) kind() byte        { return e[0] }
func (e *userfaultEvent) word(i int) uint64 { return binary.NativeEndian.Uint64(e[8+8*i:]) }

// fork is the descriptor of the child.
func (e *userfaultEvent) fork() int { return int(binary.NativeEndian.Uint32(e[8:])) }

// userfault is a userfaultfd(2) of somebody else's memory, which does not block.
type userfault struct {
	fd   int
	file *os.File // for the poller; it owns fd
}

func newUserfault(fd int) *userfault {
	return &userfault{fd: fd, file: os.NewFile(uintptr(fd), "userfaultfd")}
}

// follow calls take whenever there may be events, until that returns an error or the file
// has a deadline in the past. take reads until that fails with EAGAIN, and returns nil
// then. It must see to it that nothing is put into the memory between an event and what it
// does about it.
func (u *userfault) follow(take func(read func() ([]userfaultEvent, error)) error) error {
	conn, err := u.file.SyscallConn()
	if err != nil {
		return err
	}
	var batch [16]userfaultEvent
	read := func() ([]userfaultEvent, error) {
		n, err := unix.Read(u.fd, unsafe.Slice(&batch[0][0], len(batch)*len(batch[0])))
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Read(u.fd, unsafe.Slice(&batch[0][0], len(batch)*len(batch[0])))
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, unix.ESRCH
		}
		return batch[:n/len(batch[0])], nil
	}
	var end error
	err = conn.Read(func(uintptr) bool {
		end = take(read)
		return end != nil
	})
	if end != nil {
		return end
	}
	return err
}

// copy puts pages at an address, and returns how many bytes it has put.
func (u *userfault) copy(address uint64, pages []byte) (int, error) {
	arg := struct {
		dst  uint64
		src  *byte
		size uint64
		mode uint64
		done int64
	}{dst: address, src: &pages[0], size: uint64(len(pages))}
	err := u.ioctl(uffdCopy, unsafe.Pointer(&arg))
	if err == nil {
		return len(pages), nil
	}
	return int(max(arg.done, 0)), err
}

// zero puts a page of zeroes at an address.
func (u *userfault) zero(address uint64) error {
	arg := struct{ start, size, mode, done uint64 }{start: address, size: uint64(os.Getpagesize())}
	return u.ioctl(uffdZeropage, unsafe.Pointer(&arg))
}

// wake lets tasks look again that wait for memory from start to before end.
func (u *userfault) wake(start, end uint64) error {
	arg := struct{ start, size uint64 }{start, end - start}
	return u.ioctl(uffdWake, unsafe.Pointer(&arg))
}

func (u *userfault) ioctl(request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// isGone says whether an error means that there is no such address space any more.
// Before Linux 4.14 that was ENOSPC.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOSPC) }

// errMemory is why memory could not be filled.
func errMemory(task, address uint64, err error) error {
	return fmt.Errorf("fill the memory of task %d at %#x: %w", task, address, err)
}
