package vnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotBridge says that what was to be a bridge is something else.
	ErrNotBridge = errors.New("not a bridge")
	// ErrAddressInUse says that an address is somebody's on this host.
	ErrAddressInUse = errors.New("address is in use")
)

// The guest's gateways of a routed Net. They are on each host end, and since
// they are link-local they take no address from anybody.
var (
	gatewayV4 = netip.MustParseAddr("169.254.1.1")
	gatewayV6 = netip.MustParseAddr("fe80::1")
)

// Build makes the links of Nets that are Complete: one end in the network
// namespace ns, an open /proc/PID/ns/net, the other one on the host, with all
// that belongs to it there. The pairs end with ns. ConfigureInside does the
// rest.
//
// It returns ErrNameTaken, ErrNoLink (no such bridge), ErrNotBridge or
// ErrAddressInUse (the host has an address or a route of that kind) with the
// name or address. After an error some links may be there.
func Build(nets []Net, ns *os.File) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.refuseOwn(nets); err != nil {
		return err
	}
	for _, n := range nets {
		if n.Kind == KindCNI {
			continue
		}
		if err := h.build(n, ns); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

// refuseOwn refuses the addresses that the host itself has.
func (h host) refuseOwn(nets []Net) error {
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of the host: %w", err)
	}
	for _, a := range addrs {
		own, ok := netip.AddrFromSlice(a.IP)
		for _, n := range nets {
			if ok && slices.ContainsFunc(n.IPs, func(p netip.Prefix) bool { return p.Addr() == own.Unmap() }) {
				return fmt.Errorf("%w: %s, by the host itself", ErrAddressInUse, own.Unmap())
			}
		}
	}
	return nil
}

func (h host) build(n Net, ns *os.File) error {
	link := &netlink.Veth{
		LinkAttrs: netlink.NewLinkAttrs(), PeerName: n.Name, PeerHardwareAddr: n.MAC,
		PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerTxQLen: -1,
	}
	link.Name, link.HardwareAddr = n.Host, n.hostMAC()
	if n.Kind == KindBridge {
		master, err := h.bridge(n.Master)
		if err != nil {
			return err
		}
		link.MTU = master.Attrs().MTU
	}
	if n.MTU != 0 {
		link.MTU = n.MTU
	}
	link.PeerMTU = uint32(link.MTU)
	if err := h.LinkAdd(link); errors.Is(err, unix.EEXIST) {
		return h.explainTaken(n)
	} else if err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	if err := hardenHostEnd(n); err != nil {
		return err
	}
	if n.Kind == KindBridge {
		master, err := h.bridge(n.Master)
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("join bridge %s: %w", n.Master, err)
		}
		return h.LinkSetUp(link)
	}
	return h.route(n, link)
}

// explainTaken tells apart whose name the kernel found to be taken; of the
// container's end only one that the guest was given otherwise can be.
func (h host) explainTaken(n Net) error {
	if _, err := h.LinkByName(n.Host); err == nil {
		return fmt.Errorf("%w: %s on the host", ErrNameTaken, n.Host)
	}
	return fmt.Errorf("%w: %s in the container", ErrNameTaken, n.Name)
}

func (h host) bridge(name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	switch {
	case missing(err):
		return nil, fmt.Errorf("%w: bridge %s", ErrNoLink, name)
	case err != nil:
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	case link.Type() != "bridge":
		return nil, fmt.Errorf("%w: %s is a %s", ErrNotBridge, name, link.Type())
	}
	return link, nil
}

// route gives the host end the guest's gateways and the host a route to each
// address.
func (h host) route(n Net, link netlink.Link) error {
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", n.Host, err)
	}
	for _, gw := range []netip.Addr{gatewayV4, gatewayV6} {
		if len(n.ips(gw.Is4())) == 0 {
			continue
		}
		addr := netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gw, gw.BitLen())), Broadcast: net.IPv4zero}
		if gw.Is4() {
			// Of the scope of a host it is never the source of a packet
			// that the host sends.
			addr.Scope = unix.RT_SCOPE_HOST
		} else {
			addr.Broadcast, addr.Flags = nil, unix.IFA_F_NODAD
		}
		if err := h.AddrReplace(link, &addr); err != nil {
			return fmt.Errorf("give %s the address %s: %w", n.Host, gw, err)
		}
	}
	for _, ip := range n.IPs {
		r := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(ip), Protocol: unix.RTPROT_STATIC}
		if ip.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteAdd(&r); errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%w: %s, the host has a route to it", ErrAddressInUse, ip.Addr())
		} else if err != nil {
			return fmt.Errorf("add the route to %s: %w", ip.Addr(), err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hardenHostEnd keeps what the guest sends from changing how the host routes.
// A port of a bridge has no addresses, and no packet comes to it.
func hardenHostEnd(n Net) error {
	v6 := map[string]string{"accept_ra": "0", "accept_redirects": "0"}
	if n.Kind == KindBridge || len(n.ips(false)) == 0 {
		v6 = map[string]string{"disable_ipv6": "1"}
	}
	if err := setConf("ipv6", n.Host, v6); err != nil {
		return err
	}
	if n.Kind == KindBridge {
		return nil
	}
	return setConf("ipv4", n.Host, map[string]string{"rp_filter": "1", "accept_redirects": "0", "send_redirects": "0"})
}

// setConf writes settings of one interface in the network namespace of the
// calling thread (proc_sys_net(5)). A kernel without the protocol has none.
func setConf(family, link string, settings map[string]string) error {
	dir := filepath.Join("/proc/sys/net", family, "conf", link)
	for key, value := range settings {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s of %s: %w", key, link, err)
		}
	}
	return nil
}

// ConfigureInside gives the container's ends their addresses and routes and
// sets them up, and the loopback interface. It works in the network namespace
// of the calling thread, which must be the container's.
func ConfigureInside(nets []Net) error {
	if err := LoopbackUp(); err != nil {
		return err
	}
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	defaults := make(map[bool]int)
	for _, n := range nets {
		if n.Kind == KindCNI {
			continue
		}
		if err := h.configure(n, defaults); err != nil {
			return fmt.Errorf("%s in the container: %w", n.Name, err)
		}
	}
	return nil
}

// configure counts default routes by family (true is IPv4): the first one
// that is given is used, the others are there in case it goes.
func (h host) configure(n Net, defaults map[bool]int) error {
	link, err := h.LinkByName(n.Name)
	if err != nil {
		return err
	}
	if len(n.IPs) > 0 {
		// Its addresses are those that were given: what a router of the
		// bridge announces would not get through the filter.
		if err := setConf("ipv6", n.Name, map[string]string{"accept_ra": "0"}); err != nil {
			return err
		}
	}
	for _, ip := range n.IPs {
		addr := netlink.Addr{IPNet: ipNet(ip)}
		if ip.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // services bind to it at once
		}
		if err := h.AddrReplace(link, &addr); err != nil {
			return fmt.Errorf("add address %s: %w", ip, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	gateways := n.Gateways
	if n.Kind == KindRouted {
		gateways = nil
		for _, gw := range []netip.Addr{gatewayV4, gatewayV6} {
			if len(n.ips(gw.Is4())) > 0 {
				gateways = append(gateways, gw)
			}
		}
	}
	const metricStep, metricV6 = 100, 1024 // the latter is the kernel's for none
	for _, gw := range gateways {
		v4 := gw.Is4()
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if v4 {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		r := netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice(), Protocol: unix.RTPROT_STATIC,
			Priority: metricStep * defaults[v4],
		}
		if !v4 {
			r.Priority += metricV6
		}
		if n.Kind == KindRouted {
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		defaults[v4]++
		if err := h.RouteAdd(&r); err != nil {
			return fmt.Errorf("add the default route through %s: %w", gw, err)
		}
	}
	return nil
}

// MissingForwarding returns the sysctls that are off and without which packets
// of the Nets do not leave the host: routed ones, and those behind NAT.
func MissingForwarding(nets []Net) []string {
	var missing []string
	for _, s := range []struct {
		v4           bool
		sysctl, path string
	}{
		{true, "net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{false, "net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		needed := slices.ContainsFunc(nets, func(n Net) bool { return (n.Kind == KindRouted || n.NAT) && len(n.ips(s.v4)) > 0 })
		if !needed {
			continue
		}
		// Where it cannot be read there is nothing to say.
		if value, err := os.ReadFile(s.path); err == nil && len(value) > 0 && value[0] == '0' {
			missing = append(missing, s.sysctl)
		}
	}
	return missing
}
