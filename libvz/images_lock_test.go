package libvz

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

func TestImageLocks(t *testing.T) {
	for _, c := range []struct {
		first, second int
		busy          bool
	}{
		{unix.LOCK_EX, unix.LOCK_EX, true},
		{unix.LOCK_EX, unix.LOCK_SH, true},
		{unix.LOCK_SH, unix.LOCK_EX, true},
		{unix.LOCK_SH, unix.LOCK_SH, false},
	} {
		dir := t.TempDir()
		var first, second imageLocks
		if err := first.take(c.first, dir); err != nil {
			t.Fatal(err)
		}
		if err := second.take(c.second, dir); errors.Is(err, ErrBusy) != c.busy || (err != nil) != c.busy {
			t.Errorf("%+v: %v", c, err)
		}
		second.Close()
		first.Close()
		first.Close()
		if err := second.take(unix.LOCK_EX, dir); err != nil {
			t.Errorf("%+v: after it was closed: %v", c, err)
		}
		second.Close()
	}
}

// A child that outlives vzrun must not keep the directory.
func TestImageLocksAreNotInherited(t *testing.T) {
	dir := t.TempDir()
	var locks imageLocks
	if err := locks.take(unix.LOCK_EX, dir); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()         //nolint:errcheck // it is killed
	defer child.Process.Kill() //nolint:errcheck // it runs
	locks.Close()
	if err := locks.take(unix.LOCK_EX, dir); err != nil {
		t.Errorf("the child has the lock: %v", err)
	}
	locks.Close()
}

// sealed is a checkpoint of a container, or a pre-dump, in dir.
func sealed(t *testing.T, dir string, m *manifest) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "inventory.img"), []byte(m.ID), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Spec = &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{Env: []string{"container_uuid=" + m.ID}}}
	if err := m.seal(dir, false); err != nil {
		t.Fatal(err)
	}
}

func planFor(id string) *dumpPlan {
	m := manifest{ID: id, Spec: &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{Env: []string{"container_uuid=" + id}}}}
	return &dumpPlan{manifest: m, export: noExporter{}}
}

// Two checkpoints that begin at the same time both find an empty directory.
func TestOneCheckpointInADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "checkpoint")
	a, b := planFor("a"), planFor("b")
	if replaces, err := a.openImages(dir, CheckpointOptions{}); replaces || err != nil {
		t.Fatal(replaces, err)
	}
	if _, err := b.openImages(dir, CheckpointOptions{}); !errors.Is(err, ErrBusy) {
		t.Fatalf("both write into one directory: %v", err)
	}
	a.close()
	if _, err := b.openImages(dir, CheckpointOptions{}); err != nil {
		t.Fatalf("after the first has come to nothing: %v", err)
	}
	b.close()
}

func TestReadersKeepWritersOff(t *testing.T) {
	dir := t.TempDir()
	pre, whole := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	sealed(t, pre, &manifest{ID: "a", PreDump: true})
	sealed(t, whole, &manifest{ID: "a", Parent: "../1"})
	var readers [2]imageLocks
	for i := range readers {
		if _, _, chain, err := readers[i].openCheckpoint(whole, false); err != nil || len(chain) != 2 {
			t.Fatalf("reader %d: %v, %v", i, chain, err)
		}
	}
	var locks imageLocks
	if _, _, _, err := locks.openCheckpoint(whole, true); !errors.Is(err, ErrBusy) {
		t.Errorf("images are used up while they are read: %v", err)
	}
	d := planFor("a")
	if _, err := d.openImages(whole, CheckpointOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("images are replaced while they are read: %v", err)
	}
	d.manifest.Parent = "../1"
	if _, err := d.openImages(filepath.Join(dir, "3"), CheckpointOptions{AutoDedup: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("a parent is made smaller while it is read: %v", err)
	}
	d.close()
	if _, err := d.openImages(filepath.Join(dir, "4"), CheckpointOptions{}); err != nil {
		t.Errorf("a parent is read, and may be: %v", err)
	}
	d.close()
	for i := range readers {
		readers[i].Close()
	}
	d = planFor("a")
	if replaces, err := d.openImages(whole, CheckpointOptions{}); !replaces || err != nil {
		t.Errorf("after the readers: %v, %v", replaces, err)
	}
	if _, _, _, err := locks.openCheckpoint(whole, false); !errors.Is(err, ErrBusy) {
		t.Errorf("read while they are replaced: %v", err)
	}
	d.close()
	if _, _, _, err := locks.openCheckpoint(filepath.Join(dir, "none"), false); !errors.Is(err, fs.ErrNotExist) || len(locks) != 0 {
		t.Errorf("no directory: %v", err)
	}
}

func TestOthersImages(t *testing.T) {
	dir := t.TempDir()
	entry := func(op store.Operation) *store.Entry {
		return &store.Entry{Record: store.Record{ID: "a", UUID: "a", Operation: &op}}
	}
	check := func(what string, want bool, op store.Operation) {
		t.Helper()
		locks, is := othersImages(entry(op))
		locks.Close()
		if is != want {
			t.Errorf("%s: others' is %v", what, is)
		}
	}
	killed := store.Operation{Name: "checkpoint", Images: dir}
	check("nothing there", false, killed)
	check("no directory", false, store.Operation{Images: filepath.Join(dir, "none")})
	check("an archive", false, store.Operation{})
	var locks imageLocks
	if err := locks.take(unix.LOCK_EX, dir); err != nil {
		t.Fatal(err)
	}
	check("another writes", true, killed)
	locks.Close()
	sealed(t, dir, &manifest{ID: "b"})
	check("another has written", true, killed)
	check("committed", false, store.Operation{Images: dir, Step: stepCommitted})
	sealed(t, dir, &manifest{ID: "a"})
	check("its own", false, killed)
	if err := locks.take(unix.LOCK_SH, dir); err != nil {
		t.Fatal(err)
	}
	check("its own, being read", false, killed)
	locks.Close()
}

// What a killed checkpoint has set aside comes back: nobody else may write there.
func TestNewImageDirRefusesWhatIsSetAside(t *testing.T) {
	dir := t.TempDir()
	sealed(t, dir, &manifest{ID: "a"})
	if err := setAside(dir); err != nil {
		t.Fatal(err)
	}
	if err := newImageDir(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
}
