package vnet

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestParseNets(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "",
		"bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1": "bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1,name=eth0",
		"bridge=br0":                            "bridge=br0,name=eth0",
		"ip=10.2.0.5,routed,ip=fd00::5/128":     "routed,ip=10.2.0.5,ip=fd00::5,name=eth0",
		" bridge=br0 , mtu=1400 ; routed,ip=10.2.0.5,nat ;":              "bridge=br0,mtu=1400,name=eth0;routed,ip=10.2.0.5,name=eth1,nat",
		"bridge=br0,mac=02-00-00-00-00-05,name=lan0,host=web,filter=off": "bridge=br0,mac=02:00:00:00:00:05,name=lan0,host=web,filter=off",
		"bridge=br0,ip=fd00::5/64,gw=fe80::1":                            "bridge=br0,ip=fd00::5/64,gw=fe80::1,name=eth0",
		"bridge=br0,ip=10.1.0.4/31,gw=10.1.0.5":                          "bridge=br0,ip=10.1.0.4/31,gw=10.1.0.5,name=eth0",
		"bridge=br0,dns=10.1.0.1,dns=fd00::1":                            "bridge=br0,dns=10.1.0.1,dns=fd00::1,name=eth0",
		"cni=pods,dns=::ffff:10.1.0.1":                                   "cni=pods,dns=10.1.0.1,name=eth0",
		"cni=pods,ip=10.3.0.5/24":                                        "cni=pods,ip=10.3.0.5/24,name=eth0",
	} {
		nets, err := ParseNets(text)
		if got := FormatNets(nets); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
		again, err := ParseNets(want)
		if got := FormatNets(again); err != nil || got != want {
			t.Errorf("%q again: %q, %v", want, got, err)
		}
	}
}

func TestParseNetsRefuses(t *testing.T) {
	many := strings.Repeat("bridge=br0;", MaxNets+1)
	for text, want := range map[string]string{
		"ip=10.1.0.5/24":                                    "one of bridge=NAME, routed, cni=NAME is missing",
		"bridge=br0,routed,ip=10.1.0.5":                     "exclude each other",
		"bridge=br0,pi=10.1.0.5/24":                         `"pi" is not known; known are bridge=`,
		"bridge":                                            "bridge= needs a value",
		"bridge=":                                           "no name of an interface",
		"bridge=averyveryverylongname":                      "no name of an interface",
		"routed=br0,ip=10.1.0.5":                            "routed takes no value",
		"bridge=br0,ip=10.1.0.5":                            "needs the length of its network",
		"bridge=br0,ip=10.1.0.0/24":                         "address of the network",
		"bridge=br0,ip=10.1.0.255/24":                       "broadcast",
		"bridge=br0,ip=127.0.0.1/8":                         "no address of one host",
		"bridge=br0,ip=fe80::1%eth0/64":                     "no address",
		"bridge=br0,ip=::ffff:10.1.0.5/120":                 "no address of one host",
		"bridge=br0,ip=10.1.0.5/24,gw=10.2.0.1":             "in no network of ip=",
		"bridge=br0,ip=10.1.0.5/24,gw=10.1.0.5":             "own address",
		"bridge=br0,gw=10.1.0.1":                            "in no network of ip=",
		"bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1,gw=10.1.0.2": "one gw= of a family",
		"bridge=br0,mac=01:00:00:00:00:05":                  "no address of one Ethernet interface",
		"bridge=br0,mac=00:00:00:00:00:00":                  "no address of one Ethernet interface",
		"bridge=br0,mac=hello":                              "no address of one Ethernet interface",
		"bridge=br0,mtu=67":                                 "not from 68 to 65535",
		"bridge=br0,mtu=65536":                              "not from 68 to 65535",
		"bridge=br0,ip=fd00::5/64,mtu=1279":                 "too small for IPv6",
		"bridge=br0,mtu=1400,mtu=1500":                      "given twice",
		"bridge=br0,filter=ip":                              "need ip=",
		"bridge=br0,filter=yes":                             "none of ip, mac, off",
		"bridge=br0,nat":                                    "need ip=",
		"bridge=br0,name=a/b":                               "no name of an interface",
		"bridge=br0,dns=":                                   "no address of a name server",
		"bridge=br0,dns":                                    "dns= needs a value",
		"bridge=br0,dns=fe80::1%eth0":                       "no address of a name server",
		"bridge=br0,dns=0.0.0.0":                            "no address of a name server",
		"bridge=br0,dns=224.0.0.251":                        "no address of a name server",
		"bridge=br0" + strings.Repeat(",dns=10.1.0.1", 9):   "9 name servers, 8 are the most",
		"routed":                         "routed needs ip=",
		"routed,ip=10.2.0.5/24":          "write ip=10.2.0.5",
		"routed,ip=10.2.0.5,gw=10.2.0.1": "the gateway is the host",
		"cni=../x":                       "no name of a CNI network",
		"cni=pods,mtu=1400":              "network's affair",
		"bridge=br0,ip=10.1.0.5/24;bridge=br1,ip=10.1.0.5/24": "wanted twice",
		"bridge=br0,name=eth1;bridge=br1":                     "eth1 is wanted twice",
		"bridge=br0,host=a;bridge=br1,host=a":                 "wanted twice",
		many:                                                  "the most",
	} {
		_, err := ParseNets(text)
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseNets(f *testing.F) {
	f.Add("bridge=br0,ip=10.1.0.5/24,gw=10.1.0.1,mac=02:00:00:00:00:05;routed,ip=fd00::5,nat")
	f.Add("cni=pods,name=eth7,ip=10.3.0.5")
	f.Fuzz(func(t *testing.T, text string) {
		nets, err := ParseNets(text)
		if err != nil {
			return
		}
		nets, err = Complete(nets, "web", "seed")
		if err != nil {
			return
		}
		canonical := FormatNets(nets)
		again, err := ParseNets(canonical)
		if err != nil || FormatNets(again) != canonical {
			t.Errorf("%q became %q: %v", text, canonical, err)
		}
		for _, n := range nets {
			entryRules(n)
			announcements(n)
		}
	})
}

func TestComplete(t *testing.T) {
	nets, err := ParseNets("bridge=br0,ip=10.1.0.5/24;bridge=br1;routed,ip=10.2.0.5,mac=02:00:00:00:00:05,host=mine,filter=off;cni=pods")
	must(t, err)
	done, err := Complete(nets, "web", "host-a")
	must(t, err)
	a, b, c, d := done[0], done[1], done[2], done[3]
	if a.Host != "vz-web-0" || b.Host != "vz-web-1" || c.Host != "mine" || d.Host != "" {
		t.Errorf("host ends %s %s %s %s", a.Host, b.Host, c.Host, d.Host)
	}
	if a.Filter != FilterIP || b.Filter != FilterMAC || c.Filter != FilterOff {
		t.Errorf("filters %s %s %s", a.Filter, b.Filter, c.Filter)
	}
	if a.MAC[0]&3 != 2 || a.MAC.String() == b.MAC.String() || c.MAC.String() != "02:00:00:00:00:05" {
		t.Errorf("MACs %s %s %s", a.MAC, b.MAC, c.MAC)
	}
	again, _ := Complete(nets, "web", "host-a")
	if FormatNets(again) != FormatNets(done) {
		t.Errorf("%s\n%s", FormatNets(done), FormatNets(again))
	}
	other, _ := Complete(nets, "web", "host-b")
	if other[0].MAC.String() == a.MAC.String() {
		t.Errorf("two hosts give the MAC %s", a.MAC)
	}
	if nets[0].Host != "" || nets[0].MAC != nil {
		t.Error("the argument was changed")
	}
}

func TestHostName(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"a", "web", "database-1", "database-10", "database-11", "a.b+c_d", strings.Repeat("x", 200), strings.Repeat("x", 199)} {
		for _, index := range []int{0, 9, 15} {
			name := hostName(id, index)
			if !isName(name) || !strings.HasPrefix(name, "vz-"+id[:1]) {
				t.Errorf("%s %d: %s", id, index, name)
			}
			if seen[name] != "" {
				t.Errorf("%s is of %s and %s", name, id, seen[name])
			}
			seen[name] = id
		}
	}
	if got := hostName("database-1", 0); got != "vz-database-1-0" {
		t.Error(got)
	}
}

func TestHostMAC(t *testing.T) {
	for mac, want := range map[string]string{"02:00:00:00:00:05": "fe:00:00:00:00:05", "fe:00:00:00:00:05": "fa:00:00:00:00:05"} {
		hw, err := net.ParseMAC(mac)
		must(t, err)
		if got := (&Net{MAC: hw}).hostMAC().String(); got != want {
			t.Errorf("%s: %s", mac, got)
		}
	}
}

func TestClash(t *testing.T) {
	for _, tt := range []struct {
		mine, theirs string
		want         bool
	}{
		{"bridge=br0,ip=10.1.0.5/24", "bridge=br0,ip=10.1.0.5/16", true},
		{"bridge=br0,ip=10.1.0.5/24", "bridge=br0,ip=10.1.0.6/24", false},
		{"bridge=br0,ip=10.1.0.5/24", "bridge=br1,ip=10.1.0.5/24", false},
		{"bridge=br0,ip=10.1.0.5/24", "routed,ip=10.1.0.5", true},
		{"routed,ip=fd00::5", "bridge=br0,ip=10.1.0.5/24;routed,ip=fd00:0::5", true},
		{"cni=a,ip=10.1.0.5", "routed,ip=10.1.0.5", false},
		{"bridge=br0", "bridge=br0", false},
	} {
		mine, err := ParseNets(tt.mine)
		must(t, err)
		theirs, err := ParseNets(tt.theirs)
		must(t, err)
		if _, got := Clash(mine, theirs); got != tt.want {
			t.Errorf("%s, %s: %v", tt.mine, tt.theirs, got)
		}
	}
}

func TestFollow(t *testing.T) {
	const saved = "bridge=br0,ip=10.1.0.5/24,name=eth0,host=h0;routed,ip=10.2.0.5,name=eth1,host=h1;cni=pods,name=eth2"
	were := []Link{{Inner: "renamed", Host: "h0", Master: "br0"}, {Inner: "eth1", Host: "h1"}, {Inner: "eth2", Host: "veth7"}, {Inner: "nested", Elsewhere: true}}
	for _, tt := range []struct {
		why      string
		mappings []Mapping
		want     string
	}{
		{"none", nil, saved},
		{"another bridge", []Mapping{{Inner: "renamed", Host: "c0", Bridge: "br9"}}, "bridge=br9,ip=10.1.0.5/24,name=eth0,host=c0;routed,ip=10.2.0.5,name=eth1,host=h1;cni=pods,name=eth2"},
		{"another than the plugins'", []Mapping{{Inner: "eth2", Host: "c2", Bridge: "br9"}}, "bridge=br0,ip=10.1.0.5/24,name=eth0,host=h0;routed,ip=10.2.0.5,name=eth1,host=h1"},
		{"no bridge", []Mapping{{Inner: "renamed", Host: "c0"}}, "routed,ip=10.2.0.5,name=eth1,host=h1;cni=pods,name=eth2"},
		{"routed elsewhere", []Mapping{{Inner: "eth1", Host: "c1"}}, "bridge=br0,ip=10.1.0.5/24,name=eth0,host=h0;cni=pods,name=eth2"},
	} {
		nets, err := ParseNets(saved)
		must(t, err)
		placed, err := Map(were, tt.mappings)
		must(t, err)
		if got := FormatNets(Follow(nets, were, placed)); got != tt.want {
			t.Errorf("%s: %s", tt.why, got)
		}
	}
	nets, err := ParseNets(saved)
	must(t, err)
	if got := FormatNets(Follow(nets, nil, nil)); got != "cni=pods,name=eth2" {
		t.Errorf("links are gone: %s", got)
	}
}

func TestAnnouncements(t *testing.T) {
	nets, err := ParseNets("bridge=br0,mac=02:00:00:00:00:05,ip=10.1.0.5/24,ip=fd00::5/64")
	must(t, err)
	frames := announcements(nets[0])
	if len(frames) != 2 || len(frames[0]) != 42 || len(frames[1]) != 14+40+32 {
		t.Fatalf("%x", frames)
	}
	// The sum over a packet with its checksum is nothing.
	ip := frames[1][14:]
	pseudo := append(append([]byte{}, ip[8:40]...), 0, 0, 0, 32, 0, 0, 0, protoICMPv6)
	if sum := checksum(append(pseudo, ip[40:]...)); sum != 0 {
		t.Errorf("checksum is off by %#x", sum)
	}
}

func TestLinkLocal(t *testing.T) {
	mac, err := net.ParseMAC("02:00:5e:10:00:05")
	must(t, err)
	if got := linkLocal(mac); got != netip.MustParseAddr("fe80::5eff:fe10:5") || !madeOf(got.AsSlice(), mac) {
		t.Error(got)
	}
}

func TestFreeIndexes(t *testing.T) {
	for _, tt := range []struct {
		inner []int
		want  int
	}{
		{nil, 2},
		{[]int{2}, 2},
		{[]int{2, 3}, 4},
		{[]int{3, 2}, 4},
		{[]int{7, 9}, 2},
		{[]int{2, 4, 5000}, 6},
		{[]int{3, 6, 9}, 10},
		{[]int{0, 0}, 4},
	} {
		var links []Link
		for _, i := range tt.inner {
			links = append(links, Link{Index: i})
		}
		if got := freeIndexes(append(links, Link{Elsewhere: true})); got != tt.want {
			t.Errorf("%v: %d", tt.inner, got)
		}
	}
}
