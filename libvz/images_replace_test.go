package libvz

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestReplaces(t *testing.T) {
	dir := t.TempDir()
	of := func(id string) *manifest { return &manifest{ID: id, Spec: &specs.Spec{Linux: &specs.Linux{}}} }
	if of("web").replaces(dir, CheckpointOptions{}) {
		t.Error("nothing is replaced")
	}
	if err := os.WriteFile(filepath.Join(dir, "inventory.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if of("web").replaces(dir, CheckpointOptions{}) {
		t.Error("images without a manifest are replaced")
	}
	if err := of("web").seal(dir, true); err != nil {
		t.Fatal(err)
	}
	if !of("web").replaces(dir, CheckpointOptions{}) {
		t.Error("one of the same container is not replaced")
	}
	for name, o := range map[string]CheckpointOptions{"pre-dump": {PreDump: true}, "lazy": {LazyPages: true}, "elsewhere": {PageServer: "h:1"}} {
		if of("web").replaces(dir, o) {
			t.Errorf("%s: replaces", name)
		}
	}
	if of("db").replaces(dir, CheckpointOptions{}) {
		t.Error("one of another container is replaced")
	}
	pre := of("web")
	pre.PreDump = true
	if err := pre.seal(dir, true); err != nil {
		t.Fatal(err)
	}
	if of("web").replaces(dir, CheckpointOptions{}) {
		t.Error("a pre-dump is replaced")
	}
}

// What was there is there again, or what is new stays, wherever it is interrupted.
func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want map[string]string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		must(err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
			if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || string(data) != want[e.Name()] {
				t.Errorf("%s is %q (%v), want %q", e.Name(), data, err, want[e.Name()])
			}
		}
		if len(names) != len(want) {
			t.Errorf("%q, want %v", names, want)
		}
	}
	old := map[string]string{"a.img": "old a", "z.img": "old z", manifestName: "old", "dump.log": "log"}
	for name, text := range old {
		write(name, text)
	}
	must(setAside(dir))
	if names, err := imageNames(dir); err != nil || len(names) > 0 {
		t.Fatalf("%q, %v", names, err)
	}
	write("a.img", "new a")
	write("n.img", "new n")
	must(bringBack(dir))
	holds(old)
	must(bringBack(dir))
	holds(old)

	// Interrupted when some have their names again, or not yet lost them.
	must(setAside(dir))
	must(os.Link(filepath.Join(dir, replacedFolder, "a.img"), filepath.Join(dir, "a.img")))
	must(os.Mkdir(filepath.Join(dir, scrapFolder), 0o700))
	must(bringBack(dir))
	holds(old)

	// The new one is whole: interrupted before what it replaces is gone.
	must(setAside(dir))
	write("n.img", "new n")
	write(manifestName, "new")
	must(dropReplaced(dir))
	now := map[string]string{"n.img": "new n", manifestName: "new", "dump.log": "log"}
	holds(now)
	must(os.Mkdir(filepath.Join(dir, replacedFolder), 0o700))
	must(setAside(dir))
	must(bringBack(dir))
	holds(now)
	if names, err := imageNames(dir); err != nil || !slices.Equal(names, []string{"n.img", manifestName}) {
		t.Errorf("%q, %v", names, err)
	}
}
