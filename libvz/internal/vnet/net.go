package vnet

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Kind is how a Net is connected to the host.
type Kind string

const (
	// KindBridge makes the host end a port of a bridge.
	KindBridge Kind = "bridge"
	// KindRouted gives the host a route to each single address, as OpenVZ's
	// venet did. The guest's gateway is link-local, on the host end.
	KindRouted Kind = "routed"
	// KindCNI leaves everything to the plugins of a CNI network.
	KindCNI Kind = "cni"
)

// Filter is what a guest may send.
type Filter string

const (
	// FilterIP drops what does not come from the Net's MAC and addresses.
	FilterIP Filter = "ip"
	// FilterMAC drops what does not come from the Net's MAC.
	FilterMAC Filter = "mac"
	// FilterOff drops nothing.
	FilterOff Filter = "off"
)

// Bounds of a Net. The MTUs are those of the kernel's veth, and of RFC 8200.
const (
	MaxNets  = 16
	maxIPs   = 16
	maxDNS   = 8
	minMTU   = 68
	minMTUv6 = 1280
	maxMTU   = 65535
)

// Net is one interface of a container that vzrun makes.
type Net struct {
	Kind Kind
	// Master is the bridge, or the name of the CNI network.
	Master string
	// Name is the interface in the container, Host the one on the host (not
	// of a CNI network).
	Name, Host string
	// MAC is the container's. Before Complete it may be nil.
	MAC net.HardwareAddr
	// MTU is in bytes; 0 is that of the bridge, or the kernel's default.
	MTU int
	// IPs have the length of their network; of a routed Net, that of a
	// single address.
	IPs []netip.Prefix
	// Gateways are one of each family at the most, only of a bridged Net.
	Gateways []netip.Addr
	// DNS are the name servers that can be reached by it; what the guest does
	// with them is not this package's affair.
	DNS []netip.Addr
	// Filter is empty before Complete where none was named.
	Filter Filter
	// NAT hides the addresses behind the host's.
	NAT bool
}

const netKeys = "bridge=, routed, cni=, ip=, gw=, dns=, mac=, mtu=, name=, host=, filter=, nat"

// ParseNets reads what Format writes: Nets that are separated by semicolons,
// each of it KEY[=VALUE] separated by commas. Names inside of the container
// are chosen where they are missing. It returns ErrInvalid, with the reason.
func ParseNets(text string) ([]Net, error) {
	var nets []Net
	for _, part := range strings.Split(text, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		n, err := parseNet(strings.TrimSpace(part))
		if err == nil {
			err = n.check()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrInvalid, part, err)
		}
		if n.Name == "" {
			n.Name = "eth" + strconv.Itoa(len(nets))
		}
		nets = append(nets, n)
	}
	if len(nets) > MaxNets {
		return nil, fmt.Errorf("%w: %d, %d are the most", ErrTooMany, len(nets), MaxNets)
	}
	return nets, checkTogether(nets)
}

func parseNet(text string) (Net, error) {
	var n Net
	seen := make(map[string]bool)
	for _, field := range strings.Split(text, ",") {
		key, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		if seen[key] && !slices.Contains([]string{"ip", "gw", "dns"}, key) {
			return n, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if flag := key == string(KindRouted) || key == "nat"; flag == hasValue {
			if flag {
				return n, fmt.Errorf("%s takes no value", key)
			}
			if slices.Contains(strings.Split(netKeys, ", "), key+"=") {
				return n, fmt.Errorf("%s= needs a value", key)
			}
			return n, fmt.Errorf("%q is not known; known are %s", key, netKeys)
		}
		if err := n.set(key, value); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *Net) set(key, value string) (err error) {
	switch key {
	case string(KindBridge), string(KindRouted), string(KindCNI):
		if n.Kind != "" {
			return fmt.Errorf("%s and %s exclude each other", n.Kind, key)
		}
		n.Kind, n.Master = Kind(key), value
	case "nat":
		n.NAT = true
	case "ip":
		var ip netip.Prefix
		if ip, err = parseIP(value); err == nil {
			n.IPs = append(n.IPs, ip)
		}
	case "gw":
		var gw netip.Addr
		if gw, err = netip.ParseAddr(value); err != nil || gw.Zone() != "" {
			return fmt.Errorf("gw=%s is no address", value)
		}
		n.Gateways = append(n.Gateways, gw.Unmap())
	case "dns":
		var server netip.Addr
		if server, err = netip.ParseAddr(value); err != nil || server.Zone() != "" || server.IsUnspecified() || server.IsMulticast() {
			return fmt.Errorf("dns=%s is no address of a name server", value)
		}
		n.DNS = append(n.DNS, server.Unmap())
	case "mac":
		if n.MAC, err = net.ParseMAC(value); err != nil || len(n.MAC) != 6 || n.MAC[0]&1 != 0 || slices.Equal(n.MAC, make(net.HardwareAddr, 6)) {
			return fmt.Errorf("mac=%s is no address of one Ethernet interface, such as 02:00:00:00:00:05", value)
		}
	case "mtu":
		if n.MTU, err = strconv.Atoi(value); err != nil || n.MTU < minMTU || n.MTU > maxMTU {
			return fmt.Errorf("mtu=%s is not from %d to %d", value, minMTU, maxMTU)
		}
	case "name", "host":
		if !isName(value) || strings.ContainsAny(value, ",;") {
			return fmt.Errorf("%s=%s is no name of an interface: 1 to 15 characters", key, value)
		}
		if key == "name" {
			n.Name = value
		} else {
			n.Host = value
		}
	case "filter":
		n.Filter = Filter(value)
		if n.Filter != FilterIP && n.Filter != FilterMAC && n.Filter != FilterOff {
			return fmt.Errorf("filter=%s is none of ip, mac, off", value)
		}
	default:
		return fmt.Errorf("%q is not known; known are %s", key, netKeys)
	}
	return err
}

// parseIP also takes an address without a length, for that address alone.
func parseIP(text string) (netip.Prefix, error) {
	ip, err := netip.ParsePrefix(text)
	if err != nil {
		addr, addrErr := netip.ParseAddr(text)
		if addrErr != nil {
			return ip, fmt.Errorf("ip=%s is no address", text)
		}
		ip = netip.PrefixFrom(addr, addr.BitLen())
	}
	a := ip.Addr()
	if a.Zone() != "" || a.Is4In6() || !a.IsGlobalUnicast() {
		return ip, fmt.Errorf("ip=%s is no address of one host", text)
	}
	return ip, nil
}

// check looks at one Net by itself.
func (n *Net) check() error {
	if len(n.IPs) > maxIPs {
		return fmt.Errorf("%d addresses, %d are the most", len(n.IPs), maxIPs)
	}
	if len(n.DNS) > maxDNS {
		return fmt.Errorf("%d name servers, %d are the most", len(n.DNS), maxDNS)
	}
	if n.MTU != 0 && n.MTU < minMTUv6 && len(n.ips(false)) > 0 {
		return fmt.Errorf("mtu=%d is too small for IPv6, which needs %d", n.MTU, minMTUv6)
	}
	if len(n.IPs) == 0 && (n.NAT || n.Filter == FilterIP) {
		return fmt.Errorf("nat and filter=ip need ip=")
	}
	switch n.Kind {
	case KindBridge:
		if !isName(n.Master) {
			return fmt.Errorf("bridge=%s is no name of an interface", n.Master)
		}
		return n.checkBridged()
	case KindRouted:
		if len(n.IPs) == 0 {
			return fmt.Errorf("routed needs ip=")
		}
		if len(n.Gateways) > 0 {
			return fmt.Errorf("routed takes no gw=: the gateway is the host")
		}
		for _, ip := range n.IPs {
			if !ip.IsSingleIP() {
				return fmt.Errorf("routed takes single addresses: write ip=%s", ip.Addr())
			}
		}
		return nil
	case KindCNI:
		// The rest of CNI's rule for names, and no way out of its folders.
		if n.Master == "" || strings.Trim(n.Master, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" || strings.HasPrefix(n.Master, ".") {
			return fmt.Errorf("cni=%s is no name of a CNI network", n.Master)
		}
		if len(n.Gateways) > 0 || n.MTU != 0 || n.Host != "" || n.Filter != "" || n.NAT {
			return fmt.Errorf("with cni= only ip=, dns=, mac= and name= go: the rest is the network's affair")
		}
		return nil
	}
	return fmt.Errorf("one of bridge=NAME, routed, cni=NAME is missing")
}

func (n *Net) checkBridged() error {
	for _, ip := range n.IPs {
		if ip.IsSingleIP() {
			return fmt.Errorf("ip=%s needs the length of its network, as in 10.1.0.5/24", ip.Addr())
		}
		if ip.Addr().Is4() && ip.Bits() < 31 && (ip.Addr() == ip.Masked().Addr() || ip.Addr() == broadcast(ip)) {
			return fmt.Errorf("ip=%s is the address of the network or its broadcast address", ip)
		}
	}
	var v4, v6 int
	for _, gw := range n.Gateways {
		linkLocal := gw.Is6() && gw.IsLinkLocalUnicast()
		if !linkLocal && !slices.ContainsFunc(n.IPs, func(ip netip.Prefix) bool { return ip.Contains(gw) }) {
			return fmt.Errorf("gw=%s is in no network of ip=", gw)
		}
		if slices.ContainsFunc(n.IPs, func(ip netip.Prefix) bool { return ip.Addr() == gw }) {
			return fmt.Errorf("gw=%s is the container's own address", gw)
		}
		if gw.Is4() {
			v4++
		} else {
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return fmt.Errorf("there can be one gw= of a family")
	}
	return nil
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(b)
}

// checkTogether looks for what two Nets of one container cannot share.
func checkTogether(nets []Net) error {
	owner := make(map[string]string)
	for _, n := range nets {
		keys := []string{"the name " + n.Name}
		if n.Host != "" {
			keys = append(keys, "the host's "+n.Host)
		}
		if n.MAC != nil {
			keys = append(keys, n.MAC.String())
		}
		for _, ip := range n.IPs {
			keys = append(keys, ip.Addr().String())
		}
		for _, k := range keys {
			if owner[k] != "" {
				return fmt.Errorf("%w: %s is wanted twice", ErrInvalid, k)
			}
			owner[k] = n.Name
		}
	}
	return nil
}

// FormatNets writes what ParseNets reads.
func FormatNets(nets []Net) string {
	texts := make([]string, 0, len(nets))
	for _, n := range nets {
		texts = append(texts, n.String())
	}
	return strings.Join(texts, ";")
}

// String is one Net in the form that ParseNets reads.
func (n Net) String() string {
	var b strings.Builder
	b.WriteString(string(n.Kind))
	if n.Kind != KindRouted {
		b.WriteString("=" + n.Master)
	}
	add := func(key, value string) {
		if value != "" {
			b.WriteString("," + key + "=" + value)
		}
	}
	for _, ip := range n.IPs {
		if n.Kind == KindRouted {
			add("ip", ip.Addr().String())
		} else {
			add("ip", ip.String())
		}
	}
	for _, gw := range n.Gateways {
		add("gw", gw.String())
	}
	for _, server := range n.DNS {
		add("dns", server.String())
	}
	add("mac", n.MAC.String())
	if n.MTU != 0 {
		add("mtu", strconv.Itoa(n.MTU))
	}
	add("name", n.Name)
	add("host", n.Host)
	add("filter", string(n.Filter))
	if n.NAT {
		b.WriteString(",nat")
	}
	return b.String()
}

// DNS returns the name servers of all Nets, each once.
func DNS(nets []Net) []netip.Addr {
	var out []netip.Addr
	for _, n := range nets {
		for _, server := range n.DNS {
			if !slices.Contains(out, server) {
				out = append(out, server)
			}
		}
	}
	return out
}

// Complete chooses what the Nets of container id leave open: the host's names,
// MACs (of which seed, which must differ between hosts, is the source) and
// filters. The same question gets the same answer.
func Complete(nets []Net, id, seed string) ([]Net, error) {
	out := slices.Clone(nets)
	for i := range out {
		n := &out[i]
		if n.Kind == KindCNI {
			continue
		}
		if n.Host == "" {
			n.Host = hostName(id, i)
		}
		if n.MAC == nil {
			sum := sha256.Sum256([]byte("mac\x00" + seed + "\x00" + id + "\x00" + n.Name))
			n.MAC = net.HardwareAddr(sum[:6])
			n.MAC[0] = n.MAC[0]&^1 | 2 // of one interface, locally administered
		}
		switch {
		case n.Filter != "":
		case len(n.IPs) > 0:
			n.Filter = FilterIP
		default:
			n.Filter = FilterMAC
		}
	}
	return out, checkTogether(out)
}

// hostName is vz-ID-INDEX where that is short enough for an interface; else
// the beginning of the id and a hash of all of it stand for the id.
func hostName(id string, index int) string {
	const length = 15
	end := "-" + strconv.Itoa(index)
	if name := "vz-" + id + end; len(name) <= length && isName(name) {
		return name
	}
	sum := sha256.Sum256([]byte(id))
	hash := "-" + hex.EncodeToString(sum[:3]) + end
	return "vz-" + id[:min(len(id), length-len("vz-")-len(hash))] + hash
}

// hostMAC is of the host end. That it begins with fe keeps a bridge from
// taking it for its own, since the lowest one wins.
func (n *Net) hostMAC() net.HardwareAddr {
	mac := slices.Clone(n.MAC)
	mac[0] = 0xfe
	if slices.Equal(mac, n.MAC) {
		mac[0] = 0xfa
	}
	return mac
}

// ips returns the addresses of one family.
func (n *Net) ips(v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, ip := range n.IPs {
		if ip.Addr().Is4() == v4 {
			out = append(out, ip.Addr())
		}
	}
	return out
}

// Clash returns an address that both would have on one network. The host's
// own routes lead to a routed one, so it must be the only one; two bridges
// are two networks.
func Clash(mine, theirs []Net) (netip.Addr, bool) {
	for _, m := range mine {
		for _, t := range theirs {
			apart := m.Kind == KindBridge && t.Kind == KindBridge && m.Master != t.Master
			if apart || m.Kind == KindCNI || t.Kind == KindCNI {
				continue
			}
			for _, ip := range m.IPs {
				if slices.ContainsFunc(t.IPs, func(o netip.Prefix) bool { return o.Addr() == ip.Addr() }) {
					return ip.Addr(), true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// Follow returns the Nets of a container whose links, recorded as were, come
// back as placed (see Map). A Net whose link is gone, or was placed where it is
// no such Net any more, is left out: who placed it there looks after it. Names
// inside the container are the guest's to change, so host ends decide.
func Follow(nets []Net, were, placed []Link) []Net {
	var out []Net
	for _, n := range nets {
		i := slices.IndexFunc(were, func(l Link) bool {
			if n.Kind == KindCNI { // its host end is the plugins' secret
				return l.Inner == n.Name
			}
			return l.Host == n.Host && !l.Elsewhere
		})
		moved := i >= 0 && (placed[i].Host != were[i].Host || placed[i].Master != were[i].Master)
		if n.Kind == KindCNI && !moved {
			out = append(out, n)
			continue
		}
		if i < 0 || moved && (n.Kind != KindBridge || placed[i].Master == "") {
			continue
		}
		n.Host = placed[i].Host
		if moved {
			n.Master = placed[i].Master
		}
		out = append(out, n)
	}
	return out
}
