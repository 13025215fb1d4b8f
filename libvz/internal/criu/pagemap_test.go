package criu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

// pagemapOf is an entry as CRIU writes it; pages of zero are only said in the old way.
type pagemapOf struct{ address, compat, pages, flags uint64 }

// writePagemap makes an image of a task whose pages are in pages-7.img.
func writePagemap(t *testing.T, path string, entries ...pagemapOf) {
	t.Helper()
	varint := func(field, v uint64) []byte {
		return protobuf.AppendVarint(protobuf.AppendVarint(nil, field<<3|wireVarint), v)
	}
	data := appendEntry(make([]byte, imageHeader), varint(pagemapPagesID, 7))
	for _, e := range entries {
		entry := append(varint(pagemapAddress, e.address), varint(pagemapCompat, e.compat)...)
		entry = append(entry, varint(pagemapFlags, e.flags)...)
		if e.pages > 0 {
			entry = append(entry, varint(pagemapPages, e.pages)...)
		}
		data = appendEntry(data, entry)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

const lazyPresent, lazyElsewhere, present = pagemapLazy | pagemapPresent, pagemapLazy, pagemapPresent

func TestLazyRanges(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []pagemapOf
		want    []pageRange // nil: refused
	}{
		{
			"some",
			[]pagemapOf{{0x40000, 3, 0, lazyElsewhere}, {0x1000, 1, 0, present}, {0x10000, 9, 2, lazyPresent}},
			[]pageRange{{address: 0x10000, pages: 2}, {address: 0x40000, pages: 3}},
		},
		{"none", []pagemapOf{{0x1000, 1, 0, present}}, []pageRange{}},
		{"twice", []pagemapOf{{0x10000, 0, 3, lazyElsewhere}, {0x12000, 0, 1, lazyElsewhere}}, nil},
		{"too many", []pagemapOf{{0x10000, 0, 1 << 40, lazyElsewhere}}, nil},
		{"too many at all", []pagemapOf{{0x10000, 0, mostPages, lazyElsewhere}, {0x70000000000, 0, 1, lazyElsewhere}}, nil},
		{"in the middle of a page", []pagemapOf{{0x10010, 0, 1, lazyElsewhere}}, nil},
		{"beyond all", []pagemapOf{{0x7ffffffffffff000, 0, 2, lazyElsewhere}}, nil},
	} {
		path := filepath.Join(t.TempDir(), "pagemap-12.img")
		writePagemap(t, path, c.entries...)
		got, err := lazyRanges(path)
		if c.want == nil != errors.Is(err, errImage) || c.want != nil && !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "empty"), make([]byte, imageHeader), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A directory of images answers as a page server does.
func TestImagePages(t *testing.T) {
	dir := t.TempDir()
	writePagemap(t, filepath.Join(dir, "pagemap-12.img"),
		pagemapOf{0x1000, 0, 1, present}, pagemapOf{0x10000, 0, 300, lazyPresent}, pagemapOf{0x900000, 0, 2, lazyElsewhere}, pagemapOf{0xa00000, 0, 2, lazyPresent})
	pages := slices.Concat(contents(0x1000, 1), contents(0x10000, 300), contents(0xa00000, 2))
	if err := os.WriteFile(filepath.Join(dir, "pages-7.img"), pages, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &imagePages{dir: dir}
	conn, err := p.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline(t, conn)
	for _, c := range []struct {
		address uint64
		count   int
		want    uint64
	}{{0x10000, 300, piecePages}, {0x11000, 1, 1}, {0x10000 + 299*pageSize, 5, 1}, {0xa00000, 2, 2}} {
		q := messageOf(psGet, span{12, c.address, c.count})
		if _, err := conn.Write(q[:]); err != nil {
			t.Fatal(err)
		}
		var head pageMessage
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			t.Fatal(err)
		}
		if head.command() != psAdd || head.task() != 12 || head.address() != c.address || head.count() != c.want {
			t.Fatalf("%x pages of %d at %#x, want %d at %#x", head.count(), head.task(), head.address(), c.want, c.address)
		}
		got := make([]byte, head.bytes())
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, contents(c.address, c.want)) {
			t.Errorf("%v, or other pages than those at %#x", err, c.address)
		}
	}
	q := messageOf(psGet, span{12, 0x900000, 1}) // which is elsewhere
	if _, err := conn.Write(q[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v in place of the end", err)
	}
	if _, err := p.dial(context.Background()); err == nil {
		t.Error("it goes on after what it does not have")
	}
}
