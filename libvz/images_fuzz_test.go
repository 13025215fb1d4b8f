package libvz

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// FuzzManifest reads any vzrun.json, as Restore does: images may come from
// another host.
func FuzzManifest(f *testing.F) {
	whole := `{"format":1,"arch":"` + runtime.GOARCH + `","files":{"inventory.img":0},"config":` + minimal + `,` +
		`"links":[{"inner":"eth0","host":"vz0"}],"cgroups":{"dir":{},"files":{},"children":[{"name":"a%2f"}]},"stdio":["/dev/null"]}`
	f.Add([]byte(whole))
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"format":2}`, `{"format":1,"arch":"` + runtime.GOARCH + `","config":{"linux":{}},"files":{"inventory.img":0}}`,
		`{"format":1,"parent":"."}`, `{"format":1,"parent":"../..","files":{"inventory.img":0}}`, `{"files":{"../x":1}}`,
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir() // one for all: making them would take longer than the rest
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, content := range map[string][]byte{manifestName: data, "inventory.img": nil} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := readManifest(dir)
		_, again := readManifest(dir)
		if (err == nil) != (again == nil) {
			t.Fatalf("once %v, once %v", err, again)
		}
		if err != nil {
			return
		}
		for name := range m.Files {
			if filepath.Dir(filepath.Join(dir, name)) != dir {
				t.Fatalf("file %q is not in the image directory", name)
			}
		}
		dirs, err := m.chain(dir)
		if err == nil && len(dirs) > maxChain+1 {
			t.Fatalf("a chain of %d", len(dirs))
		}
		if err := sameGuest(m.Spec, m.Spec); err != nil {
			t.Fatalf("differs from itself: %v", err)
		}
		bundle := &specs.Spec{Process: &specs.Process{Args: []string{"sh"}}, Linux: &specs.Linux{}}
		_ = sameGuest(m.Spec, bundle) // any answer, no crash
		_, _ = vnet.Map(m.Links, []vnet.Mapping{{Inner: "eth0", Host: "x"}})
	})
}
