package vnet

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestClone(t *testing.T) {
	const seed = "host"
	nets := func(text string) []Net {
		t.Helper()
		n, err := ParseNets(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	had := nets("bridge=br0,ip=10.0.0.2/24,gw=10.0.0.1,dns=10.0.0.1,mac=02:00:00:00:00:01,name=eth0,host=vz-web-0,filter=ip,mtu=1400;" +
		"routed,ip=10.9.0.2,dns=10.0.0.9,mac=02:00:00:00:00:02,name=eth1,host=vz-web-1,filter=ip")
	links := []Link{
		{Inner: "eth0", Index: 2, Host: "vz-web-0", MAC: "fe:00:00:00:00:01", MTU: 1400, Master: "br0", Isolated: true, Up: true},
		{Inner: "eth1", Index: 3, Host: "vz-web-1", Up: true, Addrs: []Addr{{CIDR: "169.254.1.1/32"}}, Routes: []Route{{Dst: "10.9.0.2/32"}}},
		{Inner: "lan", Index: 4, Host: "veth7", MAC: "02:00:00:00:00:09", Master: "br1", VLANs: []VLAN{{ID: 5}}, Up: true},
		{Inner: "docker0p", Elsewhere: true},
	}
	check := func(c Cloned, text string) {
		t.Helper()
		if got := FormatNets(c.Nets); got != text {
			t.Errorf("nets  %s\nwant  %s", got, text)
		}
		macs := map[string]bool{"02:00:00:00:00:01": true, "02:00:00:00:00:02": true}
		for name, mac := range c.MACs {
			if macs[mac.String()] || len(mac) != 6 || mac[0]&3 != 2 {
				t.Errorf("MAC of %s is %s", name, mac)
			}
			macs[mac.String()] = true
		}
		if len(c.MACs) != 3 || len(c.Links) != 4 || !c.Links[3].Elsewhere {
			t.Errorf("%+v", c)
		}
	}

	c, err := Clone(links, had, nil, "c1", seed)
	if err != nil {
		t.Fatal(err)
	}
	check(c, "bridge=br0,dns=10.0.0.1,mac="+c.MACs["eth0"].String()+",mtu=1400,name=eth0,host=vz-c1-0,filter=mac")
	if l := c.Links[0]; l.Master != "br0" || !l.Isolated || l.MTU != 1400 || l.Host != "vz-c1-0" || l.MAC == links[0].MAC {
		t.Errorf("eth0: %+v", l)
	}
	// A routed one is nobody's without an address.
	if l := c.Links[1]; l.Host != "vz-c1-1" || l.Addrs != nil || l.Routes != nil {
		t.Errorf("eth1: %+v", l)
	}
	if l := c.Links[2]; l.Host != "vz-c1-2" || l.MAC != "" || l.Master != "br1" || len(l.VLANs) != 1 {
		t.Errorf("lan: %+v", l)
	}

	c, err = Clone(links, had, nets("routed,ip=10.9.0.3,ip=fd00::3,name=eth1;bridge=br2,ip=10.2.0.3/24,dns=10.2.0.1,name=lan"), "c1", seed)
	if err != nil {
		t.Fatal(err)
	}
	check(c, "bridge=br0,dns=10.0.0.1,mac="+c.MACs["eth0"].String()+",mtu=1400,name=eth0,host=vz-c1-0,filter=mac;"+
		"routed,ip=10.9.0.3,ip=fd00::3,dns=10.0.0.9,mac="+c.MACs["eth1"].String()+",name=eth1,host=vz-c1-1,filter=ip;"+
		"bridge=br2,ip=10.2.0.3/24,dns=10.2.0.1,mac="+c.MACs["lan"].String()+",name=lan,host=vz-c1-2,filter=ip")
	if l := c.Links[1]; len(l.Addrs) != 2 || len(l.Routes) != 2 || l.Routes[0].Dst != "10.9.0.3/32" || l.Routes[1].Dst != "fd00::3/128" {
		t.Errorf("eth1: %+v", l)
	}
	if l := c.Links[2]; l.Master != "br2" || l.VLANs != nil {
		t.Errorf("lan: %+v", l)
	}
	// Two clones have nothing in common.
	other, err := Clone(links, had, nil, "c2", seed)
	if err != nil {
		t.Fatal(err)
	}
	for name := range c.MACs {
		if other.MACs[name].String() == c.MACs[name].String() {
			t.Errorf("both clones have %s on %s", c.MACs[name], name)
		}
	}

	if _, err := Clone(links, had, nets("bridge=br0,name=eth9"), "c1", seed); !errors.Is(err, ErrNoLink) {
		t.Errorf("a link that is not there: %v", err)
	}
	if _, err := Clone(links, had, nets("cni=lan,name=eth0"), "c1", seed); !errors.Is(err, ErrInvalid) {
		t.Errorf("CNI: %v", err)
	}
	own := Net{Kind: KindBridge, Master: "br0", Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}}
	if c, err = Clone(links, had, []Net{own}, "c1", seed); err != nil || c.MACs["eth0"].String() != own.MAC.String() {
		t.Errorf("a MAC that is wished for: %v, %v", c.MACs, err)
	}
}
