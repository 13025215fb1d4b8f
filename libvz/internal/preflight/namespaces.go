package preflight

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// each calls do for one task of each namespace of a kind, the init's first.
func (l *looker) each(kind string, do func(t Task) error) error {
	seen := map[uint64]bool{0: true}
	for _, t := range l.facts.Tasks {
		ns := t.Namespaces[kind]
		if seen[ns] {
			continue
		}
		seen[ns] = true
		l.next(t.Pid)
		if err := do(t); err != nil && !gone(err) {
			return err
		}
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
	return nil
}

// sockets asks each network namespace for its TCP and unix sockets, and the caller's
// for its unix sockets, that may be the other ends. The key is the inode.
func (l *looker) sockets() (map[uint64]Socket, error) {
	found := map[uint64]Socket{}
	err := l.each("net", func(t Task) error {
		ns, err := netns.GetFromPath("/proc/" + strconv.Itoa(t.Pid) + "/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unixSockets(ns, found); err != nil {
			return err
		}
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_INET_DIAG)
		if err != nil {
			return fmt.Errorf("sockets of process %d: %w", t.Pid, err)
		}
		defer h.Close()
		return tcpSockets(h, found)
	})
	if err != nil {
		return nil, err
	}
	host := map[uint64]Socket{}
	if err := unixSockets(netns.None(), host); err != nil {
		return nil, err
	}
	for inode, s := range host {
		if _, is := found[inode]; !is {
			s.Host = true
			found[inode] = s
		}
	}
	return found, nil
}

// unixSockets lists those of a namespace; none = the caller's. The library's own
// function ends at the first answer that it does not understand, and it does not
// understand all names.
func unixSockets(ns netns.NsHandle, found map[uint64]Socket) error {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("list unix sockets: %w", err)
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}
	req.AddRawData(unixRequest())
	err = req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		if inode, s, ok := parseUnix(msg); ok {
			found[inode] = s
		}
		return true
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list unix sockets: %w", err)
	}
	return nil
}

// unixRequest is a struct unix_diag_req of linux/unix_diag.h: all states, and the
// peers.
func unixRequest() []byte {
	const showPeer = 4
	req := make([]byte, 24)
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0))
	binary.NativeEndian.PutUint32(req[12:], showPeer)
	return req
}

// parseUnix reads a struct unix_diag_msg and the attributes after it.
func parseUnix(msg []byte) (inode uint64, s Socket, ok bool) {
	const size, head, peer = 16, 4, 2
	if len(msg) < size || msg[0] != unix.AF_UNIX {
		return 0, s, false
	}
	s = Socket{State: msg[2], Stream: msg[1] != unix.SOCK_DGRAM}
	inode = uint64(binary.NativeEndian.Uint32(msg[4:]))
	for rest := msg[size:]; len(rest) >= head; {
		length := int(binary.NativeEndian.Uint16(rest))
		if length < head || length > len(rest) {
			break
		}
		if binary.NativeEndian.Uint16(rest[2:]) == peer && length >= head+4 {
			s.Peer = uint64(binary.NativeEndian.Uint32(rest[head:]))
		}
		rest = rest[min(len(rest), (length+3)&^3):]
	}
	return inode, s, inode != 0
}

func tcpSockets(h *netlink.Handle, found map[uint64]Socket) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		tcp, err := h.SocketDiagTCP(family)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			continue // a kernel without IPv6
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list TCP sockets: %w", err)
		}
		for _, s := range tcp {
			if s.INode != 0 { // nobody's any more
				found[uint64(s.INode)] = Socket{TCP: true, State: s.State, Queued: s.RQueue}
			}
		}
	}
	return nil
}

// queues counts the message queues of the init's IPC namespace. They are listed in
// a file system that is mounted nowhere, so that no path of the guest is used.
func (l *looker) queues() error {
	err := l.inNamespace("ipc", unix.CLONE_NEWIPC, l.countQueues)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
		return nil // a kernel without queues
	}
	if err != nil {
		return fmt.Errorf("list message queues: %w", err)
	}
	return nil
}

// inNamespace calls do on a thread that is in a namespace of the init; kind is its
// name in /proc/PID/ns.
func (l *looker) inNamespace(kind string, flag int, do func() error) error {
	ns, err := unix.Open("/proc/"+strconv.Itoa(l.facts.Tasks[0].Pid)+"/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends in the guest's namespace.
		runtime.LockOSThread()
		err := unix.Setns(ns, flag)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// cgroups looks at the init's cgroups from within its cgroup namespace: what is not
// below the namespace's root begins with /.. there (cgroup_namespaces(7)).
func (l *looker) cgroups() error {
	err := l.inNamespace("cgroup", unix.CLONE_NEWCGROUP, func() error {
		lines, err := os.ReadFile("/proc/" + strconv.Itoa(l.facts.Tasks[0].Pid) + "/cgroup")
		l.facts.CgroupsAbove = bytes.Contains(lines, []byte(":/../")) || bytes.Contains(lines, []byte(":/..\n"))
		return err
	})
	if err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	return nil
}

// countQueues counts those of the thread's namespace.
func (l *looker) countQueues() error {
	fs, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "mqueue")
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	l.facts.Queues, l.facts.QueuesOn = len(names), st.Dev
	return err
}

// links finds veth ends in the init's network namespace whose other ends are
// neither there, nor in the caller's, nor in any other one of the guest's.
func (l *looker) links() error {
	ns, err := netns.GetFromPath("/proc/" + strconv.Itoa(l.facts.Tasks[0].Pid) + "/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	host, err := netns.Get()
	if err != nil {
		return err
	}
	defer host.Close()
	if host.Equal(ns) {
		return nil
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("links of the guest: %w", err)
	}
	defer h.Close()
	all, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var far []netlink.LinkAttrs
	for _, link := range all {
		if a := link.Attrs(); link.Type() == "veth" && a.NetNsID >= 0 {
			far = append(far, *a)
		}
	}
	if len(far) == 0 {
		return nil
	}
	ours := map[int]bool{}
	if id, err := h.GetNetNsIdByFd(int(host)); err == nil {
		ours[id] = true
	}
	err = l.each("net", func(t Task) error {
		other, err := netns.GetFromPath("/proc/" + strconv.Itoa(t.Pid) + "/ns/net")
		if err != nil {
			return err
		}
		defer other.Close()
		if id, err := h.GetNetNsIdByFd(int(other)); err == nil {
			ours[id] = true
		}
		return nil
	})
	for _, a := range far {
		if !ours[a.NetNsID] {
			l.facts.Links = append(l.facts.Links, Link{Name: a.Name})
		}
	}
	return err
}
