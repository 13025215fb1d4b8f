package libvz

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCriuConfigOf(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        string
	}{
		{nil, "/etc/criu/runc.conf"},
		{map[string]string{"org.criu.config": ""}, ""},
		{map[string]string{"org.criu.config": "/etc/special"}, "/etc/special"},
	} {
		if got := criuConfigOf(c.annotations); got != c.want {
			t.Errorf("%v: %q, want %q", c.annotations, got, c.want)
		}
	}
}

// chainDir makes the directory of one link of a chain.
func chainDir(t *testing.T, base, name string, m manifest) {
	t.Helper()
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.Format, m.Spec, m.Files = manifestFormat, &specs.Spec{}, map[string]int64{"inventory.img": 3}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{manifestName: data, "inventory.img": []byte("abc")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckParent(t *testing.T) {
	base := t.TempDir()
	chainDir(t, base, "1", manifest{ID: "a", PreDump: true})
	chainDir(t, base, "2", manifest{ID: "a", PreDump: true, Parent: "../1"})
	chainDir(t, base, "whole", manifest{ID: "a"})
	chainDir(t, base, "other", manifest{ID: "b", PreDump: true})
	chainDir(t, base, "short", manifest{ID: "a", PreDump: true})
	chainDir(t, base, "on-short", manifest{ID: "a", PreDump: true, Parent: "../short"})
	chainDir(t, base, "circle", manifest{ID: "a", PreDump: true, Parent: "../circle"})
	if err := os.Truncate(filepath.Join(base, "short", "inventory.img"), 1); err != nil {
		t.Fatal(err)
	}
	for parent, want := range map[string]string{
		"":             "",
		"../1":         "",
		"../2":         "",
		"../whole":     "no pre-dump",
		"../other":     "another container",
		"../short":     "1 bytes",
		"../on-short":  "1 bytes",
		"../circle":    "circles",
		"../nowhere":   "no such file",
		base + "/1":    "not relative",
		"../1/../../x": "no such file",
	} {
		m := manifest{ID: "a", Parent: parent, Spec: &specs.Spec{}}
		_, err := m.checkParent(filepath.Join(base, "new"))
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", parent, err, want)
		}
	}
}
