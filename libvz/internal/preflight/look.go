package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultTimeout = 5 * time.Second
	// maxTimeouts bounds all of a look, at however many processes.
	maxTimeouts = 12
	// maxFiles bounds the descriptors and mappings that are kept, in all.
	maxFiles = 250_000
	// maxText bounds what is read of one file of a process.
	maxText = 32 << 20
)

// Look gathers the facts about a guest. Processes that end meanwhile are left out;
// if the init has ended it returns an error that wraps fs.ErrNotExist, and ErrStuck
// if one of them takes longer than g.Timeout, or all of them twelve times that. It
// changes nothing.
func Look(ctx context.Context, g Guest) (*Facts, error) {
	if g.Timeout == 0 {
		g.Timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxTimeouts*g.Timeout, ErrStuck)
	defer cancel()
	ctx, stuck := context.WithCancelCause(ctx)
	defer stuck(nil)
	patience := time.AfterFunc(g.Timeout, func() { stuck(ErrStuck) })
	defer patience.Stop()
	type result struct {
		facts *Facts
		err   error
	}
	done := make(chan result, 1)
	var at atomic.Int64 // the process that is looked at
	// A process may hold up who reads its memory map. Who waits is left behind
	// and ends with it.
	go func() {
		l := &looker{ctx: ctx, locks: g.Locks, facts: &Facts{Outside: g.Outside, Frozen: g.Frozen, Sockets: map[uint64]Socket{}}}
		l.next = func(pid int) {
			at.Store(int64(pid))
			patience.Reset(g.Timeout)
		}
		done <- result{l.facts, l.look(g)}
	}()
	select {
	case r := <-done:
		if r.err == nil {
			return r.facts, nil
		}
		if ctx.Err() == nil {
			return nil, r.err
		}
	case <-ctx.Done():
	}
	if errors.Is(context.Cause(ctx), ErrStuck) {
		return nil, fmt.Errorf("process %d: %w (%v)", at.Load(), ErrStuck, g.Timeout)
	}
	return nil, ctx.Err()
}

// looker is one Look.
type looker struct {
	ctx   context.Context
	facts *Facts
	locks bool          // whether to look for them
	count int           // of descriptors and mappings
	next  func(pid int) // is told whose turn it is
}

func (l *looker) look(g Guest) error {
	if err := l.tasks(g); err != nil {
		return err
	}
	// Twice, and the files between: see Socket.Peered.
	before, err := l.sockets()
	if err != nil {
		return err
	}
	if err := l.files(); err != nil {
		return err
	}
	if l.facts.Sockets, err = l.sockets(); err != nil {
		return err
	}
	for inode, s := range l.facts.Sockets {
		_, was := before[s.Peer]
		_, is := l.facts.Sockets[s.Peer]
		if s.Peered = s.Peer != 0 && was && is; s.Peered {
			l.facts.Sockets[inode] = s
		}
	}
	looks := []func() error{l.mounts, l.queues}
	if g.OwnNetwork {
		looks = append(looks, l.links)
	}
	if g.JoinedCgroups {
		looks = append(looks, l.cgroups)
	}
	for _, look := range looks {
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		if err := look(); err != nil {
			return err
		}
	}
	return nil
}

// tasks names the processes, the init first.
func (l *looker) tasks(g Guest) error {
	for _, pid := range append([]int{g.Init}, g.Pids...) {
		if pid == g.Init && len(l.facts.Tasks) > 0 {
			continue
		}
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		l.next(pid)
		t, err := ReadTask(pid)
		switch {
		case err == nil:
			l.facts.Tasks = append(l.facts.Tasks, t)
		case pid == g.Init:
			return fmt.Errorf("look at init: %w", err)
		case !gone(err):
			return fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return nil
}

// files looks at what the tasks have open and mapped.
func (l *looker) files() error {
	for i := range l.facts.Tasks {
		t := &l.facts.Tasks[i]
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		l.next(t.Pid)
		if err := l.filesOf(t); err != nil && !gone(err) {
			return fmt.Errorf("look at process %d: %w", t.Pid, err)
		}
	}
	return nil
}

func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

func (l *looker) filesOf(t *Task) error {
	proc, err := os.Open("/proc/" + strconv.Itoa(t.Pid))
	if err != nil {
		return err
	}
	defer proc.Close()
	if err := l.descriptors(proc, t); err != nil {
		return err
	}
	return l.mappings(proc, t)
}

// ReadTask reads what names a process, without its files.
func ReadTask(pid int) (Task, error) {
	t := Task{Pid: pid, Namespaces: map[string]uint64{}}
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return t, err
	}
	parseStatus(string(status), &t)
	if stat, err := os.ReadFile(proc + "stat"); err == nil {
		t.Terminal = terminalIn(string(stat))
	}
	for _, kind := range []string{"uts", "ipc", "pid", "user", "net", "mnt", "time", "time_for_children", "cgroup"} {
		// The link reads kind:[inode], namespaces(7).
		var buf [64]byte
		n, err := unix.Readlink(proc+"ns/"+kind, buf[:])
		if err != nil {
			continue // one that has ended and not been waited for has none
		}
		_, t.Namespaces[kind] = parseNamespace(string(buf[:n]))
	}
	if text, err := os.ReadFile(proc + "cgroup"); err == nil {
		t.Unit = unitIn(string(text))
	}
	return t, nil
}

// parseNamespace reads such a link; kind is empty where it is none.
func parseNamespace(link string) (kind string, number uint64) {
	kind, rest, _ := strings.Cut(link, ":[")
	number, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
	if err != nil || kind == "" || strings.ContainsRune(kind, '/') {
		return "", 0
	}
	return kind, number
}

// parseStatus reads /proc/PID/status, proc_pid_status(5).
func parseStatus(text string, t *Task) {
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case len(fields) == 0:
		case key == "Name":
			t.Command = clean(strings.TrimSpace(value), textLimit)
		case key == "PPid":
			t.Parent, _ = strconv.Atoi(fields[0])
		case key == "TracerPid":
			t.Tracer, _ = strconv.Atoi(fields[0])
		case key == "NSpid":
			t.Guest, _ = strconv.Atoi(fields[min(1, len(fields)-1)])
		}
	}
}

// terminalIn finds the controlling terminal in /proc/PID/stat, proc_pid_stat(5).
func terminalIn(stat string) uint64 {
	// What is in parentheses is the guest's to choose.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const at = 4 // after the name: state, parent, process group, session
	if len(fields) <= at {
		return 0
	}
	number, err := strconv.ParseInt(fields[at], 10, 32)
	if err != nil || number == 0 {
		return 0
	}
	// Bits 31 to 20 and 7 to 0 are the minor number.
	n := uint32(number)
	return unix.Mkdev(n>>8&0xfff, n&0xff|n>>12&0xfff00)
}

// unitIn finds the unit in /proc/PID/cgroup: by cgroup2, cgroups(7).
func unitIn(text string) string {
	for line := range strings.Lines(text) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return UnitOf(p)
		}
	}
	return ""
}

// descriptors reads the open files of a process.
func (l *looker) descriptors(proc *os.File, t *Task) error {
	fd, err := unix.Openat(int(proc.Fd()), "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "fd")
	defer dir.Close()
	self := "/proc/self/fd/" + strconv.Itoa(fd) + "/"
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if l.count >= maxFiles {
				l.facts.Unseen++
				continue
			}
			f, err := readFile(fd, name)
			if err != nil {
				continue // closed meanwhile
			}
			l.count++
			f.FD, _ = strconv.Atoi(name)
			if f.Mode&unix.S_IFMT == unix.S_IFSOCK {
				f.Protocol = protocolOf(self + name)
			}
			f.Locked = l.locks && mayBeLocked(f.Mode) && hasLock(proc, name)
			t.Files = append(t.Files, f)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
}

// mayBeLocked: others can be with flock(2), but who does.
func mayBeLocked(mode uint32) bool {
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFREG || kind == unix.S_IFDIR || kind == unix.S_IFCHR
}

// hasLock reads what the kernel says of a descriptor, proc_pid_fdinfo(5). CRIU does, too.
func hasLock(proc *os.File, name string) bool {
	fd, err := unix.Openat(int(proc.Fd()), "fdinfo/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // closed meanwhile
	}
	defer unix.Close(fd)
	// Locks come after a few short lines.
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	return err == nil && bytes.Contains(buf[:n], []byte("\nlock:"))
}

// readFile looks at one of the links in /proc/PID/fd or map_files, without asking
// the file system that it leads to.
func readFile(dir int, name string) (File, error) {
	var buf [256]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
		return File{}, err
	}
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_INO | unix.STATX_BLOCKS | unix.STATX_MNT_ID
	if err := unix.Statx(dir, name, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, want, &st); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			// A file system that is gone has no answer: the link alone will do.
			return File{Link: string(buf[:max(n, 0)])}, nil
		}
		return File{}, err
	}
	return File{
		Link: string(buf[:max(n, 0)]), Mode: uint32(st.Mode), Device: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		On: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino, Names: st.Nlink, Size: st.Blocks * 512, Mount: st.Mnt_id,
	}, nil
}

// protocolOf asks the kernel what a socket is, as lsof(8) does: sockfs has one
// attribute, the name of the protocol.
func protocolOf(link string) string {
	var buf [64]byte
	n, err := unix.Getxattr(link, "system.sockprotoname", buf[:])
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}
