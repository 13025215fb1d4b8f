package libvz_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// The imports go one way: main -> libvz -> leaves. Each rule says why.
func TestImportsGoOneWay(t *testing.T) {
	const module = "github.com/vzrun/vzrun"
	rules := []struct {
		what, only, why string
	}{
		{"github.com/opencontainers/runc/libcontainer", module + "/libvz", "one package knows libcontainer, so that it can be upgraded or replaced in one place"},
		{"github.com/checkpoint-restore/go-criu", module + "/libvz/internal/criu", "one package speaks CRIU's protocol"},
		{module + "/internal/cli", module, "a library has no command line"},
	}
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			leaf := strings.HasPrefix(p.ImportPath, module+"/libvz/internal/")
			if leaf && strings.HasPrefix(imported, module) {
				t.Errorf("%s imports %s: leaves import no vzrun package, so each can be read and tested alone", p.ImportPath, imported)
			}
			for _, r := range rules {
				// main re-executes itself as the container's init.
				if p.ImportPath == module && strings.HasPrefix(imported, "github.com/opencontainers/runc/libcontainer") {
					continue
				}
				if strings.HasPrefix(imported, r.what) && p.ImportPath != r.only {
					t.Errorf("%s imports %s: %s", p.ImportPath, imported, r.why)
				}
			}
			if p.ImportPath != module && imported == module {
				t.Errorf("%s imports main", p.ImportPath)
			}
		}
	}
}

type listedPackage struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "-tags", "runc_nocriu,seccomp", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listedPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}
