package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// freezePatience is how long a guest may take to be frozen before the freezing
	// is left to CRIU, which then is no slower: it looks this often.
	freezePatience = 100 * time.Millisecond
	// freezeTick is how often is looked: a v1 freezer tells nobody.
	freezeTick = 500 * time.Microsecond
)

// freezer freezes a cgroup before CRIU looks at it. CRIU asks for it, looks at
// once, when no task can have stopped yet, and sleeps for 100 ms before it looks
// again; the guest stands still all that time. So it is given a stand-in, a
// directory whose files say what those of a cgroup would, only sooner, and the
// cgroup itself is thawed when CRIU says so to the stand-in. CRIU still finds a
// cgroup that ran, and leaves one that runs, if this process is killed.
//
// The methods are for one goroutine; a nil freezer does nothing. A cgroup that was thawed once is not touched
// any more until the next freeze: who has it frozen for good does so after that.
type freezer struct {
	cgroup string
	files  freezerFiles
	place  *os.File // a file system that nobody else sees
	frozen bool     // by us
	since  time.Time
	// held is for how long it was frozen the last time.
	held time.Duration
	said *os.File      // inotify: CRIU has written to the stand-in
	over chan struct{} // closed when nobody listens to that any more
}

// freezerFiles are the files of a cgroup that CRIU uses (criu/seize.c), and what
// it writes to and reads from them.
type freezerFiles struct {
	state, tasks   string
	frozen, thawed string
	// events, where not "", says when it has come about.
	events, happened string
}

// What is in a place: the stand-in, and a link to it or to the cgroup.
const (
	standIn    = "stand-in"
	freezerNow = "cgroup"
)

func freezerFilesOf(cgroup string) freezerFiles {
	// A cgroup that the guest has made may be named so.
	if st, err := os.Stat(filepath.Join(cgroup, "freezer.state")); err == nil && st.Mode().IsRegular() {
		return freezerFiles{state: "freezer.state", tasks: "tasks", frozen: "FROZEN", thawed: "THAWED"}
	}
	return freezerFiles{
		state: "cgroup.freeze", tasks: "cgroup.threads", frozen: "1", thawed: "0",
		events: "cgroup.events", happened: "frozen 1\n",
	}
}

// newFreezer returns nil where there is no room for a stand-in: CRIU then gets
// the cgroup.
func newFreezer(cgroup string) *freezer {
	place, err := privateTmpfs()
	if err != nil {
		return nil
	}
	f := &freezer{cgroup: cgroup, files: freezerFilesOf(cgroup), place: place}
	if err := f.pointTo(cgroup); err != nil {
		place.Close()
		return nil
	}
	return f
}

// privateTmpfs opens the root of a file system that is mounted nowhere and goes
// when it is closed.
func privateTmpfs() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "mode", "0700"); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(root), "tmpfs"), nil
}

// in names a place of it, for CRIU as well.
func (f *freezer) in(name string) string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), f.place.Fd(), name)
}

func (f *freezer) path() string { return f.in(freezerNow) }

func (f *freezer) pointTo(place string) error {
	if err := os.Symlink(place, f.in("next")); err != nil {
		return err
	}
	return os.Rename(f.in("next"), f.path())
}

// freeze freezes the cgroup and shows CRIU the stand-in, where that is quickly
// done; else all is left to CRIU: a cgroup that is frozen already as well.
func (f *freezer) freeze() error {
	if f == nil {
		return nil
	}
	f.held = 0
	if err := f.thaw(); err != nil {
		return err
	}
	if err := f.pointTo(f.cgroup); err != nil {
		return err
	}
	if f.read() != f.files.thawed || f.write(f.files.frozen) != nil {
		return nil // CRIU meets the same error, and explains it
	}
	f.since, f.frozen = time.Now(), true
	if !f.awaitFrozen() || f.showStandIn() != nil {
		return f.thaw()
	}
	return nil
}

// thaw undoes freeze, where CRIU has not had it undone. It is idempotent.
func (f *freezer) thaw() error {
	if f == nil {
		return nil
	}
	if f.said != nil {
		f.said.Close()
		<-f.over
		f.said = nil
	}
	if !f.frozen {
		return nil
	}
	if err := f.write(f.files.thawed); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("thaw: %w", err)
	}
	f.thawed()
	return nil
}

func (f *freezer) thawed() {
	f.held = time.Since(f.since)
	f.frozen = false
}

func (f *freezer) isHeld() bool { return f != nil && f.frozen }

// heldFor says for how long it was frozen the last time.
func (f *freezer) heldFor() time.Duration {
	if f == nil {
		return 0
	}
	return f.held
}

func (f *freezer) close() {
	if f != nil {
		f.place.Close()
	}
}

func (f *freezer) awaitFrozen() bool {
	for time.Since(f.since) < freezePatience {
		if f.isFrozen() {
			return true
		}
		time.Sleep(freezeTick)
	}
	return false
}

func (f *freezer) isFrozen() bool {
	if f.files.events == "" {
		return f.read() == f.files.frozen
	}
	events, err := os.ReadFile(filepath.Join(f.cgroup, f.files.events))
	return err == nil && bytes.Contains(append([]byte("\n"), events...), []byte("\n"+f.files.happened))
}

// read says what state the cgroup is in: "" when it cannot be read.
func (f *freezer) read() string {
	text, err := os.ReadFile(filepath.Join(f.cgroup, f.files.state))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

func (f *freezer) write(state string) error {
	return os.WriteFile(filepath.Join(f.cgroup, f.files.state), []byte(state), 0)
}

// showStandIn makes a stand-in that says it is thawed, and frozen as soon as CRIU
// asks for that. It has the tasks of the cgroup and of those below, under numbers:
// the guest has chosen their names.
func (f *freezer) showStandIn() error {
	dir := f.in(standIn)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	links := []string{f.files.tasks}
	entries, err := os.ReadDir(f.cgroup)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			links = append(links, e.Name())
		}
	}
	for n, name := range links {
		link := strconv.Itoa(n)
		if n == 0 {
			link = name
		}
		if err := os.Symlink(filepath.Join(f.cgroup, name), filepath.Join(dir, link)); err != nil {
			return err
		}
	}
	if f.files.events != "" {
		if err := os.WriteFile(filepath.Join(dir, f.files.events), []byte(f.files.happened), 0o600); err != nil {
			return err
		}
	}
	state := filepath.Join(dir, f.files.state)
	if err := os.WriteFile(state, []byte(f.files.thawed+"\n"), 0o600); err != nil {
		return err
	}
	if err := f.listen(state); err != nil {
		return err
	}
	return f.pointTo(standIn)
}

// listen thaws the cgroup when CRIU says so to a file.
func (f *freezer) listen(state string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init", err)
	}
	said := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, state, unix.IN_MODIFY); err != nil {
		said.Close()
		return os.NewSyscallError("inotify_add_watch", err)
	}
	f.said, f.over = said, make(chan struct{})
	go func() {
		defer close(f.over)
		events := make([]byte, 4096)
		for f.frozen {
			if _, err := said.Read(events); err != nil {
				return
			}
			// CRIU fills up with zeroes what it writes.
			text, err := os.ReadFile(state)
			if err == nil && bytes.HasPrefix(text, []byte(f.files.thawed+"\x00")) && f.write(f.files.thawed) == nil {
				f.thawed()
			}
		}
	}()
	return nil
}
