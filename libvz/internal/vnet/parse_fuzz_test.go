package vnet

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzParse: a mapping that is accepted has names that mean the same to the
// kernel and to CRIU, and reads the same when it is written again.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"eth0=vz0@br0", "eth0=vz0", "=", "a=b@", "a=b@c@d", "a=%d", "e/x=..", "eth0=0123456789abcdef"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		for _, name := range []string{m.Inner, m.Host, m.Bridge} {
			if len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/:%[]@= \t\n\x00") {
				t.Fatalf("%q: name %q", text, name)
			}
		}
		again := m.Inner + "=" + m.Host
		if m.Bridge != "" {
			again += "@" + m.Bridge
		}
		if got, err := Parse(again); err != nil || got != m || again != text {
			t.Fatalf("%q is read as %q: %v", text, again, err)
		}
	})
}

// FuzzMap maps links from any manifest.
func FuzzMap(f *testing.F) {
	f.Add([]byte(`[{"inner":"eth0","host":"vz0","mtu":1500},{"inner":"eth1","elsewhere":true}]`), "eth0=new@br0")
	f.Add([]byte(`[{}]`), "eth0=new")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		var links []Link
		m, err := Parse(text)
		if json.Unmarshal(data, &links) != nil || err != nil {
			return
		}
		before, _ := json.Marshal(links)
		out, err := Map(links, []Mapping{m})
		if after, _ := json.Marshal(links); string(after) != string(before) {
			t.Fatal("the argument was changed")
		}
		if err == nil && len(out) != len(links) {
			t.Fatalf("%d links of %d", len(out), len(links))
		}
		if _, err := Map(links, []Mapping{m, m}); err == nil {
			t.Fatal("mapped twice")
		}
	})
}
