package criu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestMapIDs(t *testing.T) {
	extent := func(inner, outer, size int) []byte { return message(1, inner, 2, outer, 3, size) }
	userns := func(uid, gid []byte) []byte { return message(1, uid, 2, gid) }
	dir := t.TempDir()
	path := filepath.Join(dir, "userns-11.img")
	writeImage(t, path, userns(extent(0, 1<<20, 65536), extent(0, 1<<20, 65536)))
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	own, err := MapIDs(dir, []IDMap{{0, 2 << 20, 65536}}, []IDMap{{0, 3 << 20, 65536}})
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "userns-11.img")
	writeImage(t, other, userns(extent(0, 2<<20, 65536), extent(0, 3<<20, 65536)))
	want, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(own["userns-11.img"], want) {
		t.Errorf("got  %x\nwant %x", own["userns-11.img"], want)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the image has changed: %v", err)
	}
	for name, ids := range map[string][]IDMap{
		"another size": {{0, 2 << 20, 1000}}, "another range": {{1, 2 << 20, 65536}}, "one more": {{0, 2 << 20, 65536}, {65536, 1, 1}}, "none": nil,
	} {
		if _, err := MapIDs(dir, ids, ids); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	writeImage(t, filepath.Join(dir, "userns-12.img"), userns(extent(0, 1, 1), extent(0, 1, 1)))
	if _, err := MapIDs(dir, []IDMap{{0, 1, 1}}, []IDMap{{0, 1, 1}}); err == nil {
		t.Error("two user namespaces were taken")
	}
}

func FuzzMapIDs(f *testing.F) {
	f.Add(message(1, message(1, 0, 2, 5, 3, 9), 2, message(1, 0, 2, 5, 3, 9)))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, entry []byte) {
		dir := t.TempDir()
		writeImage(t, filepath.Join(dir, "userns-1.img"), entry)
		own, err := MapIDs(dir, []IDMap{{0, 7, 9}}, []IDMap{{0, 7, 9}})
		if (err == nil) == (len(own) == 0) {
			t.Errorf("%d images, %v", len(own), err)
		}
	})
}
