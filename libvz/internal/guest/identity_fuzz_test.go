package guest

import (
	"strings"
	"testing"
)

// Whatever an annotation or a file of the host holds, no line of its own gets
// into the guest's files.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"10.0.0.1 search=x option=ndots:2", "host", "self,db=10.0.0.1", "nameserver 10.0.0.1\nsearch a b\n", "10.0.0.1\tdb # x"} {
		f.Add(seed)
	}
	known := func(t *testing.T, content string, starts ...string) {
	lines:
		for line := range strings.Lines(content) {
			if strings.ContainsAny(line, "\r\x00\x1b") {
				t.Errorf("control characters in %q", line)
			}
			for _, s := range starts {
				if strings.HasPrefix(line, s) {
					continue lines
				}
			}
			t.Errorf("line %q", line)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDNS(s)
		for _, d := range []DNS{d, HostDNS(s)} {
			etc, run := d.Files()
			for _, file := range etc {
				known(t, file.Content, "# Written", "nameserver ", "search ", "options ")
			}
			for _, file := range run {
				known(t, file.Content, "# Written", "[Resolve]", "DNS=", "Domains=")
			}
		}
		if err != nil && (len(d.Servers) > 0 || d.Host) {
			t.Errorf("%v, and %+v", err, d)
		}
		h, err := ParseHosts(s)
		if err == nil && h.Write {
			for _, file := range h.File("web", "") {
				if n := strings.Count(file.Content, "\n"); n != 6+len(h.Extra) {
					t.Errorf("%d lines for %+v", n, h)
				}
			}
		}
		if name := prettyName(s); strings.ContainsAny(name, "\n\x1b") {
			t.Errorf("name %q", name)
		}
	})
}
