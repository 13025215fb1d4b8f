package criu

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// fakeCriu writes a program that says a version, and counts how often.
func fakeCriu(t *testing.T, version string) (path, calls string) {
	t.Helper()
	dir := t.TempDir()
	path, calls = filepath.Join(dir, "criu"), filepath.Join(dir, "calls")
	text := "#!/bin/sh\n[ \"$1\" = --version ] || exit 1\necho >>" + calls + "\necho Version: " + version + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, calls
}

func count(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return len(data)
}

func TestKnow(t *testing.T) {
	ctx := context.Background()
	inPlace := func(fn func() error) error { return os.ErrPermission }
	path, calls := fakeCriu(t, "4.2.1")
	dir := filepath.Join(t.TempDir(), "known")
	ask := func(dir string) int {
		t.Helper()
		k, err := Know(ctx, path, dir, inPlace)
		if err != nil || k.Version != 40201 || k.Path != path {
			t.Fatalf("%+v, %v", k, err)
		}
		return count(t, calls)
	}
	if n := ask(""); n != 1 {
		t.Errorf("asked %d times", n)
	}
	stale := filepath.Join(dir, "another-boot.0123")
	if err := os.MkdirAll(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	if n := ask(dir); n != 2 {
		t.Errorf("asked %d times in all, where nothing is known yet", n)
	}
	if n := ask(dir); n != 2 {
		t.Errorf("asked %d times in all, though it is known", n)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("what was known before the boot is still there: %v", err)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*", "version"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%v, %v", kept, err)
	}
	for _, garbage := range []string{"", "x", "30000"} {
		if err := os.WriteFile(kept[0], []byte(garbage), 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := Know(ctx, path, dir, inPlace); err != nil || k.Version != 40201 {
			t.Errorf("with %q on record: %+v, %v", garbage, k, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	was := count(t, calls)
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho >>"+calls+"\necho Version: 4.3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if k, err := Know(ctx, path, dir, inPlace); err != nil || k.Version != 40300 || count(t, calls) != was+1 {
		t.Errorf("of another program: %+v, %v", k, err)
	}
}

func TestKnowWithoutPlace(t *testing.T) {
	path, _ := fakeCriu(t, "4.2")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := Know(context.Background(), path, filepath.Join(file, "known"), func(func() error) error { return nil })
	if err != nil || k.Version != 40200 {
		t.Errorf("%+v, %v", k, err)
	}
}
