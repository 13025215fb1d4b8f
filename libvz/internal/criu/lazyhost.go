package criu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pipeNeeded is the size in bytes of the pipe through which CRIU hands pages
// out, PIPE_MAX_SIZE in its page-pipe.h rounded up as the kernel does.
const pipeNeeded = 4 << 20

// CheckLazyDump says what this host lacks for a lazy dump. The error is an
// *Error with Unsupported set.
func CheckLazyDump() error {
	limit, err := readSysctl("fs/pipe-max-size")
	if err != nil {
		return err
	}
	caps, err := effectiveCaps()
	if err != nil {
		return err
	}
	return lazyDumpNeeds(limit, caps&(1<<unix.CAP_SYS_RESOURCE) != 0)
}

func lazyDumpNeeds(pipeMax int64, resource bool) error {
	if resource || pipeMax >= pipeNeeded {
		return nil
	}
	return lacks(fmt.Sprintf("pages are handed out through pipes of %d bytes, and fs.pipe-max-size is %d", pipeNeeded, pipeMax),
		fmt.Sprintf("set the sysctl fs.pipe-max-size=%d, or do without lazy pages", pipeNeeded))
}

// CheckLazyRestore says what this host lacks for a lazy restore, of tasks in a
// user namespace or not. CRIU 4.2 opens a userfaultfd in each task itself, and
// with the system call: /dev/userfaultfd is of no use to it.
func CheckLazyRestore(userns bool) error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno == 0 {
		unix.Close(int(fd))
	}
	allowed, err := readSysctl("vm/unprivileged_userfaultfd")
	if errors.Is(err, os.ErrNotExist) {
		allowed, err = 1, nil // before Linux 5.2 everybody might
	}
	if err != nil {
		return err
	}
	return lazyRestoreNeeds(errno, userns, allowed == 1)
}

func lazyRestoreNeeds(errno unix.Errno, userns, allowed bool) error {
	switch {
	case errno != 0:
		return lacks(fmt.Sprintf("userfaultfd: %v", errno), "lazy pages need a kernel with CONFIG_USERFAULTFD, and root's CAP_SYS_PTRACE")
	case userns && !allowed:
		return lacks("the kernel refuses userfaultfd in the guest's user namespace",
			"set the sysctl vm.unprivileged_userfaultfd=1 while the memory arrives, or do without lazy pages")
	}
	return nil
}

func lacks(what, remedy string) error {
	return &Error{Op: "lazy-pages", Cause: what, Remedy: remedy, Unsupported: true}
}

func readSysctl(name string) (int64, error) {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

func effectiveCaps() (uint64, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "CapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseUint(strings.TrimSpace(line), 16, 64)
}
