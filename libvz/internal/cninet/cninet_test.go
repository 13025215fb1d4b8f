package cninet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plugin answers ADD with one address, the first that it is asked for by
// CNI_ARGS if it takes wishes, and writes down what it was called for.
const plugin = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS" >>"$(dirname "$0")/calls"
cat >"$(dirname "$0")/stdin.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] || exit 0
if [ -e "$(dirname "$0")/broken" ]; then
	echo '{"cniVersion": "1.0.0", "code": 100, "msg": "out of order"}'
	exit 1
fi
ip=10.3.0.9
case $CNI_ARGS in *IP=*) [ -e "$(dirname "$0")/stubborn" ] || ip=${CNI_ARGS##*IP=} ip=${ip%%[;,]*} ;; esac
echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x", "mac": "02:00:00:00:00:05"}], "ips": [{"address": "'"$ip"'/24"}]'"$(cat "$(dirname "$0")/dns" 2>/dev/null)"'}'
`

func newNetwork(t *testing.T) (dir string, a Attachment) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("fake", plugin, 0o755)
	write("10-pods.conflist", `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "fake", "capabilities": {"ips": true}}]}`, 0o600)
	t.Setenv("NETCONFPATH", dir)
	t.Setenv("CNI_PATH", dir)
	return dir, Attachment{Network: "pods", ContainerID: "c1", IfName: "eth0", CacheDir: filepath.Join(dir, "cache")}
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func TestAddAndDel(t *testing.T) {
	dir, a := newNetwork(t)
	a.IPs = []netip.Prefix{netip.MustParsePrefix("10.3.0.5/24")}
	if err := a.Add(t.Context(), "/x"); err != nil {
		t.Fatal(err)
	}
	if got, want := calls(t, dir), "ADD c1 eth0 /x IgnoreUnknown=1;IP=10.3.0.5\n"; got != want {
		t.Errorf("called for %q", got)
	}
	if stdin, err := os.ReadFile(filepath.Join(dir, "stdin.ADD")); err != nil || !strings.Contains(string(stdin), `"ips":["10.3.0.5/24"]`) {
		t.Errorf("told %s, %v", stdin, err)
	}
	ips, err := a.Addresses()
	if err != nil || len(ips) != 1 || ips[0] != netip.MustParsePrefix("10.3.0.5/24") {
		t.Errorf("addresses %v, %v", ips, err)
	}
	// What Add knew counts, whatever became of the description.
	if err := os.Remove(filepath.Join(dir, "10-pods.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := calls(t, dir); !strings.Contains(got, "\nDEL c1 eth0  IgnoreUnknown=1;IP=10.3.0.5\n") {
		t.Errorf("called for %q", got)
	}
	if stdin, err := os.ReadFile(filepath.Join(dir, "stdin.DEL")); err != nil || !strings.Contains(string(stdin), `"prevResult"`) {
		t.Errorf("told %s, %v", stdin, err)
	}
	// There is nothing left to take away.
	if err := a.Del(t.Context()); err != nil || strings.Count(calls(t, dir), "DEL") != 1 {
		t.Errorf("%v: %q", err, calls(t, dir))
	}
}

func TestDelAfterInterruptedAdd(t *testing.T) {
	dir, a := newNetwork(t)
	if err := a.Del(t.Context()); err != nil || !strings.HasPrefix(calls(t, dir), "DEL c1 eth0") {
		t.Errorf("%v: %q", err, calls(t, dir))
	}
}

func TestAddRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		change     func(*Attachment)
		want       error
		text       string
	}{
		{"another name", "", func(a *Attachment) { a.Network = "none" }, ErrNoNetwork, "none in"},
		{"wishes", "stubborn", func(a *Attachment) { a.IPs = []netip.Prefix{netip.MustParsePrefix("10.3.0.5/32")} }, ErrNotGiven, "10.3.0.9/24"},
		{"MAC", "", func(a *Attachment) { a.MAC = "02:00:00:00:00:06" }, ErrNotGiven, "mac 02:00:00:00:00:06"},
		{"a failure", "broken", func(*Attachment) {}, ErrPlugin, "out of order"},
		{"no plugin", "", func(*Attachment) { os.Remove(filepath.Join(os.Getenv("CNI_PATH"), "fake")) }, ErrPlugin, `failed to find plugin "fake"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, a := newNetwork(t)
			if tt.file != "" {
				if err := os.WriteFile(filepath.Join(dir, tt.file), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			tt.change(&a)
			err := a.Add(t.Context(), "/x")
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v", err)
			}
			if got := calls(t, dir); strings.Count(got, "ADD") != strings.Count(got, "DEL") {
				t.Errorf("called for %q", got)
			}
		})
	}
}

func TestAddressesOfNone(t *testing.T) {
	_, a := newNetwork(t)
	if ips, err := a.Addresses(); err != nil || ips != nil {
		t.Errorf("%v, %v", ips, err)
	}
}

func TestDNS(t *testing.T) {
	for _, tt := range []struct{ name, says, servers, search, options string }{
		{"none", "", "[]", "[]", "[]"},
		{
			"all", `"nameservers": ["10.3.0.1", "fd00::1"], "domain": "a.example", "search": ["b.example", "c.example"], "options": ["ndots:2"]`,
			"[10.3.0.1 fd00::1]", "[b.example c.example]", "[ndots:2]",
		},
		{"a domain alone", `"nameservers": ["10.3.0.1"], "domain": "a.example"`, "[10.3.0.1]", "[a.example]", "[]"},
		{"no address", `"nameservers": ["x y"]`, "[x y]", "[]", "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, a := newNetwork(t)
			if tt.says != "" {
				if err := os.WriteFile(filepath.Join(dir, "dns"), []byte(`, "dns": {`+tt.says+`}`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Add(t.Context(), "/x"); err != nil {
				t.Fatal(err)
			}
			servers, search, options, err := a.DNS()
			if got := fmt.Sprint(servers, search, options); err != nil || got != fmt.Sprintf("%s %s %s", tt.servers, tt.search, tt.options) {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
	_, never := newNetwork(t)
	if servers, _, _, err := never.DNS(); err != nil || servers != nil {
		t.Errorf("%v, %v", servers, err)
	}
}

func TestDelFails(t *testing.T) {
	dir, a := newNetwork(t)
	remove := func() {
		if err := os.Remove(filepath.Join(dir, "fake")); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Add(t.Context(), "/x"); err != nil {
		t.Fatal(err)
	}
	remove()
	if err := a.Del(t.Context()); !errors.Is(err, ErrPlugin) {
		t.Errorf("%v", err)
	}
	// Where Add never came to an end there is perhaps nothing to do.
	_, a = newNetwork(t)
	dir = os.Getenv("CNI_PATH")
	remove()
	if err := a.Del(t.Context()); !errors.Is(err, ErrNeverAdded) || errors.Is(err, ErrPlugin) {
		t.Errorf("%v", err)
	}
}
