// Command hoarder is a program of a guest that has one thing which is hard to save,
// for tests/preflight.bats:
//
//	hoarder THING [ARG]
//
// It prints "holds THING", or what went wrong, and stays until it is killed.
// "hoarder list" prints the things. Nothing but the standard library is used, so
// that it builds without the module's dependencies and runs in any root file
// system.
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"
)

func main() {
	runtime.LockOSThread() // tracing and seccomp are a thread's
	things := allThings()
	if len(os.Args) == 2 && os.Args[1] == "list" {
		var names []string
		for name := range things {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Println(name)
		}
		return
	}
	if len(os.Args) < 2 || things[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: hoarder THING [ARG]; hoarder list")
		os.Exit(2)
	}
	arg := ""
	if len(os.Args) > 2 {
		arg = os.Args[2]
	}
	if err := things[os.Args[1]](arg); err != nil {
		fmt.Println("hoarder:", os.Args[1]+":", err)
		os.Exit(1)
	}
	fmt.Println("holds", os.Args[1])
	for {
		time.Sleep(time.Hour)
	}
}

// descriptor keeps what a system call opened: Go closes no number.
func descriptor(_ uintptr, _ uintptr, errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// numbers of system calls whose numbers differ between architectures.
type numbers struct{ bpf, userfaultfd, seccomp, fanotifyInit, perfEventOpen, mqOpen, mqSend, memfdCreate uintptr }

func call() numbers {
	if runtime.GOARCH == "arm64" {
		return numbers{280, 282, 277, 262, 241, 180, 182, 279}
	}
	return numbers{321, 323, 317, 300, 298, 240, 242, 319}
}

// These are the same everywhere.
const (
	sysIoUringSetup    = 425
	sysOpenTree        = 428
	sysFsopen          = 430
	sysPidfdOpen       = 434
	sysLandlockRuleset = 444
	sysMemfdSecret     = 447
)
