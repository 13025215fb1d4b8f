package criu

import (
	"os"
	"path/filepath"
	"testing"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
)

// pagemapImage has a head, a range that is in the images, and two that are not.
func pagemapImage(t *testing.T, dir string) {
	t.Helper()
	varint := func(field, v uint64) []byte {
		return protobuf.AppendVarint(protobuf.AppendVarint(nil, field<<3|wireVarint), v)
	}
	entry := func(address, compat, pages, flags uint64) []byte {
		out := append(varint(pagemapAddress, address), varint(pagemapCompat, compat)...)
		out = append(out, varint(pagemapFlags, flags)...)
		if pages > 0 {
			out = append(out, varint(pagemapPages, pages)...)
		}
		return out
	}
	data := make([]byte, imageHeader)
	for _, e := range [][]byte{varint(1, 7), entry(0x1000, 1, 0, 4), entry(0x10000, 2, 2, 2|4), entry(0x40000, 3, 0, 2)} {
		data = append(data, byte(len(e)), 0, 0, 0)
		data = append(data, e...)
	}
	if err := os.WriteFile(filepath.Join(dir, "pagemap-12.img"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHoldsAreLetGoWithTheLastPage(t *testing.T) {
	dir := t.TempDir()
	pagemapImage(t, dir)
	h := &holds{images: dir}
	defer h.release()
	open := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	isOpen := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil
	}
	fd, other := open(), open()
	h.add(12, fd)
	h.add(13, other) // whose image is not there
	for _, a := range []struct {
		pid, address, count uint64
		held                bool
	}{
		{12, 0x1000, 1, true}, // came with the images
		{12, 0x41000, 1, true},
		{13, 0x40000, 3, true},
		{12, 0x10000, 2, true},
		{12, 0x10000, 2, true}, // once more
		{12, 0x41000, 40, true},
		{12, 0x40000, 1, false},
	} {
		h.arrived(a.pid, a.address, a.count)
		if isOpen(fd) != a.held {
			t.Fatalf("after %+v: held is %v", a, !a.held)
		}
	}
	if !isOpen(other) {
		t.Error("one of which nothing is known was let go")
	}
	third := open()
	h.add(14, third)
	h.end(14)
	if isOpen(third) {
		t.Error("one that has ended is held")
	}
	h.release()
	if isOpen(other) {
		t.Error("one is held still")
	}
}
