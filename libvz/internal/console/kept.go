package console

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// KeptSize is the size in bytes of what NewKept returns.
const KeptSize = 256 << 10

// keptSeals let neither the guest's root nor anybody else make it larger or
// smaller.
const keptSeals = unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// NewKept returns a file that keeps the first KeptSize bytes of what the guest
// of a detached container writes to its standard output: a memory file of a
// fixed size (memfd_create(2), F_ADD_SEALS). Nobody has to read it for the guest
// to go on, what the guest writes is charged to its own memory limit, and CRIU
// saves it with the processes that have it open.
func NewKept() (_ *os.File, err error) {
	fd, err := unix.MemfdCreate("vzrun-console", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "kept output")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := f.Truncate(KeptSize); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, keptSeals); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// OpenKept returns the file that keeps the output of a process, fs.ErrNotExist
// where its standard output and error are none. The descriptor is got from the
// process, not opened: whatever it has put there is not touched.
func OpenKept(pidfd *os.File) (*os.File, error) {
	for target := 1; target <= 2; target++ {
		fd, err := unix.PidfdGetfd(int(pidfd.Fd()), target, 0)
		if errors.Is(err, unix.EBADF) {
			continue // it has closed it
		}
		if errors.Is(err, unix.ESRCH) {
			return nil, fs.ErrNotExist
		}
		if err != nil {
			return nil, os.NewSyscallError("pidfd_getfd", err)
		}
		f := os.NewFile(uintptr(fd), "kept output")
		if isKept(f) {
			return f, nil
		}
		f.Close()
	}
	return nil, fs.ErrNotExist
}

func isKept(f *os.File) bool {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&keptSeals != keptSeals {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Size() == KeptSize
}

// keptLook is how often a follower looks: a memory file tells of no changes
// (it is opened with FMODE_NONOTIFY).
const keptLook = 200 * time.Millisecond

// CopyKept is CopyLog for a file that OpenKept returned.
func CopyKept(ctx context.Context, w io.Writer, f *os.File, lines int, follow bool) error {
	text, err := keptText(f)
	if err != nil {
		return err
	}
	if _, err := w.Write(Tail(text, lines)); err != nil || !follow {
		return err
	}
	tick := time.NewTicker(keptLook)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			over = true // and look once more
		}
		now, err := keptText(f)
		if err != nil {
			return err
		}
		if len(now) > len(text) {
			if _, err := w.Write(now[len(text):]); err != nil {
				return err
			}
		}
		text = now
	}
	return nil
}

// keptText reads up to the last byte that was written.
func keptText(f *os.File) ([]byte, error) {
	text := make([]byte, KeptSize)
	n, err := f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return bytes.TrimRight(text[:n], "\x00"), nil
}
