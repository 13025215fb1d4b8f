//go:build !lean

package libvz

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

func TestListingSumTellsCopiesFromOthers(t *testing.T) {
	fill := func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		for _, err := range []error{
			os.Mkdir(filepath.Join(dir, "etc"), 0o755),
			os.WriteFile(filepath.Join(dir, "etc/a"), []byte("aa"), 0o644),
			os.Chtimes(filepath.Join(dir, "etc/a"), time.Unix(5, 7), time.Unix(5, 7)),
			os.Chtimes(filepath.Join(dir, "etc"), time.Unix(6, 0), time.Unix(6, 0)),
			os.Chtimes(dir, time.Unix(6, 0), time.Unix(6, 0)),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	sum := func(dir string) string {
		out, err := listingSum(dir)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	same := sum(fill(t))
	if sum(fill(t)) != same {
		t.Error("a copy is taken for another one")
	}
	for name, change := range map[string]func(path string) error{
		"time": func(p string) error { return os.Chtimes(p, time.Unix(5, 8), time.Unix(5, 8)) },
		"mode": func(p string) error { return os.Chmod(p, 0o600) },
		"size": func(p string) error { return os.WriteFile(p, []byte("aaa"), 0o644) },
		"name": func(p string) error { return os.Rename(p, p+"x") },
	} {
		dir := fill(t)
		if err := change(filepath.Join(dir, "etc/a")); err != nil {
			t.Fatal(err)
		}
		if sum(dir) == same {
			t.Errorf("another %s is not noticed", name)
		}
	}
}

func TestPlaceLayers(t *testing.T) {
	here := t.TempDir()
	sum, err := listingSum(here)
	if err != nil {
		t.Fatal(err)
	}
	there := layer{Path: here, Sum: sum}
	for name, test := range map[string]struct {
		overlay, image string
		layers         []layer
		shared         bool
		want           string
		missing        []int
		err            error
	}{
		"a directory":          {},
		"all here":             {overlay: "x", layers: []layer{there}, want: here},
		"one is missing":       {overlay: "x:y:z", layers: []layer{there, {Path: "/nonexistent/t", Sum: sum}, there}, want: here + ":templates/1:" + here, missing: []int{1}},
		"one is another":       {overlay: "x", layers: []layer{{Path: here, Sum: "00"}}, want: "templates/0", missing: []int{0}},
		"shared":               {overlay: "/s", shared: true, want: "/s"},
		"too few":              {overlay: "x:y", layers: []layer{there}, err: wire.ErrProtocol},
		"none for an overlay":  {overlay: "x", err: wire.ErrProtocol},
		"some for a directory": {layers: []layer{there, there}, err: wire.ErrProtocol},
		"an image":             {image: "i", layers: []layer{there}, err: wire.ErrProtocol},
		"a relative path":      {overlay: "x", layers: []layer{{Path: "t", Sum: sum}}, err: wire.ErrProtocol},
		"two paths":            {overlay: "x", layers: []layer{{Path: here + ":" + here, Sum: sum}}, err: wire.ErrProtocol},
		"less than nothing":    {overlay: "x", layers: []layer{{Path: here, Sum: sum, Disk: -1}}, err: wire.ErrProtocol},
	} {
		r := &reception{offer: &offer{Layers: test.layers, Shared: test.shared}}
		spec := &specs.Spec{Annotations: map[string]string{annotationOverlay: test.overlay, annotationImage: test.image}}
		got, err := r.placeLayers(spec)
		if !errors.Is(err, test.err) || got != test.want || !slices.Equal(r.missing, test.missing) {
			t.Errorf("%s: %q, %v, %v", name, got, r.missing, err)
		}
	}
}

func TestCheckMissing(t *testing.T) {
	for _, good := range [][]int{nil, {0}, {0, 2}} {
		if err := checkMissing(good, 3); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range [][]int{{-1}, {3}, {1, 1}, {2, 0}} {
		if err := checkMissing(bad, 3); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
