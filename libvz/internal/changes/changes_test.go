package changes

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestSince(t *testing.T) {
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"quiet/below", "busy/below", "moves/below", "gone"} {
		must(os.MkdirAll(in(dir), 0o700))
	}
	for _, file := range []string{"quiet/file", "quiet/below/file", "busy/file", "busy/other", "busy/below/file", "moves/below/file", "gone/file", "owner", "times", "linked"} {
		must(os.WriteFile(in(file), []byte(file), 0o600))
	}
	must(os.Link(in("linked"), in("moves/below/link")))
	must(os.Link(in("quiet/file"), in("quiet/link")))
	time.Sleep(Slack + 100*time.Millisecond) // all that is younger counts as new
	began, err := Now()
	must(err)

	must(os.WriteFile(in("busy/file"), []byte("x"), 0o600))
	must(os.Rename(in("moves"), in("quiet/below/moved")))
	must(os.Remove(in("gone/file")))
	must(os.Chmod(in("owner"), 0o640))
	st, err := os.Stat(in("times"))
	must(err)
	must(os.WriteFile(in("times"), []byte("semit"), 0o600))
	must(os.Chtimes(in("times"), st.ModTime(), st.ModTime()))
	must(os.Symlink("/etc", in("new")))

	expectSince(t, root, began, began, []string{
		"./", "busy/file", "gone/", "linked (unchanged)", "new", "owner",
		"quiet/below/", "quiet/below/moved/", "quiet/below/moved/below/ (unchanged)", "quiet/below/moved/below/link (unchanged)", "times",
	})

	// A second copy has had all that, but for what a directory hid that moved meanwhile:
	// of what is below directories that have changed, all since the first one is listed.
	must(os.WriteFile(in("quiet/below/moved/below/file"), []byte("x"), 0o600))
	time.Sleep(Slack + 100*time.Millisecond)
	again, err := Now()
	must(err)
	must(os.Rename(in("quiet/below/moved"), in("busy/moved")))
	expectSince(t, root, began, again, []string{
		"busy/", "busy/below/ (unchanged)", "busy/file", "busy/moved/", "busy/moved/below/ (unchanged)", "busy/moved/below/file", "linked (unchanged)",
		"busy/moved/below/link (unchanged)", "quiet/below/",
	})
}

func expectSince(t *testing.T, root string, first, last Moment, want []string) {
	t.Helper()
	tree, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	found, err := Since(tree, first, last)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range found {
		name := e.Path
		if e.IsDir() {
			name += "/"
		}
		if !e.Changed {
			name += " (unchanged)"
		}
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("found\n%q, not\n%q", got, want)
	}
}

func TestSinceSaysWhereTimesDoNotTell(t *testing.T) {
	now, err := Now()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := Since(foreign, now, now); !errors.Is(err, ErrCannotTell) {
		t.Error(err)
	}
	tree, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for _, step := range []time.Duration{-time.Hour, time.Hour} {
		was := now
		was.wall = was.wall.Add(step)
		for _, moments := range [][2]Moment{{was, was}, {was, now}, {now, was}} {
			if _, err := Since(tree, moments[0], moments[1]); !errors.Is(err, ErrCannotTell) {
				t.Errorf("the clock was set by %v: %v", step, err)
			}
		}
	}
}
