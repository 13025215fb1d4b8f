package vnet

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Attach brings the host ends, which CRIU has made, into the recorded state:
// MAC, MTU, queue length, master, addresses, up or down, routes. It takes
// nothing away but a master that was not recorded, and it is idempotent.
//
// It returns ErrNoLink, with its name, for a host end or master that is not
// there, ErrNotVeth for a host end that is another kind of interface, and
// ErrInvalid for what Capture cannot have recorded. A route of the host or of
// another container to the same network stays, and the error wraps EEXIST.
// After an error the links may be half done; they end with the container's
// network namespace.
func Attach(links []Link) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, l := range links {
		if l.Elsewhere {
			continue
		}
		p, err := newPlan(l)
		if err == nil {
			err = h.attach(l, p)
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", l.Host, err)
		}
	}
	return nil
}

// plan is a Link's text as netlink wants it, all checked before anything is
// changed.
type plan struct {
	mac    net.HardwareAddr
	addrs  []netlink.Addr
	routes []netlink.Route
}

func newPlan(l Link) (plan, error) {
	var p plan
	if !isName(l.Host) || l.Master != "" && !isName(l.Master) {
		return p, fmt.Errorf("%w: name %q or master %q", ErrInvalid, l.Host, l.Master)
	}
	for _, v := range l.VLANs {
		if v.ID < 1 || v.ID > 4094 {
			return p, fmt.Errorf("%w: VLAN %d", ErrInvalid, v.ID)
		}
	}
	var err error
	if l.MAC != "" {
		if p.mac, err = net.ParseMAC(l.MAC); err != nil || len(p.mac) != 6 {
			return p, fmt.Errorf("%w: MAC %q", ErrInvalid, l.MAC)
		}
	}
	for _, a := range l.Addrs {
		addr, err := planAddr(a)
		if err != nil {
			return p, err
		}
		p.addrs = append(p.addrs, addr)
	}
	for _, r := range l.Routes {
		route, err := planRoute(r)
		if err != nil {
			return p, err
		}
		p.routes = append(p.routes, route)
	}
	// Those without a next hop first, since they make the others' reachable.
	slices.SortStableFunc(p.routes, func(a, b netlink.Route) int { return min(len(a.Gw), 1) - min(len(b.Gw), 1) })
	return p, nil
}

func planAddr(a Addr) (netlink.Addr, error) {
	ipnet, err := netlink.ParseIPNet(a.CIDR)
	if err != nil {
		return netlink.Addr{}, fmt.Errorf("%w: address %q", ErrInvalid, a.CIDR)
	}
	addr := netlink.Addr{IPNet: ipnet, Scope: a.Scope}
	if a.Peer != "" {
		if addr.Peer, err = netlink.ParseIPNet(a.Peer); err != nil {
			return netlink.Addr{}, fmt.Errorf("%w: peer address %q", ErrInvalid, a.Peer)
		}
	}
	switch {
	case a.Broadcast != "":
		if addr.Broadcast = net.ParseIP(a.Broadcast).To4(); addr.Broadcast == nil {
			return netlink.Addr{}, fmt.Errorf("%w: broadcast address %q", ErrInvalid, a.Broadcast)
		}
	case ipnet.IP.To4() != nil:
		addr.Broadcast = net.IPv4zero // none; nil would be "make one"
	}
	if a.NoPrefixRoute {
		addr.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	if ipnet.IP.To4() == nil {
		// The address was found to be unique on this very link; a second
		// detection would keep connections from going on for a second.
		addr.Flags |= unix.IFA_F_NODAD
	}
	return addr, nil
}

func planRoute(r Route) (netlink.Route, error) {
	_, dst, err := net.ParseCIDR(r.Dst)
	if err != nil {
		return netlink.Route{}, fmt.Errorf("%w: route to %q", ErrInvalid, r.Dst)
	}
	out := netlink.Route{
		Dst: dst, Table: r.Table, Priority: r.Metric,
		Scope: netlink.Scope(r.Scope), Protocol: netlink.RouteProtocol(r.Proto),
	}
	if r.OnLink {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	for _, ip := range []struct {
		text string
		to   *net.IP
	}{{r.Via, &out.Gw}, {r.Src, &out.Src}} {
		if ip.text == "" {
			continue
		}
		if *ip.to = net.ParseIP(ip.text); *ip.to == nil {
			return netlink.Route{}, fmt.Errorf("%w: address %q of the route to %s", ErrInvalid, ip.text, r.Dst)
		}
	}
	return out, nil
}

// find returns a host end, which must be one.
func (h host) find(name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	switch {
	case missing(err):
		return nil, fmt.Errorf("%w: %s", ErrNoLink, name)
	case err != nil:
		return nil, err
	case link.Type() != "veth":
		return nil, fmt.Errorf("%w: %s is a %s", ErrNotVeth, name, link.Type())
	}
	return link, nil
}

func (h host) attach(l Link, p plan) error {
	link, err := h.find(l.Host)
	if err != nil {
		return err
	}
	a := link.Attrs()
	// Before the master: a bridge takes its own MAC and MTU from its ports.
	if p.mac != nil && p.mac.String() != a.HardwareAddr.String() {
		// Down, so that IPv6 forgets the address that it made of the old one.
		err := h.LinkSetDown(link)
		if err == nil {
			err = h.LinkSetHardwareAddr(link, p.mac)
		}
		if err != nil {
			return fmt.Errorf("set MAC %s: %w", l.MAC, err)
		}
	}
	if l.MTU != 0 && l.MTU != a.MTU {
		if err := h.LinkSetMTU(link, l.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", l.MTU, err)
		}
	}
	if l.TxQLen != 0 && l.TxQLen != a.TxQLen {
		if err := h.LinkSetTxQLen(link, l.TxQLen); err != nil {
			return fmt.Errorf("set queue length %d: %w", l.TxQLen, err)
		}
	}
	if err := h.setMaster(l, link); err != nil {
		return err
	}
	for i := range p.addrs {
		if err := h.AddrReplace(link, &p.addrs[i]); err != nil {
			return fmt.Errorf("add address %s: %w", p.addrs[i].IPNet, err)
		}
	}
	if err := h.setUp(l, link); err != nil {
		return err
	}
	return h.setRoutes(link, p.routes)
}

func (h host) setUp(l Link, link netlink.Link) error {
	set, state := h.LinkSetDown, "down"
	if l.Up {
		set, state = h.LinkSetUp, "up"
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s: %w", state, err)
	}
	return nil
}

// setRoutes needs the link up, since there are no routes through one that is
// down. It never replaces a route: one to the same network that leads
// elsewhere is the host's, or another container's.
func (h host) setRoutes(link netlink.Link, routes []netlink.Route) error {
	index := link.Attrs().Index
	now, err := h.routes(index)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		r.LinkIndex, r.Type = index, unix.RTN_UNICAST
		if same, ok := recordRoute(r); ok && slices.Contains(now, same) {
			continue
		}
		if err := h.RouteAdd(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func (h host) setMaster(l Link, link netlink.Link) error {
	now := link.Attrs().MasterIndex
	if l.Master == "" {
		if now == 0 {
			return nil
		}
		if err := h.LinkSetNoMaster(link); err != nil {
			return fmt.Errorf("leave master: %w", err)
		}
		return nil
	}
	master, err := h.LinkByName(l.Master)
	if missing(err) {
		return fmt.Errorf("%w: bridge %s", ErrNoLink, l.Master)
	} else if err != nil {
		return fmt.Errorf("bridge %s: %w", l.Master, err)
	}
	if now != master.Attrs().Index {
		if err := h.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("join %s: %w", l.Master, err)
		}
	}
	if master.Type() != "bridge" {
		return nil
	}
	if err := h.setPort(l, link); err != nil {
		return fmt.Errorf("port of %s: %w", l.Master, err)
	}
	return nil
}

func (h host) setPort(l Link, link netlink.Link) error {
	if l.Hairpin {
		if err := h.LinkSetHairpin(link, true); err != nil {
			return fmt.Errorf("set hairpin: %w", err)
		}
	}
	if l.Isolated {
		if err := h.LinkSetIsolated(link, true); err != nil {
			return fmt.Errorf("set isolated: %w", err)
		}
	}
	if len(l.VLANs) == 0 {
		return nil
	}
	// A new port is in the bridge's default VLAN, where the old one may not
	// have been.
	now, err := h.vlans(link)
	if err != nil {
		return err
	}
	for _, v := range now {
		if slices.Contains(l.VLANs, v) {
			continue
		}
		if err := h.BridgeVlanDel(link, uint16(v.ID), v.PVID, v.Untagged, false, true); err != nil {
			return fmt.Errorf("leave VLAN %d: %w", v.ID, err)
		}
	}
	for _, v := range l.VLANs {
		if err := h.BridgeVlanAdd(link, uint16(v.ID), v.PVID, v.Untagged, false, true); err != nil {
			return fmt.Errorf("join VLAN %d: %w", v.ID, err)
		}
	}
	return nil
}

// Conflicts returns ErrNameTaken, with the name, if one of the host ends would
// have a name that an interface of the host has already (most likely since the
// container that was checkpointed is alive), or that two of the links want.
func Conflicts(links []Link) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	return conflict(links, func(name string) (bool, error) {
		_, err := h.LinkByName(name)
		switch {
		case err == nil:
			return true, nil
		case missing(err):
			return false, nil
		}
		return false, fmt.Errorf("look for %s: %w", name, err)
	})
}
