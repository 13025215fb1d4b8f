// Package changes finds what of a tree of files has changed since a moment, by the
// times that the kernel keeps and nobody can set (inode(7), ctime): whoever has a
// copy from that moment on need not compare all of it again.
package changes

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ErrCannotTell says that times do not tell what has changed: all may have.
var ErrCannotTell = errors.New("what has changed cannot be told by times")

// Slack is how much earlier than a moment a file may claim to have been changed
// after it: the kernel takes a file's time from a clock that is up to a tick, some
// milliseconds, behind.
const Slack = 100 * time.Millisecond

// wholeSecond is the same where only seconds are kept (ext4 with small inodes).
const wholeSecond = time.Second

// Moment is a point of time by two clocks, of which one can be set.
type Moment struct {
	wall time.Time // without Go's monotonic reading
	boot time.Duration
}

// Now returns the present moment.
func Now() (Moment, error) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return Moment{}, fmt.Errorf("clock: %w", err)
	}
	return Moment{wall: time.Now().Round(0), boot: time.Duration(boot.Nano())}, nil
}

// steady tells whether nobody has set the clock between two moments by more than the
// slack can bear.
func (m Moment) steady(now Moment) bool {
	step := now.wall.Sub(m.wall) - (now.boot - m.boot)
	return step.Abs() < Slack/2
}

// Entry is something that may have changed.
type Entry struct {
	// Path is relative to the tree, without a dot in front; the tree itself is ".".
	Path string
	// Mode is that of stat(2), with the type. A directory is one to or from which
	// something may have come or gone. All directories below it are listed too, as it
	// may have come from elsewhere with all that is in it, but of the files there
	// only those that have changed themselves, and all names of a file that has more
	// than one where one of them is below such a directory.
	Mode uint32
	// Changed is false where only the file's name, or another name of it, may be new.
	Changed bool
}

// IsDir and IsRegular tell its type.
func (e Entry) IsDir() bool     { return e.Mode&unix.S_IFMT == unix.S_IFDIR }
func (e Entry) IsRegular() bool { return e.Mode&unix.S_IFMT == unix.S_IFREG }

// Since lists, in no order, what may have changed in a tree that somebody copies again and
// again: at first all of it, then what had changed by then. It lists what may have changed
// since last, the moment at which the last such copy began; first is that of the first one,
// the same if there was no other. Links are not followed, and mounts are. A file that is
// written through a shared mapping shows that only when it is written for the first time
// after its page was written back; on tmpfs, when it is written for the first time.
//
// If the tree changes meanwhile, directories that move may hide what is in them. Lists
// from later moments with the same first one have that.
//
// The error is ErrCannotTell on file systems whose times are not the kernel's own, and
// when the clock was set since.
func Since(tree *os.File, first, last Moment) ([]Entry, error) {
	if err := keepsTimes(tree); err != nil {
		return nil, err
	}
	now, err := Now()
	if err != nil {
		return nil, err
	}
	if !first.steady(now) || !last.steady(now) {
		return nil, fmt.Errorf("%w: the clock was set", ErrCannotTell)
	}
	w := walker{first: first.wall.Add(-Slack), last: last.wall.Add(-Slack), links: map[inode]*names{}}
	w.others.SetLimit(max(1, runtime.GOMAXPROCS(0)-1))
	var st unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", tree.Name(), err)
	}
	if changed(&st, w.last) {
		w.add(Entry{".", st.Mode, true})
	}
	// The tree itself has not come from elsewhere.
	if err := errors.Join(w.walk(tree, "", false), w.others.Wait()); err != nil {
		return nil, err
	}
	return append(w.found, w.namesakes()...), nil
}

// keepsTimes refuses what is on another machine, or is a file system above others.
func keepsTimes(tree *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(tree.Fd()), &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", tree.Name(), err)
	}
	known := []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC}
	if !slices.Contains(known, int64(fs.Type)) {
		return fmt.Errorf("%w: file system of type %#x", ErrCannotTell, fs.Type)
	}
	return nil
}

type walker struct {
	first  time.Time      // for files that may have come from elsewhere
	last   time.Time      // for all else
	others errgroup.Group // that go through directories, too

	mu    sync.Mutex // of what follows
	found []Entry
	links map[inode]*names
}

type inode struct{ dev, ino uint64 }

// names are those of a file that has not changed itself; moved says that one of them
// may be new.
type names struct {
	entries []Entry
	moved   bool
}

// namesakes lists the names of files of which one may be new: who makes the new ones
// has to know whose they are.
func (w *walker) namesakes() []Entry {
	var found []Entry
	for _, l := range w.links {
		if l.moved && len(l.entries) > 1 {
			found = append(found, l.entries...)
		}
	}
	return found
}

// changed tells whether something has from a moment on.
func changed(st *unix.Stat_t, since time.Time) bool {
	at := time.Unix(st.Ctim.Unix())
	if st.Ctim.Nsec == 0 {
		at = at.Add(wholeSecond)
	}
	return !at.Before(since)
}

func (w *walker) add(e Entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found = append(w.found, e)
}

// walk goes through a directory; all has it list every directory below.
func (w *walker) walk(dir *os.File, path string, all bool) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", path+name, err)
		}
		late := changed(&st, w.last)
		e := Entry{path + name, st.Mode, late}
		if all && !e.IsDir() {
			e.Changed = changed(&st, w.first)
		}
		if e.Changed || all && e.IsDir() {
			w.add(e)
		}
		if !e.IsDir() {
			if !late {
				w.link(e, &st, all)
			}
			continue
		}
		if err := w.enter(dir, name, path, all || e.Changed); err != nil {
			return err
		}
	}
	return nil
}

// link remembers a file's name. All names of one that has changed late are found by that.
func (w *walker) link(e Entry, st *unix.Stat_t, moved bool) {
	if st.Nlink < 2 {
		return
	}
	key := inode{st.Dev, st.Ino}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.links[key] == nil {
		w.links[key] = &names{}
	}
	w.links[key].entries = append(w.links[key].entries, e)
	w.links[key].moved = w.links[key].moved || moved
}

func (w *walker) enter(parent *os.File, name, path string, all bool) error {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path+name, err)
	}
	dir := os.NewFile(uintptr(fd), path+name)
	walk := func() error {
		defer dir.Close()
		return w.walk(dir, path+name+"/", all)
	}
	if w.others.TryGo(walk) {
		return nil
	}
	return walk()
}
