package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// grow makes a tree with a file of every kind that the caller may make.
func grow(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"etc", "var/empty", "long/" + strings.Repeat("d", 200)} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.WriteFile(at("etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644))
	must(os.WriteFile(at("etc/shadow"), nil, 0o000))
	must(os.WriteFile(at("etc/line\nbreak ü \xff"), []byte("x"), 0o600))
	must(os.WriteFile(at("long/"+strings.Repeat("d", 200)+"/"+strings.Repeat("f", 200)), []byte("deep"), 0o600))
	must(os.Chmod(at("etc/passwd"), os.ModeSetuid|0o755))
	must(os.Link(at("etc/passwd"), at("etc/passwd-")))
	must(os.Symlink("/etc/passwd", at("var/link")))
	must(os.Symlink("../..", at("var/up")))
	must(unix.Mkfifo(at("var/fifo"), 0o640))
	l, err := net.Listen("unix", at("var/socket"))
	must(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(l.Close())
	sparse, err := os.Create(at("var/sparse"))
	must(err)
	_, err = sparse.WriteAt([]byte("end"), 8<<20)
	must(err)
	sparse.Close()
	must(unix.Lsetxattr(at("etc/passwd"), "user.note", []byte("a\x00b"), 0))
	must(unix.Lsetxattr(at("var"), "user.dir", []byte("v"), 0))
	if os.Geteuid() == 0 {
		must(unix.Mknod(at("var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(unix.Mknod(at("var/loop"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))))
		must(os.Lchown(at("var/link"), 1000, 1001))
		must(os.Chown(at("etc/shadow"), 100000, 42))
		capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		must(unix.Lsetxattr(at("etc/shadow"), "security.capability", capability, 0))
	}
	for _, name := range []string{"etc/passwd", "var/link", "var/fifo", "var", "var/socket"} {
		ts := []unix.Timespec{{Sec: 1600000000}, {Sec: 1500000000, Nsec: 123456789}}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// listing describes all of a tree that is to be kept.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "." {
			st.Size, st.Mtim = 0, unix.Timespec{}
		}
		first, seen := inodes[st.Ino]
		if !seen {
			inodes[st.Ino] = rel
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0
		}
		link, _ := os.Readlink(path)
		fmt.Fprintf(&b, "%q %o %d:%d %d %d %s %q", rel, st.Mode, st.Uid, st.Gid, st.Rdev, size, link, first)
		timed := st.Mode&unix.S_IFMT != unix.S_IFDIR || strings.HasPrefix(rel, "var")
		if whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0; timed && !whiteout {
			fmt.Fprintf(&b, " %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		names, err := listAttributes(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			value, err := attribute(path, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s=%q", name, value)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content, err := os.ReadFile(path)
			if err != nil && os.Geteuid() == 0 {
				return err
			}
			fmt.Fprintf(&b, " %x", len(bytes.TrimRight(content, "\x00")))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pack returns the tar of a tree as a member has it.
func pack(t *testing.T, tree *Tree) []byte {
	t.Helper()
	ctx := context.Background()
	if err := tree.measure(ctx); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	p := &packer{ctx: ctx, tree: tree, tar: tar.NewWriter(&b), content: &Writer{buffer: make([]byte, 4096)}}
	if err := p.pack(); err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != tree.size {
		t.Errorf("measured %d bytes, packed %d", tree.size, b.Len())
	}
	return b.Bytes()
}

func plant(t *testing.T, data []byte, upper bool) (string, error) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := &unpacker{ctx: context.Background(), root: root, upper: upper, buffer: make([]byte, 1<<20)}
	return dir, u.unpack(bytes.NewReader(data))
}

func TestTreeIsKept(t *testing.T) {
	if os.Geteuid() != 0 {
		// Files that nobody may read cannot be packed.
		t.Log("without root: no devices, owners and capabilities")
	}
	dir := t.TempDir()
	grow(t, dir)
	if os.Geteuid() != 0 {
		ok(t, os.Chmod(filepath.Join(dir, "etc/shadow"), 0o400))
	}
	data := pack(t, &Tree{Dir: dir})
	copied, err := plant(t, data, false)
	if err != nil {
		t.Fatal(err)
	}
	want, got := listing(t, dir), listing(t, copied)
	if got != want {
		t.Errorf("copy:\n%s\noriginal:\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(copied, "var/sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the sparse file takes %d bytes, %v", st.Blocks*512, err)
	}
	// Others read it, too.
	if out, err := exec.Command("tar", "-tf", writeTemp(t, data)).CombinedOutput(); err != nil || !strings.Contains(string(out), "etc/passwd") {
		t.Errorf("tar: %s, %v", out, err)
	}
}

func writeTemp(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestChangedTreeIsNoticed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	for _, size := range []int{10, 3000} {
		ok(t, os.WriteFile(path, make([]byte, 1000), 0o600))
		w, err := NewWriter(context.Background(), &into{}, Plan{Trees: []*Tree{{Name: Rootfs, Dir: dir}}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ok(t, os.WriteFile(path, make([]byte, size), 0o600))
		if err := w.AddTrees(context.Background()); err == nil {
			t.Errorf("%d bytes in place of 1000 are not noticed", size)
		}
	}
}

// A guest can make a path that is longer than a system call takes. An archive with it
// could be written, and not be unpacked.
func TestLongPathsAreRefused(t *testing.T) {
	top, err := os.Open(t.TempDir())
	ok(t, err)
	defer top.Close()
	name := strings.Repeat("d", 250)
	at := int(top.Fd())
	for range maxName/len(name) + 1 {
		ok(t, unix.Mkdirat(at, name, 0o700))
		next, err := unix.Openat(at, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		ok(t, err)
		defer unix.Close(next)
		at = next
	}
	tree := &Tree{Dir: top.Name()}
	err = tree.measure(context.Background())
	if err == nil || !strings.Contains(err.Error(), "no restore could make") {
		t.Error(err)
	}
}

// Nor does a tar with such a path fill errors and memory with it.
func TestLongNameInTree(t *testing.T) {
	_, err := plant(t, hostile(t, &tar.Header{Name: strings.Repeat("x", 1<<19)}), false)
	if !errors.Is(err, ErrUnsafe) || len(err.Error()) > 2*maxName {
		t.Errorf("%.100v...", err)
	}
}

// Whiteouts need devices and trusted attributes.
func TestWhiteouts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes whiteouts")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "etc/new"), 0o755))
	must(unix.Mknod(filepath.Join(dir, "etc/gone"), unix.S_IFCHR, 0))
	err := unix.Lsetxattr(filepath.Join(dir, "etc/new"), overlayOpaque, []byte("y"), 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		t.Skip("no trusted attributes here")
	}
	must(err)
	must(unix.Lsetxattr(filepath.Join(dir, "etc"), overlayPrefix+"origin", []byte("handle"), 0))
	tree := &Tree{Dir: dir, Upper: true}
	data := pack(t, tree)
	if len(tree.gone) != 1 || tree.gone[0] != "/etc/gone" {
		t.Error(tree.gone)
	}
	names := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names[h.Name] = true
	}
	if !names["etc/.wh.gone"] || !names["etc/new/.wh..wh..opq"] || names["etc/gone"] {
		t.Error(names)
	}
	copied, err := plant(t, data, true)
	must(err)
	must(unix.Lremovexattr(filepath.Join(dir, "etc"), overlayPrefix+"origin"))
	if want, got := listing(t, dir), listing(t, copied); got != want {
		t.Errorf("copy:\n%s\noriginal:\n%s", got, want)
	}
	must(unix.Lsetxattr(filepath.Join(dir, "etc"), overlayPrefix+"redirect", []byte("/usr"), 0))
	if err := tree.measure(context.Background()); err == nil {
		t.Error("a renamed directory is taken for a new one")
	}
}

func TestHostileTreesAreRefused(t *testing.T) {
	outside := t.TempDir()
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	folder := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeDir} }
	for name, headers := range map[string][]*tar.Header{
		"up":                 {{Name: "../x"}},
		"absolute":           {{Name: outside + "/x"}},
		"inner up":           {folder("a"), {Name: "a/../../x"}},
		"through a link":     {link("a", outside), {Name: "a/x"}},
		"through a link up":  {link("a", "../.."), {Name: "a/x"}},
		"over a link":        {link("a", outside+"/x"), {Name: "a"}},
		"folder over a link": {link("a", outside), folder("a"), {Name: "a/x"}},
		"twice":              {{Name: "a"}, {Name: "a"}},
		"hard link out":      {{Name: "a", Typeflag: tar.TypeLink, Linkname: "../../../../../../etc/passwd"}},
		"hard link by link":  {link("a", "/etc"), {Name: "b", Typeflag: tar.TypeLink, Linkname: "a/passwd"}},
		"no parent":          {{Name: "a/b"}},
		"root is a file":     {{Name: "."}},
		"root is a link":     {link(".", outside)},
		"empty whiteout":     {{Name: ".wh."}},
		"whiteout of up":     {{Name: ".wh..."}},
		"overlay attribute":  {{Name: "a", PAXRecords: map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := plant(t, hostile(t, headers...), true)
			if err == nil {
				t.Errorf("it was taken: %s", listing(t, dir))
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 0 {
				t.Fatal(entries)
			}
			if entries, _ := os.ReadDir(filepath.Dir(dir)); len(entries) != 1 {
				t.Fatal(entries)
			}
		})
	}
}

// A tar can say in a few bytes that a file has as many zeros as it likes. archive/tar
// does not write that.
func TestHolesInTreesAreRefused(t *testing.T) {
	for version, records := range map[string]map[string]string{
		"0.1": {"GNX.sparse.major": "0", "GNX.sparse.minor": "1", "GNX.sparse.size": "67108864", "GNX.sparse.numblocks": "0"},
		"0.0": {"GNX.sparse.size": "67108864", "GNX.sparse.numblocks": "1", "GNX.sparse.map": "0,0"},
	} {
		data := hostile(t, &tar.Header{Name: "a", PAXRecords: records})
		data = bytes.ReplaceAll(data, []byte("GNX."), []byte("GNU."))
		if _, err := plant(t, data, false); !errors.Is(err, ErrUnsafe) {
			t.Errorf("%s: %v", version, err)
		}
	}
}

// Who unpacks a file that has no end can give up.
func TestLongFileCanBeGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	f, err := os.Create(filepath.Join(t.TempDir(), "zeros"))
	ok(t, err)
	defer f.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	err = within(t, func() error { return copySparsely(ctx, f, zeros{}, 1<<62, make([]byte, 1<<20)) })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A member that is a tree is unpacked and verified in one go.
func TestTreeInArchive(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "changed"), bytes.Repeat([]byte("x"), 5000), 0o640))
	ok(t, os.Chtimes(filepath.Join(dir, "changed"), time.Time{}, time.Unix(1, 2)))
	var b into
	write(t, &b, Options{Level: 1}, dir)
	r, err := read(bytes.NewReader(b.Bytes()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	to := t.TempDir()
	if _, err := r.Unpack(context.Background(), Unpack{Images: t.TempDir(), Trees: map[string]string{Diff: to}}); err != nil {
		t.Fatal(err)
	}
	if want, got := listing(t, dir), listing(t, to); got != want {
		t.Errorf("copy:\n%s\noriginal:\n%s", got, want)
	}
}
