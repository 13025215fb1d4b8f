package guest

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func options() SpecOptions {
	return SpecOptions{
		Rootfs: "rootfs", Hostname: "web-1.example", Init: Systemd, InitPath: "/sbin/init",
		RAM: 1 << 30, Swap: 512 << 20, CPUs: 1.5, IDBase: 500000, UUID: "0123456789abcdef0123456789ABCDEF",
	}
}

func TestSpec(t *testing.T) {
	s, err := Spec(options())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[specs.LinuxNamespaceType]bool{}
	for _, n := range s.Linux.Namespaces {
		kinds[n.Type] = n.Path == ""
	}
	for _, k := range []specs.LinuxNamespaceType{"pid", "network", "ipc", "uts", "mount", "cgroup", "user"} {
		if !kinds[k] {
			t.Errorf("no namespace %s of its own", k)
		}
	}
	want := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 500000, Size: 65536}}
	if !slices.Equal(s.Linux.UIDMappings, want) || !slices.Equal(s.Linux.GIDMappings, want) {
		t.Errorf("mappings %v %v", s.Linux.UIDMappings, s.Linux.GIDMappings)
	}
	if s.Annotations[AnnotationRootfs] != "idmap" || s.Annotations[AnnotationGuest] != "systemd" {
		t.Errorf("annotations %v", s.Annotations)
	}
	if s.Process.Terminal || s.Process.NoNewPrivileges || s.Root.Readonly || s.Process.OOMScoreAdj != nil || s.Process.Rlimits != nil {
		t.Error("what a full system needs, or an unprivileged host cannot give")
	}
	for _, e := range []string{"container=vzrun", "container_uuid=" + options().UUID, "MEMORY_PRESSURE_WATCH=/dev/null", "CPU_PRESSURE_WATCH=/dev/null", "IO_PRESSURE_WATCH=/dev/null", "HOME=/", "TERM=linux"} {
		if !slices.Contains(s.Process.Env, e) {
			t.Errorf("no %s in the environment", e)
		}
	}
	if !slices.Equal(s.Process.Args, []string{"/sbin/init", "systemd.hostname=web-1.example"}) || s.Hostname != "web-1.example" {
		t.Errorf("args %q hostname %q", s.Process.Args, s.Hostname)
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 1<<30 || *r.Memory.Swap != 3<<29 || *r.CPU.Quota != 150000 || *r.CPU.Period != 100000 || *r.Pids.Limit <= 0 {
		t.Error("limits")
	}
}

func TestSpecMounts(t *testing.T) {
	s, err := Spec(options())
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]specs.Mount{}
	for i, m := range s.Mounts {
		at[m.Destination] = m
		for _, later := range s.Mounts[i+1:] {
			if strings.HasPrefix(m.Destination, later.Destination+"/") {
				t.Errorf("%s would be hidden by %s", m.Destination, later.Destination)
			}
		}
	}
	for dest, opts := range map[string][]string{
		"/proc":          {"nosuid"},
		"/sys":           {"ro"},
		"/sys/fs/cgroup": {"rw", "nosuid", "noexec", "nodev"},
		"/dev":           {"mode=755"},
		"/dev/pts":       {"newinstance", "gid=5", "mode=620", "ptmxmode=0666"},
		"/dev/shm":       {"mode=1777", "size=524288k"},
		"/dev/mqueue":    {},
		"/run":           {"mode=755", "size=209712k", "nr_inodes=800k"},
	} {
		for _, o := range opts {
			if !slices.Contains(at[dest].Options, o) {
				t.Errorf("%s: no %s in %v", dest, o, at[dest].Options)
			}
		}
		if at[dest].Type == "" {
			t.Errorf("%s: not mounted", dest)
		}
	}
	if at["/sys/fs/cgroup"].Type != "cgroup2" {
		t.Error("type cgroup would mount v1 on a hybrid host")
	}
	if _, ok := at["/tmp"]; ok {
		t.Error("/tmp is the guest's")
	}
}

func TestSpecZeroValuesMeanNoLimit(t *testing.T) {
	s, err := Spec(SpecOptions{Rootfs: "/r", InitPath: "/init", IDBase: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Resources.Memory != nil || s.Linux.Resources.CPU != nil || s.Hostname != "" || len(s.Process.Args) != 1 {
		t.Error("not neutral")
	}
	if s.Annotations[AnnotationGuest] != "unknown" {
		t.Error("an empty Init is unknown")
	}
	o := options()
	o.Swap = -1
	if s, err = Spec(o); err != nil || *s.Linux.Resources.Memory.Swap != o.RAM {
		t.Errorf("swap -1 is none at all: %v", err)
	}
}

func TestSpecRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*SpecOptions)
		want   string
	}{
		"no rootfs":       {func(o *SpecOptions) { o.Rootfs = "" }, "rootfs"},
		"relative init":   {func(o *SpecOptions) { o.InitPath = "sbin/init" }, "init path"},
		"root as root":    {func(o *SpecOptions) { o.IDBase = 0 }, "id base"},
		"few ids":         {func(o *SpecOptions) { o.IDSize = 1000 }, "id size"},
		"ids overflow":    {func(o *SpecOptions) { o.IDBase = math.MaxUint32 - 65535 }, "beyond"},
		"ram in MiB":      {func(o *SpecOptions) { o.RAM = 512 }, "ram"},
		"negative ram":    {func(o *SpecOptions) { o.RAM = -1 }, "ram"},
		"swap, no ram":    {func(o *SpecOptions) { o.RAM = 0 }, "swap"},
		"swap overflow":   {func(o *SpecOptions) { o.Swap = math.MaxInt64 }, "swap"},
		"tiny cpus":       {func(o *SpecOptions) { o.CPUs = 0.001 }, "cpus"},
		"negative cpus":   {func(o *SpecOptions) { o.CPUs = -1 }, "cpus"},
		"no number":       {func(o *SpecOptions) { o.CPUs = math.NaN() }, "cpus"},
		"infinite cpus":   {func(o *SpecOptions) { o.CPUs = math.Inf(1) }, "cpus"},
		"short uuid":      {func(o *SpecOptions) { o.UUID = "abc" }, "uuid"},
		"uuid with equal": {func(o *SpecOptions) { o.UUID = strings.Repeat("a", 31) + "=" }, "uuid"},
		"hostname space":  {func(o *SpecOptions) { o.Hostname = "a b" }, "hostname"},
		"hostname dot":    {func(o *SpecOptions) { o.Hostname = ".a" }, "hostname"},
		"hostname long":   {func(o *SpecOptions) { o.Hostname = strings.Repeat("a", 65) }, "hostname"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options()
			c.change(&o)
			if _, err := Spec(o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %s", err, c.want)
			}
		})
	}
}

func TestCapabilitiesThatReachTheHostAreLeftOut(t *testing.T) {
	got := capabilities()
	for _, c := range []string{"SYS_MODULE", "SYS_RAWIO", "SYS_TIME", "SYSLOG", "MAC_ADMIN", "MAC_OVERRIDE", "AUDIT_CONTROL", "AUDIT_READ", "WAKE_ALARM", "BLOCK_SUSPEND", "BPF", "PERFMON", "SYS_PACCT"} {
		if slices.Contains(got, "CAP_"+c) {
			t.Error(c)
		}
	}
	for _, c := range []string{"SYS_ADMIN", "SYS_BOOT", "AUDIT_WRITE", "NET_ADMIN", "SETFCAP"} {
		if !slices.Contains(got, "CAP_"+c) {
			t.Errorf("no %s", c)
		}
	}
}

func TestSeccomp(t *testing.T) {
	p := seccomp("amd64")
	if p.DefaultAction != specs.ActAllow || len(p.Architectures) != 3 {
		t.Errorf("%s %v", p.DefaultAction, p.Architectures)
	}
	refused := map[string]uint{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if _, twice := refused[n]; twice {
				t.Errorf("%s is refused twice: libseccomp takes one errno for a call", n)
			}
			refused[n] = *s.ErrnoRet
		}
		for _, a := range s.Args {
			// See the comment at the rule for MPTCP.
			if a.Index == 0 {
				t.Errorf("%v: a rule on the first argument breaks 32-bit programs", s.Names)
			}
		}
	}
	for _, n := range []string{"io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "userfaultfd"} {
		if refused[n] != 38 {
			t.Errorf("%s: errno %d, want ENOSYS", n, refused[n])
		}
	}
	for _, n := range []string{"clone3", "reboot", "mount", "openat2", "setns"} {
		if _, ok := refused[n]; ok {
			t.Errorf("%s is refused", n)
		}
	}
	if _, err := json.Marshal(p); err != nil {
		t.Error(err)
	}
}
