package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

func isPages(name string) bool { return strings.HasPrefix(name, "pages-") }

// text is bytes that can be compressed, and no two pieces of them alike.
func text(seed uint64, size int) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, 0, size+8)
	for len(out) < size {
		out = binary.NativeEndian.AppendUint64(out, random.Uint64()&0x0301070301010703)
	}
	return out[:size]
}

func made(e *Early) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.made
}

// await is for what the background has to notice.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

// earlyArchive writes files of a directory into an archive and returns its bytes.
func earlyArchive(t *testing.T, dir string, names []string, early *Early, o Options) ([]byte, string, error) {
	t.Helper()
	var b into
	plan := Plan{Arch: "amd64"}
	for _, name := range names {
		st, err := os.Stat(filepath.Join(dir, name))
		ok(t, err)
		plan.Images += st.Size()
	}
	o.Early = early
	w, err := NewWriter(context.Background(), &b, plan, o)
	ok(t, err)
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		ok(t, err)
		st, err := f.Stat()
		ok(t, err)
		err = w.AddImage(context.Background(), name, f, st.Size())
		f.Close()
		if err != nil {
			w.Discard()
			return nil, "", err
		}
	}
	digest, err := w.Commit()
	ok(t, err)
	return b.Bytes(), digest, nil
}

// What was compressed while files grew is what is in them at the end, in whatever
// steps they grew.
func TestEarly(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	ok(t, err)
	for name, o := range map[string]Options{
		"zstd": {Level: 1}, "better": {Level: 9}, "age": {Level: 1, Recipients: []age.Recipient{identity.Recipient()}}, "plain": {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e, err := NewEarly(dir, max(o.Level, 1), isPages)
			ok(t, err)
			defer e.Close()
			sizes := map[string]int{
				"pages-1.img": 5*earlySize + 4096, "pages-2.img": 0, "pages-3.img": earlySize, "pages-4.img": earlySize - 1,
				"core-1.img": 3 * earlySize, "inventory.img": 12,
			}
			random := rand.New(rand.NewPCG(7, 7))
			var names []string
			want := map[string][]byte{}
			early := 0
			for name, size := range sizes {
				names = append(names, name)
				want[name] = text(uint64(len(names)), size)
				f, err := os.Create(filepath.Join(dir, name))
				ok(t, err)
				for rest := want[name]; len(rest) > 0; {
					n := min(len(rest), 1+random.IntN(earlySize))
					_, err := f.Write(rest[:n])
					ok(t, err)
					rest = rest[n:]
				}
				ok(t, f.Close())
				if isPages(name) {
					early += size / earlySize
				}
			}
			slices.Sort(names)
			// How much there is by then is up to the machine; here it is all.
			await(t, fmt.Sprint(early, " pieces"), func() bool { return made(e) == early })
			e.Stop()
			data, digest, err := earlyArchive(t, dir, names, e, o)
			ok(t, err)
			if _, same, err := earlyArchive(t, dir, names, nil, o); err != nil || same != digest {
				t.Errorf("digest %s, without haste %s (%v)", digest, same, err)
			}
			got, c, err := unpack(t, data, identity)
			ok(t, err)
			if c.Digest != digest {
				t.Error(c.Digest)
			}
			for name, want := range want {
				if is, err := os.ReadFile(filepath.Join(got, name)); err != nil || !bytes.Equal(is, want) {
					t.Errorf("%s: %d bytes, want %d, %v", name, len(is), len(want), err)
				}
			}
		})
	}
}

// A file that took the place of another, became shorter, or was there before, is
// read anew.
func TestEarlyIsNotMistaken(t *testing.T) {
	grow := func(t *testing.T, path string, seed uint64) []byte {
		data := text(seed, 3*earlySize)
		ok(t, os.WriteFile(path, data, 0o600))
		return data
	}
	for name, change := range map[string]func(t *testing.T, path string) []byte{
		"replaced": func(t *testing.T, path string) []byte {
			ok(t, os.Remove(path))
			return grow(t, path, 2)
		},
		"renamed": func(t *testing.T, path string) []byte {
			data := grow(t, path+".new", 3)
			ok(t, os.Rename(path+".new", path))
			return data
		},
		"shorter": func(t *testing.T, path string) []byte {
			data := text(4, earlySize)
			ok(t, os.WriteFile(path, data, 0o600))
			return data
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e, err := NewEarly(dir, 1, isPages)
			ok(t, err)
			defer e.Close()
			path := filepath.Join(dir, "pages-1.img")
			grow(t, path, 1)
			await(t, "3 pieces", func() bool { return made(e) == 3 })
			e.Stop()
			want := change(t, path)
			data, _, err := earlyArchive(t, dir, []string{"pages-1.img"}, e, Options{Level: 1})
			ok(t, err)
			got, _, err := unpack(t, data)
			ok(t, err)
			if is, err := os.ReadFile(filepath.Join(got, "pages-1.img")); err != nil || !bytes.Equal(is, want) {
				t.Errorf("%d bytes, want %d, %v", len(is), len(want), err)
			}
		})
	}
}

// So are files: each task has one, and most are small.
func TestEarlyOfManyFiles(t *testing.T) {
	dir := t.TempDir()
	e, err := NewEarly(dir, 1, isPages)
	ok(t, err)
	defer e.Close()
	count := func() (n int) {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.files)
	}
	data := make([]byte, earlySize)
	for n := range earlyFiles + 10 {
		ok(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("pages-s%d.img", n)), data[:4096], 0o600))
		ok(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("pages-%d.img", n)), data, 0o600))
	}
	await(t, "as many as there may be", func() bool { return made(e) == earlyFiles })
	if n := count(); n > earlyFiles {
		t.Errorf("%d files are open", n)
	}
}

// Memory is bounded, and what was not taken is given up.
func TestEarlyEnds(t *testing.T) {
	dir := t.TempDir()
	e, err := NewEarly(dir, 1, isPages)
	ok(t, err)
	e.most = 1
	path := filepath.Join(dir, "pages-1.img")
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	for range 8 {
		_, err := f.Write(text(1, earlySize))
		ok(t, err)
	}
	e.work.Wait() // it ends by itself
	for range 2 {
		e.Close()
	}
	if n := made(e); n < 1 || n > 1+cap(e.free) {
		t.Errorf("%d pieces with room for one", n)
	}
	var none *Early
	none.Stop()
	none.Close()
	_, err = NewEarly(path, 1, isPages)
	if err == nil {
		t.Error("a file is taken for a directory")
	}
}

// Whoever stops in the middle waits for nobody, and has what was ready in a row.
func TestEarlyIsStoppedInTheMiddle(t *testing.T) {
	for n := range 20 {
		dir := t.TempDir()
		e, err := NewEarly(dir, 1, isPages)
		ok(t, err)
		want := bytes.Repeat(text(uint64(n), earlySize/4), 4*8)
		f, err := os.Create(filepath.Join(dir, "pages-1.img"))
		ok(t, err)
		for at := 0; at < len(want); at += earlySize / 2 {
			_, err := f.Write(want[at : at+earlySize/2])
			ok(t, err)
		}
		ok(t, f.Close())
		await(t, "some pieces", func() bool { return made(e) >= n%8 })
		e.Stop()
		data, _, err := earlyArchive(t, dir, []string{"pages-1.img"}, e, Options{Level: 1})
		ok(t, err)
		e.Close()
		got, _, err := unpack(t, data)
		ok(t, err)
		if is, err := os.ReadFile(filepath.Join(got, "pages-1.img")); err != nil || !bytes.Equal(is, want) {
			t.Fatalf("%d bytes, want %d, %v", len(is), len(want), err)
		}
	}
}

// Frames from elsewhere may be anywhere in the stream.
func TestFramesInserted(t *testing.T) {
	enc, err := newEncoder(1, 1)
	ok(t, err)
	var packed bytes.Buffer
	f, err := newFrames(&packed, 1)
	ok(t, err)
	var want []byte
	for n, size := range []int{0, 10, 0, frameSize, 3, 0, 2*frameSize + 1} {
		part := text(uint64(n), size)
		_, err := f.Write(part)
		ok(t, err)
		want = append(want, part...)
		for m := range n {
			part := text(uint64(n*m), 1000+m)
			ok(t, f.insert(enc.EncodeAll(part, nil)))
			want = append(want, part...)
		}
	}
	f.space() // and nothing is put there
	ok(t, f.Close())
	z, err := zstd.NewReader(&packed)
	ok(t, err)
	defer z.Close()
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes became %d: %v", len(want), len(got), err)
	}
}
