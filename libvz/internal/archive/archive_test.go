package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// into is a target in memory.
type into struct{ bytes.Buffer }

func (i *into) wholeHash() hash.Hash   { return nil }
func (i *into) commit(hash.Hash) error { return nil }
func (i *into) Discard()               {}

var images = map[string]string{
	"inventory.img": "inventory", "pages-1.img": strings.Repeat("page\x00", 3000), "vzrun.json": `{"format":1}`, "empty.img": "",
}

// write makes an archive with images, a small member and, if it is named, a tree.
func write(t testing.TB, to Target, o Options, tree string) string {
	t.Helper()
	ctx := context.Background()
	plan := Plan{Arch: "amd64"}
	for _, content := range images {
		plan.Images += int64(len(content))
	}
	if tree != "" {
		plan.Trees = []*Tree{{Name: Diff, Dir: tree, Upper: true}}
	}
	o.Modified = time.Unix(1700000000, 5)
	w, err := NewWriter(ctx, to, plan, o)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.add(configName, []byte(`{"id":"web"}`)))
	must(w.AddTrees(ctx))
	dir := t.TempDir()
	for _, name := range []string{"inventory.img", "pages-1.img", "vzrun.json", "empty.img"} {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, []byte(images[name]), 0o600))
		f, err := os.Open(path)
		must(err)
		must(w.AddImage(ctx, name, f, int64(len(images[name]))))
		f.Close()
	}
	digest, err := w.Commit()
	must(err)
	return digest
}

// unpack reads an archive into a new directory and returns that.
func unpack(t testing.TB, data []byte, identities ...age.Identity) (string, *Contents, error) {
	t.Helper()
	dir := t.TempDir()
	r, err := read(bytes.NewReader(data), identities)
	if err != nil {
		return dir, nil, err
	}
	defer r.Close()
	c, err := r.Unpack(context.Background(), Unpack{Images: dir})
	return dir, c, err
}

func assertImages(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(images) {
		t.Errorf("%d images, want %d", len(entries), len(images))
	}
	for name, want := range images {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]bool{}
	for _, level := range []int{0, 1, 9} {
		for _, recipients := range [][]age.Recipient{nil, {other.Recipient(), identity.Recipient()}} {
			var b into
			digest := write(t, &b, Options{Level: level, Recipients: recipients}, "")
			digests[digest] = true
			dir, c, err := unpack(t, b.Bytes(), identity)
			if err != nil {
				t.Fatalf("level %d: %v", level, err)
			}
			if c.Digest != digest || string(c.Config) != `{"id":"web"}` || string(c.Record) != images["vzrun.json"] {
				t.Errorf("level %d: %+v", level, c)
			}
			assertImages(t, dir)
			if recipients == nil {
				continue
			}
			third, _ := age.GenerateX25519Identity()
			for _, identities := range [][]age.Identity{nil, {third}} {
				if _, _, err := unpack(t, b.Bytes(), identities...); !errors.Is(err, ErrIdentity) {
					t.Errorf("%d identities: %v", len(identities), err)
				}
			}
		}
	}
	if len(digests) != 1 {
		t.Errorf("one content has %d digests", len(digests))
	}
}

// Every flipped bit and every truncation is found out, however it is stored,
// unless it changes nothing: zstd has bits in its headers that readers skip.
func TestDamageIsFound(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"tar": {}, "zstd": {Level: 3}, "age": {Level: 3, Recipients: []age.Recipient{identity.Recipient()}},
	} {
		t.Run(name, func(t *testing.T) {
			var b into
			digest := write(t, &b, o, "")
			whole := b.Bytes()
			for at := 0; at < len(whole); at += 1 + len(whole)/700 {
				flipped := bytes.Clone(whole)
				flipped[at] ^= 1 << (at % 8)
				if _, c, err := verify(flipped, identity); err == nil && (name != "zstd" || c.Digest != digest) {
					t.Fatalf("a flipped bit in byte %d of %d is not found", at, len(whole))
				}
				if _, _, err := verify(whole[:at], identity); err == nil {
					t.Fatalf("%d of %d bytes are taken for the whole", at, len(whole))
				}
			}
			if _, _, err := verify(append(bytes.Clone(whole), "more"...), identity); err == nil {
				t.Error("more behind its end is not found")
			}
			if _, c, err := verify(whole, identity); err != nil || c.Digest == "" {
				t.Error(err)
			}
		})
	}
}

func verify(data []byte, identities ...age.Identity) (*Reader, *Contents, error) {
	r, err := read(bytes.NewReader(data), identities)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	c, err := r.Unpack(context.Background(), Unpack{})
	return r, c, err
}

// hostile is a tar of the given entries.
func hostile(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Mode = 0o600
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// longNames are many that are not too long each.
func longNames() []*tar.Header {
	long := strings.Repeat("x", maxName-10)
	var all []*tar.Header
	for n := range maxNames/len(long) + 1 {
		all = append(all, &tar.Header{Name: fmt.Sprintf("%s-%d", long, n)})
	}
	return all
}

func TestHostileArchivesAreRefused(t *testing.T) {
	inventory := func() *tar.Header { return &tar.Header{Name: imagesFolder + "inventory.img"} }
	for name, tc := range map[string]struct {
		headers []*tar.Header
		want    error
	}{
		"up":            {[]*tar.Header{inventory(), {Name: "../evil"}}, ErrUnsafe},
		"up later":      {[]*tar.Header{inventory(), {Name: imagesFolder + "../../evil.img"}}, ErrUnsafe},
		"absolute":      {[]*tar.Header{inventory(), {Name: "/etc/evil"}}, ErrUnsafe},
		"link":          {[]*tar.Header{inventory(), {Name: imagesFolder + "pages-1.img", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}, ErrUnsafe},
		"linked folder": {[]*tar.Header{{Name: "checkpoint", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, inventory()}, nil},
		"hard link":     {[]*tar.Header{inventory(), {Name: imagesFolder + "a.img", Typeflag: tar.TypeLink, Linkname: imagesFolder + "inventory.img"}}, ErrUnsafe},
		"device":        {[]*tar.Header{inventory(), {Name: imagesFolder + "pages-1.img", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}}, ErrUnsafe},
		"fifo":          {[]*tar.Header{inventory(), {Name: configName, Typeflag: tar.TypeFifo}}, ErrUnsafe},
		"twice":         {[]*tar.Header{inventory(), inventory()}, ErrUnsafe},
		"twice, dotted": {[]*tar.Header{inventory(), {Name: "./" + imagesFolder + "inventory.img"}}, ErrUnsafe},
		"long":          {[]*tar.Header{inventory(), {Name: configName, Size: maxSmall + 1}}, ErrUnsafe},
		"long name":     {[]*tar.Header{inventory(), {Name: "volumes/" + strings.Repeat("x", maxName)}}, ErrUnsafe},
		"long names":    {longNames(), ErrUnsafe},
		"no images":     {[]*tar.Header{{Name: configName}}, ErrForeign},
		"foreign":       {[]*tar.Header{{Name: "./", Typeflag: tar.TypeDir}, {Name: "./checkpoint/", Typeflag: tar.TypeDir}, {Name: "./" + imagesFolder + "inventory.img"}, {Name: "volumes/x.tar"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, err := unpack(t, hostile(t, tc.headers...))
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) > 1 {
				t.Errorf("%d entries beside the directory, %v", len(entries)-1, err)
			}
		})
	}
	for name, data := range map[string]string{"empty": "", "text": "hello", "noise": strings.Repeat("\x01\xfe", 4096)} {
		if _, _, err := verify([]byte(data)); !errors.Is(err, ErrForeign) && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a header declares bounds what is read, and space is asked for first.
func TestDeclarationsBind(t *testing.T) {
	declare := func(header string, more ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		write := func(h *tar.Header, data string) {
			h.Typeflag, h.Size = tar.TypeReg, max(h.Size, int64(len(data)))
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			writeText(t, w, data)
			writeZeros(t, w, h.Size-int64(len(data)))
		}
		write(&tar.Header{Name: headerName}, header)
		for _, h := range more {
			write(h, "")
		}
		ok(t, w.Close())
		return b.Bytes()
	}
	inventory := &tar.Header{Name: imagesFolder + "inventory.img", Size: 4096}
	for name, tc := range map[string]struct {
		data []byte
		want error
	}{
		"newer":      {declare(fmt.Sprintf(`{"format":%d}`, newestFormat+1)), ErrNewer},
		"no format":  {declare(`{}`), ErrDamaged},
		"no JSON":    {declare(`{`), ErrDamaged},
		"negative":   {declare(`{"format":1,"images":-1}`), ErrDamaged},
		"overflow":   {declare(`{"format":1,"images":9223372036854775807,"trees":[{"name":"rootfs.tar","size":9223372036854775807}]}`), ErrDamaged},
		"tree":       {declare(`{"format":1,"trees":[{"name":"../rootfs.tar"}]}`), ErrDamaged},
		"more":       {declare(`{"format":1,"images":100}`, inventory), ErrDamaged},
		"less":       {declare(`{"format":1,"images":5000}`, inventory), ErrDamaged},
		"undeclared": {declare(`{"format":1}`, &tar.Header{Name: Rootfs, Size: 4096}), ErrDamaged},
		"stranger":   {declare(`{"format":1}`, &tar.Header{Name: "autorun"}), ErrUnsafe},
		"huge":       {declare(`{"format":1,"images":4611686018427387904}`, inventory), ErrSpace},
		"no end":     {declare(`{"format":1,"images":4096}`, inventory), ErrDamaged},
	} {
		if dir, _, err := unpack(t, tc.data); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		} else if entries, _ := os.ReadDir(dir); name == "huge" && len(entries) != 0 {
			t.Errorf("%s: %d files were made", name, len(entries))
		}
	}
}

// A bomb is read no further than it declares, with little memory.
func TestBombIsBounded(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	header := `{"format":1,"images":1000}`
	ok(t, w.WriteHeader(&tar.Header{Name: headerName, Size: int64(len(header))}))
	writeText(t, w, header)
	ok(t, w.WriteHeader(&tar.Header{Name: imagesFolder + "inventory.img", Size: 1 << 40}))
	writeZeros(t, w, 64<<20)
	ok(t, z.Close())
	r, err := read(&b, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var progress int64
	if _, err := r.Unpack(context.Background(), Unpack{Images: t.TempDir(), Progress: func(n int64) { progress = n }}); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if progress != 0 {
		t.Errorf("%d bytes were unpacked", progress)
	}
}

func TestFileTarget(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.tar.zst")
	target, err := ToFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Logf("no O_TMPFILE here: %v", entries)
	}
	write(t, target, Options{Level: 1}, "")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	if _, err := ToFile(path); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	second, err := ToFile(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	writeText(t, second, "half")
	second.Discard()
	// One that came meanwhile is not replaced.
	third, err := ToFile(filepath.Join(dir, "third"))
	if err != nil {
		t.Fatal(err)
	}
	ok(t, os.WriteFile(filepath.Join(dir, "third"), []byte("kept"), 0o600))
	if err := third.commit(nil); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	third.Discard()
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Error(entries)
	}
}

func TestLayout(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.oci")
	about := About{Name: "web", Criu: "4.2.1", Arch: "amd64", Created: time.Unix(1700000000, 0).UTC()}
	// What a killed process has left goes with the next.
	stale := filepath.Join(dir, hiddenName(path)+"STALE")
	ok(t, os.MkdirAll(filepath.Join(stale, "blobs"), 0o700))
	target, err := ToLayout(path, about, true, removeAll)
	if err != nil {
		t.Fatal(err)
	}
	digest := write(t, target, Options{Level: 1}, "")
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || !isLayout(path) {
		t.Error(entries)
	}
	check := func() (*Contents, error) {
		r, err := Open(context.Background(), path, nil)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if annotations := r.Annotations; annotations["org.criu.checkpoint.container.name"] != "web" || annotations["org.criu.checkpoint.criu.version"] != "4.2.1" {
			t.Error(annotations)
		}
		return r.Unpack(context.Background(), Unpack{Images: t.TempDir()})
	}
	c, err := check()
	if err != nil || c.Digest != digest {
		t.Fatal(c, err)
	}
	all, err := filepath.Glob(filepath.Join(path, blobs, "*"))
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	for _, blob := range append(all, filepath.Join(path, indexFile)) {
		whole, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		ok(t, os.WriteFile(blob, whole[:len(whole)-1], 0o600))
		if _, err := check(); err == nil {
			t.Errorf("a shorter %s is not found", blob)
		}
		ok(t, os.WriteFile(blob, whole, 0o600))
	}
	if _, err := check(); err != nil {
		t.Error(err)
	}
}

func removeAll(dir, name string) error { return os.RemoveAll(filepath.Join(dir, name)) }

func TestFolder(t *testing.T) {
	parent := t.TempDir()
	first, err := NewFolder(parent, "x-", removeAll)
	if err != nil {
		t.Fatal(err)
	}
	second, err := NewFolder(parent, "x-", removeAll)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(second.Path, "left")
	ok(t, os.WriteFile(left, nil, 0o600))
	if _, err := os.Stat(first.Path); err != nil {
		t.Error("one that is in use was removed", err)
	}
	gone := second.Path
	second.Release()
	if err := first.Remove(); err != nil {
		t.Error(err)
	}
	third, err := NewFolder(parent, "x-", removeAll)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Error("one that nobody uses was left", err)
	}
	if err := third.Rename(filepath.Join(parent, "done")); err != nil {
		t.Error(err)
	}
	if err := third.Remove(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(parent); len(entries) != 1 {
		t.Error(entries)
	}
}

func writeText(t testing.TB, w io.Writer, text string) {
	t.Helper()
	_, err := io.WriteString(w, text)
	ok(t, err)
}

func writeZeros(t testing.TB, w io.Writer, n int64) {
	t.Helper()
	_, err := io.CopyN(w, zeros{}, n)
	ok(t, err)
}
