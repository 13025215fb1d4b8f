package preflight

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// judgeFiles looks for what a task has open or mapped that CRIU cannot save.
func (d *decider) judgeFiles(t *Task) {
	for i := range t.Files {
		d.judgeFile(t, &t.Files[i])
	}
	for i := range t.Maps {
		d.judgeMapping(t, &t.Maps[i])
	}
}

func (d *decider) judgeFile(t *Task, f *File) {
	if f.Locked && !d.FileLocks {
		d.add(t, Locks, "holds file locks", "add --file-locks")
	}
	if name, ok := strings.CutPrefix(f.Link, "anon_inode:"); ok {
		d.judgeAnonymous(t, name)
		return
	}
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		if !strings.HasPrefix(f.Link, "/") { // else one in a file system, opened with O_PATH
			d.judgeSocket(t, f)
			return
		}
	case unix.S_IFCHR:
		if !d.judgeDevice(t, f) {
			return
		}
	case unix.S_IFBLK:
		d.add(t, Descriptor, fmt.Sprintf("has block device %q open, which CRIU cannot save", clean(f.Link, textLimit)), stop(t))
		return
	}
	switch {
	case f.Mode == 0:
		// Nothing is known of it.
	case !strings.HasPrefix(f.Link, "/"):
		d.judgeNamespaceFile(t, f) // or a pipe, or a process
	case strings.HasPrefix(f.Link, "/secretmem"):
		d.add(t, Memory, "has secret memory (memfd_secret), which CRIU cannot save", stop(t))
	case strings.HasPrefix(f.Link, "/memfd:"):
	case d.Queues > 0 && f.On == d.QueuesOn:
		d.add(t, Queue, "has a POSIX message queue open, which CRIU cannot save", stop(t)+", and remove the queue")
	case f.Mount != 0 && !d.mounted[f.Mount]:
		d.add(t, Outside, fmt.Sprintf("has a file open that is outside the guest, or on a mount that is gone: %q", clean(f.Link, textLimit)), remedyForOutside(t, f))
	default:
		d.judgeDeleted(t, f)
	}
}

// judgeNamespaceFile finds namespaces that are held by a descriptor alone.
func (d *decider) judgeNamespaceFile(t *Task, f *File) {
	kind, number := parseNamespace(f.Link)
	if f.Mode&unix.S_IFMT == unix.S_IFREG && kind != "" && !d.peopled[number] {
		d.add(t, Descriptor, fmt.Sprintf("holds a %s namespace in which no process of the guest is, which CRIU cannot save", clean(kind, textLimit)), stop(t))
	}
}

func remedyForOutside(t *Task, f *File) string {
	if t.Guest == 1 && f.FD <= 2 {
		return "start the container with its input and output at /dev/null or a pipe"
	}
	return stop(t)
}

// judgeDeleted judges files without a name: small ones are saved, those that have
// another name get this one again.
func (d *decider) judgeDeleted(t *Task, f *File) {
	if !strings.HasSuffix(f.Link, " (deleted)") || f.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	name := clean(strings.TrimSuffix(f.Link, " (deleted)"), textLimit)
	switch {
	case f.Names > 0:
		if !d.LinkRemap {
			d.add(t, Deleted, fmt.Sprintf("has %q open, a name that was deleted of a file that has others", name), "add --link-remap")
		}
	case f.Size > d.GhostLimit:
		d.add(t, Deleted, fmt.Sprintf("has %q open, which was deleted and takes %d MiB; up to %d MiB are saved", name, f.Size>>20, d.GhostLimit>>20),
			stop(t)+", or let it close that file")
	}
}

// anonymous are the kernel's names of what CRIU saves.
func anonymous() []string {
	return []string{"[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"}
}

// unsaved says what is behind the kernel's name of a thing that CRIU does not save,
// and what to do where stopping is not all.
func unsaved(name string) (what, remedy string) {
	switch {
	case name == "[io_uring]":
		return "uses io_uring", "use the seccomp profile of `vzrun spec --system` without the feature io_uring, or turn io_uring off in that program"
	case strings.HasPrefix(name, "bpf"), name == "[bpf_link]", name == "btf":
		return "has a BPF object open", ""
	case name == "[userfaultfd]":
		return "uses userfaultfd", ""
	case name == "seccomp notify":
		return "watches others through a seccomp notifier", ""
	case name == "[perf_event]":
		return "has a performance counter open", ""
	case name == "[landlock-ruleset]":
		return "has a Landlock ruleset open", ""
	case strings.HasPrefix(name, "kvm-"):
		return "runs a virtual machine (KVM)", "in the guest: end the virtual machine"
	case name == "[fscontext]":
		return "is about to mount a file system", ""
	}
	return fmt.Sprintf("has a descriptor of kind %q open", clean(name, textLimit)), ""
}

func (d *decider) judgeAnonymous(t *Task, name string) {
	if slices.Contains(anonymous(), name) {
		return
	}
	what, remedy := unsaved(name)
	if remedy == "" {
		remedy = stop(t)
	}
	d.add(t, Descriptor, what+", which CRIU cannot save", remedy)
}

// Character devices, admin-guide/devices.txt of the kernel.
const (
	memMajor  = 1
	ttyMajor  = 4
	altMajor  = 5
	miscMajor = 10
	ptsMajor  = 136
	ptsEnd    = 143
	tunMinor  = 200
	fuseMinor = 229
)

// judgeDevice tells whether a character device is one that CRIU opens again, and
// is to be judged as a file.
func (d *decider) judgeDevice(t *Task, f *File) bool {
	major, minor := unix.Major(f.Device), unix.Minor(f.Device)
	switch {
	case major == memMajor:
		return true
	case major == miscMajor && minor == tunMinor:
		return true
	case major >= ptsMajor && major <= ptsEnd, major == ttyMajor, major == altMajor:
		if f.Mount != 0 && !d.mounted[f.Mount] {
			if !d.ShellJob {
				d.add(t, Outside, "holds a terminal that is outside the guest", "end that session (log out), or add --shell-job")
			}
			return false
		}
		// CRIU gives a terminal whose other end is outside to the session that has
		// it, and restores none without one.
		if on := fmt.Sprintf("%d:%d", unix.Major(f.On), unix.Minor(f.On)); d.consoles[console{on, f.Device}] && !d.terminals[f.Device] && !d.ShellJob {
			d.add(t, Terminal, "has the console open, which is no session's terminal: CRIU could not restore it",
				"wait until a getty waits there, or "+stop(t))
			return false
		}
		return true
	case major == miscMajor && minor == fuseMinor && d.hasFuse:
		return false // of the mount's program, which ends with it
	}
	d.add(t, Descriptor, fmt.Sprintf("has device %q (%d:%d) open, which CRIU cannot save", clean(f.Link, textLimit), major, minor), stop(t))
	return false
}

func (d *decider) judgeMapping(t *Task, f *File) {
	if name, ok := strings.CutPrefix(f.Link, "anon_inode:"); ok {
		d.judgeAnonymous(t, name)
		return
	}
	switch {
	case strings.HasPrefix(f.Link, "/secretmem"):
		d.add(t, Memory, "has secret memory (memfd_secret), which CRIU cannot save", stop(t))
	case f.Mode&unix.S_IFMT == unix.S_IFCHR && f.Device != unix.Mkdev(memMajor, 5): // but /dev/zero
		d.add(t, Memory, fmt.Sprintf("has device %q mapped into its memory, which CRIU cannot save", clean(f.Link, textLimit)), stop(t))
	case f.Mount == 0 || !d.mounted[f.Mount]:
		// Shared memory, which is on mounts of the kernel's own.
	default:
		d.judgeDeleted(t, f)
	}
}

// saved are protocols as sockfs names them; CRIU knows those of IPv6 too.
func saved(protocol string) bool {
	return slices.Contains([]string{"UNIX", "UNIX-STREAM", "TCP", "UDP", "UDP-Lite", "UDPLITE", "RAW", "PING", "NETLINK", "PACKET"},
		strings.TrimSuffix(protocol, "v6"))
}

func (d *decider) judgeSocket(t *Task, f *File) {
	switch {
	case f.Protocol == "":
		return // closed meanwhile
	case strings.HasPrefix(f.Protocol, "MPTCP"):
		d.add(t, Sockets, "has an MPTCP socket, which CRIU cannot save",
			"set the sysctl net.mptcp.enabled=0 in config.json and restart the program (a Go program: GODEBUG=multipathtcp=0)")
		return
	case !saved(f.Protocol):
		d.add(t, Sockets, fmt.Sprintf("has a socket of protocol %s, which CRIU cannot save", clean(f.Protocol, textLimit)), stop(t))
		return
	}
	s, ok := d.Sockets[f.Inode]
	if !ok {
		return
	}
	const closed, listening = 7, 10 // of include/net/tcp_states.h
	outside := !s.TCP && s.Peered && !d.ownSockets[s.Peer] && d.Unseen == 0
	switch {
	case s.TCP && s.State == listening && s.Queued > 0 && !d.SkipInFlight:
		d.add(t, Connection, "has not accepted connections that wait", "wait until it does, restart it, or add --tcp-skip-in-flight")
	case s.TCP && s.State != closed && s.State != listening && !d.TCPEstablished:
		d.add(t, Connection, "has open TCP connections", "add --tcp-established to keep them")
	case outside && (s.Stream || d.Sockets[s.Peer].Host):
		d.add(t, Connection, "is connected to a unix socket outside the guest, which CRIU cannot save", "close that connection: "+stop(t))
	case outside && !d.ExtUnixSockets:
		d.add(t, Connection, "is connected to a unix socket outside the guest", "add --ext-unix-sk, or close that connection")
	}
}
