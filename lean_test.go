package main

import (
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vzrun/vzrun/internal/cli"
)

// What stands here costs every start of every container, by its initialisation and
// by its size. It belongs to the full program.
func TestLeanProgramLinksNothingOfOtherVerbs(t *testing.T) {
	tags := "runc_nocriu seccomp netgo osusergo"
	if all := linked(t, tags); !slices.Contains(all, "crypto/tls") || !slices.Contains(all, "filippo.io/age") {
		t.Fatal("the full program has no TLS or no age: this test proves nothing")
	}
	heavy := []string{
		"crypto/tls", "crypto/x509", "net/http", "text/template", "html/template",
		"golang.org/x/sys/cpu", // asks the processor again, which a hypervisor makes dear
		"filippo.io/age", "github.com/klauspost/compress/zstd", "github.com/xtaci/smux",
		"github.com/urfave/cli/v2", "github.com/vzrun/vzrun/libvz/internal/archive", "github.com/vzrun/vzrun/libvz/internal/wire",
	}
	all := linked(t, tags+" lean")
	if !slices.Contains(all, "github.com/opencontainers/runc/libcontainer") {
		t.Fatalf("the lean program has no libcontainer, of %d packages", len(all))
	}
	for _, p := range heavy {
		if slices.Contains(all, p) {
			t.Errorf("the lean program links %s", p)
		}
	}
}

// linked returns the packages that make up the program with these tags.
func linked(t *testing.T, tags string) []string {
	t.Helper()
	cmd := osexec.Command("go", "list", "-deps", "-tags", tags, ".")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}

func TestIsServed(t *testing.T) {
	app := &cli.App{Flags: globalFlags(), Commands: []*cli.Command{{Name: "run"}, {Name: "state"}}}
	for line, want := range map[string]bool{
		"run id":                  true,
		"--root /r --debug run x": true,
		"--log=/x state --help":   true,
		"state checkpoint":        true,
		"--version":               true,
		"-v":                      true,
		"--root /r --version":     true,
		"--root --version":        false, // its value
		"--version run":           false,
		"":                        false, // help
		"help":                    false,
		"h run":                   false,
		"--help":                  false,
		"--help run":              false,
		"checkpoint id":           false,
		"--root /r restore run":   false,
		"nonsense":                false,
		"--nonsense run id":       false,
		"-- run":                  false,
	} {
		if got := isServed(app, append([]string{"vzrun"}, strings.Fields(line)...)); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}
