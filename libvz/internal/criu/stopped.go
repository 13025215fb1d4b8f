package criu

import (
	"os"

	"golang.org/x/sys/unix"
)

// stopped are tasks that CRIU keeps stopped, whose memory is read where it is. CRIU's page
// server has the same pages in pipes, and to hand one out it takes all from the beginning
// of its pipe and throws those away that it was not asked for.
//
// Nothing of the memory can change as long as CRIU is there. What it does not want to be
// read, as a mapping without PROT_READ, CRIU has read by other means: it has to be asked.
type stopped map[uint64]stoppedTask // by the pids in the images

// stoppedTask is one of them. The handle, a pidfd, tells whether the pid is still its; 0 is
// not to be read.
type stoppedTask struct{ pid, handle int }

// stoppedOf leaves out tasks that cannot be told from others. They are CRIU's to read.
func stoppedOf(tasks []Task) stopped {
	s := stopped{}
	for _, t := range tasks {
		handle, err := unix.PidfdOpen(t.Pid, 0)
		if err != nil {
			continue
		}
		if other, ok := s[uint64(t.Guest)]; ok {
			unix.Close(handle)
			s[uint64(t.Guest)] = stoppedTask{handle: other.handle} // which of them?
			continue
		}
		s[uint64(t.Guest)] = stoppedTask{t.Pid, handle}
	}
	return s
}

// read reads whole pages of a task from an address on. It returns how many bytes it has
// read: 0 where that cannot be done.
func (s stopped) read(task, address uint64, into []byte) int {
	t := s[task]
	if t.pid == 0 {
		return 0
	}
	n, err := unix.ProcessVMReadv(t.pid, []unix.Iovec{{Base: &into[0], Len: uint64(len(into))}},
		[]unix.RemoteIovec{{Base: uintptr(address), Len: len(into)}}, 0)
	// Where it is there now, what was read was its memory and not that of another process
	// with the same pid.
	if err != nil || unix.PidfdSendSignal(t.handle, 0, nil, 0) != nil {
		return 0
	}
	return n - n%os.Getpagesize()
}

func (s stopped) close() {
	for _, t := range s {
		unix.Close(t.handle)
	}
}
