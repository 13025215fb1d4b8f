package criu

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

func numberField(msg []byte, number, value uint64) []byte {
	return protobuf.AppendVarint(protobuf.AppendVarint(msg, number<<3|wireVarint), value)
}

func bytesField(msg []byte, number uint64, value []byte) []byte {
	msg = protobuf.AppendVarint(protobuf.AppendVarint(msg, number<<3|wireBytes), uint64(len(value)))
	return append(msg, value...)
}

func openFile(id uint64, name string) []byte {
	reg := bytesField(numberField(nil, regFileID, id), regFileName, []byte(name))
	return bytesField(numberField(nil, fileEntryID, id), fileEntryReg, reg)
}

func remap(orig, id, kind uint64) []byte {
	return numberField(numberField(numberField(nil, 1, orig), remapID, id), remapType, kind)
}

func TestRemoveLinks(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	files := map[string]bool{ // and whether they stay
		"a/link_remap.7": false, // CRIU's
		"a/link_remap.8": true,  // the guest's own, open
		"a/link_remap.9": true,  // the guest's own
		"a/other":        true,
	}
	if err := os.Mkdir(filepath.Join(root, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if names, err := links(dir); err != nil || names != nil {
		t.Errorf("without images: %v, %v", names, err)
	}
	writeImage(t, filepath.Join(dir, "remap-fpath.img"), remap(1, 7, remapLinked), remap(2, 9, 1), remap(3, 10, remapLinked), remap(4, 11, remapLinked))
	writeImage(t, filepath.Join(dir, "files.img"), openFile(7, "/link/link_remap.7"), openFile(8, "/a/link_remap.8"),
		openFile(9, "/a/link_remap.9"), openFile(10, "/a/other"), openFile(11, "/../nowhere/link_remap.11"))
	names, err := links(dir)
	if err != nil || !slices.Equal(names, []string{"/link/link_remap.7", "/../nowhere/link_remap.11"}) {
		t.Fatalf("%v, %v", names, err)
	}
	top, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	for range 2 {
		for _, name := range names {
			if err := removeLink(top, name); err != nil {
				t.Error(err)
			}
		}
	}
	for name, stays := range files {
		if _, err := os.Lstat(filepath.Join(root, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "remap-fpath.img"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := links(dir); err == nil {
		t.Error("garbage is an image")
	}
}
