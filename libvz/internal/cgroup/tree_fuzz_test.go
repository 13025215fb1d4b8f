package cgroup

import (
	"encoding/json"
	"path/filepath"
	"testing"
)

// FuzzTree reads any record, as it comes with images: one that passes leads
// nowhere but below its own directory, and is written as it was read.
func FuzzTree(f *testing.F) {
	for _, seed := range []string{
		`{"dir":{"uid":0,"gid":0},"files":{"uid":0,"gid":0},"children":[{"name":"system.slice","control":["pids"],"limits":{"pids.max":"5"}}]}`,
		`{"children":[{"name":"%2e%2E"}]}`, `{"children":[{"name":"a%2fb"}]}`, `{"children":[{"name":"%0A"}]}`, `{"name":"x"}`,
		`{"xattrs":{"security.x":"AA=="}}`, `{"differ":{"../x":{}}}`, `{"limits":{"cgroup.procs":"1"}}`, `{"children":[{"name":"%"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var tree Tree
		if json.Unmarshal(data, &tree) != nil || tree.check() != nil {
			return
		}
		below(t, &tree)
		once, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		var again Tree
		if err := json.Unmarshal(once, &again); err != nil || again.check() != nil {
			t.Fatalf("is not read again: %v, %s", err, once)
		}
		if twice, _ := json.Marshal(again); string(twice) != string(once) {
			t.Fatalf("differs:\n%s\n%s", once, twice)
		}
	})
}

func below(t *testing.T, tree *Tree) {
	t.Helper()
	const dir = "/sys/fs/cgroup/x"
	names := make([]string, 0, len(tree.Differ)+len(tree.Limits)+len(tree.Children))
	for name := range tree.Differ {
		names = append(names, name)
	}
	for name := range tree.Limits {
		names = append(names, name)
	}
	for i := range tree.Children {
		names = append(names, string(tree.Children[i].Name))
		below(t, &tree.Children[i])
	}
	for _, name := range names {
		if filepath.Dir(filepath.Join(dir, name)) != dir {
			t.Fatalf("%q leads out", name)
		}
	}
}

// FuzzName: every name that a guest can give is kept.
func FuzzName(f *testing.F) {
	f.Add("a%b\x00\xff\u2028ä")
	f.Fuzz(func(t *testing.T, s string) {
		text, err := Name(s).MarshalText()
		var n Name
		if err != nil || n.UnmarshalText(text) != nil || string(n) != s {
			t.Fatalf("%q is written as %q and read as %q: %v", s, text, n, err)
		}
	})
}

// FuzzProcFiles reads what the kernel writes about processes, and nonsense.
func FuzzProcFiles(f *testing.F) {
	f.Add("12:cpu,cpuacct:/a\n0::/b:c\n")
	f.Add("1\n2\n-3\n99999999999999999999\n")
	f.Add("populated 1\nfrozen 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = parseOf(text) // any answer, no crash
		pids, err := parsePIDs(text)
		for _, pid := range pids {
			if err == nil && pid < 0 {
				t.Fatalf("pid %d of %q", pid, text)
			}
		}
		populated(text)
		delegatedFrom(text)
	})
}
