package libvz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// ownerName is the file in a bundle that vzrun makes, for a clone or of an archive,
// that holds a random number, the clone's generation. A journal names both: no
// directory is removed that has another one or none.
const ownerName = ".vzrun-clone"

// clones is where the bundles lie that Clone chooses the place of.
func (h *Host) clones() string { return filepath.Join(filepath.Dir(h.opts.IDs), "clones") }

// makeCloneBundle writes the clone's configuration, with ids of its own where
// the owners in its root are mapped, and the place for its root.
func (h *Host) makeCloneBundle(id, bundle, generation string, spec *specs.Spec) error {
	if err := os.MkdirAll(filepath.Dir(bundle), 0o700); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	// Closed: what the guest writes has un-shifted owners.
	unnamed := unnamedBundle(bundle, generation)
	if err := os.Mkdir(unnamed, 0o700); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := store.WriteState(filepath.Join(unnamed, ownerName), []byte(generation), 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, unnamed, unix.AT_FDCWD, bundle, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		return withHint("name another with --bundle, or remove it", "bundle %s of the clone: %w", bundle, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	rootfs := filepath.Join(bundle, rootfsName)
	if err := os.Mkdir(rootfs, 0o700); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	mapped, err := wantsIDMap(spec)
	if err != nil {
		return err
	}
	if mapped && spec.Annotations[annotationIDs] == "" {
		if err := h.ownIDs(id, bundle, rootfs, spec); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return err
	}
	return store.WriteState(filepath.Join(bundle, "config.json"), append(data, '\n'), 0o600)
}

// unnamedBundle is the name of a bundle until its owner is written in it.
func unnamedBundle(bundle, generation string) string {
	return filepath.Join(filepath.Dir(bundle), "."+filepath.Base(bundle)+".vzrun-"+generation)
}

// ownIDs gives a configuration a range of ids that nobody else has. The guest's
// side of its mapping stays as it is: the images speak of that.
func (h *Host) ownIDs(id, bundle, rootfs string, spec *specs.Spec) error {
	spans := mappedSpans(spec.Linux.UIDMappings, spec.Linux.GIDMappings)
	if len(spans) != 1 || spans[0].size > idRange {
		h.warn(id, "the clone has the ids of its origin: only one range of at most %d ids is replaced", idRange)
		return nil
	}
	got, err := h.claimRange(realPath(bundle), rootfs, idSpan{})
	if err != nil {
		return err
	}
	for _, maps := range [][]specs.LinuxIDMapping{spec.Linux.UIDMappings, spec.Linux.GIDMappings} {
		for i := range maps {
			maps[i].HostID = uint32(got.first)
		}
	}
	return nil
}

// removeMade removes a bundle that was made for that owner, and what was to be one.
// It is idempotent: one that is removed has no name while that goes on.
func removeMade(bundle, generation string) error {
	parent, unnamed := filepath.Dir(bundle), unnamedBundle(bundle, generation)
	if err := store.RemoveTree(parent, filepath.Base(unnamed)); err != nil {
		return err
	}
	owner, err := bundleOwner(bundle)
	if err != nil || owner != generation {
		return err // somebody else's, or nobody's
	}
	if err := os.Rename(bundle, unnamed); err != nil {
		return err
	}
	return store.RemoveTree(parent, filepath.Base(unnamed))
}

// keepMade notes that a bundle which Delete does not remove is its user's, if the
// tasks that are restored there run.
func (h *Host) keepMade(op *store.Operation) {
	if op.Made != "" && filepath.Dir(op.Made) != h.clones() {
		op.Kept = time.Now()
	}
}

// undoMade removes the bundle that an operation made. One that was kept is left where
// something has changed in it: it may be that its tasks ran, and have ended since.
func (h *Host) undoMade(ctx context.Context, e *store.Entry) error {
	op := e.Operation
	if op.Made == "" {
		return nil
	}
	if !op.Kept.IsZero() {
		changed, err := writtenSince(ctx, op.Made, op.Kept)
		if err != nil {
			return err
		}
		if changed {
			h.handOver(e)
			return nil
		}
	}
	return removeMade(op.Made, op.MadeFor)
}

// writtenSince tells whether something in the root of a bundle that was made has
// changed after a moment.
func writtenSince(ctx context.Context, bundle string, moment time.Time) (bool, error) {
	root := filepath.Join(bundle, rootfsName)
	if st, err := os.Lstat(filepath.Join(root, upperName)); err == nil && st.IsDir() {
		root = filepath.Join(root, upperName)
	}
	if st, err := os.Lstat(filepath.Join(bundle, imageName)); err == nil && st.ModTime().After(moment) {
		return true, nil
	}
	changed, err := changedSince(ctx, root, moment)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return changed != "", err
}

// handOver leaves a bundle that was made to its user. It is idempotent.
func (h *Host) handOver(e *store.Entry) {
	if e.Operation == nil || e.Operation.Kept.IsZero() {
		return
	}
	path := filepath.Join(e.Operation.Made, ownerName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.warn(e.ID, "%v", err)
	}
}

// bundleOwner returns the generation of the clone that a bundle was made for, ""
// where there is none.
func bundleOwner(bundle string) (string, error) {
	owner, err := readRegular(filepath.Join(bundle, ownerName), 4096)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return "", nil
	}
	return string(owner), err
}

// ownBundle is the bundle that Delete removes with the container, one that Clone
// chose the place of, and its generation; "" for all others.
func (c *Container) ownBundle() (bundle, generation string, err error) {
	bundle = c.bundle()
	if annotationsOf(c.lc)[annotationClone] == "" || filepath.Dir(bundle) != c.host.clones() {
		return "", "", nil
	}
	generation, err = bundleOwner(bundle)
	if generation == "" {
		bundle = ""
	}
	return bundle, generation, err
}
