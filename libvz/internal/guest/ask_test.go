package guest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrettyName(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"NAME=Alpine\nID=alpine\n", "Alpine"},
		{"NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n", "Debian GNU/Linux 13 (trixie)"},
		{"PRETTY_NAME='it is'", "it is"},
		{`PRETTY_NAME="a \"b\" \$c \\"`, `a "b" $c \`},
		{"PRETTY_NAME=\"\x1b[31mred\"", "?[31mred"},
		{"PRETTY_NAME=\"", "\""},
	} {
		if got := prettyName(c.text); got != c.want {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}

// The guest decides what its os-release is.
func TestOSNameStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("PRETTY_NAME=outside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(etc string) error{
		"a link out":   func(etc string) error { return os.Symlink(outside, etc+"/os-release") },
		"a fifo":       func(etc string) error { return unix.Mkfifo(etc+"/os-release", 0o644) },
		"a directory":  func(etc string) error { return os.Mkdir(etc+"/os-release", 0o755) },
		"a magic link": func(etc string) error { return os.Symlink("/proc/self/root"+outside, etc+"/os-release") },
	} {
		root := t.TempDir()
		if err := os.Mkdir(root+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(root + "/etc"); err != nil {
			t.Fatal(err)
		}
		if got, _ := OSName(root); got != "" {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestOSNameFollowsLinksInside(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"/etc", "/usr/lib"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/usr/lib/os-release", []byte("PRETTY_NAME=inside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Absolute, and with too many "..", as a guest may have it.
	if err := os.Symlink("/../../usr/lib/os-release", root+"/etc/os-release"); err != nil {
		t.Fatal(err)
	}
	if got, err := OSName(root); got != "inside" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
