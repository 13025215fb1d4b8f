package vnet

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newHostNS makes a network namespace that is "the host" for the rest of the
// test, so that the real host's network is left alone. The thread stays
// locked, and ends with the test.
func newHostNS(t *testing.T) *netlink.Handle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// newProc starts a process in a network namespace of its own, or in this one.
func newProc(t *testing.T, cloneflags uintptr) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneflags, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addPair does what CRIU does at a restore: a pair with one end in the
// process's namespace, with default properties.
func addPair(t *testing.T, h *netlink.Handle, host, inner string, pid int) netlink.Link {
	t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = host
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: inner, PeerNamespace: netlink.NsPid(pid)}))
	link, err := h.LinkByName(host)
	must(t, err)
	return link
}

func addBridge(t *testing.T, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = name
	must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	link, err := h.LinkByName(name)
	must(t, err)
	must(t, h.LinkSetUp(link))
	return link
}

func cidr(t *testing.T, text string) *net.IPNet {
	t.Helper()
	n, err := netlink.ParseIPNet(text)
	must(t, err)
	return n
}

func TestCaptureAttach(t *testing.T) {
	h := newHostNS(t)
	pid := newProc(t, syscall.CLONE_NEWNET)

	bridge := addBridge(t, h, "br0")
	port := addPair(t, h, "vzport", "eth0", pid)
	must(t, h.LinkSetMaster(port, bridge))
	must(t, h.LinkSetMTU(port, 1400))
	must(t, h.LinkSetTxQLen(port, 77))
	must(t, h.LinkSetHairpin(port, true))
	must(t, h.LinkSetIsolated(port, true))
	must(t, h.LinkSetUp(port))

	routed := addPair(t, h, "vzrouted", "eth1", pid)
	must(t, h.LinkSetHardwareAddr(routed, net.HardwareAddr{2, 0, 0, 0, 0, 9}))
	must(t, h.AddrAdd(routed, &netlink.Addr{IPNet: cidr(t, "10.7.0.1/24")}))
	must(t, h.AddrAdd(routed, &netlink.Addr{IPNet: cidr(t, "169.254.1.1/32"), Scope: unix.RT_SCOPE_LINK, Broadcast: net.IPv4zero}))
	must(t, h.AddrAdd(routed, &netlink.Addr{IPNet: cidr(t, "10.8.0.1/32"), Peer: cidr(t, "10.8.0.2/32")}))
	must(t, h.AddrAdd(routed, &netlink.Addr{IPNet: cidr(t, "fd00:7::1/64"), Flags: unix.IFA_F_NODAD}))
	must(t, h.LinkSetUp(routed))
	index := routed.Attrs().Index
	for _, r := range []netlink.Route{
		{Dst: cidr(t, "10.20.0.5/32"), Scope: netlink.SCOPE_LINK},
		{Dst: cidr(t, "10.21.0.0/16"), Gw: net.ParseIP("10.7.0.7"), Priority: 9, Protocol: unix.RTPROT_STATIC},
		{Dst: cidr(t, "0.0.0.0/0"), Gw: net.ParseIP("10.99.0.1"), Table: 100, Flags: int(netlink.FLAG_ONLINK)},
		{Dst: cidr(t, "fd00:8::/64"), Gw: net.ParseIP("fd00:7::7")},
		{Dst: cidr(t, "::/0"), Gw: net.ParseIP("fd00:7::8"), Table: 300},
	} {
		r.LinkIndex = index
		must(t, h.RouteAdd(&r))
	}
	addPair(t, h, "vzdown", "eth2", pid)

	links, err := Capture(pid)
	must(t, err)
	if len(links) != 3 {
		t.Fatalf("captured %+v", links)
	}
	for _, l := range links {
		t.Logf("%+v", l)
		if l.Index < firstIndex {
			t.Errorf("index %d", l.Index)
		}
	}
	checkCaptured(t, links)

	if err := Conflicts(links); !errors.Is(err, ErrNameTaken) {
		t.Errorf("while they exist: %v", err)
	}
	remove(t, h, "vzport", "vzrouted", "vzdown")
	must(t, Gone(t.Context(), links))
	must(t, Conflicts(links))

	again := newProc(t, syscall.CLONE_NEWNET)
	// The order must not matter, nor the state in which they are made.
	for _, l := range slices.Backward(links) {
		link := addPair(t, h, l.Host, l.Inner, again)
		must(t, h.LinkSetUp(link))
	}
	for range 2 {
		must(t, Attach(links))
		back, err := Capture(again)
		must(t, err)
		if sortLinks(back); !reflect.DeepEqual(sortLinks(links), back) {
			t.Errorf("captured %+v\nattached %+v", links, back)
		}
	}
}

func checkCaptured(t *testing.T, links []Link) {
	t.Helper()
	sortLinks(links)
	port, routed, down := links[0], links[1], links[2]
	if port.Host != "vzport" || port.Master != "br0" || port.MTU != 1400 || port.TxQLen != 77 || !port.Hairpin ||
		!port.Isolated || !port.Up || port.VLANs != nil {
		t.Errorf("port: %+v", port)
	}
	if routed.MAC != "02:00:00:00:00:09" || routed.Master != "" || len(routed.Routes) != 5 {
		t.Errorf("routed: %+v", routed)
	}
	for _, want := range []Addr{
		{CIDR: "10.7.0.1/24", Broadcast: "10.7.0.255"},
		{CIDR: "169.254.1.1/32", Scope: unix.RT_SCOPE_LINK},
		{CIDR: "10.8.0.1/32", Peer: "10.8.0.2/32"},
		{CIDR: "fd00:7::1/64"},
	} {
		if !slices.Contains(routed.Addrs, want) {
			t.Errorf("no address %+v in %+v", want, routed.Addrs)
		}
	}
	if down.Up || down.Host != "vzdown" {
		t.Errorf("down: %+v", down)
	}
}

func TestVLANs(t *testing.T) {
	h := newHostNS(t)
	pid := newProc(t, syscall.CLONE_NEWNET)
	bridge := addBridge(t, h, "br0")
	if err := h.BridgeSetVlanFiltering(bridge, true); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("kernel without CONFIG_BRIDGE_VLAN_FILTERING")
	} else if err != nil {
		t.Fatal(err)
	}
	port := addPair(t, h, "vz1", "eth0", pid)
	must(t, h.LinkSetMaster(port, bridge))
	must(t, h.BridgeVlanAdd(port, 42, true, true, false, true))
	must(t, h.BridgeVlanAdd(port, 43, false, false, false, true))
	must(t, h.BridgeVlanDel(port, 1, false, false, false, true))
	links, err := Capture(pid)
	must(t, err)
	want := []VLAN{{ID: 42, PVID: true, Untagged: true}, {ID: 43}}
	if len(links) != 1 || !reflect.DeepEqual(links[0].VLANs, want) {
		t.Fatalf("captured %+v", links)
	}
	remove(t, h, "vz1")
	addPair(t, h, "vz1", "eth0", pid)
	for range 2 {
		must(t, Attach(links))
		if back, err := Capture(pid); err != nil || !reflect.DeepEqual(sortLinks(links), sortLinks(back)) {
			t.Errorf("captured %+v\nattached %+v, %v", links, back, err)
		}
	}
}

// sortLinks makes records comparable: the kernel lists by index and age, and
// gives indexes.
func sortLinks(links []Link) []Link {
	for i := range links {
		links[i].Index = 0
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Inner, b.Inner) })
	for _, l := range links {
		slices.SortFunc(l.Addrs, func(a, b Addr) int { return strings.Compare(a.CIDR, b.CIDR) })
		slices.SortFunc(l.Routes, func(a, b Route) int { return strings.Compare(a.Dst, b.Dst) })
	}
	return links
}

func TestCaptureElsewhere(t *testing.T) {
	h := newHostNS(t)
	pid := newProc(t, syscall.CLONE_NEWNET)
	if links, err := Capture(pid); err != nil || len(links) != 0 {
		t.Errorf("no veth: %+v, %v", links, err)
	}
	third := newProc(t, syscall.CLONE_NEWNET)
	addPair(t, h, "vzhost", "eth0", pid)
	ns, err := netns.GetFromPid(pid)
	must(t, err)
	defer ns.Close()
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer in.Close()
	addPair(t, in, "nested", "eth0", third)
	addPair(t, in, "own0", "own1", pid)
	links, err := Capture(pid)
	must(t, err)
	var got []string
	for _, l := range links {
		got = append(got, l.Inner+">"+l.Host)
		if l.Elsewhere != (l.Host == "") {
			t.Errorf("%+v", l)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"eth0>vzhost", "nested>"}) {
		t.Errorf("got %v", got)
	}
	must(t, Attach([]Link{{Inner: "nested", Elsewhere: true}}))
	// The guest chooses the names of its own ends.
	eth0, err := in.LinkByName("eth0")
	must(t, err)
	must(t, in.LinkSetName(eth0, "a]b@c"))
	if _, err := Capture(pid); !errors.Is(err, ErrInvalid) {
		t.Errorf("odd name: %v", err)
	}
}

func TestCaptureNone(t *testing.T) {
	newHostNS(t)
	if links, err := Capture(newProc(t, 0)); err != nil || links != nil {
		t.Errorf("the host's namespace: %+v, %v", links, err)
	}
	if _, err := Capture(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	h := newHostNS(t)
	pid := newProc(t, syscall.CLONE_NEWNET)
	addBridge(t, h, "br0")
	other := addPair(t, h, "other", "eth9", pid)
	must(t, h.LinkSetUp(other))
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: other.Attrs().Index, Dst: cidr(t, "10.20.0.5/32"), Scope: netlink.SCOPE_LINK}))
	addPair(t, h, "vz1", "eth0", pid)
	for _, tt := range []struct {
		name string
		link Link
		err  error
	}{
		{"no host end", Link{Host: "vz2"}, ErrNoLink},
		{"no bridge", Link{Host: "vz1", Master: "br1"}, ErrNoLink},
		{"a bridge", Link{Host: "br0"}, ErrNotVeth},
		{"route of another", Link{Host: "vz1", Up: true, Routes: []Route{{Dst: "10.20.0.5/32", Scope: 253}}}, unix.EEXIST},
	} {
		if err := Attach([]Link{tt.link}); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func remove(t *testing.T, h *netlink.Handle, names ...string) {
	t.Helper()
	for _, name := range names {
		link, err := h.LinkByName(name)
		must(t, err)
		must(t, h.LinkDel(link))
	}
}

func TestGoneGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Gone(ctx, []Link{{Inner: "eth0", Host: "lo"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a link that stays: %v", err)
	}
	must(t, Gone(t.Context(), nil))
}
