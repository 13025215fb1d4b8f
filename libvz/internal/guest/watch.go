package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// newWatch returns an inotify descriptor. It is the host's: the guest cannot see
// it and CRIU does not save it.
func newWatch() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// bootEvents are what watchDirs is to tell of files whose contents count.
const bootEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_ATTRIB

// watchDirs watches a directory and those above it, as far as they are there.
// Repeating it on a directory that is watched already changes nothing
// (inotify(7)).
//
// The uppermost comes first: what is not there yet when its turn comes is made
// under the eyes of the watch above it.
func (w *waiter) watchDirs(events *os.File, dir string, mask uint32) error {
	way := []string{dir}
	for dir != "/" {
		dir = path.Dir(dir)
		way = append(way, dir)
	}
	for _, dir := range slices.Backward(way) {
		if err := w.watchDir(events, dir, mask); err != nil && !absent(err) {
			return fmt.Errorf("watch %s of the guest: %w", dir, err)
		}
	}
	return nil
}

func (w *waiter) watchDir(events *os.File, dir string, mask uint32) error {
	d, err := openIn(w.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	n, err := unix.InotifyAddWatch(int(events.Fd()), fmt.Sprintf("/proc/self/fd/%d", d.Fd()), mask|unix.IN_ONLYDIR)
	if err == nil && n > maxWatches {
		err = errors.New("it is another one again and again")
	}
	return err
}

// waitEvent returns after an event, or after timeout if it is not 0, or with an
// error when ctx ends.
func waitEvent(ctx context.Context, events *os.File, timeout time.Duration) error {
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	if err := events.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // as above
	defer stop()
	var buf [16 << 10]byte
	_, err := events.Read(buf[:])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
