package libvz

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const testBase = 1 << 20

// realOverlay is a template and a place on disk; the temporary directory may
// be on an overlay, which cannot have another one on it.
func realOverlay(t *testing.T) (*guestRoot, *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "vzrun-unit.")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o711))
	g := &guestRoot{place: dir + "/rootfs", lowers: []string{dir + "/template"}, uid: testBase, gid: testBase}
	must(t, os.Mkdir(g.place, 0o700))
	must(t, os.MkdirAll(g.lowers[0]+"/etc", 0o755))
	must(t, os.WriteFile(g.lowers[0]+"/etc/owned", []byte("template\n"), 0o644))
	must(t, os.Chown(g.lowers[0]+"/etc/owned", 7, 8))
	maps := []specs.LinuxIDMapping{{HostID: testBase, Size: 65536}}
	userns, err := usernsFile(maps, maps, 0)
	must(t, err)
	t.Cleanup(func() { userns.Close() })
	return g, userns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// skipWithout skips where the kernel or the file system cannot do it.
func skipWithout(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrUnsupported) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
		t.Skipf("this machine lacks it: %v", err)
	}
}

func ownerOf(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st.Uid, st.Gid
}

// What is written through an overlay of mapped layers has un-shifted owners.
func TestOverlayMapsOwners(t *testing.T) {
	g, userns := realOverlay(t)
	err := inPrivateMounts(func() error {
		if err := g.mount(context.Background(), userns); err != nil {
			return err
		}
		if uid, gid := ownerOf(t, g.place+"/etc/owned"); uid != testBase+7 || gid != testBase+8 {
			t.Errorf("a file of the template belongs to %d:%d", uid, gid)
		}
		if !hasHandles(g.place) {
			t.Error("files have no handles")
		}
		if err := os.Lchown(g.place+"/etc/owned", testBase+1, testBase+2); err != nil {
			t.Error(err)
		}
		data, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err == nil && !strings.Contains(string(data), "index=on") {
			t.Error("no index")
		}
		// The guest's root makes a file. The thread is ours, and ends.
		if _, err := unix.SetfsgidRetGid(testBase); err != nil {
			return err
		}
		if _, err := unix.SetfsuidRetUid(testBase); err != nil {
			return err
		}
		return os.WriteFile(g.place+"/etc/made", nil, 0o600)
	})
	skipWithout(t, err)
	must(t, err)
	upper := filepath.Join(g.place, upperName)
	if uid, gid := ownerOf(t, upper+"/etc/owned"); uid != 1 || gid != 2 {
		t.Errorf("on disk, changed: %d:%d", uid, gid)
	}
	if uid, gid := ownerOf(t, upper+"/etc/made"); uid != 0 || gid != 0 {
		t.Errorf("on disk, made: %d:%d", uid, gid)
	}
	if uid, _ := ownerOf(t, g.lowers[0]+"/etc/owned"); uid != 7 {
		t.Errorf("the template has changed: %d", uid)
	}
}

// At a restore it is mounted twice, un-mapped and then mapped.
// Killed in the middle, the upper directory has no name that anybody goes by.
func TestMakeUpperGoesOnAfterAKill(t *testing.T) {
	dir := t.TempDir()
	g := &guestRoot{place: dir + "/rootfs", lowers: []string{dir + "/template"}}
	must(t, os.MkdirAll(g.place, 0o755))
	must(t, os.Mkdir(g.lowers[0], 0o755))
	must(t, os.Chmod(g.lowers[0], os.ModeSetgid|0o751))
	must(t, os.Mkdir(filepath.Join(g.place, unfinishedName), 0o700))
	for range 2 { // the second finds it made
		must(t, g.makeUpper())
		st, err := os.Stat(filepath.Join(g.place, upperName))
		must(t, err)
		if st.Mode() != os.ModeDir|os.ModeSetgid|0o751 {
			t.Errorf("mode %v", st.Mode())
		}
		left, err := filepath.Glob(filepath.Join(g.place, ".*"))
		if must(t, err); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}

func TestOverlayIsMappedLater(t *testing.T) {
	g, userns := realOverlay(t)
	err := inPrivateMounts(func() error {
		if err := g.mount(context.Background(), nil); err != nil {
			return err
		}
		if err := os.Mkdir(g.place+"/point", 0o755); err != nil {
			return err
		}
		if err := g.mapOwners(context.Background(), userns); err != nil {
			return err
		}
		if uid, _ := ownerOf(t, g.place+"/point"); uid != testBase {
			t.Errorf("a mount point belongs to %d", uid)
		}
		return nil
	})
	skipWithout(t, err)
	must(t, err)
}

// Only its own template fits an upper directory.
func TestOverlayKnowsItsTemplate(t *testing.T) {
	g, _ := realOverlay(t)
	mount := func() error {
		return inPrivateMounts(func() error { return g.mount(context.Background(), nil) })
	}
	err := mount()
	skipWithout(t, err)
	must(t, err)
	must(t, mount())
	other := g.lowers[0] + ".other"
	must(t, exec.Command("cp", "-a", g.lowers[0], other).Run())
	g.lowers[0] = other
	if err := mount(); !errors.Is(err, unix.ESTALE) {
		t.Errorf("with another template: %v", err)
	}
}

// Without an upper directory of its own one template is shown as it is, and
// two as one; nothing is made for it.
func TestOverlayIsShown(t *testing.T) {
	g, _ := realOverlay(t)
	see := func(want ...string) {
		t.Helper()
		err := g.look(context.Background(), func(dir string) error {
			for _, name := range want {
				if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
			if err := os.WriteFile(dir+"/new", nil, 0o600); dir == g.place && !errors.Is(err, unix.EROFS) {
				t.Errorf("written to what is shown: %v", err)
			}
			return nil
		})
		skipWithout(t, err)
		must(t, err)
	}
	top := g.lowers[0] + ": top,"
	must(t, os.MkdirAll(top+"/opt", 0o755))
	g.lowers = append([]string{top}, g.lowers...)
	see("etc/owned", "opt")
	if _, err := os.Lstat(filepath.Join(g.place, upperName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a look made the upper directory: %v", err)
	}
	must(t, os.MkdirAll(filepath.Join(g.place, upperName, "srv"), 0o755))
	see("etc/owned", "opt", "srv")
}

// realImage is a small ext4 with a file in it.
func realImage(t *testing.T) *guestRoot {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if _, missing := os.Stat("/dev/loop-control"); err != nil || missing != nil {
		t.Skip("needs mkfs.ext4 and loop devices")
	}
	dir := t.TempDir()
	g := &guestRoot{place: dir + "/rootfs", image: dir + "/disk.img"}
	must(t, os.Mkdir(g.place, 0o700))
	must(t, os.Mkdir(dir+"/tree", 0o755))
	must(t, os.WriteFile(dir+"/tree/there", nil, 0o644))
	must(t, os.WriteFile(g.image, nil, 0o600))
	must(t, os.Truncate(g.image, 8<<20))
	must(t, exec.Command(mkfs, "-q", "-d", dir+"/tree", g.image).Run())
	return g
}

func TestImageIsMountedForOne(t *testing.T) {
	g := realImage(t)
	ctx := context.Background()
	err := inPrivateMounts(func() error {
		if err := g.mount(ctx, nil); err != nil {
			return err
		}
		if err := os.WriteFile(g.place+"/made", nil, 0o600); err != nil {
			return err
		}
		err := inPrivateMounts(func() error { return g.mount(ctx, nil) })
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("the second user: %v", err)
		}
		return nil
	})
	skipWithout(t, err)
	must(t, err)
	if _, err := os.Lstat(g.place + "/there"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount is seen on the host: %v", err)
	}
	must(t, awaitImage(ctx, g.image))
	before, err := os.ReadFile(g.image)
	must(t, err)
	must(t, g.look(ctx, func(dir string) error {
		for _, name := range []string{"there", "made"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
		if err := os.WriteFile(dir+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("written to what is shown: %v", err)
		}
		return nil
	}))
	must(t, awaitImage(ctx, g.image))
	after, err := os.ReadFile(g.image)
	must(t, err)
	if string(before) != string(after) {
		t.Error("a look has changed the image")
	}
}

func TestDamagedImageIsRefused(t *testing.T) {
	g := realImage(t)
	// The superblock stays, what it describes does not.
	must(t, os.Truncate(g.image, 4096))
	err := inPrivateMounts(func() error { return g.mount(context.Background(), nil) })
	var h *hinted
	if !errors.As(err, &h) || !strings.Contains(h.hint, "e2fsck -f "+g.image) {
		t.Errorf("got %v", err)
	}
	must(t, awaitImage(context.Background(), g.image))
}
