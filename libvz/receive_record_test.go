//go:build !lean

package libvz

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDropBundleLeavesWhatIsAnothers(t *testing.T) {
	const token, another = "0123456789abcdef0123456789abcdef", "ffffffffffffffffffffffffffffffff"
	for _, test := range []struct {
		name  string
		mark  string   // what it says; "" = there is none
		files []string // beside it
		stays bool
	}{
		{"it came", token, []string{"config.json", "rootfs/etc/passwd"}, false},
		{"killed before it was marked", "", nil, false},
		{"another migration's", another, []string{"config.json"}, true},
		{"the user's", "", []string{"config.json"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bundle := filepath.Join(t.TempDir(), "web")
			if test.mark != "" {
				put(t, filepath.Join(bundle, arrivalMark), test.mark)
			}
			for _, name := range test.files {
				put(t, filepath.Join(bundle, name), "x")
			}
			if err := os.MkdirAll(bundle, 0o700); err != nil {
				t.Fatal(err)
			}
			m := &store.Migration{Token: token, Bundle: bundle}
			for range 2 { // it is idempotent
				if err := dropBundle(m); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Lstat(bundle); (err == nil) != test.stays {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(filepath.Dir(bundle)); err != nil || len(left) > 1 || len(left) == 1 && !test.stays {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// Killed while it removes, it goes on the next time.
func TestDropBundleGoesOn(t *testing.T) {
	dir := t.TempDir()
	m := &store.Migration{Token: "0123456789abcdef0123456789abcdef", Bundle: filepath.Join(dir, "web")}
	put(t, filepath.Join(dir, ".dropped-"+m.Token, "rootfs", "file"), "x")
	put(t, filepath.Join(m.Bundle, "config.json"), "another's")
	if err := dropBundle(m); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "web" {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestKeptBundleIsNotDropped(t *testing.T) {
	m := &store.Migration{Token: "0123456789abcdef0123456789abcdef", Bundle: filepath.Join(t.TempDir(), "web")}
	put(t, filepath.Join(m.Bundle, arrivalMark), m.Token)
	put(t, filepath.Join(m.Bundle, arrivalFolder, "pages-1.img"), "x")
	put(t, filepath.Join(m.Bundle, "config.json"), "x")
	if err := keepBundle(m); err != nil {
		t.Fatal(err)
	}
	if err := dropBundle(m); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(m.Bundle)
	if err != nil || len(left) != 1 || left[0].Name() != "config.json" {
		t.Errorf("left %v, %v", left, err)
	}
}
