package libvz

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestRootOf(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bundle := base + "/bundle"
	for _, dir := range []string{bundle + "/rootfs/upper", base + "/one", base + "/two"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(bundle+"/disk.img", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(bundle+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"out": "../one", "out.img": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(bundle, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, overlay, image string
		lowers               []string
		wantImage, err       string
	}{
		{name: "a directory"},
		{name: "one template", overlay: base + "/one", lowers: []string{base + "/one"}},
		{name: "two", overlay: base + "/two:" + base + "/one", lowers: []string{base + "/two", base + "/one"}},
		{name: "relative", image: "disk.img", wantImage: bundle + "/disk.img"},
		{name: "absolute", image: bundle + "/disk.img", wantImage: bundle + "/disk.img"},
		{name: "both", overlay: base + "/one", image: "disk.img", err: "exclude each other"},
		{name: "no template", overlay: base + "/none", err: "template " + base + "/none: file does not exist"},
		{name: "an empty one", overlay: base + "/one:", err: "empty path"},
		{name: "a file for a template", overlay: "disk.img", err: "is not a directory"},
		{name: "a template that leads out", overlay: "out", err: "leads out of the bundle"},
		{name: "an image that leads out", image: "out.img", err: "leads out of the bundle"},
		{name: "no image", image: "none.img", err: "image " + bundle + "/none.img: file does not exist"},
		{name: "a directory for an image", image: "rootfs", err: "neither a file nor a block device"},
		{name: "a FIFO for an image", image: "fifo", err: "neither a file nor a block device"},
		{name: "the upper one for a template", overlay: bundle + "/rootfs/upper", err: "overlap"},
		{name: "the bundle for a template", overlay: bundle, err: "overlap"},
		{name: "all for a template", overlay: "/", err: "overlap"},
	} {
		spec := &specs.Spec{Root: &specs.Root{Path: bundle + "/rootfs"}, Annotations: map[string]string{}}
		if c.overlay != "" {
			spec.Annotations[annotationOverlay] = c.overlay
		}
		if c.image != "" {
			spec.Annotations[annotationImage] = c.image
		}
		got, err := rootOf(bundle, spec)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || strings.Join(got.lowers, ":") != strings.Join(c.lowers, ":") || got.image != c.wantImage || got.place != bundle+"/rootfs" {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if got.mounted() != (c.overlay+c.image != "") {
			t.Errorf("%s: mounted is %v", c.name, got.mounted())
		}
	}
}

func TestImageOptionsTrustNoImage(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, show := range []bool{false, true} {
			flags, data := imageOptions(kind, show)
			if flags&unix.MS_NODEV == 0 {
				t.Errorf("%s: device nodes of an image would work", kind)
			}
			if show != (flags&unix.MS_RDONLY != 0) {
				t.Errorf("%s, show %v: flags %#x", kind, show, flags)
			}
			if kind == "ext4" && !strings.Contains(data, "errors=remount-ro") {
				t.Error("an ext4 could ask for a panic of the host")
			}
			if recovers := !strings.Contains(data, "noload") && !strings.Contains(data, "norecovery") && !strings.Contains(data, "nologreplay"); recovers == show {
				t.Errorf("%s, show %v: %q", kind, show, data)
			}
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/a", "/a", true},
		{"/a/b", "/a", true},
		{"/ab", "/a", false},
		{"/a", "/a/b", false},
		{"/a", "/", true},
		{"/", "/", true},
	} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("within(%s, %s) = %v", c.path, c.dir, got)
		}
	}
}
