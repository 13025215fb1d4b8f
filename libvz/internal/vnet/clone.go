package vnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Cloned is the network of a container that is made from the images of another,
// which may be on the same bridge at the same time.
type Cloned struct {
	// Links are the host ends.
	Links []Link
	// Nets are those of the links that vzrun has settings of, complete.
	Nets []Net
	// MACs are those of the ends in the container, by their names there.
	MACs map[string]net.HardwareAddr
}

// Clone decides on the network of container id, given the links and Nets of its
// origin and those that are wanted, by their names in the container. Each link
// gets a name on the host and a MAC of its own (see Complete for the seed). One
// that is not wanted otherwise stays on the bridge that it was on, without an
// address: those in the images are its origin's. Name servers are the origin's
// where no other are wanted.
//
// It returns ErrNoLink for a wanted Net that the origin has no link of.
func Clone(links []Link, had, wanted []Net, id, seed string) (Cloned, error) {
	c := Cloned{MACs: map[string]net.HardwareAddr{}}
	for _, w := range wanted {
		if w.Kind == KindCNI {
			return c, fmt.Errorf("%w: %q: a clone is not connected by CNI", ErrInvalid, w)
		}
		if !slices.ContainsFunc(links, func(l Link) bool { return l.Inner == w.Name && !l.Elsewhere }) {
			return c, fmt.Errorf("%w: %s in the container%s", ErrNoLink, w.Name, innerNames(links))
		}
	}
	for i, l := range links {
		if l.Elsewhere {
			c.Links = append(c.Links, l)
			continue
		}
		n, known := cloneNet(l, had, wanted)
		if n.Host == "" {
			n.Host = hostName(id, i)
		}
		done, err := Complete([]Net{n}, id, seed)
		if err != nil {
			return c, err
		}
		n = done[0]
		c.MACs[l.Inner] = n.MAC
		c.Links = append(c.Links, cloneLink(l, n, known))
		if known {
			c.Nets = append(c.Nets, n)
		}
	}
	return c, checkTogether(c.Nets)
}

// cloneNet returns what a link of a clone is to be, and whether vzrun has
// settings of it.
func cloneNet(l Link, had, wanted []Net) (Net, bool) {
	i := slices.IndexFunc(had, func(n Net) bool { return n.Host == l.Host && n.Kind != KindCNI })
	if j := slices.IndexFunc(wanted, func(n Net) bool { return n.Name == l.Inner }); j >= 0 {
		n := wanted[j]
		if len(n.DNS) == 0 && i >= 0 {
			n.DNS = had[i].DNS
		}
		return n, true
	}
	if i < 0 || had[i].Kind != KindBridge {
		return Net{Name: l.Inner}, false
	}
	n := Net{Kind: KindBridge, Master: had[i].Master, Name: l.Inner, MTU: had[i].MTU, DNS: had[i].DNS}
	if had[i].Filter == FilterOff {
		n.Filter = FilterOff
	}
	return n, true
}

func cloneLink(l Link, n Net, known bool) Link {
	out := Link{Inner: l.Inner, Index: l.Index, Host: n.Host, MTU: l.MTU, TxQLen: l.TxQLen, Up: l.Up, Master: l.Master}
	if known {
		out.Master, out.Up, out.MAC = n.Master, true, n.hostMAC().String()
		if n.MTU != 0 {
			out.MTU = n.MTU
		}
	}
	if out.Master == l.Master {
		out.Hairpin, out.Isolated, out.VLANs = l.Hairpin, l.Isolated, l.VLANs
	}
	if n.Kind == KindRouted {
		out.routed(n)
	}
	return out
}

// routed gives a host end what host.route gives one.
func (l *Link) routed(n Net) {
	for _, gw := range []netip.Addr{gatewayV4, gatewayV6} {
		if len(n.ips(gw.Is4())) == 0 {
			continue
		}
		a := Addr{CIDR: netip.PrefixFrom(gw, gw.BitLen()).String()}
		if gw.Is4() {
			a.Scope = unix.RT_SCOPE_HOST
		}
		l.Addrs = append(l.Addrs, a)
	}
	for _, ip := range n.IPs {
		r := Route{Dst: ip.String(), Proto: unix.RTPROT_STATIC}
		if ip.Addr().Is4() {
			r.Scope = unix.RT_SCOPE_LINK
		}
		l.Routes = append(l.Routes, r)
	}
}

// Readdress makes the ends in a container, which CRIU has made as their origin
// had them, those of its clone: with its MACs, without addresses and routes,
// then with those of its Nets. It works in the network namespace of the calling
// thread, which must be the clone's, and must come before Attach: until then
// nobody hears of the origin's addresses.
func Readdress(macs map[string]net.HardwareAddr, nets []Net) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	for name, mac := range macs {
		if err := h.readdress(name, mac, nets); err != nil {
			return fmt.Errorf("%s in the container: %w", name, err)
		}
	}
	addressed := slices.DeleteFunc(slices.Clone(nets), func(n Net) bool { return len(n.IPs) == 0 })
	if len(addressed) == 0 {
		return nil
	}
	return ConfigureInside(addressed)
}

func (h host) readdress(name string, mac net.HardwareAddr, nets []Net) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	wasUp := link.Attrs().Flags&net.FlagUp != 0
	// Routes, and the address that IPv6 has made of the MAC, end with it.
	if err := h.LinkSetDown(link); err != nil {
		return fmt.Errorf("set down: %w", err)
	}
	addrs, err := h.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for i := range addrs {
		if err := h.AddrDel(link, &addrs[i]); err != nil {
			return fmt.Errorf("remove address %s: %w", addrs[i].IPNet, err)
		}
	}
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("set MAC %s: %w", mac, err)
	}
	i := slices.IndexFunc(nets, func(n Net) bool { return n.Name == name })
	if i >= 0 && nets[i].MTU != 0 {
		if err := h.LinkSetMTU(link, nets[i].MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", nets[i].MTU, err)
		}
	}
	if !wasUp || i >= 0 && len(nets[i].IPs) > 0 {
		return nil // ConfigureInside sets it up
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}
