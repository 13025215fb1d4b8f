package criu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
)

func message(fields ...any) []byte {
	var out []byte
	for i := 0; i < len(fields); i += 2 {
		num := uint64(fields[i].(int))
		switch v := fields[i+1].(type) {
		case int:
			out = protobuf.AppendVarint(protobuf.AppendVarint(out, num<<3|wireVarint), uint64(v))
		case []byte:
			out = protobuf.AppendVarint(protobuf.AppendVarint(out, num<<3|wireBytes), uint64(len(v)))
			out = append(out, v...)
		}
	}
	return out
}

// fileOf is an entry of files.img: type, id, and a regular file with a name
// and a field that we know nothing of.
func fileOf(id, flags int) []byte {
	return message(1, 1, 2, id, 3, message(1, id, 2, flags, 6, []byte("/usr/bin/x"), 14, 4711))
}

func writeImage(t *testing.T, path string, entries ...[]byte) {
	t.Helper()
	data := []byte("12345678")
	for _, e := range entries {
		data = appendEntry(data, e)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMendExeLinks(t *testing.T) {
	dir := t.TempDir()
	files := filepath.Join(dir, "files.img")
	writeImage(t, files, fileOf(5, unix.O_PATH), fileOf(9, unix.O_RDONLY))
	mixed, plain := message(1, 77, mmExeFileID, 5, 13, []byte("aux")), message(1, 78, mmExeFileID, 9)
	writeImage(t, filepath.Join(dir, "mm-1.img"), plain)
	writeImage(t, filepath.Join(dir, "mm-2.img"), mixed)
	writeImage(t, filepath.Join(dir, "mm-3.img"), mixed)
	if err := mendExeLinks(dir); err != nil {
		t.Fatal(err)
	}

	entries, err := readImage(files)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if !bytes.Equal(entries[0], fileOf(5, unix.O_PATH)) || !bytes.Equal(entries[1], fileOf(9, unix.O_RDONLY)) {
		t.Error("an entry that is still needed was changed")
	}
	// One new entry for both tasks, equal but for its id and flags.
	if !bytes.Equal(entries[2], fileOf(10, unix.O_RDONLY)) {
		t.Errorf("new entry %x, want %x", entries[2], fileOf(10, unix.O_RDONLY))
	}
	for name, want := range map[string][]byte{
		"mm-1.img": plain, "mm-2.img": message(1, 77, mmExeFileID, 10, 13, []byte("aux")), "mm-3.img": message(1, 77, mmExeFileID, 10, 13, []byte("aux")),
	} {
		if got, err := readImage(filepath.Join(dir, name)); err != nil || len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("%s: %x, %v; want %x", name, got, err, want)
		}
	}
	// Mended images need no mending.
	before, _ := os.ReadFile(files)
	if err := mendExeLinks(dir); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(files); !bytes.Equal(before, after) {
		t.Error("a second call changed the images")
	}
}

func TestMendExeLinksRefusesNonsense(t *testing.T) {
	for name, content := range map[string]string{
		"empty":         "",
		"header only":   "1234567",
		"torn size":     "12345678\x01",
		"size too big":  "12345678\xff\xff\xff\xff",
		"no file entry": "12345678\x02\x00\x00\x00\xff\xff",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "files.img"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := mendExeLinks(dir); !errors.Is(err, errImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadImage(f *testing.F) {
	f.Add([]byte("12345678\x02\x00\x00\x00\x10\x05"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "files.img")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		entries, err := readImage(path)
		if err != nil {
			return
		}
		for _, e := range entries {
			if _, _, err := parseFile(e); err == nil {
				readableCopy(e, 1)
			}
		}
	})
}
