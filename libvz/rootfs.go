package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Annotations of config.json that say what is to be mounted at root.path.
// Without them the guest's root is the directory itself.
const (
	// annotationOverlay names one or more directories, separated by ':',
	// the uppermost first, that are shared and never written to. What the
	// guest changes is in "upper" below root.path.
	annotationOverlay = "org.vzrun.rootfs.overlay"
	// annotationOverlayFlags lists what the overlay of a clone is mounted with,
	// in the words of mount(8): what the root of its origin was. Without it,
	// that is nodev.
	annotationOverlayFlags = "org.vzrun.rootfs.overlay.flags"
	// annotationImage names a file or a block device with a file system.
	annotationImage = "org.vzrun.rootfs.image"
)

// guestRoot says what the guest's root consists of, and where it stands.
type guestRoot struct {
	place  string   // root.path, absolute: where it is mounted
	lowers []string // of an overlay, absolute, the uppermost first
	image  string   // of an image: file or block device, absolute
	flags  uintptr  // that an overlay is mounted with
	// uid and gid are the host's, of the guest's root.
	uid, gid int
}

// rootOf decides, from a configuration whose root.path is absolute already.
// That the paths exist is checked as well.
func rootOf(bundle string, spec *specs.Spec) (guestRoot, error) {
	g := guestRoot{place: spec.Root.Path}
	if spec.Linux != nil {
		g.uid, g.gid = hostID(spec.Linux.UIDMappings), hostID(spec.Linux.GIDMappings)
	}
	overlay, image := spec.Annotations[annotationOverlay], spec.Annotations[annotationImage]
	if overlay != "" && image != "" {
		return g, withHint("take one of them away", "annotations %s and %s exclude each other", annotationOverlay, annotationImage)
	}
	if image != "" {
		var err error
		g.image, err = resolveImage(bundle, image)
		return g, err
	}
	if overlay != "" {
		for _, path := range strings.Split(overlay, ":") {
			lower, err := resolveTemplate(bundle, path)
			if err != nil {
				return g, err
			}
			g.lowers = append(g.lowers, lower)
		}
		var err error
		if g.flags, err = overlayFlags(spec.Annotations); err != nil {
			return g, err
		}
		return g, g.checkLayers()
	}
	return g, nil
}

// mounted tells whether the root is something else than the directory at its
// place.
func (g *guestRoot) mounted() bool { return len(g.lowers) > 0 || g.image != "" }

// hidden tells whether nobody but the host's root can walk to what the guest
// writes, whatever leads to its place: into an image, or into an overlay's layers
// below a place that is closed.
func (g *guestRoot) hidden() bool {
	if g.image != "" {
		return true
	}
	st, err := os.Stat(g.place)
	return len(g.lowers) > 0 && err == nil && st.Mode()&0o001 == 0
}

// rootKind names what sameGuest compares: a restored tree refers to its root by
// handles and inode numbers that mean nothing to another kind.
func rootKind(spec *specs.Spec) string {
	switch {
	case spec.Annotations[annotationOverlay] != "":
		return "overlay"
	case spec.Annotations[annotationImage] != "":
		return "image"
	}
	return "directory"
}

// mount makes the root stand at its place, for the calling thread's mount
// namespace (see inPrivateMounts): there it ends by itself, however vzrun does.
// With a user namespace the owners on disk are seen through its mapping.
func (g *guestRoot) mount(ctx context.Context, userns *os.File) error {
	switch {
	case len(g.lowers) > 0:
		return g.mountOverlay(ctx, userns)
	case g.image != "":
		if err := g.mountImage(ctx, false); err != nil {
			return err
		}
	}
	return g.mapImage(userns)
}

// mapImage covers an image or a directory at its place with a view of it in
// which owners are mapped.
func (g *guestRoot) mapImage(userns *os.File) error {
	if userns == nil {
		return nil
	}
	return coverRootfs(g.place, userns)
}

// mapOwners turns what mount made without a user namespace into what it makes
// with one.
func (g *guestRoot) mapOwners(ctx context.Context, userns *os.File) error {
	if userns == nil || len(g.lowers) == 0 {
		return g.mapImage(userns)
	}
	// An overlay has no id-mapped mounts, its layers have.
	if err := unix.Unmount(g.place, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", g.place, err)
	}
	return g.mountOverlay(ctx, userns)
}

// look calls fn with a directory that shows the root's files, for reading. The
// guest must not be running.
func (g *guestRoot) look(ctx context.Context, fn func(dir string) error) error {
	switch {
	case g.image != "":
		return inPrivateMounts(func() error {
			if err := g.mountImage(ctx, true); err != nil {
				return err
			}
			return fn(g.place)
		})
	case len(g.lowers) > 0:
		return inPrivateMounts(func() error {
			dir, err := g.showOverlay()
			if err != nil {
				return err
			}
			return fn(dir)
		})
	}
	return fn(g.place)
}

// The kernel takes the mounts of a container down some time after its last
// process has ended, and tells nobody when: it writes back what a file system
// holds first. Who has ended a container waits for that; who wants its root
// only as long as it cannot be told from another user's.
const (
	rootPatience = 2 * time.Second
	endPatience  = 15 * time.Second
	rootPause    = 10 * time.Millisecond
)

// patiently repeats try as long as it says that what it wants is in use.
func patiently(ctx context.Context, most time.Duration, inUse error, try func() error) error {
	deadline := time.Now().Add(most)
	for {
		err := try()
		if !errors.Is(err, inUse) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rootPause):
		}
	}
}

// awaitRoot waits until the image of a container that has ended is free, so
// that nothing of it is left when its end is reported. An overlay tells nobody
// when it is gone, so that the next mount has to wait.
func (h *Host) awaitRoot(ctx context.Context, id string, config *configs.Config) {
	bundle, annotations := utils.Annotations(config.Labels)
	if annotations[annotationImage] == "" {
		return
	}
	image, err := resolveImage(bundle, annotations[annotationImage])
	if err != nil {
		return // removed while it ran: nobody waits for it
	}
	if err := awaitImage(ctx, image); err != nil {
		h.warn(id, "image %s is still in use: %v", image, err)
	}
}

// seenRoot is the directory below which the root of a running container is
// seen from the host: its place, unless something was mounted there.
func seenRoot(config *configs.Config, init int) string {
	_, annotations := utils.Annotations(config.Labels)
	if annotations[annotationImage] == "" && annotations[annotationOverlay] == "" {
		return config.Rootfs
	}
	return fmt.Sprintf("/proc/%d/root", init)
}

// resolveTemplate returns a directory that an overlay is to be made from.
func resolveTemplate(bundle, path string) (string, error) {
	if path == "" {
		return "", withHint("write it as DIR or DIR:DIR", "annotation %s: an empty path", annotationOverlay)
	}
	dir, err := resolveInBundle(bundle, path, "template")
	if err != nil {
		return "", err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("template: %w", err)
	}
	if !st.IsDir() {
		return "", withHint("a file system in a file is named by "+annotationImage, "template %s is not a directory", dir)
	}
	return dir, nil
}

// resolveImage returns a file or a block device.
func resolveImage(bundle, path string) (string, error) {
	image, err := resolveInBundle(bundle, path, "image")
	if err != nil {
		return "", err
	}
	st, err := os.Stat(image)
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	if block := st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice; !block && !st.Mode().IsRegular() {
		return "", withHint("name the file or block device that holds the file system", "image %s is neither a file nor a block device", image)
	}
	return image, nil
}

// within tells whether path is dir or below it; both are clean and absolute.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(filepath.Clean(dir), "/")+"/")
}
