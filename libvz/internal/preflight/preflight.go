// Package preflight says what of a guest CRIU would refuse to save, or save and
// fail to bring back, before any task of it is stopped: with the unit, the
// process and the command that have it, and what to do.
//
// It hides what CRIU cannot do, and how that shows in /proc, in the kernel's
// socket tables and in mount tables. Look gathers facts and Decide, which is
// pure, judges them. What is refused was seen to be refused by CRIU 4.2.1; what
// that one saves is no obstacle.
//
// The guest is not trusted. No path of it is resolved: descriptors and mappings
// are looked at through the kernel's own links, and so that no file system is
// asked (AT_STATX_DONT_SYNC). Everything is bounded in number and time, and all
// text that comes from the guest is short and printable.
package preflight

import (
	"errors"
	"time"
)

// ErrStuck says that the kernel did not answer in time about a process.
var ErrStuck = errors.New("took too long to look at")

// Guest is what to look at.
type Guest struct {
	Init int   // in the caller's pid namespace
	Pids []int // all processes
	// Outside are places in the guest at which something of the host is mounted,
	// that CRIU does not save and finds again.
	Outside []string
	// Frozen are cgroups that the guest has frozen.
	Frozen []string
	// OwnNetwork says that its network namespace is saved with it, and not found
	// again.
	OwnNetwork bool
	// JoinedCgroups says that its cgroup namespace was there before it.
	JoinedCgroups bool
	// Locks says that locks on files are of interest. The kernel's table of them
	// (/proc/locks) has the process that took one, which may have ended, and then that of
	// whoever has its number now: each descriptor is asked.
	Locks bool
	// Timeout bounds the look at one process, and twelve times that all of it; 0 = 5 s.
	Timeout time.Duration
}

// Facts are what Look found.
type Facts struct {
	Tasks   []Task // the init first; those that ended meanwhile are left out
	Mounts  []Mount
	Sockets map[uint64]Socket // by inode
	Links   []Link
	// Queues is how many POSIX message queues there are, on device QueuesOn.
	Queues   int
	QueuesOn uint64
	// CgroupsAbove says that the init's cgroups are not below the roots of its cgroup
	// namespace; looked at only where that was joined.
	CgroupsAbove bool
	// Outside as in Guest.
	Outside []string
	// Frozen are cgroups that the guest has frozen.
	Frozen []string
	// Unseen is how many descriptors were not looked at, as there were too many.
	Unseen int
}

// Task is a process.
type Task struct {
	Pid, Parent int    // in the caller's pid namespace; Parent is 0 outside of it
	Guest       int    // in the guest's
	Command     string // as the kernel has it, at most 15 bytes
	Unit        string // of systemd, "" where the cgroup names none
	Tracer      int    // who traces it, 0 = nobody
	// Terminal is the number of the device that its session has as its terminal, as
	// of a File; 0 = none.
	Terminal uint64
	// Namespaces maps uts, ipc, pid, user, net, mnt, time, time_for_children and
	// cgroup to inode numbers.
	Namespaces map[string]uint64
	Files      []File // its descriptors
	Maps       []File // what it has mapped, of files that are special or deleted
}

// File is an open or mapped file. What was not found out is zero.
type File struct {
	FD       int
	Link     string // of /proc/PID/fd, cut
	Mode     uint32 // type and permissions, inode(7)
	Device   uint64 // number of the device that a device node is, unix.Mkdev
	On       uint64 // number of the device that it lies on
	Inode    uint64
	Names    uint32 // hard links
	Size     uint64 // bytes that it takes
	Mount    uint64
	Protocol string // of a socket, the kernel's name
	Locked   bool   // there is a lock or a lease on it that belongs to this descriptor
}

// Mount is a line of /proc/PID/mountinfo.
type Mount struct {
	ID              uint64
	Namespace       uint64
	Device          string // major:minor
	Root, Place, FS string
	Task            int // index of the first task that sees it
}

// Socket is what sock_diag(7) says. States are those of TCP for TCP and unix.
type Socket struct {
	TCP    bool
	State  uint8
	Queued uint32 // of a listener: connections that wait
	Stream bool   // or SOCK_SEQPACKET
	Host   bool   // only in the caller's network namespace, which is not the guest's
	// Peer is the inode of the other end of a unix socket, 0 = none. Peered says
	// that it is in the tables, and was before the files were looked at: one that
	// was accepted meanwhile is among nobody's files yet.
	Peer   uint64
	Peered bool
}

// Link is an end of a veth pair in the guest's network namespace, the other end
// of which is neither there nor in another namespace of the guest, nor on the
// host.
type Link struct{ Name string }

// Options say what CRIU will be told, and what this kernel can do.
type Options struct {
	TCPEstablished, ExtUnixSockets, ShellJob, FileLocks, LinkRemap bool
	// SkipInFlight leaves connections out that wait to be accepted.
	SkipInFlight bool
	// AnyMounts where CRIU is told of mounts by somebody else.
	AnyMounts bool
	// GhostLimit is the size of deleted files that are saved, in bytes.
	GhostLimit uint64
	// RefuseFrozen where CRIU has no stage at which the guest's own frozen
	// cgroups could be thawed.
	RefuseFrozen bool
}

// Kinds of obstacles.
const (
	Namespace  = "namespace"
	Container  = "container"
	Session    = "session"
	Descriptor = "descriptor"
	Sockets    = "socket"
	Connection = "connection"
	Traced     = "traced"
	Queue      = "queue"
	Mounts     = "mount"
	Deleted    = "deleted-file"
	Outside    = "outside-file"
	Terminal   = "terminal"
	Memory     = "memory"
	Locks      = "lock"
	Frozen     = "frozen"
	Network    = "network"
	Incomplete = "incomplete"
)

// Obstacle is one thing that CRIU would refuse, or lose.
type Obstacle struct {
	Kind string
	// Pid in the guest and Host on the host are 0 where it is no one process's.
	Pid, Host     int
	Unit, Command string
	What, Remedy  string
	Count         int // how often that process has it, 1 or more
}
