//go:build !lean

package libvz

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/changes"
)

// A tree is copied again and again while it changes in all ways that a guest has, and
// when it stands still the list of what has changed is to make the copy equal.
func TestListsOfChangesAreWhole(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount is cloned, which takes root")
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Fatal("no rsync, without which nothing moves: contrib/bootstrap installs it")
	}
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			tree := randomTree{t: t, root: t.TempDir(), Rand: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // a test
			copied := t.TempDir()
			// rsync would open one that has just become a file's name, and wait for its writer.
			tree.noPipes = true
			for range 300 {
				tree.change()
			}
			time.Sleep(changes.Slack + 100*time.Millisecond) // else all is new
			var sent sentFiles
			for !sent.any {
				sendAgain(t, &sent, tree.root, copied, tree.meanwhile(40))
			}
			sendAgain(t, &sent, tree.root, copied, tree.meanwhile(20))
			sendAgain(t, &sent, tree.root, copied, tree.meanwhile(20))
			tree.noPipes = false
			for range 20 {
				tree.change()
			}
			files, others, err := sent.changed(tree.root)
			if err != nil {
				t.Fatal(err)
			}
			sendListed(t, tree.root, copied, files, others, 0)
			want, got := listing(t, tree.root), listing(t, copied)
			for i := range max(len(want), len(got)) {
				if i >= len(want) || i >= len(got) || want[i] != got[i] {
					t.Fatalf("from line %d on\n%s\nhas become\n%s", i, strings.Join(want[i:min(i+3, len(want))], "\n"), strings.Join(got[i:min(i+3, len(got))], "\n"))
				}
			}
		})
	}
}

// sendAgain is a pass while the tree changes.
func sendAgain(t *testing.T, sent *sentFiles, from, to string, meanwhile func() (end func())) {
	t.Helper()
	moment, err := sent.begin(from)
	if err != nil {
		t.Fatal(err)
	}
	end := meanwhile()
	defer end()
	if !sent.any {
		if rsyncThere(t, from, to, rsyncOptions(), nil, rsyncPartial) {
			sent.sent(moment)
		}
		return
	}
	files, others, err := sent.changed(from)
	if err == nil && sendListed(t, from, to, files, others, rsyncPartial) {
		sent.sent(moment)
	}
}

// sendListed tells whether all of it was sent; some may be missing if the tree changes.
func sendListed(t *testing.T, from, to string, files, others []string, mayExit int) bool {
	t.Helper()
	whole := rsyncThere(t, from, to, append(listOptions(), "--ignore-times"), rsyncList(files), mayExit)
	return rsyncThere(t, from, to, append(listOptions(), "--delete"), rsyncList(others), mayExit) && whole
}

func rsyncThere(t *testing.T, from, to string, options []string, list []byte, mayExit int) bool {
	t.Helper()
	cmd := exec.Command("rsync", append(options, "./", to+"/")...)
	cmd.Dir, cmd.Stdin = from, bytes.NewReader(list)
	out, err := cmd.CombinedOutput()
	if err != nil && (mayExit == 0 || !rsyncExit(err, mayExit) && !rsyncExit(err, rsyncVanished)) {
		t.Fatalf("rsync: %v: %s", err, out)
	}
	return err == nil || rsyncExit(err, rsyncVanished)
}

// randomTree changes files in a directory.
type randomTree struct {
	t    *testing.T
	root string
	*rand.Rand
	noPipes bool
}

// meanwhile changes the tree in the background, and end waits for that.
func (r *randomTree) meanwhile(times int) func() (end func()) {
	return func() func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range times {
				r.change()
			}
		}()
		return func() { <-done }
	}
}

// pick returns a directory, or anything, of the tree.
func (r *randomTree) pick(dirs bool) string {
	var all []string
	err := filepath.WalkDir(r.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (d.IsDir() || !dirs) && (dirs || path != r.root) {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if len(all) == 0 {
		return ""
	}
	return all[r.IntN(len(all))]
}

func (r *randomTree) name() string {
	names := []string{"a", "b", "c", "d", "#e", ";f", "-g", "h i", "j\nk", "l*"}
	return filepath.Join(r.pick(true), names[r.IntN(len(names))])
}

func (r *randomTree) content() []byte {
	b := make([]byte, r.IntN(5000))
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	return b
}

// change does one thing; that it cannot be done is no error.
func (r *randomTree) change() {
	old := time.Date(2001, 1, 1, 0, 0, r.IntN(60), 0, time.UTC)
	switch r.IntN(14) {
	case 0, 1, 2:
		// Neither to wait for a reader of a pipe, nor to go where a link leads.
		const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | unix.O_NONBLOCK | unix.O_NOFOLLOW
		if f, err := os.OpenFile(r.name(), flags, 0o600); err == nil {
			f.Write(r.content()) //nolint:errcheck // see above
			f.Close()
		}
	case 3, 4:
		os.Mkdir(r.name(), 0o755) //nolint:errcheck // see above
	case 5:
		os.Rename(r.pick(false), r.name()) //nolint:errcheck // see above
	case 6:
		if r.IntN(2) == 0 {
			os.RemoveAll(r.pick(false))
		} else {
			os.Remove(r.pick(false)) //nolint:errcheck // see above
		}
	case 7:
		// rsync parts names that were one file's only where it writes a new one, and it
		// does not write pipes.
		if file := r.pick(false); isRegularFile(file) {
			os.Link(file, r.name()) //nolint:errcheck // see above
		}
	case 8:
		os.Symlink("nowhere", r.name()) //nolint:errcheck // see above
	case 9:
		os.Lchown(r.pick(false), r.IntN(5), r.IntN(5)) //nolint:errcheck // see above
	case 10:
		unix.Lsetxattr(r.pick(false), "trusted.mark", r.content()[:0], 0) //nolint:errcheck // see above
	case 11:
		if r.noPipes {
			return
		}
		unix.Mkfifo(r.name(), 0o640) //nolint:errcheck // see above
	case 12, 13: // what does not show in time and size
		file := r.pick(false)
		st, err := os.Lstat(file)
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			return
		}
		if r.IntN(2) == 0 {
			old = st.ModTime()
		}
		f, err := os.OpenFile(file, os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		f.WriteAt([]byte{byte(r.IntN(256))}, r.Int64N(st.Size())) //nolint:errcheck // see above
		f.Close()
		os.Chtimes(file, old, old) //nolint:errcheck // see above
	}
}

func isRegularFile(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular()
}

// listing describes all that is to be copied, in order.
func listing(t *testing.T, root string) []string {
	t.Helper()
	first := map[uint64]string{} // names of an inode
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var content []byte
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
			if sum := sha256.Sum256(content); len(content) > len(sum) {
				content = sum[:]
			}
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			content = []byte(target)
		}
		mark := make([]byte, 1)
		_, err = unix.Lgetxattr(path, "trusted.mark", mark)
		lines = append(lines, fmt.Sprintf("%q %o %d:%d %d.%09d marked %v, as %q: %x", name, st.Mode, st.Uid, st.Gid,
			st.Mtim.Sec, st.Mtim.Nsec, err == nil, first[st.Ino], content))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func TestFilePasses(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name   string
		took   []time.Duration
		passes int
	}{
		{"a short one is enough", []time.Duration{s}, 1},
		{"until one is short", []time.Duration{3600 * s, 90 * s, 3 * s, s, s}, 4},
		{"no gain", []time.Duration{60 * s, 50 * s, s}, 2},
		{"the guest is as fast", []time.Duration{3600 * s, 2000 * s, 1200 * s, 800 * s, 500 * s, 300 * s, 200 * s, 100 * s}, mostPasses},
	} {
		var p filePasses
		n := 1
		for p.another(tt.took[n-1]) {
			n++
		}
		if n != tt.passes {
			t.Errorf("%s: %d passes, not %d", tt.name, n, tt.passes)
		}
	}
}
