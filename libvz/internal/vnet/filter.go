package vnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoFilter says that the kernel lacks what the filter of a Net needs.
var ErrNoFilter = errors.New("the kernel has no packet filter for network interfaces")

// Guard sets up what of a container's Nets is not part of a link: how the host
// treats it, and packet filter tables of the given name, which must be this
// container's alone. Tables that are there are replaced in one step.
//
// The filter stands where packets enter the host end, before bridge and
// routing (nft(8), family netdev), so it holds for both.
func Guard(table string, nets []Net) error {
	var guarded, hidden []Net
	for _, n := range nets {
		if n.Kind == KindCNI {
			continue
		}
		if err := hardenHostEnd(n); err != nil {
			return err
		}
		if n.Filter != FilterOff {
			guarded = append(guarded, n)
		}
		if n.NAT {
			hidden = append(hidden, n)
		}
	}
	if len(guarded) > 0 {
		if err := installFilter(table, guarded); errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("%w: %w", ErrNoFilter, err)
		} else if err != nil {
			return fmt.Errorf("install packet filter: %w", err)
		}
	}
	if len(hidden) > 0 {
		if err := installNAT(table, hidden); err != nil {
			return fmt.Errorf("install address translation: %w", err)
		}
	}
	return nil
}

// openFilter gives many rules room: they are sent at once, and the kernel
// confirms each.
func openFilter() (*nftables.Conn, error) {
	const room = 4 << 20
	return nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(room), c.SetReadBuffer(room))
	}))
}

// families are those in which Guard may make a table.
func families() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyNetdev, nftables.TableFamilyINet}
}

// Unguard removes the tables of that name. It is no error if there is none.
func Unguard(table string) error {
	for _, family := range families() {
		c, err := openFilter()
		if err != nil {
			return fmt.Errorf("open packet filter: %w", err)
		}
		c.DelTable(&nftables.Table{Name: table, Family: family})
		err = c.Flush()
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EINVAL):
			// Without the family there is no table of it.
		default:
			return fmt.Errorf("remove packet filter table %s: %w", table, err)
		}
	}
	return nil
}

// replaceTable begins a transaction in which an older table goes.
func replaceTable(name string, family nftables.TableFamily) (*nftables.Conn, *nftables.Table, error) {
	c, err := openFilter()
	if err != nil {
		return nil, nil, err
	}
	t := &nftables.Table{Name: name, Family: family}
	// Added first, since what is not there cannot be deleted.
	c.AddTable(t)
	c.DelTable(t)
	return c, c.AddTable(t), nil
}

// Chains that all the interfaces of a container share. They have names that no
// host end can have.
const (
	chainAddresses = "shared/addresses"
	chainTargets   = "shared/targets"
	chainSources   = "shared/sources"
)

func installFilter(table string, nets []Net) error {
	// A guest may answer through another interface than it was asked on, so
	// what is its own is so on all of them.
	var own []netip.Addr
	for i := range nets {
		own = append(own, nets[i].ips(true)...)
		if v6 := nets[i].ips(false); len(v6) > 0 {
			own = append(append(own, v6...), linkLocal(nets[i].MAC))
		}
	}
	c, t, err := replaceTable(table, nftables.TableFamilyNetdev)
	if err != nil {
		return err
	}
	fill := func(chain *nftables.Chain, rules []rule) {
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r.exprs()})
		}
	}
	shared := sharedRules(own)
	names := []string{chainSources, chainTargets, chainAddresses} // those first that others lead to
	chains := make(map[string]*nftables.Chain)
	for _, name := range names {
		chains[name] = c.AddChain(&nftables.Chain{Name: name, Table: t})
	}
	for _, name := range names {
		fill(chains[name], shared[name])
	}
	// Before all that looks at packets by connection.
	priority := nftables.ChainPriorityRef(-500)
	for _, n := range nets {
		policy := nftables.ChainPolicyAccept
		fill(c.AddChain(&nftables.Chain{
			Name: n.Host, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
			Priority: priority, Policy: &policy, Device: n.Host,
		}), entryRules(n))
	}
	return c.Flush()
}

// installNAT hides addresses behind the host's, but for packets that stay on
// the bridge or go to another guest of a name that hostName gave.
func installNAT(table string, nets []Net) error {
	c, t, err := replaceTable(table, nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, n := range nets {
		near := []byte(n.Master + "\x00")
		if n.Kind == KindRouted {
			near = []byte("vz-")
		}
		for _, ip := range n.IPs {
			exprs := append(fromAddr(ip.Addr()).exprs(),
				&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: near},
				&expr.Counter{}, &expr.Masq{})
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
		}
	}
	return c.Flush()
}

// fromAddr matches by the family too, which a table of both needs.
func fromAddr(ip netip.Addr) rule {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(srcIPv4)
	if ip.Is6() {
		family, offset = unix.NFPROTO_IPV6, srcIPv6
	}
	return rule{match: []match{
		{meta: expr.MetaKeyNFPROTO, value: []byte{family}},
		{base: expr.PayloadBaseNetworkHeader, offset: offset, value: ip.AsSlice()},
	}, do: pass}
}

// rule is what the filter does with packets that all of match fits.
type rule struct {
	match []match
	do    string // drop, "" too; accept, pass (on to what follows), or a chain to go to
}

const (
	accept = "accept"
	pass   = "pass"
)

// match compares a part of a packet, or what the kernel knows of it.
type match struct {
	meta   expr.MetaKey // 0 (the length, which is never asked for) = payload
	base   expr.PayloadBase
	offset uint32
	mask   []byte // as long as value; nil = all of it
	value  []byte
	differ bool // matches what is not equal
}

func (r rule) exprs() []expr.Any {
	var out []expr.Any
	for _, m := range r.match {
		size := uint32(len(m.value))
		if m.meta != 0 {
			out = append(out, &expr.Meta{Key: m.meta, Register: 1})
		} else {
			out = append(out, &expr.Payload{DestRegister: 1, Base: m.base, Offset: m.offset, Len: size})
		}
		if m.mask != nil {
			out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: m.mask, Xor: make([]byte, size)})
		}
		op := expr.CmpOpEq
		if m.differ {
			op = expr.CmpOpNeq
		}
		out = append(out, &expr.Cmp{Op: op, Register: 1, Data: m.value})
	}
	switch r.do {
	case pass:
	case accept:
		out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case "":
		// Whoever wonders where packets are finds them counted.
		out = append(out, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	default:
		out = append(out, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.do})
	}
	return out
}

// Places in packets: Ethernet, RFC 826, 791, 8200 and 4861.
const (
	dstMAC, srcMAC, etherType = 0, 6, 12
	arpSenderMAC, arpSenderIP = 8, 14
	srcIPv4, srcIPv6          = 12, 8
	icmpType, icmpNDTarget    = 0, 8

	typeIPv4, typeARP, typeIPv6 = 0x0800, 0x0806, 0x86dd

	protoICMPv6                          = 58
	routerAdvert, neighSolicit, neighAdv = 134, 135, 136
	redirect, mldReport                  = 137, 143
)

func ether(kind uint16) match {
	return match{base: expr.PayloadBaseLLHeader, offset: etherType, value: []byte{byte(kind >> 8), byte(kind)}}
}

func network(offset uint32, value []byte) match {
	return match{base: expr.PayloadBaseNetworkHeader, offset: offset, value: value}
}

func icmp(offset uint32, value []byte) match {
	return match{base: expr.PayloadBaseTransportHeader, offset: offset, value: value}
}

// icmpv6 matches a type. The kernel looks for it behind extension headers.
func icmpv6(kind byte) []match {
	return []match{ether(typeIPv6), {meta: expr.MetaKeyL4PROTO, value: []byte{protoICMPv6}}, icmp(icmpType, []byte{kind})}
}

func (m match) not() match { m.differ = true; return m }

// entryRules decide what may enter through the host end of an interface; the
// first rule that fits counts.
func entryRules(n Net) []rule {
	rules := []rule{
		{match: []match{{base: expr.PayloadBaseLLHeader, offset: srcMAC, value: n.MAC, differ: true}}},
		{match: []match{ether(typeARP), network(arpSenderMAC, n.MAC).not()}},
		// Addresses of bridges among themselves, IEEE 802.1Q, 8.6.3: a
		// guest must not become the root of a spanning tree.
		{match: []match{{
			base: expr.PayloadBaseLLHeader, offset: dstMAC, mask: []byte{255, 255, 255, 255, 255, 0xf0},
			value: []byte{0x01, 0x80, 0xc2, 0, 0, 0},
		}}},
	}
	if n.Filter == FilterMAC {
		return append(rules, rule{do: accept})
	}
	return append(rules, rule{do: chainAddresses})
}

// sharedRules let through what comes from the addresses that are the guest's
// own and does not speak of those of others.
func sharedRules(own []netip.Addr) map[string][]rule {
	addresses := []rule{{match: icmpv6(routerAdvert)}, {match: icmpv6(redirect)}, {match: icmpv6(neighAdv), do: chainTargets}}
	var targets, sources []rule
	for _, ip := range own {
		if ip.Is4() {
			sources = append(sources,
				rule{match: []match{ether(typeARP), network(arpSenderIP, ip.AsSlice())}, do: accept},
				rule{match: []match{ether(typeIPv4), network(srcIPv4, ip.AsSlice())}, do: accept})
			continue
		}
		targets = append(targets, rule{match: []match{icmp(icmpNDTarget, ip.AsSlice())}, do: chainSources})
		sources = append(sources, rule{match: []match{ether(typeIPv6), network(srcIPv6, ip.AsSlice())}, do: accept})
	}
	if len(targets) > 0 {
		// Without an address yet: is it free, and who listens to its group.
		unspecified := network(srcIPv6, make([]byte, 16))
		for _, kind := range []byte{neighSolicit, mldReport} {
			sources = append(sources, rule{match: append(icmpv6(kind), unspecified), do: accept})
		}
	}
	return map[string][]rule{
		chainAddresses: append(addresses, rule{do: chainSources}),
		chainTargets:   append(targets, rule{}),
		chainSources:   append(sources, rule{}),
	}
}

// linkLocal is the address that the kernel makes of a MAC, RFC 4291 appendix A.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
