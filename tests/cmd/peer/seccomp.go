package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// From linux/seccomp.h; struct seccomp_notif and seccomp_notif_resp.
const (
	ioctlReceive     = 0xc0502100
	ioctlSend        = 0xc0182101
	responseContinue = 1
	notificationSize = 80
	responseSize     = 24
)

// agent serves one container after another, until it is killed. What the
// runtime sends is printed as it is.
func agent(args []string) error {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: args[0], Net: "unix"})
	if err != nil {
		return err
	}
	allowed := ""
	if len(args) > 1 {
		allowed = args[1]
	}
	fmt.Println("listening")
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return err
		}
		state, rights := make([]byte, 1<<16), make([]byte, syscall.CmsgSpace(4))
		n, used, _, _, err := conn.ReadMsgUnix(state, rights)
		if err != nil {
			return err
		}
		conn.Close()
		fds, err := descriptors(rights[:used])
		if err != nil {
			return err
		}
		if len(fds) != 1 {
			return fmt.Errorf("%d descriptors, 1 expected", len(fds))
		}
		fmt.Printf("state %s\n", state[:n])
		go func() {
			if err := answer(fds[0], allowed); err != nil {
				fmt.Println("answer:", err)
			}
		}()
	}
}

func answer(fd int, allowed string) error {
	defer syscall.Close(fd) //nolint:errcheck // it is read-only
	for {
		var call [notificationSize]byte
		if err := ioctl(fd, ioctlReceive, unsafe.Pointer(&call)); err != nil {
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if errors.Is(err, syscall.ENOENT) {
				return nil // the last process with this filter has ended
			}
			return err
		}
		id, pid := binary.LittleEndian.Uint64(call[0:]), binary.LittleEndian.Uint32(call[8:])
		number, first := binary.LittleEndian.Uint32(call[16:]), binary.LittleEndian.Uint64(call[32:])
		path := stringOf(pid, first)
		fmt.Printf("call %d %s\n", number, path)
		var response [responseSize]byte
		binary.LittleEndian.PutUint64(response[0:], id)
		if allowed != "" && strings.HasPrefix(path, allowed) {
			binary.LittleEndian.PutUint32(response[20:], responseContinue)
		} else {
			refusal := -int32(syscall.ENOMEDIUM)
			binary.LittleEndian.PutUint32(response[16:], uint32(refusal))
		}
		if err := ioctl(fd, ioctlSend, unsafe.Pointer(&response)); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// stringOf reads a path out of the memory of a process.
func stringOf(pid uint32, address uint64) string {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err.Error()
	}
	defer memory.Close()
	text := make([]byte, 256)
	n, _ := memory.ReadAt(text, int64(address)) //nolint:errcheck // the rest may be unmapped
	text, _, _ = bytes.Cut(text[:n], []byte{0})
	return string(text)
}
