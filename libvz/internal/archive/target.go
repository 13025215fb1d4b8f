package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Target is where an archive is written. Until the Writer commits there is
// nothing under the target's name.
type Target interface {
	io.Writer
	// wholeHash is where the target wants all bytes of the tar; nil = nowhere.
	wholeHash() hash.Hash
	commit(whole hash.Hash) error
	// Discard gives up what was not committed, and is idempotent.
	Discard()
}

// ToFile writes a new file, for nobody but its owner to read. Where the file
// system can do that the file has no name until it is whole (O_TMPFILE,
// open(2)), so that a process that is killed leaves nothing; elsewhere it leaves
// a hidden one, which the next call for the same path removes. A file that is
// there is never replaced: that is an error that wraps fs.ErrExist.
func ToFile(path string) (Target, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	f := &file{path: path}
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR):
		if err := sweep(dir, hiddenName(path), unix.S_IFREG, removeFile); err != nil {
			return nil, err
		}
		f.hidden, f.File, err = lockedFile(dir, hiddenName(path))
		return f, err
	case err != nil:
		return nil, &os.PathError{Op: "create archive in", Path: dir, Err: err}
	}
	f.File = os.NewFile(uintptr(fd), path)
	return f, nil
}

type file struct {
	*os.File
	path   string
	hidden string // its name until it is whole; "" = it has none
	pushed pushed
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.pushed.push(f.File, n)
	return n, err
}

// pushed is how much of a new file is on its way to the disk, and how much was
// written. The file is to be synced, and so little is left to do then.
type pushed struct{ begun, written int64 }

// pushSize is how many bytes are sent on their way at a time.
const pushSize = 8 << 20

func (p *pushed) push(f *os.File, n int) {
	p.written += int64(n)
	if p.written-p.begun < pushSize {
		return
	}
	// An error is what the sync finds, too.
	unix.SyncFileRange(int(f.Fd()), p.begun, p.written-p.begun, unix.SYNC_FILE_RANGE_WRITE) //nolint:errcheck // see above
	p.begun = p.written
}

func (f *file) wholeHash() hash.Hash { return nil }

func (f *file) commit(hash.Hash) error {
	if err := f.Sync(); err != nil {
		return err
	}
	var err error
	if f.hidden == "" {
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, f.hidden, unix.AT_FDCWD, f.path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return &os.PathError{Op: "name archive", Path: f.path, Err: err}
	}
	f.hidden = ""
	f.Close() //nolint:errcheck // it is synced
	return syncDir(filepath.Dir(f.path))
}

func (f *file) Discard() {
	f.Close() //nolint:errcheck // nobody wants it
	if f.hidden != "" {
		os.Remove(f.hidden)
	}
}

// hiddenName begins the names of what is not yet what path is to be.
func hiddenName(path string) string { return "." + filepath.Base(path) + ".vzrun-" }

func lockedFile(dir, prefix string) (string, *os.File, error) {
	return makeLocked(dir, prefix, func(path string) (*os.File, error) {
		return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	})
}

// makeTries bounds how often something is made anew that another sweep has removed.
const makeTries = 100

// errSwept says that a sweep was between the making of something and its lock.
var errSwept = errors.New("removed by another vzrun")

// makeLocked has create make something with a new name, and locks it. Before the lock
// another sweep takes it for what a killed process has left: then it is made again.
func makeLocked(dir, prefix string, create func(path string) (*os.File, error)) (path string, f *os.File, err error) {
	for range makeTries {
		path = filepath.Join(dir, prefix+rand.Text())
		if f, err = create(path); err == nil {
			if err = lock(f, path); err == nil {
				return path, f, nil
			}
			f.Close()
			os.Remove(path) // perhaps the sweep could not
		}
		if !errors.Is(err, errSwept) {
			break
		}
	}
	return "", nil, err
}

// lock locks a file, which must still be the one at the path then.
func lock(f *os.File, path string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return errSwept
	} else if err != nil {
		return &os.PathError{Op: "lock", Path: path, Err: err}
	}
	var is, was unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &was); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if unix.Lstat(path, &is) != nil || is.Dev != was.Dev || is.Ino != was.Ino {
		return errSwept
	}
	return nil
}

// Remover removes what is named in a directory with all that is in it, never
// through a mount.
type Remover func(dir, name string) error

func removeFile(dir, name string) error { return os.Remove(filepath.Join(dir, name)) }

// sweep removes what processes that were killed have left: files of one kind
// (unix.S_IFDIR, ...) whose names begin with prefix, and that nobody has locked. The
// directory may be everybody's, such as /var/tmp: what others have put there, or
// mounted, is not touched, and what cannot be removed waits for the next sweep.
func sweep(dir, prefix string, kind uint32, remove Remover) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer parent.Close()
	for _, e := range entries {
		if len(e.Name()) <= len(prefix) || e.Name()[:len(prefix)] != prefix {
			continue
		}
		if f := openOwn(parent, e.Name(), kind); f != nil {
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				_ = remove(dir, e.Name())
			}
			f.Close()
		}
	}
	return nil
}

// openOwn opens a file of that kind that is ours; nil = it is not. No mount is asked:
// whoever serves a file system may let us wait for ever.
func openOwn(parent *os.File, name string, kind uint32) *os.File {
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != kind || int(st.Uid) != os.Geteuid() {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// Folder is a private directory for what is on its way into an archive or out of
// it. It is locked, so that one that a killed process has left can be told from
// one that is in use.
type Folder struct {
	Path   string
	lock   *os.File
	remove Remover
}

// NewFolder makes one in parent, closed to all others, after it has removed those
// of the same prefix that killed processes have left there.
func NewFolder(parent, prefix string, remove Remover) (*Folder, error) {
	if err := sweep(parent, prefix, unix.S_IFDIR, remove); err != nil {
		return nil, err
	}
	path, f, err := makeLocked(parent, prefix, makeFolder)
	if err != nil {
		return nil, err
	}
	return &Folder{Path: path, lock: f, remove: remove}, nil
}

func makeFolder(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errSwept
	}
	if err != nil {
		os.Remove(path)
	}
	return f, err
}

// Rename gives the folder the name that it was made for, in the same directory,
// and durably. It is then no longer removed.
func (f *Folder) Rename(path string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, f.Path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return &os.PathError{Op: "name", Path: path, Err: err}
	}
	f.Path = ""
	f.lock.Close() //nolint:errcheck // a lock, nothing is written
	return syncDir(filepath.Dir(path))
}

// Remove removes the folder with all that is in it. A second call does nothing.
func (f *Folder) Remove() error {
	if f == nil || f.Path == "" {
		return nil
	}
	defer f.lock.Close()
	path := f.Path
	f.Path = ""
	return f.remove(filepath.Dir(path), filepath.Base(path))
}

// Release lets go of a folder that others remove: the next NewFolder, at last.
func (f *Folder) Release() {
	if f.Path != "" {
		f.Path = ""
		f.lock.Close() //nolint:errcheck // a lock
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
