// Package vnet keeps the host's ends of a container's veth pairs across a
// checkpoint. CRIU makes the pairs again, with everything that is inside of
// the container's network namespace; what the host had done with its ends
// (bridge, addresses, routes) it does not know. Capture records that and
// Attach brings it back.
//
// "The host" is the network namespace of the calling thread.
package vnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrNameTaken says that a host end's name is in use, or wanted twice.
	ErrNameTaken = errors.New("network interface name is taken")
	// ErrNoLink says that an interface is not there: the container has none
	// of that name, or the host has no such host end or bridge.
	ErrNoLink = errors.New("no such network interface")
	// ErrNotVeth says that an interface is not one end of a veth pair.
	ErrNotVeth = errors.New("not a veth interface")
	// ErrInvalid says that a name, mapping or recorded value is malformed.
	ErrInvalid = errors.New("invalid network link")
	// ErrTooMany says that the container has more than MaxLinks veth ends.
	ErrTooMany = errors.New("too many network interfaces")
)

// MaxLinks is the number of veth ends that a container may have. Its root can
// make as many as it likes.
const MaxLinks = 1024

// Link is a veth pair with one end, Inner, in a container, and the state of
// the other end, Host. It can be kept as JSON.
type Link struct {
	// Inner is the name in the container.
	Inner string `json:"inner"`
	// Index is that of the end in the container, 0 for unknown.
	Index int `json:"index,omitempty"`
	// Host is the name on the host. It is empty if Elsewhere.
	Host string `json:"host,omitempty"`
	// Elsewhere says that the other end is neither on the host nor in the
	// container's own namespace. It is most likely in a namespace that the
	// container made (a container inside of it), which CRIU handles; if it is
	// in any other, CRIU cannot dump it. No function here does anything for
	// such a link.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// MAC is the host end's address as in "aa:bb:cc:dd:ee:ff"; empty for any.
	MAC string `json:"mac,omitempty"`
	// MTU is in bytes and TxQLen in packets; 0 leaves what is there.
	MTU    int `json:"mtu,omitempty"`
	TxQLen int `json:"txqlen,omitempty"`
	// Master is the name of the bridge (or other master), empty for none.
	Master string `json:"master,omitempty"`
	// Hairpin and Isolated are flags of a bridge port, bridge(8).
	Hairpin  bool `json:"hairpin,omitempty"`
	Isolated bool `json:"isolated,omitempty"`
	// VLANs are those of a bridge port, for a bridge that filters by them.
	VLANs []VLAN `json:"vlans,omitempty"`
	// Addrs are the permanent addresses of the host end.
	Addrs []Addr `json:"addrs,omitempty"`
	// Routes are those through the host end that the kernel does not make by
	// itself, in all tables. Not among them are those with more than one next
	// hop, with a next hop of the other address family, and encapsulating
	// ones.
	Routes []Route `json:"routes,omitempty"`
	// Up says that the host end was up.
	Up bool `json:"up,omitempty"`
}

// Addr is an address of a host end.
type Addr struct {
	// CIDR is like "10.0.0.1/24".
	CIDR string `json:"cidr"`
	// Peer is the other side's address of a point-to-point one, as CIDR.
	Peer string `json:"peer,omitempty"`
	// Broadcast is an IPv4 address, empty for none.
	Broadcast string `json:"broadcast,omitempty"`
	// Scope is a number of rtnetlink(7); 0 is global.
	Scope int `json:"scope,omitempty"`
	// NoPrefixRoute says that the address brings no route to its network.
	NoPrefixRoute bool `json:"noprefixroute,omitempty"`
}

// Route is a route through a host end. Numbers are those of rtnetlink(7).
type Route struct {
	// Dst is a CIDR; "0.0.0.0/0" and "::/0" are the default routes.
	Dst string `json:"dst"`
	// Via and Src are addresses, empty for none.
	Via string `json:"via,omitempty"`
	Src string `json:"src,omitempty"`
	// Table 0 stands for the main table.
	Table  int `json:"table,omitempty"`
	Metric int `json:"metric,omitempty"`
	Scope  int `json:"scope,omitempty"`
	Proto  int `json:"proto,omitempty"`
	// OnLink says that Via is taken for reachable without another route.
	OnLink bool `json:"onlink,omitempty"`
}

// VLAN is one VLAN of a bridge port.
type VLAN struct {
	ID       int  `json:"id"` // 1 to 4094
	PVID     bool `json:"pvid,omitempty"`
	Untagged bool `json:"untagged,omitempty"`
}

// Mapping gives one of a container's links another host end than the recorded
// one.
type Mapping struct {
	// Inner is the name in the container, Host the one that the host end gets.
	Inner, Host string
	// Bridge is the master of the host end, empty for none.
	Bridge string
}

// Parse reads INNER=HOST[@BRIDGE], as in "eth0=vzc1@br0". It returns
// ErrInvalid for anything else, and for names that the kernel or CRIU would
// not take.
func Parse(text string) (Mapping, error) {
	inner, rest, ok := strings.Cut(text, "=")
	host, bridge, at := strings.Cut(rest, "@")
	m := Mapping{Inner: inner, Host: host, Bridge: bridge}
	if !ok || !isName(inner) || !isName(host) || at && !isName(bridge) {
		return Mapping{}, fmt.Errorf("%w: %q is not INNER=HOST[@BRIDGE] with names of 1 to 15 characters", ErrInvalid, text)
	}
	return m, nil
}

// isName says whether a name is one for an interface: dev_valid_name in the
// kernel's net/core/dev.c, without '%', which the kernel takes for a template,
// and without what separates names in CRIU's "veth[INNER]:HOST@BRIDGE" and in
// Parse.
func isName(s string) bool {
	if len(s) < 1 || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b == 0x7f || strings.IndexByte("/:%[]@=", b) >= 0 {
			return false
		}
	}
	return true
}

// Map returns the links with new host ends where a mapping says so. Such a
// link is another one for the host's network, so of the recorded state only
// MTU, queue length and whether it is up are kept: a clone must not have the
// MAC, addresses and routes of its origin.
//
// It returns ErrNoLink for a mapping of a link that the container does not
// have, and ErrInvalid for two mappings of one.
func Map(links []Link, mappings []Mapping) ([]Link, error) {
	out := slices.Clone(links)
	seen := make(map[string]bool)
	for _, m := range mappings {
		if seen[m.Inner] {
			return nil, fmt.Errorf("%w: %s is mapped twice", ErrInvalid, m.Inner)
		}
		seen[m.Inner] = true
		i := slices.IndexFunc(out, func(l Link) bool { return l.Inner == m.Inner && !l.Elsewhere })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s in the container%s", ErrNoLink, m.Inner, innerNames(out))
		}
		old := out[i]
		out[i] = Link{
			Inner: m.Inner, Index: old.Index, Host: m.Host, Master: m.Bridge,
			MTU: old.MTU, TxQLen: old.TxQLen, Up: old.Up,
		}
	}
	return out, nil
}

// innerNames lists what could have been mapped, for an error.
func innerNames(links []Link) string {
	var names []string
	for _, l := range links {
		if !l.Elsewhere {
			names = append(names, l.Inner)
		}
	}
	if names == nil {
		return ", which has no veth to the host"
	}
	return ", which has " + strings.Join(names, ", ")
}

// conflict returns ErrNameTaken for the first host name that is taken or used
// by two links.
func conflict(links []Link, taken func(name string) (bool, error)) error {
	user := make(map[string]string)
	for _, l := range links {
		if l.Elsewhere {
			continue
		}
		if !isName(l.Host) {
			return fmt.Errorf("%w: name %q", ErrInvalid, l.Host)
		}
		if other, ok := user[l.Host]; ok {
			return fmt.Errorf("%w: %s, by both %s and %s of the container", ErrNameTaken, l.Host, other, l.Inner)
		}
		user[l.Host] = l.Inner
		is, err := taken(l.Host)
		if err != nil {
			return err
		}
		if is {
			return fmt.Errorf("%w: %s, wanted for %s of the container", ErrNameTaken, l.Host, l.Inner)
		}
	}
	return nil
}
