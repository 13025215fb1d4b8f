package preflight

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxObstacles is how many are told. A guest can make as many as it likes.
const maxObstacles = 200

// Decide judges the facts. The obstacles come in the order of the tasks; what a
// task has often is one obstacle, with a count.
func Decide(f *Facts, o Options) []Obstacle {
	if len(f.Tasks) == 0 {
		return nil
	}
	d := &decider{
		Facts: f, Options: o, at: map[key]int{}, mounted: map[uint64]bool{}, peopled: map[uint64]bool{}, ownSockets: map[uint64]bool{},
		terminals: map[uint64]bool{}, consoles: map[console]bool{},
	}
	for _, m := range f.Mounts {
		d.mounted[m.ID] = true
		d.hasFuse = d.hasFuse || isFuse(m.FS) && !d.isOutside(m.Place)
		if number, err := strconv.ParseUint(strings.TrimPrefix(m.Root, "/"), 10, 20); err == nil && m.FS == "devpts" && m.Place == "/dev/console" {
			d.consoles[console{m.Device, unix.Mkdev(ptsMajor, uint32(number))}] = true
		}
	}
	for _, t := range f.Tasks {
		d.terminals[t.Terminal] = true
		for _, number := range t.Namespaces {
			d.peopled[number] = true
		}
		for _, file := range t.Files {
			if file.Protocol != "" {
				d.ownSockets[file.Inode] = true
			}
		}
	}
	d.judgeTasks()
	if !o.AnyMounts {
		d.judgeMounts()
	}
	d.judgeRest()
	if n := len(d.found) - maxObstacles; n > 0 {
		d.found = append(d.found[:maxObstacles], Obstacle{
			Kind: Incomplete, What: fmt.Sprintf("%d more obstacles are not listed", n), Remedy: "see to those that are, and look again", Count: n,
		})
	}
	return d.found
}

type decider struct {
	*Facts
	Options
	found   []Obstacle
	hasFuse bool        // a FUSE file system is mounted
	at      map[key]int // index in found
	mounted map[uint64]bool
	peopled map[uint64]bool // namespaces in which a task is
	// ownSockets are those that a task has open, by inode.
	ownSockets map[uint64]bool
	terminals  map[uint64]bool // of sessions, by device number
	consoles   map[console]bool
}

// console is a terminal that is mounted at /dev/console: the file system that it
// lies on, as mountinfo has it, and its device number. Its other end is outside.
type console struct {
	on     string
	device uint64
}

type key struct {
	host       int
	kind, what string
}

// add notes an obstacle of a task; nil is nobody's in particular.
func (d *decider) add(t *Task, kind, what, remedy string) {
	o := Obstacle{Kind: kind, What: what, Remedy: remedy, Count: 1}
	if t != nil {
		o.Pid, o.Host, o.Unit, o.Command = t.Guest, t.Pid, t.Unit, t.Command
	}
	k := key{o.Host, kind, what}
	if i, ok := d.at[k]; ok {
		d.found[i].Count++
		return
	}
	d.at[k] = len(d.found)
	d.found = append(d.found, o)
}

func (d *decider) judgeTasks() {
	init := &d.Tasks[0]
	parents, containers := map[int]int{}, map[uint64]bool{}
	for _, t := range d.Tasks {
		parents[t.Pid] = t.Parent
	}
	for i := range d.Tasks {
		t := &d.Tasks[i]
		if t.Tracer != 0 {
			d.add(t, Traced, fmt.Sprintf("is traced by process %d of the host, and cannot be traced twice", t.Tracer), "end the tracer (gdb, strace)")
		}
		if i > 0 && isContainer(t, init) {
			// One line says it for all of its processes; the first is its init.
			if ns := t.Namespaces["pid"]; !containers[ns] {
				containers[ns] = true
				d.add(t, Container, "is a container inside the guest, whose namespaces CRIU cannot save", remedyForContainer(t))
			}
			continue
		}
		if i > 0 {
			d.judgeNamespaces(t, init)
			if _, inside := parents[t.Parent]; !inside {
				d.add(t, Session, "was started from outside the guest (exec, enter)",
					fmt.Sprintf("end that session, or on the host: kill %d; or add --end-sessions", t.Pid))
			}
			if cameIn(t, init, parents) {
				continue // what it has open is what it has brought with it
			}
		}
		d.judgeFiles(t)
	}
}

// cameIn tells whether a task, or one that it descends from, was started from
// outside.
func cameIn(t, init *Task, parents map[int]int) bool {
	pid := t.Pid
	for range len(parents) {
		if pid == init.Pid {
			return false
		}
		parent, inside := parents[pid]
		if !inside {
			return true
		}
		pid = parent
	}
	return false // a circle, of pids that were used again meanwhile
}

// nested says which unit setting gives a service a namespace of its own that
// CRIU cannot save below the container's, systemd.exec(5).
func nested() []struct{ ns, setting string } {
	return []struct{ ns, setting string }{
		{"user", "PrivateUsers="},
		{"uts", "ProtectHostname="},
		{"ipc", "PrivateIPC="},
		{"pid", "PrivatePIDs="},
		{"cgroup", "ProtectControlGroups="},
		{"time", ""}, // no unit has one
		{"time_for_children", ""},
	}
}

func (d *decider) judgeNamespaces(t, init *Task) {
	for _, n := range nested() {
		if t.Namespaces[n.ns] == init.Namespaces[n.ns] || t.Namespaces[n.ns] == 0 {
			continue
		}
		d.add(t, Namespace, fmt.Sprintf("has a %s namespace of its own, which CRIU cannot save", strings.TrimSuffix(n.ns, "_for_children")), remedyForSetting(t, n.setting))
		return
	}
}

// stop says how to get rid of a task.
func stop(t *Task) string {
	if t.Unit == "" {
		return fmt.Sprintf("in the guest: end process %d", t.Guest)
	}
	return "in the guest: systemctl stop " + t.Unit
}

func remedyForSetting(t *Task, setting string) string {
	switch {
	case t.Unit == "":
		return stop(t)
	case strings.HasSuffix(t.Unit, ".scope"): // has no such settings: somebody else made its processes
		return remedyForContainer(t)
	case setting == "":
		return stop(t)
	}
	return fmt.Sprintf("in the guest: set %sno in a drop-in of %s and restart it, or stop it", setting, t.Unit)
}

// isContainer tells a container of an engine inside the guest from a service: it
// has all of these namespaces.
func isContainer(t, init *Task) bool {
	for _, ns := range []string{"pid", "uts", "ipc"} {
		if t.Namespaces[ns] == init.Namespaces[ns] || t.Namespaces[ns] == 0 {
			return false
		}
	}
	return true
}

func remedyForContainer(t *Task) string {
	for prefix, program := range map[string]string{"docker-": "docker", "libpod-": "podman"} {
		if id, ok := strings.CutPrefix(strings.TrimSuffix(t.Unit, ".scope"), prefix); ok && len(id) >= shortID {
			return fmt.Sprintf("in the guest: %s stop %s, and start it again afterwards", program, id[:shortID])
		}
	}
	if t.Unit == "" {
		return fmt.Sprintf("in the guest: stop the container that process %d belongs to, with the engine that started it", t.Guest)
	}
	return stop(t)
}

// shortID is how many digits of an id engines show.
const shortID = 12

func (d *decider) judgeRest() {
	if d.Queues > 0 {
		what := fmt.Sprintf("%d POSIX message queues", d.Queues)
		if d.Queues == 1 {
			what = "a POSIX message queue"
		}
		d.add(nil, Queue, "there is "+what+" in the guest, which CRIU cannot save, empty or not",
			"in the guest: stop the program that uses it, and remove it (ls /dev/mqueue, rm)")
	}
	if d.CgroupsAbove {
		d.add(nil, Namespace, "the container has joined a cgroup namespace in which its own cgroup is not, and which CRIU cannot save",
			"start it without the cgroup namespace's path in config.json")
	}
	for _, l := range d.Links {
		d.add(nil, Network, fmt.Sprintf("the other end of interface %s is in a network namespace that is neither the guest's nor vzrun's", clean(l.Name, textLimit)),
			"move that end into the namespace in which vzrun runs (ip link set NAME netns PID), or delete the pair")
	}
	if d.RefuseFrozen && len(d.Frozen) > 0 {
		d.add(nil, Frozen, fmt.Sprintf("cgroup %q is frozen in the guest", clean(d.Frozen[0], textLimit)),
			"in the guest: systemctl thaw, or write 0 to cgroup.freeze there")
	}
	if d.Unseen > 0 {
		d.add(nil, Incomplete, fmt.Sprintf("%d open files were not looked at, as there are more than %d", d.Unseen, maxFiles),
			"see in the guest who has so many: ls /proc/[0-9]*/fd | wc -l")
	}
}

func isFuse(fs string) bool {
	return fs == "fuse" || fs == "fuseblk" || strings.HasPrefix(fs, "fuse.")
}

// known are the file systems that CRIU mounts again. What it makes of some, it says
// only of their contents.
func known(fs string) bool {
	return slices.Contains([]string{
		"proc", "sysfs", "devtmpfs", "binfmt_misc", "tmpfs", "devpts", "simfs", "pstore", "mqueue", "securityfs",
		"fusectl", "debugfs", "tracefs", "cgroup", "cgroup2", "aufs", "overlay", "autofs",
	}, fs)
}

// judgeMounts finds file systems that CRIU cannot mount again, once each.
func (d *decider) judgeMounts() {
	var outside []Mount
	var root Mount
	for _, m := range d.Mounts {
		if m.Namespace != d.Tasks[0].Namespaces["mnt"] {
			continue
		}
		if m.Place == "/" {
			root = m // the one on top is the last
		}
		if d.isOutside(m.Place) {
			outside = append(outside, m)
		}
	}
	seen := map[string]bool{}
	for _, m := range d.Mounts {
		id := m.Device + " " + m.Root
		if m.Place == "/" || seen[id] || m.Device == root.Device && below(m.Root, root.Root) ||
			slices.ContainsFunc(outside, func(o Mount) bool { return o.Device == m.Device && below(m.Root, o.Root) }) {
			continue
		}
		seen[id] = true
		d.judgeMount(m)
	}
}

func (d *decider) judgeMount(m Mount) {
	t := &d.Tasks[m.Task]
	place := clean(m.Place, textLimit)
	if m.Task == 0 {
		t = nil
	}
	unmount := fmt.Sprintf("in the guest: umount %q", place)
	if t != nil {
		unmount = stop(t)
	}
	switch {
	case isFuse(m.FS):
		d.add(t, Mounts, fmt.Sprintf("FUSE file system at %q, which CRIU cannot save", place), unmount)
	case m.FS == "hugetlbfs":
		d.add(t, Mounts, fmt.Sprintf("file system hugetlbfs at %q, which CRIU cannot save", place),
			unmount+"; systemctl mask dev-hugepages.mount keeps it away")
	case !known(m.FS):
		d.add(t, Mounts, fmt.Sprintf("file system %s at %q, which CRIU cannot save", clean(m.FS, textLimit), place),
			unmount+", or mount it from outside: name it in config.json")
	case m.Root != "/" && !strings.HasPrefix(m.FS, "cgroup") && !slices.ContainsFunc(d.Mounts, func(o Mount) bool { return o.Device == m.Device && o.Root == "/" }):
		d.add(t, Mounts, fmt.Sprintf("part of a file system (%s) at %q, the whole of which is mounted nowhere", clean(m.FS, textLimit), place), remedyForPart(t, unmount))
	}
}

func remedyForPart(t *Task, unmount string) string {
	if t == nil || t.Unit == "" {
		return unmount
	}
	return fmt.Sprintf("in the guest: set PrivateTmp=yes in a drop-in of %s and restart it, or stop it (DynamicUser= makes such a mount)", t.Unit)
}

// isOutside tells whether a place is one of the host's, or below one.
func (d *decider) isOutside(place string) bool {
	return slices.ContainsFunc(d.Outside, func(o string) bool { return below(place, o) })
}

// below tells whether a path is another one, or inside of it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
