package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRead unpacks anything, as an import does: archives come from other hosts.
func FuzzRead(f *testing.F) {
	tree := f.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "changed"), []byte("by the guest"), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, level := range []int{0, 3} {
		var b into
		write(f, &b, Options{Level: level}, tree)
		f.Add(b.Bytes())
	}
	inner := hostile(f, &tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/"}, &tar.Header{Name: "a/x", Size: 3})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range map[string][]byte{imagesFolder + "inventory.img": nil, Diff: inner, configName: []byte("{}")} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o600}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			f.Fatal(err)
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Add(hostile(f, &tar.Header{Name: "../x"}, &tar.Header{Name: "/x"}, &tar.Header{Name: imagesFolder, Typeflag: tar.TypeDir}))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name) }
		for _, name := range []string{"images", "tree"} {
			if err := os.Mkdir(at(name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		r, err := read(bytes.NewReader(data), nil)
		if err == nil {
			defer r.Close()
			var c *Contents
			c, err = r.Unpack(context.Background(), Unpack{Images: at("images"), Trees: map[string]string{Diff: at("tree")}})
			if (err == nil) != (c != nil) {
				t.Fatal(c, err)
			}
		}
		// Whatever it was, nothing is anywhere else, and images are plain files.
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Fatal(entries, err)
		}
		entries, err2 := os.ReadDir(at("images"))
		if err2 != nil {
			t.Fatal(err2)
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				t.Fatalf("%s is %s", e.Name(), e.Type())
			}
		}
	})
}
