package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

func ipc() []thing {
	return []thing{
		{"sysv-shm", sysvShm},
		{"sysv-sem", sysvSem},
		{"sysv-msg", sysvMsg},
		{"posix-shm", posixShm},
		{"posix-mqueue", posixMqueue},
		{"shared-memory", sharedMemory},
	}
}

// Of ipc.h, sem.h and shm.h.
const (
	ipcCreate  = 0o1000
	ipcRemove  = 0
	semGetAll  = 13
	semSetAll  = 17
	pageSize   = 4096
	shmKey     = 0x767a0001
	semKey     = 0x767a0002
	msgKey     = 0x767a0003
	messageMax = 64
)

// attach returns the memory of a System V segment.
func attach(id uintptr) ([]byte, error) {
	at, err := call(syscall.SYS_SHMAT, id, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	// The address is the kernel's, so that the garbage collector may not know it.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), pageSize), nil
}

func sysvShm(string) (func() error, error) {
	id, err := call(syscall.SYS_SHMGET, shmKey, pageSize, ipcCreate|0o600, 0, 0)
	if err != nil {
		return nil, err
	}
	memory, err := attach(id)
	if err != nil {
		return nil, err
	}
	copy(memory, "segment")
	return func() error {
		again, err := call(syscall.SYS_SHMGET, shmKey, pageSize, 0o600, 0, 0)
		if err := errors.Join(err, same("id", again, id), same("memory", string(memory[:7]), "segment")); err != nil {
			return err
		}
		other, err := attach(id)
		if err != nil {
			return err
		}
		memory[0] = 'S'
		if err := same("the same memory", string(other[:7]), "Segment"); err != nil {
			return err
		}
		_, err = call(syscall.SYS_SHMCTL, id, ipcRemove, 0, 0, 0)
		return err
	}, nil
}

func sysvSem(string) (func() error, error) {
	id, err := call(syscall.SYS_SEMGET, semKey, 3, ipcCreate|0o600, 0, 0)
	if err != nil {
		return nil, err
	}
	values := [3]uint16{3, 0, 7}
	if _, err := call(syscall.SYS_SEMCTL, id, 0, semSetAll, uintptr(unsafe.Pointer(&values)), 0); err != nil {
		return nil, err
	}
	return func() error {
		var now [3]uint16
		_, err := call(syscall.SYS_SEMCTL, id, 0, semGetAll, uintptr(unsafe.Pointer(&now)), 0)
		if err := errors.Join(err, same("values", now, values)); err != nil {
			return err
		}
		_, err = call(syscall.SYS_SEMCTL, id, 0, ipcRemove, 0, 0)
		return err
	}, nil
}

type message struct {
	kind int64
	text [messageMax]byte
}

func sysvMsg(string) (func() error, error) {
	id, err := call(syscall.SYS_MSGGET, msgKey, ipcCreate|0o600, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	for kind := int64(1); kind <= 3; kind++ {
		m := message{kind: kind}
		copy(m.text[:], fmt.Sprint("message ", kind))
		if _, err := call(syscall.SYS_MSGSND, id, uintptr(unsafe.Pointer(&m)), messageMax, 0, 0); err != nil {
			return nil, err
		}
	}
	return func() error {
		for _, kind := range []int64{2, 1, 3} {
			var m message
			if _, err := call(syscall.SYS_MSGRCV, id, uintptr(unsafe.Pointer(&m)), messageMax, uintptr(kind), 0o4000); err != nil {
				return err
			}
			if err := same("message", string(m.text[:9]), fmt.Sprint("message ", kind)); err != nil {
				return err
			}
		}
		_, err := call(syscall.SYS_MSGCTL, id, ipcRemove, 0, 0, 0)
		return err
	}, nil
}

// posixShm is what shm_open(3) makes.
func posixShm(string) (func() error, error) {
	path := "/dev/shm/vz-holder"
	if err := os.WriteFile(path, make([]byte, pageSize), 0o600); err != nil {
		return nil, err
	}
	one, err := mapShared(path)
	if err != nil {
		return nil, err
	}
	copy(one, "posix")
	return func() error {
		other, err := mapShared(path)
		if err != nil {
			return err
		}
		one[0] = 'P'
		return errors.Join(same("memory", string(other[:5]), "Posix"), os.Remove(path))
	}, nil
}

func mapShared(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return syscall.Mmap(int(f.Fd()), 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

// posixMqueue is empty: CRIU saves no messages.
func posixMqueue(string) (func() error, error) {
	name := []byte("vz-holder\x00")
	attributes := [8]int64{0, 5, 100} // flags, messages, size of one
	fd, err := call(syscall.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), syscall.O_RDWR|syscall.O_CREAT, 0o600,
		uintptr(unsafe.Pointer(&attributes)), 0)
	if err != nil {
		return nil, err
	}
	return func() error {
		text, buf := []byte("message"), make([]byte, 100)
		if _, err := call(syscall.SYS_MQ_TIMEDSEND, fd, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)), 1, 0); err != nil {
			return err
		}
		n, err := call(syscall.SYS_MQ_TIMEDRECEIVE, fd, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
		if err := errors.Join(err, same("message", string(buf[:n]), "message")); err != nil {
			return err
		}
		_, err = call(syscall.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0, 0)
		return err
	}, nil
}

// sharedMemory is anonymous, and another process has it too.
func sharedMemory(string) (func() error, error) {
	fd, err := call(memfdCreate, uintptr(unsafe.Pointer(&memfdName[0])), 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(fd, "memfd")
	if err := f.Truncate(1 << 20); err != nil {
		return nil, err
	}
	memory, err := syscall.Mmap(int(fd), 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	c, err := startChild("memory", f)
	if err != nil {
		return nil, err
	}
	return func() error {
		memory[12345] = 'm'
		if err := c.say("12345"); err != nil {
			return err
		}
		answer, err := c.hear()
		return errors.Join(err, same("byte", answer, "m"), c.end())
	}, nil
}

// memfdCreate is the number of memfd_create(2), which package syscall lacks.
const memfdCreate = 319

var memfdName = []byte("vz-holder\x00")
