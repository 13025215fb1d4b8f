package cgroup

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestUnified(t *testing.T) {
	const pure, hybrid = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
	for _, tt := range []struct {
		name  string
		types map[string]int64
		mount string
		pure  bool
		err   error
	}{
		{"pure", map[string]int64{pure: unix.CGROUP2_SUPER_MAGIC}, pure, true, nil},
		{"hybrid", map[string]int64{pure: unix.TMPFS_MAGIC, hybrid: unix.CGROUP2_SUPER_MAGIC}, hybrid, false, nil},
		{"legacy", map[string]int64{pure: unix.TMPFS_MAGIC}, "", false, ErrNoUnified},
		{"an empty directory", map[string]int64{pure: unix.TMPFS_MAGIC, hybrid: unix.TMPFS_MAGIC}, "", false, ErrNoUnified},
		{"nothing", nil, "", false, ErrNoUnified},
		{"no access", map[string]int64{pure: -1}, "", false, unix.EACCES},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mount, isPure, err := unified(func(path string) (int64, error) {
				switch kind := tt.types[path]; kind {
				case 0:
					return 0, unix.ENOENT
				case -1:
					return 0, unix.EACCES
				default:
					return kind, nil
				}
			})
			if mount != tt.mount || isPure != tt.pure || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %t, %v", mount, isPure, err)
			}
		})
	}
}

func TestParseOf(t *testing.T) {
	for _, tt := range []struct {
		text string
		want map[string]string // nil for an error
	}{
		{"", map[string]string{}},
		{"0::/a.slice/b:c d\n", map[string]string{"": "/a.slice/b:c d"}},
		{
			"9:name=systemd:/\n4:cpu,cpuacct:/x\n0::/../y (deleted)\n",
			map[string]string{"name=systemd": "/", "cpu": "/x", "cpuacct": "/x", "": "/../y (deleted)"},
		},
		{"0:/\n", nil},
		{"0::relative\n", nil},
		{"junk", nil},
	} {
		got, err := parseOf(tt.text)
		if (err != nil) != (tt.want == nil) || !maps.Equal(got, tt.want) {
			t.Errorf("%q: got %v, %v", tt.text, got, err)
		}
	}
}

func TestParsePIDs(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []int
		bad  bool
	}{
		{"", nil, false},
		{"7\n12\n", []int{7, 12}, false},
		{"0\n12\n0\n", []int{12}, false},
		{"-3\n", nil, true},
		{"x\n", nil, true},
	} {
		got, err := parsePIDs(tt.text)
		if (err != nil) != tt.bad || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %v, %v", tt.text, got, err)
		}
	}
}

func TestDelegatedFrom(t *testing.T) {
	core := []string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
	for text, want := range map[string][]string{
		"": core,
		"cgroup.procs\nmemory.oom.group\n../cgroup.kill\n": append(slices.Clone(core), "memory.oom.group"),
	} {
		if got := delegatedFrom(text); !slices.Equal(got, want) {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func TestPopulated(t *testing.T) {
	for text, want := range map[string]bool{
		"populated 0\nfrozen 0\n": false,
		"frozen 0\npopulated 0\n": false,
		"populated 1\nfrozen 0\n": true,
		"":                        true,
	} {
		if populated(text) != want {
			t.Errorf("%q: want %t", text, want)
		}
	}
}

func TestIDs(t *testing.T) {
	two := []specs.LinuxIDMapping{
		{ContainerID: 0, HostID: 100000, Size: 1000},
		{ContainerID: 1000, HostID: 500000, Size: 10},
	}
	last := []specs.LinuxIDMapping{{ContainerID: 0, HostID: math.MaxUint32 - 1, Size: 10}}
	for _, tt := range []struct {
		name  string
		m     []specs.LinuxIDMapping
		host  uint32
		guest int64
	}{
		{"no namespace", nil, 0, 0},
		{"no namespace, high", nil, 4000000000, 4000000000},
		{"first", two, 100000, 0},
		{"last of a range", two, 100999, 999},
		{"second range", two, 500003, 1003},
		{"below", two, 99999, hostOwned},
		{"between", two, 101000, hostOwned},
		{"host root", two, 0, hostOwned},
		{"no overflow", last, math.MaxUint32 - 1, 0},
	} {
		if got := toGuest(tt.m, tt.host); got != tt.guest {
			t.Errorf("%s: toGuest(%d) = %d, want %d", tt.name, tt.host, got, tt.guest)
		}
		if tt.guest != hostOwned {
			if got := toHost(tt.m, tt.guest); got != int(tt.host) {
				t.Errorf("%s: toHost(%d) = %d, want %d", tt.name, tt.guest, got, tt.host)
			}
		}
	}
	for _, id := range []int64{hostOwned, math.MinInt64, 1010, math.MaxInt64} {
		if got := toHost(two, id); got != -1 {
			t.Errorf("toHost(%d) = %d, want -1", id, got)
		}
	}
	if got := toHost(last, 1); got != -1 {
		t.Errorf("an id beyond the last: got %d", got)
	}
}

func TestNameText(t *testing.T) {
	for _, n := range []Name{"a.slice", `dev-hugepages\x2d.mount`, "100%", "%41", "tab\there", "\xff\xfe", "näme", "a b", "�"} {
		data, err := json.Marshal(n)
		if err != nil {
			t.Errorf("%q: %v", n, err)
			continue
		}
		var back Name
		if err := json.Unmarshal(data, &back); err != nil || back != n {
			t.Errorf("%q: became %s, then %q, %v", n, data, back, err)
		}
	}
	for _, text := range []string{`"%"`, `"%4"`, `"%zz"`, `"%+1"`} {
		var n Name
		if err := json.Unmarshal([]byte(text), &n); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %q, %v", text, n, err)
		}
	}
}

func TestCheck(t *testing.T) {
	child := func(c Tree) Tree { return Tree{Children: []Tree{c}} }
	deep := func(n int) Tree {
		t := Tree{Name: "d"}
		for range n - 1 {
			t = Tree{Name: "d", Children: []Tree{t}}
		}
		return child(t)
	}
	wide := func(n int) Tree { return Tree{Children: slices.Repeat([]Tree{{Name: "w"}}, n)} }
	for _, tt := range []struct {
		name string
		tree Tree
		err  error
	}{
		{"empty", Tree{}, nil},
		{"plain", child(Tree{Name: "a.slice", Control: []string{"memory"}, Limits: map[string]string{"pids.max": "5"}}), nil},
		{"deepest", deep(MaxDepth), nil},
		{"too deep", deep(MaxDepth + 1), ErrTooBig},
		{"widest", wide(MaxDirs), nil},
		{"too wide", wide(MaxDirs + 1), ErrTooBig},
		{"named root", Tree{Name: "x"}, ErrInvalid},
		{"no name", child(Tree{}), ErrInvalid},
		{"dot", child(Tree{Name: "."}), ErrInvalid},
		{"up", child(Tree{Name: ".."}), ErrInvalid},
		{"path", child(Tree{Name: "a/b"}), ErrInvalid},
		{"line feed", child(Tree{Name: "a\nb"}), ErrInvalid},
		{"NUL", child(Tree{Name: "a\x00b"}), ErrInvalid},
		{"long", child(Tree{Name: Name(strings.Repeat("n", 256))}), ErrInvalid},
		{"controller off", Tree{Control: []string{"memory -cpu"}}, ErrInvalid},
		{"controller of nothing", Tree{Control: []string{""}}, ErrInvalid},
		{"no limit", child(Tree{Name: "a", Limits: map[string]string{"cgroup.procs": "1"}}), ErrInvalid},
		{"kill", child(Tree{Name: "a", Limits: map[string]string{"cgroup.kill": "1"}}), ErrInvalid},
		{"two lines", child(Tree{Name: "a", Limits: map[string]string{"pids.max": "1\n2"}}), ErrInvalid},
		{"file elsewhere", child(Tree{Name: "a", Differ: map[string]Owner{"../cgroup.procs": {}}}), ErrInvalid},
		{"security label", child(Tree{Name: "a", Xattrs: map[string][]byte{"security.selinux": nil}}), ErrInvalid},
	} {
		if err := tt.tree.check(); !errors.Is(err, tt.err) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.err)
		}
	}
}

func TestLimitDefault(t *testing.T) {
	for file, ok := range map[string]bool{
		"memory.max": true, "hugetlb.2MB.max": true, "hugetlb.1GB.rsvd.max": true, "cgroup.pressure": true,
		"hugetlb.max": false, "hugetlb..max": false, "hugetlb.2MB.current": false, "hugetlb.a/b.max.max": false,
		"cgroup.procs": false, "cgroup.freeze": false, "memory.reclaim": false, "io.max": false, "": false,
		"cpuset.cpus.partition": false,
	} {
		if _, got := limitDefault(file); got != ok {
			t.Errorf("%q: got %t", file, got)
		}
	}
}

func TestTreeJSON(t *testing.T) {
	tree := Tree{
		Dir: Owner{UID: 0, GID: 0, Mode: 0o755}, Files: Owner{UID: hostOwned, GID: hostOwned},
		Differ:  map[string]Owner{"cgroup.procs": {}},
		Control: []string{"memory", "pids"},
		Children: []Tree{{
			Name: "odd\xffname", Threaded: true, Frozen: true,
			Limits: map[string]string{"pids.max": "7"},
			Xattrs: map[string][]byte{"user.x": {0, 0xff}},
		}},
	}
	data, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var back Tree
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(tree, back) {
		t.Errorf("%s became %+v, %v", data, back, err)
	}
}
