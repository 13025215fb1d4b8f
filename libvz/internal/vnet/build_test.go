package vnet

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func complete(t *testing.T, text string) []Net {
	t.Helper()
	nets, err := ParseNets(text)
	must(t, err)
	nets, err = Complete(nets, "t", "seed")
	must(t, err)
	return nets
}

func netnsOf(t *testing.T, pid int) *os.File {
	t.Helper()
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// inside runs fn on a thread in a network namespace.
func inside(t *testing.T, ns *os.File, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	must(t, <-done)
}

func tablesNamed(t *testing.T, name string) int {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	n := 0
	for _, table := range tables {
		if table.Name == name {
			n++
		}
	}
	return n
}

func TestBuild(t *testing.T) {
	h := newHostNS(t)
	bridge := addBridge(t, h, "br0")
	must(t, h.LinkSetMTU(bridge, 1300))
	pid := newProc(t, syscall.CLONE_NEWNET)
	ns := netnsOf(t, pid)
	nets := complete(t, "bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1,nat;routed,ip=10.2.0.5,ip=fd00:2::5,name=r0")
	must(t, Build(nets, ns))
	for range 2 {
		must(t, Guard("vzrun-t", nets))
	}
	inside(t, ns, func() error {
		if err := ConfigureInside(nets); err != nil {
			return err
		}
		return Announce(nets)
	})
	if n := tablesNamed(t, "vzrun-t"); n != 2 {
		t.Errorf("%d tables", n)
	}

	// What a checkpoint would record is what was asked for.
	links, err := Capture(pid)
	must(t, err)
	sortLinks(links)
	if len(links) != 2 {
		t.Fatalf("%+v", links)
	}
	port, routed := links[0], links[1]
	if port.Host != "vz-t-0" || port.Master != "br0" || port.MTU != 1300 || !port.Up || !strings.HasPrefix(port.MAC, "fe:") {
		t.Errorf("port %+v", port)
	}
	if routed.Host != "vz-t-1" || len(routed.Addrs) != 2 || len(routed.Routes) != 2 || routed.Routes[0].Dst != "10.2.0.5/32" {
		t.Errorf("routed %+v", routed)
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	must(t, err)
	defer in.Close()
	eth0, err := in.LinkByName("eth0")
	must(t, err)
	if a := eth0.Attrs(); a.HardwareAddr.String() != nets[0].MAC.String() || a.MTU != 1300 {
		t.Errorf("inside %+v", a)
	}
	routes, err := in.RouteList(nil, netlink.FAMILY_V4)
	must(t, err)
	if len(routes) < 2 {
		t.Errorf("routes %v", routes)
	}

	for range 2 {
		must(t, Unguard("vzrun-t"))
	}
	if n := tablesNamed(t, "vzrun-t"); n != 0 {
		t.Errorf("%d tables left", n)
	}
}

// TestGuardMany has as many rules as there can be.
func TestGuardMany(t *testing.T) {
	h := newHostNS(t)
	addBridge(t, h, "br0")
	var specs []string
	for i := range MaxNets {
		spec := "bridge=br0,nat"
		for j := range maxIPs / 2 {
			spec += fmt.Sprintf(",ip=10.1.%d.%d/16,ip=fd00:1::%d:%d/64", i, j+1, i, j+1)
		}
		specs = append(specs, spec)
	}
	nets := complete(t, strings.Join(specs, ";"))
	pid := newProc(t, syscall.CLONE_NEWNET)
	must(t, Build(nets, netnsOf(t, pid)))
	must(t, Guard("vzrun-many", nets))
	c, err := nftables.New()
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	if len(chains) != MaxNets+4 { // shared ones, and NAT
		t.Errorf("%d chains", len(chains))
	}
	must(t, Unguard("vzrun-many"))
}

func TestBuildRefuses(t *testing.T) {
	h := newHostNS(t)
	bridge := addBridge(t, h, "br0")
	must(t, h.AddrAdd(bridge, &netlink.Addr{IPNet: cidr(t, "10.1.0.1/24")}))
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: cidr(t, "10.2.0.5/32"), Scope: netlink.SCOPE_LINK}))
	pid := newProc(t, syscall.CLONE_NEWNET)
	addPair(t, h, "other", "taken", pid)
	for _, tt := range []struct {
		net string
		err error
	}{
		{"bridge=br1", ErrNoLink},
		{"bridge=other", ErrNotBridge},
		{"bridge=br0,host=other", ErrNameTaken},
		{"bridge=br0,name=taken,host=h1", ErrNameTaken},
		{"bridge=br0,ip=10.1.0.1/24", ErrAddressInUse},
		{"routed,ip=10.2.0.5,host=h2", ErrAddressInUse},
	} {
		if err := Build(complete(t, tt.net), netnsOf(t, pid)); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.net, err)
		}
	}
}

func TestSkipIndexes(t *testing.T) {
	h := newHostNS(t)
	must(t, SkipIndexes([]Link{{Index: 3}, {Index: 2}}))
	pid := newProc(t, syscall.CLONE_NEWNET)
	if index := addPair(t, h, "first", "eth0", pid).Attrs().Index; index < 4 {
		t.Errorf("index %d", index)
	}
	all, err := h.LinkList()
	must(t, err)
	if len(all) > 2 {
		t.Errorf("left over: %v", all)
	}
}
