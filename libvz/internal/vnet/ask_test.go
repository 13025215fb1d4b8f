package vnet

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestUserOf(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 5}
	v4, v6 := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00:1::5")
	for name, test := range map[string]struct {
		frame []byte
		want  netip.Addr
	}{
		"announcement":  {arpAnnouncement(mac, v4), v4},
		"advertisement": {neighborAdvert(mac, v6), v6},
		"ARP probe":     {arpProbe(mac, v4), netip.Addr{}},
		"solicitation":  {neighborSolicit(mac, v6), netip.Addr{}},
		"nothing":       {nil, netip.Addr{}},
	} {
		ip, owner, ok := userOf(test.frame)
		if ok != test.want.IsValid() || ok && (ip != test.want || owner.String() != mac.String()) {
			t.Errorf("%s: %s, %s, %v", name, ip, owner, ok)
		}
		// What follows the address, an option, is not looked at.
		for end := range min(len(test.frame), 78) {
			if _, _, ok := userOf(test.frame[:end]); ok {
				t.Errorf("%s: %d bytes of it count", name, end)
			}
		}
	}
}

func FuzzUserOf(f *testing.F) {
	f.Add(arpAnnouncement(make(net.HardwareAddr, 6), netip.MustParseAddr("10.1.0.5")))
	f.Add(neighborAdvert(make(net.HardwareAddr, 6), netip.MustParseAddr("fd00:1::5")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if ip, mac, ok := userOf(frame); ok && (!ip.IsValid() || len(mac) != 6) {
			t.Errorf("%s, %s", ip, mac)
		}
	})
}

func TestAsk(t *testing.T) {
	h := newHostNS(t)
	bridge := addBridge(t, h, "br0")
	must(t, h.LinkSetUp(bridge))
	neighbour := newProc(t, syscall.CLONE_NEWNET)
	port := addPair(t, h, "vz1", "eth0", neighbour)
	must(t, h.LinkSetUp(port))
	ns, err := netns.GetFromPid(neighbour)
	must(t, err)
	defer ns.Close()
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer in.Close()
	eth0, err := in.LinkByName("eth0")
	must(t, err)
	must(t, in.LinkSetUp(eth0))
	for _, a := range []string{"10.1.0.5/24", "fd00:1::5/64"} {
		must(t, in.AddrAdd(eth0, &netlink.Addr{IPNet: cidr(t, a), Flags: unix.IFA_F_NODAD}))
	}
	ask := func(text string) (asked bool, _ error) {
		nets, err := ParseNets("bridge=br0," + text)
		must(t, err)
		q, err := Ask(nets)
		must(t, err)
		defer q.Close()
		return len(q.segments) > 0, q.Answer(t.Context())
	}

	// A bridge without ports has nobody to ask.
	if asked, err := ask("ip=10.1.0.5/24"); err != nil || asked {
		t.Errorf("no port: asked %v, %v", asked, err)
	}
	must(t, h.LinkSetMaster(port, bridge))
	for _, ip := range []string{"10.1.0.5", "fd00:1::5"} {
		// The kernel lets the port forward, and the neighbour hear who asks for
		// its IPv6 address, a moment after it was told to.
		for deadline := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(deadline); {
			_, err = ask("ip=" + ip + "/" + map[bool]string{true: "64", false: "24"}[strings.Contains(ip, ":")])
		}
		if !errors.Is(err, ErrAddressInUse) || !strings.Contains(err.Error(), ip+", by "+eth0.Attrs().HardwareAddr.String()+" on bridge br0") {
			t.Errorf("%s: %v", ip, err)
		}
		err = nil
	}
	if _, err := ask("ip=10.1.0.6/24,ip=fd00:1::6/64"); err != nil {
		t.Errorf("free addresses: %v", err)
	}
	// Whoever has the MAC that is wanted is the container before this one.
	if _, err := ask("ip=10.1.0.5/24,mac=" + eth0.Attrs().HardwareAddr.String()); err != nil {
		t.Errorf("its own MAC: %v", err)
	}
	must(t, h.LinkSetDown(bridge))
	if asked, err := ask("ip=10.1.0.5/24"); err != nil || asked {
		t.Errorf("bridge down: asked %v, %v", asked, err)
	}
}
