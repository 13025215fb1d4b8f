package criu

import (
	"bytes"
	"path/filepath"
	"testing"
)

func TestForgetSizes(t *testing.T) {
	sized := func(name string) []byte {
		return message(1, 1, 2, 7, 3, message(1, 7, 2, 0, 6, []byte(name), 8, 1234, 10, 0o444))
	}
	bare := func(name string) []byte {
		return message(1, 1, 2, 7, 3, message(1, 7, 2, 0, 6, []byte(name), 10, 0o444))
	}
	socket := message(1, 2, 2, 8, 4, []byte("not a file"))
	dir := t.TempDir()
	path := filepath.Join(dir, "files.img")
	writeImage(t, path, sized("/proc/stat"), sized("proc/uptime"), sized("/proc/statistics"), socket, sized("/sys/cpu/online"))
	before, err := readImage(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := forgetSizes(dir, nil); err != nil {
		t.Fatal(err)
	}
	if err := forgetSizes(dir, []string{"/proc/stat", "/proc/uptime", "/sys/cpu"}); err != nil {
		t.Fatal(err)
	}
	after, err := readImage(path)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{bare("/proc/stat"), bare("proc/uptime"), before[2], before[3], bare("/sys/cpu/online")}
	for i := range want {
		if len(after) != len(want) || !bytes.Equal(after[i], want[i]) {
			t.Fatalf("entry %d of %d: got %q, want %q", i, len(after), after[i], want[i])
		}
	}
}
