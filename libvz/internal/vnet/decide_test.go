package vnet

import (
	"encoding/json"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Mapping
		bad  bool
	}{
		{"eth0=vzc1@br0", Mapping{"eth0", "vzc1", "br0"}, false},
		{"eth0=vzc1", Mapping{"eth0", "vzc1", ""}, false},
		{"eth0.5=123456789012345", Mapping{"eth0.5", "123456789012345", ""}, false},
		{"eth0=1234567890123456", Mapping{}, true},
		{"", Mapping{}, true},
		{"eth0", Mapping{}, true},
		{"eth0=", Mapping{}, true},
		{"=vz", Mapping{}, true},
		{"eth0=vz@", Mapping{}, true},
		{"eth0=@br0", Mapping{}, true},
		{"eth0=vz@br0@br1", Mapping{}, true},
		{"eth0=a=b", Mapping{}, true},
		{"eth0=a/b", Mapping{}, true},
		{"eth0=a:b", Mapping{}, true},
		{"eth0=vz%d", Mapping{}, true},
		{"eth0]=vz", Mapping{}, true},
		{"eth0=..", Mapping{}, true},
		{"eth0= vz", Mapping{}, true},
		{"eth0=vz\n", Mapping{}, true},
	} {
		got, err := Parse(tt.text)
		if got != tt.want || errors.Is(err, ErrInvalid) != tt.bad {
			t.Errorf("%q: got %+v, %v", tt.text, got, err)
		}
	}
}

func TestMap(t *testing.T) {
	links := []Link{
		{
			Inner: "eth0", Host: "vz1", MAC: "02:00:00:00:00:01", MTU: 1400, TxQLen: 500, Master: "br0", Up: true,
			Isolated: true, Addrs: []Addr{{CIDR: "10.0.0.1/24"}}, Routes: []Route{{Dst: "10.1.0.0/16"}},
		},
		{Inner: "eth1", Host: "vz2", Master: "br1"},
		{Inner: "docker", Elsewhere: true},
	}
	moved := Link{Inner: "eth0", Host: "c1", MTU: 1400, TxQLen: 500, Master: "br9", Up: true}
	for _, tt := range []struct {
		name string
		m    []Mapping
		want []Link
		err  error
	}{
		{"none", nil, links, nil},
		{"one", []Mapping{{"eth0", "c1", "br9"}}, []Link{moved, links[1], links[2]}, nil},
		{"unknown", []Mapping{{"eth7", "c1", ""}}, nil, ErrNoLink},
		{"elsewhere", []Mapping{{"docker", "c1", ""}}, nil, ErrNoLink},
		{"twice", []Mapping{{"eth0", "c1", ""}, {"eth0", "c2", ""}}, nil, ErrInvalid},
	} {
		got, err := Map(links, tt.m)
		if !reflect.DeepEqual(got, tt.want) || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		}
	}
	if links[0].Host != "vz1" {
		t.Error("Map changed its argument")
	}
	if got, err := Map(nil, nil); len(got) != 0 || err != nil {
		t.Errorf("of nothing: %v, %v", got, err)
	}
}

func TestConflict(t *testing.T) {
	odd := errors.New("odd")
	for _, tt := range []struct {
		name  string
		links []Link
		err   error
		names string
	}{
		{"none", nil, nil, ""},
		{"free", []Link{{Inner: "eth0", Host: "a"}, {Inner: "eth1", Host: "b"}}, nil, ""},
		{"taken", []Link{{Inner: "eth0", Host: "a"}, {Inner: "eth1", Host: "busy"}}, ErrNameTaken, "busy"},
		{"twice", []Link{{Inner: "eth0", Host: "a"}, {Inner: "eth1", Host: "a"}}, ErrNameTaken, "eth1"},
		{"elsewhere", []Link{{Inner: "x", Elsewhere: true}, {Inner: "y", Elsewhere: true}}, nil, ""},
		{"no name", []Link{{Inner: "eth0"}}, ErrInvalid, ""},
		{"failure", []Link{{Inner: "eth0", Host: "fail"}}, odd, ""},
	} {
		err := conflict(tt.links, func(name string) (bool, error) {
			if name == "fail" {
				return false, odd
			}
			return name == "busy", nil
		})
		if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.names) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

func TestNewPlanRefuses(t *testing.T) {
	good := Link{
		Host: "vz1", Master: "br0", MAC: "02:00:00:00:00:01", VLANs: []VLAN{{ID: 4094}},
		Addrs:  []Addr{{CIDR: "10.0.0.1/32", Peer: "10.0.0.2/32"}, {CIDR: "10.0.1.1/24", Broadcast: "10.0.1.255"}, {CIDR: "fd00::1/64"}},
		Routes: []Route{{Dst: "10.2.0.0/16", Via: "10.9.0.1", Src: "10.0.0.1"}, {Dst: "10.9.0.1/32"}, {Dst: "::/0"}},
	}
	p, err := newPlan(good)
	if err != nil {
		t.Fatal(err)
	}
	if p.routes[0].Gw != nil || p.routes[2].Gw == nil {
		t.Errorf("a route by way of another comes first: %v", p.routes)
	}
	for name, change := range map[string]func(*Link){
		"host name":  func(l *Link) { l.Host = "a/b" },
		"no name":    func(l *Link) { l.Host = "" },
		"master":     func(l *Link) { l.Master = "a b" },
		"MAC":        func(l *Link) { l.MAC = "02:00" },
		"long MAC":   func(l *Link) { l.MAC = "02:00:00:00:00:01:02:03" },
		"VLAN 0":     func(l *Link) { l.VLANs = []VLAN{{ID: 0}} },
		"VLAN 4095":  func(l *Link) { l.VLANs = []VLAN{{ID: 4095}} },
		"address":    func(l *Link) { l.Addrs = []Addr{{CIDR: "10.0.0.1"}} },
		"peer":       func(l *Link) { l.Addrs = []Addr{{CIDR: "10.0.0.1/32", Peer: "x"}} },
		"broadcast":  func(l *Link) { l.Addrs = []Addr{{CIDR: "10.0.0.1/24", Broadcast: "fd00::1"}} },
		"route":      func(l *Link) { l.Routes = []Route{{Dst: "default"}} },
		"next hop":   func(l *Link) { l.Routes = []Route{{Dst: "10.0.0.0/8", Via: "x"}} },
		"source":     func(l *Link) { l.Routes = []Route{{Dst: "10.0.0.0/8", Src: "x"}} },
		"link space": func(l *Link) { l.Host = "vz 1" },
	} {
		l := good
		change(&l)
		if _, err := newPlan(l); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRecordRoute(t *testing.T) {
	_, dst, _ := net.ParseCIDR("10.0.0.0/8")
	for _, tt := range []struct {
		name  string
		route netlink.Route
		keep  bool
	}{
		{"static", netlink.Route{Dst: dst, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC}, true},
		{"boot", netlink.Route{Dst: dst, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_BOOT}, true},
		{"kernel", netlink.Route{Dst: dst, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_KERNEL}, false},
		{"advertised", netlink.Route{Dst: dst, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_RA}, false},
		{"local", netlink.Route{Dst: dst, Type: unix.RTN_LOCAL}, false},
		{"other family", netlink.Route{Dst: dst, Type: unix.RTN_UNICAST, Via: &netlink.Via{}}, false},
		{"several next hops", netlink.Route{Type: unix.RTN_UNICAST}, false},
	} {
		if _, ok := recordRoute(tt.route); ok != tt.keep {
			t.Errorf("%s: got %t", tt.name, ok)
		}
	}
}

func TestRecordAddr(t *testing.T) {
	_, n, _ := net.ParseCIDR("10.0.0.0/8")
	if _, ok := recordAddr(netlink.Addr{IPNet: n}); ok {
		t.Error("a learned address was kept")
	}
	if _, ok := recordAddr(netlink.Addr{IPNet: n, Flags: unix.IFA_F_PERMANENT}); !ok {
		t.Error("a permanent address was not kept")
	}
}

func TestMadeOf(t *testing.T) {
	mac := net.HardwareAddr{0x02, 0x42, 0xac, 0x11, 0x00, 0x02}
	for text, want := range map[string]bool{
		"fe80::42:acff:fe11:2": true,
		"fe80::1":              false,
		"fd00::42:acff:fe11:2": false,
		"10.0.0.1":             false,
	} {
		if got := madeOf(net.ParseIP(text), mac); got != want {
			t.Errorf("%s: got %t", text, got)
		}
	}
	if madeOf(net.ParseIP("fe80::1"), nil) {
		t.Error("without a MAC")
	}
}

func TestLinkJSON(t *testing.T) {
	l := Link{
		Inner: "eth0", Host: "vz1", MAC: "02:00:00:00:00:01", MTU: 1500, TxQLen: 1000, Master: "br0",
		Hairpin: true, Isolated: true, Up: true, VLANs: []VLAN{{ID: 7, PVID: true, Untagged: true}},
		Addrs:  []Addr{{CIDR: "10.0.0.1/32", Peer: "10.0.0.2/32", Scope: 253, NoPrefixRoute: true}},
		Routes: []Route{{Dst: "::/0", Via: "fe80::1", Table: 100, Metric: 5, Proto: 4, OnLink: true}},
	}
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var back Link
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(l, back) {
		t.Errorf("%s became %+v, %v", data, back, err)
	}
}
