package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vzrun/vzrun/libvz/internal/loop"
)

// imageName is the image in the bundle of a clone whose origin has one.
const imageName = "rootfs.img"

// clonedImage decides whether the image that a checkpoint names can be copied.
func clonedImage(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", withHint("take another checkpoint", "the checkpoint names its image %q, which is relative", path)
	}
	image, err := resolveImage("/", path)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(image)
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", withHint("make a snapshot of it, and restore under another id from a bundle that names that",
			"%w: a clone of a container whose root is the block device %s", ErrUnsupported, image)
	}
	return image, nil
}

// copyImage gives a clone an image of its own. Whoever runs in the origin's, or
// begins to meanwhile, is in the way; other clones are not.
func (h *Host) copyImage(ctx context.Context, id, from, bundle string) error {
	image, err := openImage(from, true)
	if err != nil {
		return err
	}
	defer image.Close()
	err = patiently(ctx, rootPatience, loop.ErrInUse, func() error { return loop.Share(image) })
	if errors.Is(err, loop.ErrInUse) {
		return withHint("stop it, "+anotherToClone, "%w: image %s of the origin: %w", ErrRefused, from, err)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", from, err)
	}
	to, err := os.OpenFile(filepath.Join(bundle, imageName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("image of the clone: %w", err)
	}
	defer to.Close()
	progress := func(done int64) { h.event(Event{ID: id, Step: "copying the image", Done: done}) }
	if err := loop.Copy(ctx, to, image, progress); err != nil {
		return fmt.Errorf("copy image %s: %w", from, err)
	}
	return to.Close()
}

// refuseChangedImage refuses an image in whose files something has changed since the
// checkpoint. It looks at the clone's copy, which is mounted, and at which nothing
// was done yet.
func (r *revival) refuseChangedImage(ctx context.Context) error {
	if r.clone == nil || r.root.image == "" {
		return nil
	}
	return refuseChanged(ctx, r.root.place, r.manifest)
}
