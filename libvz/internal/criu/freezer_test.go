package criu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A cgroup, as far as a freezer looks at it, and a CRIU that freezes it.

var (
	v1Files = map[string]string{"freezer.state": "THAWED\n", "tasks": "7\n", "guest/tasks": "8\n", "guest/freezer.state": "THAWED\n"}
	v2Files = map[string]string{
		"cgroup.freeze": "0\n", "cgroup.threads": "7\n", "cgroup.events": "populated 1\nfrozen 1\n",
		"freezer.state/cgroup.threads": "8\n", // a guest gives its cgroups any name
	}
)

func freezerOn(t *testing.T, files map[string]string) *freezer {
	t.Helper()
	cgroup := t.TempDir()
	for name, text := range files {
		path := filepath.Join(cgroup, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	place, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{cgroup: cgroup, files: freezerFilesOf(cgroup), place: place}
	t.Cleanup(f.close)
	if err := f.pointTo(cgroup); err != nil {
		t.Fatal(err)
	}
	return f
}

// asks writes a state as CRIU does, and returns what CRIU reads then.
func asks(t *testing.T, f *freezer, state string) string {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(f.path(), f.files.state), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(append([]byte(state), make([]byte, 32-len(state))...), 0); err != nil {
		t.Fatal(err)
	}
	now := make([]byte, 31)
	n, err := file.ReadAt(now, 0)
	if n == 0 {
		t.Fatal(err)
	}
	said, _, _ := strings.Cut(string(now[:n]), "\x00")
	return said
}

func awaitState(t *testing.T, f *freezer, want string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for f.read() != want {
		if time.Now().After(deadline) {
			t.Fatalf("the cgroup's state is %q, not %q", f.read(), want)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFreezerIsFrozenBeforeCRIULooks(t *testing.T) {
	for name, files := range map[string]map[string]string{"v1": v1Files, "v2": v2Files} {
		t.Run(name, func(t *testing.T) {
			f := freezerOn(t, files)
			if err := f.freeze(); err != nil {
				t.Fatal(err)
			}
			if f.read() != f.files.frozen {
				t.Fatalf("the cgroup is %s", f.read())
			}
			// What CRIU goes by (criu/seize.c): it runs, and is frozen at once.
			if seen := freezerFilesOf(f.path()); seen != f.files {
				t.Fatalf("CRIU takes it for %+v", seen)
			}
			text, err := os.ReadFile(filepath.Join(f.path(), f.files.state))
			if err != nil || strings.TrimSpace(string(text)) != f.files.thawed {
				t.Fatalf("CRIU finds %q, %v", text, err)
			}
			if said := asks(t, f, f.files.frozen); said != f.files.frozen {
				t.Fatalf("CRIU reads %q", said)
			}
			if tasks := allTasks(t, f.path(), f.files.tasks); tasks != "7\n8\n" {
				t.Fatalf("CRIU finds the tasks %q", tasks)
			}
			asks(t, f, f.files.thawed)
			awaitState(t, f, f.files.thawed)

			// Whoever freezes it now means it.
			if err := f.write(f.files.frozen); err != nil {
				t.Fatal(err)
			}
			if err := f.thaw(); err != nil {
				t.Fatal(err)
			}
			if f.read() != f.files.frozen {
				t.Error("it was thawed twice")
			}
			if f.heldFor() <= 0 {
				t.Error("it was frozen for no time")
			}
		})
	}
}

// allTasks reads a cgroup and those below it as CRIU does, through links.
func allTasks(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := string(text)
	for _, e := range entries {
		if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && st.IsDir() {
			all += allTasks(t, filepath.Join(dir, e.Name()), name)
		}
	}
	return all
}

func TestFreezerThawsAfterADeadCRIU(t *testing.T) {
	f := freezerOn(t, v1Files)
	for range 2 { // attempts
		if err := f.freeze(); err != nil {
			t.Fatal(err)
		}
		asks(t, f, "FROZEN")
		if err := f.thaw(); err != nil {
			t.Fatal(err)
		}
		if f.read() != "THAWED" {
			t.Fatalf("the cgroup is %s", f.read())
		}
	}
}

func TestFreezerLeavesItToCRIU(t *testing.T) {
	slow := map[string]string{"cgroup.freeze": "0\n", "cgroup.threads": "7\n", "cgroup.events": "populated 1\nfrozen 0\n"}
	paused := map[string]string{"freezer.state": "FROZEN\n", "tasks": "7\n"}
	for name, files := range map[string]map[string]string{"slow to freeze": slow, "paused": paused} {
		t.Run(name, func(t *testing.T) {
			f := freezerOn(t, files)
			was := f.read()
			if err := f.freeze(); err != nil {
				t.Fatal(err)
			}
			if f.read() != was {
				t.Errorf("the cgroup is %s, and was %s", f.read(), was)
			}
			if place, err := os.Readlink(f.path()); err != nil || place != f.cgroup {
				t.Errorf("CRIU gets %s, %v", place, err)
			}
		})
	}
}
