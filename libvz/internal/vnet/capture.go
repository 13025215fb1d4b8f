package vnet

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Capture records the host ends of all veth pairs that have one end in the
// network namespace of process pid. A pair with both ends there is the
// container's own business and left out; one whose other end is in a third
// namespace has Elsewhere set. If the process shares the host's namespace, or
// has no veth, there are no links.
//
// It returns ErrTooMany beyond MaxLinks, ErrInvalid for an inner name that
// cannot be written in CRIU's options, and an error that wraps fs.ErrNotExist
// if there is no such process.
func Capture(pid int) ([]Link, error) {
	// The "host" is this thread's namespace, in all the steps.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	inner, err := netns.GetFromPath("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer inner.Close()
	host, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer host.Close()
	if inner.Equal(host) {
		return nil, nil
	}
	in, err := netlink.NewHandleAt(inner)
	if err != nil {
		return nil, fmt.Errorf("netlink in the namespace of process %d: %w", pid, err)
	}
	defer in.Close()
	out, err := newHost()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	ends, err := innerEnds(in, int(host))
	if err != nil {
		return nil, fmt.Errorf("veth links of process %d: %w", pid, err)
	}
	var links []Link
	for _, e := range ends {
		l := Link{Inner: e.name, Elsewhere: true}
		if e.onHost {
			if l, err = out.record(e.name, e.peer); err != nil {
				return nil, fmt.Errorf("host end of %s of process %d: %w", e.name, pid, err)
			}
			l.Index = e.index
		}
		links = append(links, l)
	}
	return links, nil
}

// end is a veth end in the container whose other end is not there.
type end struct {
	name   string
	index  int
	peer   int // index of the other end, in its namespace
	onHost bool
}

func innerEnds(in *netlink.Handle, hostNS int) ([]end, error) {
	all, err := retry(in.LinkList)
	if err != nil {
		return nil, err
	}
	// A namespace has a number for each other one that it is linked with; the
	// list above has made sure that the host has one, if it matters. So the
	// peers are told apart by number and index and not by index alone, which
	// is the same for many.
	hostID, err := in.GetNetNsIdByFd(hostNS)
	if err != nil {
		return nil, fmt.Errorf("number of the host's network namespace: %w", err)
	}
	var ends []end
	for _, link := range all {
		a := link.Attrs()
		if link.Type() != "veth" || a.NetNsID < 0 {
			continue
		}
		if len(ends) == MaxLinks {
			return nil, fmt.Errorf("%w: more than %d", ErrTooMany, MaxLinks)
		}
		e := end{name: a.Name, index: a.Index, peer: a.ParentIndex, onHost: a.NetNsID == hostID}
		if e.onHost && !isName(e.name) {
			return nil, fmt.Errorf("%w: name %q in the container", ErrInvalid, e.name)
		}
		ends = append(ends, e)
	}
	return ends, nil
}

// host speaks netlink in the host's namespace.
type host struct{ *netlink.Handle }

func newHost() (host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return host{}, fmt.Errorf("netlink: %w", err)
	}
	return host{h}, nil
}

// retry repeats a dump that the kernel calls inconsistent because something
// changed meanwhile. The guest can make that happen, but not for long enough.
func retry[T any](dump func() (T, error)) (T, error) {
	const tries = 20
	for range tries - 1 {
		got, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return dump()
}

// record reads the state of the host end with an index.
func (h host) record(inner string, index int) (Link, error) {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return Link{}, err
	}
	a := link.Attrs()
	if link.Type() != "veth" {
		return Link{}, fmt.Errorf("%w: %s", ErrNotVeth, a.Name)
	}
	l := Link{
		Inner: inner, Host: a.Name, MAC: a.HardwareAddr.String(),
		MTU: a.MTU, TxQLen: a.TxQLen, Up: a.Flags&net.FlagUp != 0,
	}
	if a.MasterIndex != 0 {
		if err := h.recordMaster(&l, link); err != nil {
			return Link{}, fmt.Errorf("master of %s: %w", a.Name, err)
		}
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return Link{}, fmt.Errorf("addresses of %s: %w", a.Name, err)
	}
	for _, addr := range addrs {
		if r, ok := recordAddr(addr); ok && !madeOf(addr.IP, a.HardwareAddr) {
			l.Addrs = append(l.Addrs, r)
		}
	}
	if l.Routes, err = h.routes(index); err != nil {
		return Link{}, fmt.Errorf("routes of %s: %w", a.Name, err)
	}
	return l, nil
}

// routes reads the routes through an interface that are worth a record.
func (h host) routes(index int) ([]Route, error) {
	var out []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			// Table 0 is all of them.
			filter := netlink.Route{LinkIndex: index}
			return h.RouteListFiltered(family, &filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, route := range routes {
			if r, ok := recordRoute(route); ok {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func (h host) recordMaster(l *Link, link netlink.Link) error {
	master, err := h.LinkByIndex(link.Attrs().MasterIndex)
	if err != nil {
		return err
	}
	l.Master = master.Attrs().Name
	if master.Type() != "bridge" {
		return nil
	}
	port, err := retry(func() (netlink.Protinfo, error) { return h.LinkGetProtinfo(link) })
	if err != nil {
		return err
	}
	l.Hairpin, l.Isolated = port.Hairpin, port.Isolated
	bridge, ok := master.(*netlink.Bridge)
	if !ok || bridge.VlanFiltering == nil || !*bridge.VlanFiltering {
		return nil
	}
	l.VLANs, err = h.vlans(link)
	return err
}

func (h host) vlans(link netlink.Link) ([]VLAN, error) {
	all, err := retry(h.BridgeVlanList)
	if err != nil {
		return nil, err
	}
	var vlans []VLAN
	for _, v := range all[int32(link.Attrs().Index)] {
		vlans = append(vlans, VLAN{ID: int(v.Vid), PVID: v.PortVID(), Untagged: v.EngressUntag()})
	}
	return vlans, nil
}

// recordAddr leaves out addresses that the kernel learned and will learn
// again, as from router advertisements.
func recordAddr(a netlink.Addr) (Addr, bool) {
	if a.IPNet == nil || a.Flags&unix.IFA_F_PERMANENT == 0 {
		return Addr{}, false
	}
	r := Addr{CIDR: a.IPNet.String(), Scope: a.Scope, NoPrefixRoute: a.Flags&unix.IFA_F_NOPREFIXROUTE != 0}
	if a.Broadcast != nil {
		r.Broadcast = a.Broadcast.String()
	}
	if a.Peer != nil {
		r.Peer = a.Peer.String()
	}
	return r, true
}

// madeOf says whether an address is the link-local one that the kernel makes of
// a MAC, RFC 4291 appendix A. It makes it again, if the host has IPv6 at all.
func madeOf(ip net.IP, mac net.HardwareAddr) bool {
	if len(mac) != 6 {
		return false
	}
	own := net.IP{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	return own.Equal(ip)
}

// recordRoute leaves out routes that come and go with addresses (the kernel's)
// and those that were learned from others and will be again.
func recordRoute(r netlink.Route) (Route, bool) {
	switch {
	case r.Dst == nil || r.Type != unix.RTN_UNICAST, r.Via != nil, r.Encap != nil:
		return Route{}, false
	case r.Protocol == unix.RTPROT_KERNEL, r.Protocol == unix.RTPROT_RA, r.Protocol == unix.RTPROT_REDIRECT:
		return Route{}, false
	}
	out := Route{
		Dst: r.Dst.String(), Table: r.Table, Metric: r.Priority, Scope: int(r.Scope),
		Proto: int(r.Protocol), OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0,
	}
	if out.Table == unix.RT_TABLE_MAIN {
		out.Table = 0
	}
	if r.Gw != nil {
		out.Via = r.Gw.String()
	}
	if r.Src != nil {
		out.Src = r.Src.String()
	}
	return out, true
}

// missing says that an interface is not there.
func missing(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, syscall.ENODEV)
}
