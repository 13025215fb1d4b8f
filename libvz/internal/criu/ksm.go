package criu

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNoMerge says that the kernel does not merge memory by process.
var ErrNoMerge = errors.New("this kernel does not merge memory of processes")

// merging is held while this process is one whose memory may be merged: there
// is one such attribute, of the whole address space.
var merging sync.Mutex

// mergeable runs fn, and what it starts, with memory that the kernel may merge
// with equal memory of others (PR_SET_MEMORY_MERGE, Documentation/mm/ksm.rst).
// Children inherit that, over execve(2) too; so do the tasks that criu forks.
func mergeable(on bool, fn func() error) error {
	if !on {
		return fn()
	}
	merging.Lock()
	defer merging.Unlock()
	set := func(value uintptr) error { return unix.Prctl(unix.PR_SET_MEMORY_MERGE, value, 0, 0, 0) }
	if err := set(1); errors.Is(err, unix.EINVAL) {
		return ErrNoMerge
	} else if err != nil {
		return fmt.Errorf("allow memory to be merged: %w", err)
	}
	defer set(0) //nolint:errcheck // it was off before, and nothing depends on it
	return fn()
}
