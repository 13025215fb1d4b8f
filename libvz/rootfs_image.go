package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/loop"
)

// mountImage mounts the file system of an image at the root's place, or only
// shows it, to be read: then nothing is written, not even what a crash has left
// in its journal.
func (g *guestRoot) mountImage(ctx context.Context, show bool) error {
	image, err := openImage(g.image, show)
	if err != nil {
		return err
	}
	defer image.Close()
	err = patiently(ctx, rootPatience, loop.ErrInUse, func() error { return loop.Lock(image) })
	if errors.Is(err, loop.ErrInUse) {
		return withHint("stop the container that has it, or unmount it; each guest needs an image of its own", "image %s: %w", g.image, err)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", g.image, err)
	}
	kind, err := loop.FileSystem(image)
	if errors.Is(err, loop.ErrNoFileSystem) {
		return withHint("make one, mkfs.ext4 -d DIRECTORY "+g.image, "image %s: %w", g.image, err)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", g.image, err)
	}
	device := image
	if st, err := image.Stat(); err != nil {
		return err
	} else if st.Mode().IsRegular() {
		if device, err = loop.Attach(image, show); err != nil {
			return fmt.Errorf("image %s: %w", g.image, err)
		}
		defer device.Close()
	}
	flags, data := imageOptions(kind, show)
	if err := unix.Mount(device.Name(), g.place, kind, flags, data); err != nil {
		return explainMount(err, kind, g.image)
	}
	return nil
}

// openImage opens an image for the guest to write to. One that is protected
// against writing is somebody's master copy, whatever root may do.
func openImage(path string, show bool) (*os.File, error) {
	mode := os.O_RDWR
	if show {
		mode = os.O_RDONLY
	}
	const hint = "copy it for the guest, or make it writable"
	// It may have become a FIFO since it was resolved.
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ETXTBSY) {
		return nil, withHint(hint, "image is read-only: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !show && st.Mode().IsRegular() && st.Mode().Perm()&0o222 == 0 {
		err = withHint(hint, "image %s is read-only (mode %#o)", path, st.Mode().Perm())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// imageOptions are what a file system is mounted with whose contents nobody
// vouches for: what an image says about errors may be "panic" (ext4(5)), and
// device nodes in it were made by whoever made the image.
func imageOptions(kind string, show bool) (flags uintptr, data string) {
	flags = unix.MS_NODEV
	if show {
		flags |= unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC
	}
	switch kind {
	case "ext4":
		data = "errors=remount-ro"
		if show {
			data += ",noload"
		}
	case "xfs":
		// A copy of an image has the UUID of its origin.
		data = "nouuid"
		if show {
			data += ",norecovery"
		}
	case "btrfs":
		if show {
			data = "rescue=nologreplay"
		}
	}
	return flags, data
}

// explainMount says what the kernel's error means for an image.
func explainMount(err error, kind, image string) error {
	check := map[string]string{"ext4": "e2fsck -f ", "xfs": "xfs_repair -n ", "btrfs": "btrfs check "}[kind] + image
	switch {
	case errors.Is(err, unix.EEXIST):
		return withHint("give the copy an id of its own: btrfstune -u "+image, "image %s: a file system with the same id is mounted: %w", image, err)
	case errors.Is(err, unix.ENODEV):
		return withHint("load the kernel's module, or use another file system", "image %s: %w: this kernel has no %s", image, ErrUnsupported, kind)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES):
		return withHint("copy it for the guest, or make it writable", "image %s is read-only: %w", image, err)
	}
	return withHint("it may be damaged: "+check, "mount the %s of image %s: %w", kind, image, err)
}

// awaitImage returns when nobody uses the image any more.
func awaitImage(ctx context.Context, path string) error {
	f, err := openImage(path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	return patiently(ctx, endPatience, loop.ErrInUse, func() error { return loop.Lock(f) })
}
