package guest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseFeatures(t *testing.T) {
	for list, want := range map[string]string{
		"": "", " ": "", "tun": "tun", "tun,fuse": "fuse,tun", " nesting , fuse,nesting": "fuse,nesting",
		"io_uring,keyctl,kvm,ppp": "io_uring,keyctl,kvm,ppp",
	} {
		got, err := ParseFeatures(list)
		if err != nil || FormatFeatures(got) != want {
			t.Errorf("%q: %q, %v", list, FormatFeatures(got), err)
		}
	}
	for list, want := range map[string]string{
		"warp": "one of: fuse, io_uring,", "fuse,": "one of:", ",": "one of:", "Fuse": "one of:",
		"nfs": "mount it on the host", "fuse,nfsd": "ganesha", "loop": "fuse2fs", "mknod": "linux.devices", "bridge": "leave it out",
	} {
		_, err := ParseFeatures(list)
		var fe *FeatureError
		if !errors.As(err, &fe) || !strings.Contains(fe.Remedy, want) {
			t.Errorf("%q: %v, %+v", list, err, fe)
		}
	}
	for _, name := range Features() {
		if _, ok := noFeature()[name]; ok {
			t.Errorf("%s both is a feature and is none", name)
		}
	}
}

// opened is the configuration of a guest with features.
func opened(t *testing.T, list string) (*specs.Spec, []Node) {
	t.Helper()
	o := options()
	var err error
	if o.Features, err = ParseFeatures(list); err != nil {
		t.Fatal(err)
	}
	s, err := Spec(o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Annotations[AnnotationFeatures] != list {
		t.Errorf("annotation %q", s.Annotations[AnnotationFeatures])
	}
	nodes, err := Open(s, o.Features)
	if err != nil {
		t.Fatal(err)
	}
	return s, nodes
}

func TestNoFeatureChangesNothing(t *testing.T) {
	s, err := Spec(options())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Annotations[AnnotationFeatures]; ok {
		t.Error("an annotation without features")
	}
	before, _ := json.Marshal(s)
	nodes, err := Open(s, nil)
	if after, _ := json.Marshal(s); err != nil || len(nodes) > 0 || string(after) != string(before) {
		t.Errorf("changed: %v %v", nodes, err)
	}
}

func TestNestingMounts(t *testing.T) {
	s, nodes := opened(t, "nesting")
	if len(nodes) > 0 {
		t.Errorf("devices: %v", nodes)
	}
	var order []string
	for i, m := range s.Mounts {
		order = append(order, m.Destination)
		for _, later := range s.Mounts[i+1:] {
			if strings.HasPrefix(m.Destination, later.Destination+"/") {
				t.Errorf("%s would be hidden by %s", m.Destination, later.Destination)
			}
		}
	}
	plain, _ := Spec(options())
	if len(s.Mounts) != len(plain.Mounts)+2 {
		t.Errorf("mounts: %v", order)
	}
	first, sys := slices.Index(order, "/dev/.lxc/sys"), slices.Index(order, "/sys")
	if first < 0 || first > sys {
		t.Errorf("the first mount of sysfs must be the one that can be written to: %v", order)
	}
	if slices.Contains(s.Mounts[first].Options, "ro") || !slices.Contains(s.Mounts[sys].Options, "ro") {
		t.Error("which of them is read-only")
	}
	if got, want := string(jsonOf(s.Linux.Seccomp)), string(jsonOf(plain.Linux.Seccomp)); got != want {
		t.Error("nesting opens no system call")
	}
}

func jsonOf(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// An engine's configuration can have its mounts in any order, or lack some.
func TestNestingInOtherConfigurations(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	for _, order := range []string{"/dev /sys /proc", "/sys /dev", "/dev", "/proc", ""} {
		s := &specs.Spec{Linux: &specs.Linux{UIDMappings: ids, GIDMappings: ids}}
		for place := range strings.FieldsSeq(order) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: place + "/"})
		}
		if _, err := Open(s, []Feature{nesting}); err != nil {
			t.Fatal(err)
		}
		at := func(p string) int {
			return slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return strings.TrimSuffix(m.Destination, "/") == p })
		}
		hidden := at("/dev/.lxc/sys")
		if hidden < 0 || at("/dev") > hidden || at("/sys") >= 0 && at("/sys") < hidden || len(s.Mounts) != len(strings.Fields(order))+2 {
			t.Errorf("%q: %v", order, s.Mounts)
		}
	}
	_, err := Open(&specs.Spec{Linux: &specs.Linux{}}, []Feature{nesting})
	var fe *FeatureError
	if !errors.As(err, &fe) || !strings.Contains(fe.Why, "user namespace") {
		t.Errorf("without a user namespace: %v", err)
	}
}

func TestDeviceFeatures(t *testing.T) {
	s, nodes := opened(t, "fuse,tun")
	if len(nodes) != 2 || nodes[0].Path != "/dev/fuse" || nodes[1].Path != "/dev/net/tun" || nodes[1].Device() != 10<<8|200 {
		t.Fatalf("nodes %+v", nodes)
	}
	var places, sources []string
	for _, m := range s.Mounts {
		if m.Type == "bind" {
			places, sources = append(places, m.Destination), append(sources, m.Source)
		}
	}
	if !slices.Equal(places, []string{"/dev/fuse", "/dev/net/tun"}) || !slices.Equal(sources, []string{"/dev/fuse", "/dev/net/tun"}) {
		t.Errorf("mounts %v from %v", places, sources)
	}
	rules := s.Linux.Resources.Devices
	if len(rules) != 3 || rules[0].Allow || *rules[1].Minor != 229 || *rules[2].Minor != 200 || rules[1].Access != "rw" || rules[1].Type != "c" {
		t.Errorf("rules %s", jsonOf(rules))
	}
	// A configuration that says nothing about devices.
	bare := &specs.Spec{Linux: &specs.Linux{}}
	if _, err := Open(bare, []Feature{"fuse"}); err != nil || len(bare.Linux.Resources.Devices) != 1 {
		t.Errorf("bare: %v", err)
	}
	// File names in one directory.
	seen := map[string]bool{}
	for f, o := range openings() {
		for _, n := range o.nodes {
			if seen[n.File] || strings.Contains(n.File, "/") || n.Feature != f {
				t.Errorf("node %+v of %s", n, f)
			}
			seen[n.File] = true
		}
	}
}

func TestCallFeatures(t *testing.T) {
	refused := func(s *specs.Spec) []string {
		var names []string
		for _, r := range s.Linux.Seccomp.Syscalls {
			if r.Action != specs.ActAllow {
				names = append(names, r.Names...)
			}
		}
		return names
	}
	plain, _ := Spec(options())
	for _, call := range []string{"keyctl", "add_key", "request_key", "io_uring_setup"} {
		if !slices.Contains(refused(plain), call) {
			t.Errorf("%s is allowed without a feature", call)
		}
	}
	s, _ := opened(t, "keyctl")
	if names := refused(s); len(names) != len(refused(plain))-3 || slices.Contains(names, "keyctl") || !slices.Contains(names, "io_uring_setup") {
		t.Errorf("with keyctl: %v", names)
	}
	for _, r := range s.Linux.Seccomp.Syscalls {
		if len(r.Names) == 0 {
			t.Error("a rule without calls, which libcontainer refuses")
		}
	}
	// An engine's profile: what it does not name is refused.
	strict := &specs.Spec{Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}}}
	if _, err := Open(strict, []Feature{"io_uring"}); err != nil {
		t.Fatal(err)
	}
	if calls := strict.Linux.Seccomp.Syscalls; len(calls) != 1 || calls[0].Action != specs.ActAllow || !slices.Contains(calls[0].Names, "io_uring_enter") {
		t.Errorf("strict: %v", calls)
	}
	// None at all.
	if _, err := Open(&specs.Spec{Linux: &specs.Linux{}}, []Feature{"keyctl"}); err != nil {
		t.Error(err)
	}
}
