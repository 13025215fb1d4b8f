package libvz

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
)

// task is one process of a guest, as a check before the dump sees it.
type task struct {
	Pid, Parent int // in the caller's pid namespace
	Guest       int // in the guest's pid namespace
	Command     string
	Unit        string // systemd unit, "" where the cgroup names none
	// Namespaces maps uts, ipc, pid and user to inode numbers.
	Namespaces map[string]uint64
}

// obstacle is one thing that CRIU would refuse, or lose.
type obstacle struct {
	Task         task
	What, Remedy string
}

// nested says which unit setting gives a service a namespace of its own that
// CRIU cannot save below the container's, systemd.exec(5).
func nested() []struct{ ns, setting string } {
	return []struct{ ns, setting string }{
		{"user", "PrivateUsers="},
		{"uts", "ProtectHostname="},
		{"ipc", "PrivateIPC="},
		{"pid", "PrivatePIDs="},
	}
}

// findObstacles decides, of the tasks of a guest whose first one is its init,
// which cannot be saved.
func findObstacles(tasks []task) []obstacle {
	var found []obstacle
	if len(tasks) == 0 {
		return nil
	}
	init, inside, containers := tasks[0], map[int]bool{}, map[uint64]bool{}
	for _, t := range tasks {
		inside[t.Pid] = true
	}
	for _, t := range tasks[1:] {
		if isContainer(t, init) {
			// One line says it for all of its processes; the first is its init.
			if ns := t.Namespaces["pid"]; !containers[ns] {
				containers[ns] = true
				found = append(found, obstacle{t, "is a container inside the guest, whose namespaces CRIU cannot save", remedyForContainer(t)})
			}
			continue
		}
		for _, n := range nested() {
			if t.Namespaces[n.ns] == init.Namespaces[n.ns] || t.Namespaces[n.ns] == 0 {
				continue
			}
			found = append(found, obstacle{
				t,
				fmt.Sprintf("has a %s namespace of its own, which CRIU cannot save", n.ns),
				remedyFor(t, n.setting),
			})
			break
		}
		if !inside[t.Parent] {
			found = append(found, obstacle{
				t, "was started from outside the guest (exec, enter)",
				fmt.Sprintf("end that session, or on the host: kill %d", t.Pid),
			})
		}
	}
	return found
}

func remedyFor(t task, setting string) string {
	switch {
	case t.Unit == "":
		return fmt.Sprintf("end process %d in the guest", t.Guest)
	case strings.HasSuffix(t.Unit, ".scope"): // has no such settings: somebody else made its processes
		return remedyForContainer(t)
	}
	return fmt.Sprintf("in the guest: set %sno in a drop-in of %s and restart it, or stop it", setting, t.Unit)
}

// isContainer tells a container of an engine inside the guest from a service: it
// has all of these namespaces.
func isContainer(t, init task) bool {
	for _, ns := range []string{"pid", "uts", "ipc"} {
		if t.Namespaces[ns] == init.Namespaces[ns] || t.Namespaces[ns] == 0 {
			return false
		}
	}
	return true
}

func remedyForContainer(t task) string {
	for prefix, program := range map[string]string{"docker-": "docker", "libpod-": "podman"} {
		if id, ok := strings.CutPrefix(strings.TrimSuffix(t.Unit, ".scope"), prefix); ok && len(id) >= shortID {
			return fmt.Sprintf("in the guest: %s stop %s, and start it again afterwards", program, id[:shortID])
		}
	}
	if t.Unit == "" {
		return fmt.Sprintf("in the guest: stop the container that process %d belongs to, with the engine that started it", t.Guest)
	}
	return "in the guest: systemctl stop " + t.Unit
}

// shortID is how many digits of an id engines show.
const shortID = 12

// String names the task as an administrator of the guest knows it.
func (o obstacle) String() string {
	who := fmt.Sprintf("process %q (pid %d)", o.Task.Command, o.Task.Guest)
	if o.Task.Unit != "" {
		who = fmt.Sprintf("unit %s (pid %d, %s)", o.Task.Unit, o.Task.Guest, o.Task.Command)
	}
	return who + " " + o.What
}

// refuse turns obstacles into one error, nil where there are none.
func refuse(found []obstacle) error {
	if len(found) == 0 {
		return nil
	}
	lines := make([]string, 0, len(found))
	for _, o := range found {
		lines = append(lines, o.String())
	}
	return withHint(found[0].Remedy, "%w: %s", ErrRefused, strings.Join(lines, "; "))
}

// tasksOf reads the processes of a container, its init first. Those that end
// meanwhile are left out.
func tasksOf(init int, pids []int) ([]task, error) {
	first, err := readTask(init)
	if err != nil {
		return nil, fmt.Errorf("look at init: %w", err)
	}
	tasks := []task{first}
	for _, pid := range pids {
		if pid == init {
			continue
		}
		t, err := readTask(pid)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at process %d: %w", pid, err)
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}

func readTask(pid int) (task, error) {
	t := task{Pid: pid, Namespaces: map[string]uint64{}}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return t, err
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case len(fields) == 0:
		case key == "Name":
			t.Command = fields[0]
		case key == "PPid":
			t.Parent, _ = strconv.Atoi(fields[0])
		case key == "NSpid":
			t.Guest, _ = strconv.Atoi(fields[min(1, len(fields)-1)])
		}
	}
	for _, n := range nested() {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(proc, "ns", n.ns), &st); err == nil {
			t.Namespaces[n.ns] = st.Ino
		}
	}
	if paths, err := cgroup.Of(pid); err == nil {
		t.Unit = unitOf(paths[""])
	}
	return t, nil
}

// unitOf finds the systemd unit in a cgroup path: the last element that is
// named like one that holds processes.
func unitOf(cgroupPath string) string {
	for p := cgroupPath; p != "/" && p != "." && p != ""; p = path.Dir(p) {
		name := path.Base(p)
		if name == "init.scope" {
			return ""
		}
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return name
		}
	}
	return ""
}
