package preflight

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mappings reads which files a process has mapped that are more than a program
// or library that is still there.
func (l *looker) mappings(proc *os.File, t *Task) error {
	fd, err := unix.Openat(int(proc.Fd()), "maps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	maps := os.NewFile(uintptr(fd), "maps")
	defer maps.Close()
	seen := map[string]bool{}
	in := bufio.NewReaderSize(io.LimitReader(maps, maxText), 64<<10)
	for n := 0; ; n++ {
		line, more, err := in.ReadLine()
		if err != nil {
			// The end, or one that has ended meanwhile.
			return nil
		}
		for more && err == nil {
			_, more, err = in.ReadLine() // a name longer than any that matters
		}
		if n%1000 == 999 && l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		area, name, ok := specialMapping(string(line))
		if !ok || seen[name] {
			continue
		}
		if l.count++; l.count > maxFiles {
			l.facts.Unseen++
			continue
		}
		seen[name] = true
		f, err := readFile(int(proc.Fd()), "map_files/"+area)
		if err != nil {
			f = File{Link: name} // not a file that can be looked at
		}
		f.FD = -1
		t.Maps = append(t.Maps, f)
	}
}

// specialMapping decides on a line of /proc/PID/maps, proc_pid_maps(5): one of a
// device, an anonymous inode or a file without a name.
func specialMapping(line string) (area, name string, ok bool) {
	slash := strings.IndexByte(line, '/')
	if i := strings.Index(line, "anon_inode:"); i >= 0 && (slash < 0 || i < slash) {
		slash = i
	}
	if slash < 0 {
		return "", "", false
	}
	name = line[slash:]
	if !strings.HasPrefix(name, "anon_inode:") && !strings.HasPrefix(name, "/dev/") && !strings.HasSuffix(name, " (deleted)") {
		return "", "", false
	}
	area, _, _ = strings.Cut(line, " ")
	return area, name, true
}

// mounts reads the mount tables of all mount namespaces, each once.
func (l *looker) mounts() error {
	seen := map[uint64]bool{}
	for i, t := range l.facts.Tasks {
		ns := t.Namespaces["mnt"]
		if seen[ns] || ns == 0 {
			continue
		}
		seen[ns] = true
		l.next(t.Pid)
		f, err := os.Open("/proc/" + strconv.Itoa(t.Pid) + "/mountinfo")
		if gone(err) {
			seen[ns] = false
			continue
		}
		if err != nil {
			return fmt.Errorf("look at mounts: %w", err)
		}
		mounts, err := readMounts(io.LimitReader(f, maxText), ns, i)
		f.Close()
		if err != nil {
			return fmt.Errorf("look at mounts of process %d: %w", t.Pid, err)
		}
		l.facts.Mounts = append(l.facts.Mounts, mounts...)
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
	return nil
}

func readMounts(r io.Reader, ns uint64, task int) ([]Mount, error) {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, err
	}
	mounts := make([]Mount, 0, len(infos))
	for _, m := range infos {
		mounts = append(mounts, Mount{
			ID: uint64(m.ID), Namespace: ns, Device: strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor),
			Root: m.Root, Place: m.Mountpoint, FS: m.FSType, Task: task,
		})
	}
	return mounts, nil
}
