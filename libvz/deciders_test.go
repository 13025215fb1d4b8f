package libvz

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "web-1", "a.b_c+d", "0", "..a", strings.Repeat("x", maxIDLength)} {
		if err := CheckID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "../a", "/", "a b", "ä", "a\x00", "@", "a\n", strings.Repeat("x", maxIDLength+1)} {
		if err := CheckID(id); !errors.Is(err, ErrInvalidID) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestParseStartTime(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21\n"
	for _, comm := range []string{"(sh)", "(a b)", "(evil) S 1 (x)", "())"} {
		got, err := parseStat("77 "+comm+tail, statStartTime)
		if err != nil || got != 4242 {
			t.Errorf("%s: %d, %v", comm, got, err)
		}
	}
	for _, bad := range []string{"", "1 (sh", "1 (sh) S 1 2", "1 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"} {
		if _, err := parseStat(bad, statStartTime); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestResolveRootfs(t *testing.T) {
	outside := t.TempDir()
	bundle := t.TempDir()
	for link, target := range map[string]string{"out": outside, "in": "real", "up": "../" + filepath.Base(outside), "file": "config.json"} {
		if err := os.Symlink(target, filepath.Join(bundle, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(bundle, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{"real", "in", "./real", outside} {
		if _, err := resolveRootfs(bundle, good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"out", "up", "file", "none", "..", "real/../../" + filepath.Base(outside), "config.json"} {
		if got, err := resolveRootfs(bundle, bad); err == nil {
			t.Errorf("%s resolved to %s", bad, got)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	good := func() *specs.Spec {
		return &specs.Spec{
			Version: "1.2.0", Root: &specs.Root{Path: "rootfs"}, Linux: &specs.Linux{},
			Process: &specs.Process{Cwd: "/", Args: []string{"sh"}},
		}
	}
	if err := checkSpec(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*specs.Spec){
		"no version":   func(s *specs.Spec) { s.Version = "" },
		"version 2":    func(s *specs.Spec) { s.Version = "2.0.0" },
		"no root":      func(s *specs.Spec) { s.Root = nil },
		"no linux":     func(s *specs.Spec) { s.Linux = nil },
		"no process":   func(s *specs.Spec) { s.Process = nil },
		"no args":      func(s *specs.Spec) { s.Process.Args = nil },
		"relative cwd": func(s *specs.Spec) { s.Process.Cwd = "tmp" },
	} {
		s := good()
		spoil(s)
		if checkSpec(s) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestSameGuest(t *testing.T) {
	spec := func() *specs.Spec {
		return &specs.Spec{
			Version: "1.2.0", Hostname: "a", Root: &specs.Root{Path: "/a"},
			Process:     &specs.Process{Args: []string{"/sbin/init"}, Env: []string{"container_uuid=11", "container=vzrun"}},
			Annotations: map[string]string{annotationRootfs: "idmap"},
			Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc"}},
			Linux: &specs.Linux{
				Namespaces:  []specs.LinuxNamespace{{Type: "pid"}},
				UIDMappings: []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 65536}},
			},
		}
	}
	clone := spec()
	clone.Hostname, clone.Root.Path = "b", "/b"
	if err := sameGuest(spec(), clone); err != nil {
		t.Errorf("a clone: %v", err)
	}
	for name, change := range map[string]func(*specs.Spec){
		"uuid":       func(s *specs.Spec) { s.Process.Env[0] = "container_uuid=22" },
		"args":       func(s *specs.Spec) { s.Process.Args = []string{"sh"} },
		"ids":        func(s *specs.Spec) { s.Linux.UIDMappings[0].HostID = 2 << 20 },
		"namespaces": func(s *specs.Spec) { s.Linux.Namespaces = nil },
		"mounts":     func(s *specs.Spec) { s.Mounts[0].Type = "tmpfs" },
		"rootfs":     func(s *specs.Spec) { s.Annotations = nil },
	} {
		other := spec()
		change(other)
		if sameGuest(spec(), other) == nil {
			t.Errorf("%s: taken for the same guest", name)
		}
	}
}

func TestManifest(t *testing.T) {
	dir := t.TempDir()
	if err := newImageDir(dir); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "inventory.img")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("inventory.img", "inventory")
	write("dump.log", "not an image")
	m := &manifest{ID: "web", Spec: &specs.Spec{Linux: &specs.Linux{}}}
	if err := m.seal(dir, true); err != nil {
		t.Fatal(err)
	}
	got, err := readManifest(dir)
	if err != nil || got.ID != "web" || got.Bytes != int64(len("inventory")) || len(got.Files) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := newImageDir(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting a checkpoint: %v", err)
	}

	write("inventory.img", "inv")
	if _, err := readManifest(dir); err == nil || !strings.Contains(err.Error(), "inventory.img has 3 bytes, 9") {
		t.Errorf("truncated: %v", err)
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if _, err := readManifest(dir); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing: %v", err)
	}
	for name, spoil := range map[string]func(*manifest){
		"newer":   func(m *manifest) { m.Format = 99 },
		"foreign": func(m *manifest) { m.Arch = "not-" + runtime.GOARCH },
		"predump": func(m *manifest) { m.PreDump = true },
		"escape":  func(m *manifest) { m.Files["../x.img"] = 1 },
		"empty":   func(m *manifest) { m.Files = nil },
		"no spec": func(m *manifest) { m.Spec = nil },
	} {
		write("inventory.img", "inventory")
		bad := *got
		bad.Files = map[string]int64{"inventory.img": 9}
		spoil(&bad)
		data, err := json.Marshal(&bad)
		if err != nil {
			t.Fatal(err)
		}
		write(manifestName, string(data))
		if _, err := readManifest(dir); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	write(manifestName, "{")
	if _, err := readManifest(dir); err == nil {
		t.Error("garbage was accepted")
	}
}

func TestSubCgroups(t *testing.T) {
	if got, err := subCgroups([]string{"cpu,memory:sub"}); err != nil || got["cpu"] != "sub" || got["memory"] != "sub" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := subCgroups([]string{"sub"}); err != nil || got[""] != "sub" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := subCgroups([]string{"memory:a", "cpu,cpuacct:b"}); err != nil || got["memory"] != "a" || got["cpuacct"] != "b" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"cpu,:sub"}, {"cpu:a", "cpu:b"}, {"a", "cpu:b"}, {"a", "b"}} {
		if _, err := subCgroups(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestIsMapped(t *testing.T) {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1, Size: 10}, {ContainerID: 10, HostID: 0, Size: 1}, {ContainerID: 11, HostID: 1 << 31, Size: 1 << 31}}
	for id, want := range map[uint32]bool{0: true, 1: true, 10: true, 11: false, 1<<31 - 1: false, 1 << 31: true, 1<<32 - 1: true} {
		if got := isMapped(id, maps); got != want {
			t.Errorf("%d: %v", id, got)
		}
	}
}

func TestMaySearch(t *testing.T) {
	const uid, gid = 100000, 100000
	for _, c := range []struct {
		mode, owner, group uint32
		want               bool
	}{
		{0o755, 0, 0, true},
		{0o711, 0, 0, true},
		{0o700, 0, 0, false},
		{0o700, uid, 0, true},
		{0o070, 0, gid, true},
		{0o077, uid, gid, false},
		{0o705, 0, gid, false},
	} {
		if got := maySearch(c.mode, c.owner, c.group, uid, gid); got != c.want {
			t.Errorf("%04o %d:%d: %v", c.mode, c.owner, c.group, got)
		}
	}
	if !maySearch(0, 1, 1, 0, 0) {
		t.Error("the host's root was kept out")
	}
}

func TestMachineName(t *testing.T) {
	for id, want := range map[string]string{
		"web":                   "web",
		"web_1+a.b":             "web-1-a.b",
		"-x-":                   "x",
		strings.Repeat("a", 99): strings.Repeat("a", 64),
		"...":                   "vzrun-2e2e2e",
	} {
		if got := machineName(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

func TestCommonDir(t *testing.T) {
	for _, c := range []struct {
		dirs []string
		want string
	}{
		{[]string{"/a/b"}, "/a/b"},
		{[]string{"/a/3", "/a/2", "/a/1"}, "/a"},
		{[]string{"/a/b/3", "/a/2"}, "/a"},
		{[]string{"/a/b", "/a/b/pre"}, "/a/b"},
		{[]string{"/a/bc", "/a/b"}, "/a"},
		{[]string{"/a/b", "/c"}, "/"},
	} {
		if got := commonDir(c.dirs); got != c.want {
			t.Errorf("%q: %q, want %q", c.dirs, got, c.want)
		}
	}
}

func TestChain(t *testing.T) {
	top := t.TempDir()
	write := func(name, parent string) {
		t.Helper()
		dir := filepath.Join(top, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "inventory.img"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m := &manifest{Spec: &specs.Spec{Linux: &specs.Linux{}}, Parent: parent, PreDump: name != "3"}
		if err := m.seal(dir, true); err != nil {
			t.Fatal(err)
		}
	}
	write("1", "")
	write("2", "../1")
	write("3", "../2")
	last, err := readManifest(filepath.Join(top, "3"))
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := last.chain(filepath.Join(top, "3"))
	if err != nil || len(dirs) != 3 || dirs[2] != filepath.Join(top, "1") {
		t.Errorf("%q, %v", dirs, err)
	}
	if err := os.WriteFile(filepath.Join(top, "1", "inventory.img"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := last.chain(filepath.Join(top, "3")); err == nil || !strings.Contains(err.Error(), "pre-dump") {
		t.Errorf("a damaged pre-dump: %v", err)
	}
	write("1", "../2")
	if _, err := last.chain(filepath.Join(top, "3")); err == nil || !strings.Contains(err.Error(), "circles") {
		t.Errorf("a circle: %v", err)
	}
}
