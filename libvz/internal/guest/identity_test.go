package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseDNS(t *testing.T) {
	for _, c := range []struct{ text, conf, resolved string }{
		{"", "", ""},
		{"none", "", ""},
		{"10.0.0.1", "nameserver 10.0.0.1\n", "DNS=10.0.0.1\n"},
		{
			"10.0.0.1, fd00::1 search=example.org search=a_b option=ndots:2",
			"nameserver 10.0.0.1\nnameserver fd00::1\nsearch example.org a_b\noptions ndots:2\n",
			"DNS=10.0.0.1 fd00::1\nDomains=example.org a_b\n",
		},
	} {
		d, err := ParseDNS(c.text)
		if err != nil {
			t.Fatal(err)
		}
		etc, run := d.Files()
		if c.conf == "" {
			if len(etc)+len(run) != 0 || d.Host {
				t.Errorf("%q: got %v, %v", c.text, etc, run)
			}
			continue
		}
		if !strings.HasSuffix(etc[0].Content, "say.\n"+c.conf) || !strings.HasSuffix(run[0].Content, "[Resolve]\n"+c.resolved) {
			t.Errorf("%q: got %q and %q", c.text, etc[0].Content, run[0].Content)
		}
	}
	if d, err := ParseDNS(" host "); err != nil || !d.Host {
		t.Errorf("host: got %+v, %v", d, err)
	}
	for _, bad := range []string{
		"host,10.0.0.1", "none,10.0.0.1", "search=x", "10.0.0.1\nnameserver", "10.0.0", "fe80::1%eth0", "10.0.0.1 search=-x",
		"10.0.0.1 search=a\nb", "10.0.0.1 option=UP", "10.0.0.1 option=", "dns.example.org", strings.Repeat("10.0.0.1 ", maxWords+1),
	} {
		if d, err := ParseDNS(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, d)
		}
	}
}

func TestHostDNS(t *testing.T) {
	d := HostDNS("# a comment\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.2\nnameserver\nsearch a.example $(x) b.example\noptions edns0 trust-ad\n")
	if len(d.Servers) != 1 || d.Servers[0].String() != "10.0.0.2" || !slices.Equal(d.Search, []string{"a.example", "b.example"}) || !slices.Equal(d.Options, []string{"edns0", "trust-ad"}) {
		t.Errorf("got %+v", d)
	}
	if d := HostDNS("nameserver 127.0.0.53\n"); len(d.Servers) != 0 {
		t.Errorf("got %+v", d)
	}
}

func TestHosts(t *testing.T) {
	const onHost = "127.0.0.1 localhost\n127.0.1.1 thehost\n10.0.0.9\tdb db.example # ours\n::1 localhost\nff02::1 all\nnonsense\n10.0.0.8\n"
	for _, c := range []struct {
		text, name    string
		want, wantNot []string
	}{
		{"self", "web.example", []string{"127.0.0.1\tlocalhost\n", "127.0.1.1\tweb.example web\n", "::1\tlocalhost"}, []string{"db"}},
		{"host", "web", []string{"127.0.1.1\tweb\n", "10.0.0.9\tdb db.example\n"}, []string{"thehost", "ours", "nonsense", "10.0.0.8"}},
		{"db=10.0.0.7,db=fd00::7", "", []string{"10.0.0.7\tdb\nfd00::7\tdb\n"}, []string{"127.0.1.1"}},
		{"self", "bad\nname", nil, []string{"bad"}},
	} {
		h, err := ParseHosts(c.text)
		if err != nil {
			t.Fatal(err)
		}
		got := h.File(c.name, onHost)[0].Content
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%q: no %q in\n%s", c.text, w, got)
			}
		}
		for _, w := range c.wantNot {
			if strings.Contains(got, w) {
				t.Errorf("%q: %q in\n%s", c.text, w, got)
			}
		}
	}
	for _, nothing := range []string{"", "none", " "} {
		if h, err := ParseHosts(nothing); err != nil || h.Write || h.File("x", "") != nil {
			t.Errorf("%q: got %+v, %v", nothing, h, err)
		}
	}
	for _, bad := range []string{"none,self", "db", "db=", "=10.0.0.1", "db=there", "d b=10.0.0.1", "db\n=10.0.0.1"} {
		if h, err := ParseHosts(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, h)
		}
	}
}

func TestNamesOfARootfs(t *testing.T) {
	for _, c := range []struct{ file, content, want string }{
		{"machine-id", "", ""},
		{"machine-id", "uninitialized\n", ""},
		{"machine-id", "00000000000000000000000000000000\n", ""},
		{"machine-id", "0123456789ABCDEF0123456789abcdef\n", "0123456789abcdef0123456789abcdef"},
		{"machine-id", "01234567-89ab-cdef-0123-456789abcdef\n", ""},
		{"hostname", "# mine\n\nweb\n", "web"},
		{"hostname", "we b\n", ""},
		{"hostname", "", ""},
	} {
		root := t.TempDir()
		if err := os.Mkdir(root+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/etc/"+c.file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		read := map[string]func(string) string{"machine-id": MachineID, "hostname": Hostname}[c.file]
		if got := read(root); got != c.want {
			t.Errorf("%s %q: got %q, want %q", c.file, c.content, got, c.want)
		}
	}
	if MachineID(t.TempDir()) != "" || Hostname("/nowhere") != "" {
		t.Error("a rootfs without them has them")
	}
}

// What is written to the guest's /etc stays in its root, and its links are kept.
func TestInstallEtcStaysInside(t *testing.T) {
	outside, etc := t.TempDir(), t.TempDir()
	if err := os.Symlink(filepath.Join(outside, "x"), etc+"/hosts"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(etc)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	links, err := installAll(dir, []File{{Path: "hosts", Content: "a", Mode: 0o644}, {Path: "resolv.conf", Content: "b", Mode: 0o644}})
	if err != nil || !slices.Equal(links, []string{"hosts"}) {
		t.Fatalf("got %v, %v", links, err)
	}
	if _, err := os.Lstat(outside + "/x"); err == nil {
		t.Error("a link was followed")
	}
	var st unix.Stat_t
	if err := unix.Lstat(etc+"/resolv.conf", &st); err != nil || st.Mode != unix.S_IFREG|0o644 {
		t.Errorf("got mode %o, %v", st.Mode, err)
	}
}

func TestSpecOfIdentity(t *testing.T) {
	o := SpecOptions{Rootfs: "r", InitPath: "/sbin/init", Init: Systemd, IDBase: 1 << 20, UUID: "01234567-89AB-cdef-0123-456789abcdef", Identify: true, DNS: "host", Hosts: "self", Lxcfs: "no"}
	s, err := Spec(o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Args, "systemd.machine_id=0123456789abcdef0123456789abcdef") {
		t.Errorf("args %q", s.Process.Args)
	}
	if s.Annotations[AnnotationDNS] != "host" || s.Annotations[AnnotationHosts] != "self" || s.Annotations[AnnotationLxcfs] != "no" {
		t.Errorf("annotations %q", s.Annotations)
	}
	o.Init = SysVInit
	if s, err = Spec(o); err != nil || len(s.Process.Args) != 1 {
		t.Errorf("args of another init %q, %v", s.Process.Args, err)
	}
	for _, change := range []func(*SpecOptions){
		func(o *SpecOptions) { o.DNS = "x" }, func(o *SpecOptions) { o.Hosts = "x" }, func(o *SpecOptions) { o.Lxcfs = "yes" },
	} {
		bad := o
		change(&bad)
		if _, err := Spec(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
