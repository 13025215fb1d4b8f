package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRecord reads any record: it is refused, or is the same after it was
// written again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"a","operation":{"name":"create","since":"2026-01-01T00:00:00Z","cgroups":{"pids":"/x"}}}`))
	f.Add([]byte(`{"format":99}`))
	f.Add([]byte(`null`))
	root := f.TempDir()
	s := Open(root)
	if err := os.MkdirAll(filepath.Join(root, DirName), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(s.path("a", ".json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.Read("a")
		if err != nil {
			return
		}
		if r.Format > Format {
			t.Fatalf("format %d", r.Format)
		}
		is, err := json.Marshal(r)
		if err != nil {
			return // a time that cannot be written was never ours
		}
		if err := os.WriteFile(s.path("a", ".json"), is, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := s.Read("a")
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := json.Marshal(again); string(want) != string(is) {
			t.Fatalf("differs:\n%s\n%s", is, want)
		}
	})
}
