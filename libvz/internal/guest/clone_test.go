package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRenameHosts(t *testing.T) {
	const hosts = `127.0.0.1	localhost
127.0.1.1   web.example.org web # own
::1 localhost web
10.0.0.1 web gateway
# 127.0.1.1 web
`
	for _, test := range []struct{ was, is, want string }{
		{"web.example.org", "c1.example.org", `127.0.0.1	localhost
127.0.1.1	c1.example.org c1 # own
::1	localhost c1
10.0.0.1 web gateway
# 127.0.1.1 web
`},
		{"", "c1", hosts},
		{"web", "web", hosts},
		{"localhost", "c1", hosts},
	} {
		if got := renameHosts(hosts, test.was, test.is); got != test.want {
			t.Errorf("%s to %s:\n%s", test.was, test.is, got)
		}
	}
}

func TestIdentifyRoot(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	outside := filepath.Join(t.TempDir(), "outside")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	write(outside, "mine")
	write(filepath.Join(etc, "hostname"), "web\n")
	write(filepath.Join(etc, "machine-id"), strings.Repeat("ab", 16)+"\n")
	if err := os.Symlink(outside, filepath.Join(etc, "hosts")); err != nil {
		t.Fatal(err)
	}
	id := RootIdentity{Hostname: "c1", MachineID: strings.Repeat("cd", 16)}
	if err := IdentifyRoot(root, id); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"hostname": "c1\n", "machine-id": id.MachineID + "\n"} {
		if got, err := os.ReadFile(filepath.Join(etc, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "mine" {
		t.Errorf("a file outside was written to: %q, %v", got, err)
	}
	// A root that never booted makes its own.
	empty := t.TempDir()
	if err := os.Mkdir(filepath.Join(empty, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := IdentifyRoot(empty, id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(empty, "etc/machine-id")); err == nil {
		t.Error("a root without a machine-id was given one")
	}
	if err := IdentifyRoot(t.TempDir(), id); err != nil {
		t.Errorf("a root without /etc: %v", err)
	}
}

func TestCloneFiles(t *testing.T) {
	info := CloneInfo{ID: "c1", Generation: "77", Hostname: "db", UUID: "88", Init: Systemd}
	files := CloneFiles(info)
	last := files[len(files)-1]
	if last.Path != "vzrun/clone" || last.Content != "ID=c1\nGENERATION=77\nHOSTNAME=db\n" {
		t.Errorf("last file: %+v", last)
	}
	has := func(files []File, path string) bool {
		for _, f := range files {
			if f.Path == path {
				return true
			}
		}
		return false
	}
	if !has(files, "systemd/system/"+RenewUnit) || !has(files, RenewScript) || !has(files, "host/container-uuid") {
		t.Errorf("files: %v", files)
	}
	info.Init, info.UUID = OpenRC, ""
	if files := CloneFiles(info); has(files, "systemd/system/"+RenewUnit) || has(files, "host/container-uuid") {
		t.Errorf("files for OpenRC: %v", files)
	}
}
