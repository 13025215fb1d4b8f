package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// imageLocks are locks, flock(2), on directories of images. Who writes or uses up
// what is in one has it alone; who reads shares it, as many clones may start from
// one. The kernel frees them whatever becomes of vzrun, and no child has them. The
// zero value has none.
//
// Only directories are locked, which need not be writable, so read-only media are
// as good as others.
type imageLocks []*os.File

// take locks directories without waiting, unix.LOCK_EX or LOCK_SH. The error wraps
// ErrBusy where somebody is at work there.
func (l *imageLocks) take(how int, dirs ...string) error {
	for _, dir := range dirs {
		d, err := flockDir(dir, how)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK) && how == unix.LOCK_EX:
			return withHint("wait until it is done, or give --image-path another directory",
				"%w: another checkpoint or a restore is at work on the images in %s", ErrBusy, dir)
		case errors.Is(err, unix.EWOULDBLOCK):
			return withHint("wait until it is done and try again", "%w: a checkpoint writes into %s", ErrBusy, dir)
		case err != nil:
			return fmt.Errorf("lock image directory: %w", err)
		}
		*l = append(*l, d)
	}
	return nil
}

// Close frees the locks. A second call does nothing.
func (l *imageLocks) Close() {
	for _, d := range *l {
		d.Close()
	}
	*l = nil
}

// flockDir opens and locks a directory. One that has been moved or replaced
// meanwhile is no longer what the caller means: then it tries again.
func flockDir(dir string, how int) (*os.File, error) {
	for {
		d, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), how|unix.LOCK_NB); err != nil && !knowsNoLocks(err) {
			d.Close()
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
		}
		mine, err := d.Stat()
		if err != nil {
			d.Close()
			return nil, err
		}
		there, err := os.Stat(dir)
		if err == nil && os.SameFile(mine, there) {
			return d, nil
		}
		d.Close()
		if err != nil {
			return nil, err
		}
	}
}

// knowsNoLocks tells whether a file system has no locks for directories. Images are
// as good there as they are without: nobody is told, since nobody could do better.
// Linux keeps locks of directories itself for nearly all, NFS among them: those
// others hold on another machine are not seen there.
func knowsNoLocks(err error) bool {
	for _, e := range []error{unix.ENOLCK, unix.EBADF, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openCheckpoint is openCheckpoint with locks on all that is read: one that is
// replaced meanwhile would be taken away. A restore that uses the images up has them
// alone.
func (l *imageLocks) openCheckpoint(images string, usesUp bool) (string, *manifest, []string, error) {
	how := unix.LOCK_SH
	if usesUp {
		how = unix.LOCK_EX
	}
	images, err := filepath.Abs(images)
	if err != nil {
		return "", nil, nil, err
	}
	// What is not there, or no directory, is for openCheckpoint to say.
	if err := l.take(how, images); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return "", nil, nil, err
	}
	images, m, chain, err := openCheckpoint(images)
	if err == nil {
		err = l.take(how, chain[1:]...)
	}
	return images, m, chain, err
}

// openImages makes the directory of a checkpoint, or finds in it the one that it
// replaces, and has it alone until d.close. What it builds on is read, or made
// smaller.
func (d *dumpPlan) openImages(images string, o CheckpointOptions) (replaces bool, err error) {
	parents, err := d.manifest.checkParent(images)
	if err != nil {
		return false, err
	}
	if err := d.haveAlone(images); err != nil {
		return false, err
	}
	if replaces = d.manifest.replaces(images, o); !replaces {
		if err := newImageDir(images); err != nil {
			return false, err
		}
	}
	how := unix.LOCK_SH
	if o.AutoDedup {
		how = unix.LOCK_EX
	}
	return replaces, d.locks.take(how, parents...)
}

// haveAlone locks the directory of a checkpoint, which is made if need be, before
// anybody looks whether there is something in it: CRIU's first image comes late.
func (d *dumpPlan) haveAlone(images string) error {
	if err := makeImageDir(images); err != nil {
		return err
	}
	return d.locks.take(unix.LOCK_EX, images)
}

// othersImages tells whether what lies in the directory of a checkpoint that was
// killed is another container's, and keeps that so until the locks are closed. The
// killed one had written nothing yet then: who came after it would have been refused.
func othersImages(e *store.Entry) (locks imageLocks, _ bool) {
	op := e.Operation
	if op.Images == "" || op.Replaces || op.Step == stepCommitted {
		return nil, false
	}
	// A restore does not count: it can only have begun with what is to go. Any
	// other error must not keep the container from being freed.
	if err := locks.take(unix.LOCK_SH, op.Images); errors.Is(err, ErrBusy) {
		return nil, true
	}
	m, err := loadManifest(op.Images)
	return locks, err == nil && m.Spec != nil && (m.ID != e.ID || e.UUID != "" && containerUUID(m.Spec) != e.UUID)
}
