package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveTreeStaysInside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	tree := filepath.Join(dir, "tree", "sub")
	for _, d := range []string{outside, tree} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(outside, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(tree, "exec.fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(dir, "tree"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("followed a link: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tree")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("tree is still there: %v", err)
	}
	if err := RemoveTree(dir, "tree"); err != nil {
		t.Fatalf("not idempotent: %v", err)
	}
}

func TestRemoveTreeStopsAtMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	source, target := filepath.Join(dir, "rootfs"), filepath.Join(dir, "state", "criu-root")
	for _, d := range []string{source, target} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(source, "etc-passwd")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH) //nolint:errcheck // best effort
	if err := RemoveTree(dir, "state"); err == nil {
		t.Error("a mount point was removed")
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("the rootfs was emptied: %v", err)
	}
}

// nest makes directories below each other in dir, each with a file and a link to
// outside, and returns a descriptor of the last.
func nest(t *testing.T, dir, outside string, levels int) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range levels {
		file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(file)
		if err := errors.Join(unix.Symlinkat(outside, fd, "link"), unix.Mkdirat(fd, "d", 0o700)); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	return fd
}

// limitFiles lets the test open few files.
func limitFiles(t *testing.T, files uint64) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }) //nolint:errcheck // it was so before
}

func TestRemoveTreeOfAnyDepth(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	keep := filepath.Join(outside, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, branch := range []string{"a", "b", "c"} {
		path := filepath.Join(dir, "tree", branch)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		unix.Close(nest(t, path, outside, 3000))
	}
	limitFiles(t, 256)
	if err := RemoveTree(dir, "tree"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "tree")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("tree is still there: %v", err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("followed a link: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Fatalf("beside the tree: %v, %v", left, err)
	}
}

func TestRemoveTreeOfManyNames(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree", "sub")
	if err := os.MkdirAll(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 2*maxNames + 1 {
		if err := os.Symlink("/", filepath.Join(tree, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveTree(dir, "tree"); err != nil {
		t.Fatal(err)
	}
}

// A mount is refused at any depth: where its directory would be moved, and below
// one that is moved.
func TestRemoveTreeStopsAtDeepMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, depth := range []int{maxNesting - 2, maxNesting - 1, maxNesting, maxNesting + 1, 5 * maxNesting} {
		t.Run(fmt.Sprint(depth), func(t *testing.T) {
			dir, outside := t.TempDir(), t.TempDir()
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "tree"), 0o700), os.Mkdir(filepath.Join(outside, "sub"), 0o700)); err != nil {
				t.Fatal(err)
			}
			keep := filepath.Join(outside, "sub", "keep")
			if err := os.WriteFile(keep, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			fd := nest(t, filepath.Join(dir, "tree"), outside, depth)
			target := fmt.Sprintf("/proc/self/fd/%d", fd)
			if err := unix.Mount(outside, target, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			defer unmountBelow(t, dir)
			if err := RemoveTree(dir, "tree"); !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EBUSY) {
				t.Errorf("a mount was no obstacle: %v", err)
			}
			if _, err := os.Stat(keep); err != nil {
				t.Fatalf("what is mounted was emptied: %v", err)
			}
		})
	}
}

// unmountBelow undoes the test's mount, which may have been moved with its
// directory.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = true
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	if !found {
		t.Error("the mount is gone")
	}
}

// What cannot be moved is removed all the same, with a descriptor for each level.
func TestRemoveTreeThatCannotBeMoved(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tree"), 0o700); err != nil {
		t.Fatal(err)
	}
	unix.Close(nest(t, filepath.Join(dir, "tree"), dir, 2*maxNesting))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := removal{top: -1}
	// As if the tree were deeper than it is, below a top that takes nothing.
	if err := r.remove(fd, "tree", maxNesting); err != nil || r.moved != 0 {
		t.Fatalf("moved %d: %v", r.moved, err)
	}
}
