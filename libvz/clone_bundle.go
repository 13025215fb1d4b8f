package libvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// ownerName is the file in the bundle of a clone that holds the clone's
// generation. A journal names both: nothing is removed from a directory that has
// another one or none, and the file goes last.
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
	if err := os.Mkdir(bundle, 0o700); errors.Is(err, fs.ErrExist) {
		return withHint("name another with --bundle, or remove it", "bundle %s of the clone: %w", bundle, fs.ErrExist)
	} else if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := store.WriteState(filepath.Join(bundle, ownerName), []byte(generation), 0o600); err != nil {
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

// removeMade removes a bundle that was made for a clone of that generation, and
// an empty directory that was to be one. It is idempotent.
func removeMade(bundle, generation string) error {
	owner, err := bundleOwner(bundle)
	if err != nil {
		return err
	}
	if owner == "" {
		err := os.Remove(bundle)
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		return err
	}
	if owner != generation {
		return nil // somebody else's
	}
	entries, err := os.ReadDir(bundle)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == ownerName {
			continue
		}
		if err := store.RemoveTree(bundle, e.Name()); err != nil {
			return err
		}
	}
	return store.RemoveTree(filepath.Dir(bundle), filepath.Base(bundle))
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
