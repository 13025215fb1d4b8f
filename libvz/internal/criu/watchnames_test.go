package criu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// handleOf returns the handle of a file as an image has it, without a path.
func handleOf(t *testing.T, path string) []byte {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Skipf("no handles here: %v", err)
	}
	msg := message(1, h.Size(), 2, int(h.Type()))
	bytes8 := append(h.Bytes(), make([]byte, (8-h.Size()%8)%8)...)
	for ; len(bytes8) > 0; bytes8 = bytes8[8:] {
		var word uint64
		for i := range 8 {
			word |= uint64(bytes8[i]) << (8 * i)
		}
		msg = append(msg, message(3, int(word))...)
	}
	return msg
}

func TestNameFile(t *testing.T) {
	watched := filepath.Join(t.TempDir(), "watched")
	if err := os.WriteFile(watched, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var top, st unix.Stat_t
	if unix.Stat("/", &top) != nil || unix.Stat(watched, &st) != nil || top.Dev != st.Dev || unix.Geteuid() != 0 {
		t.Skip("needs root, and a temporary directory on the file system of /")
	}
	handle := handleOf(t, watched)
	entry := func(device int, handle []byte) []byte {
		return message(1, 8, 2, 5, 13, message(1, 5, 2, 0x800, 5, message(1, 9, 2, 2, 5, device, 7, handle)))
	}
	named := func(path string, mount int) []byte {
		return append(bytes.Clone(handle), message(4, []byte(path), 5, mount)...)
	}
	image := filepath.Join(t.TempDir(), "files.img")
	writeImage(t, image, entry(0x30, handle), entry(0x31, handle), entry(0x30, named("/elsewhere", 9)))
	out, err := nameFile(image, "/", []mountPoint{{1, 0x29, "/"}, {7, 0x30, "/"}, {8, 0x31, "/run"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, out, 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := readImage(image)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{entry(0x30, named(watched, 7)), entry(0x31, handle), entry(0x30, named("/elsewhere", 9))} {
		if !bytes.Equal(entries[i], want) {
			t.Errorf("entry %d is  %x\nwant %x", i, entries[i], want)
		}
	}
}
