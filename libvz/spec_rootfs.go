package libvz

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// rootAnnotations returns what config.json says of a root that is mounted.
// Templates lie outside of bundles: a relative path is the caller's, and made
// absolute.
func rootAnnotations(o SpecOptions) (map[string]string, error) {
	switch {
	case o.Template != "" && o.Image != "":
		return nil, errors.New("a template and an image exclude each other")
	case o.Image != "":
		return map[string]string{annotationImage: o.Image}, nil
	case o.Template != "":
		dirs := strings.Split(o.Template, ":")
		for i, dir := range dirs {
			if dir == "" {
				return nil, withHint("write it as DIR or DIR:DIR", "template %q: an empty path", o.Template)
			}
			abs, err := filepath.Abs(dir)
			if err != nil {
				return nil, err
			}
			dirs[i] = abs
		}
		return map[string]string{annotationOverlay: strings.Join(dirs, ":")}, nil
	}
	return map[string]string{}, nil
}

// foundSystem is what a guest's root tells of itself: its init, by which path it
// starts, and the machine-id of a guest that has run before, "" = none.
type foundSystem struct {
	init            guest.Init
	path, machineID string
}

// lookInside looks at what will be the guest's root at dir. It makes dir where
// something is to be mounted there.
func lookInside(dir string, annotations map[string]string) (found foundSystem, retErr error) {
	if len(annotations) > 0 {
		// Closed to others: what the guest writes is below, with its
		// set-user-ID bits and un-shifted owners. The guest's own root comes
		// from above, over the mount.
		err := os.Mkdir(dir, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return found, err
		}
		if err == nil {
			defer func() {
				if retErr != nil {
					os.Remove(dir) // nothing was written to it
				}
			}()
		}
	}
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return found, withHint("name the guest's root directory with --rootfs", "rootfs: %w", err)
	}
	bundle, err := os.Getwd()
	if err != nil {
		return found, err
	}
	place, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return found, err
	}
	root, err := rootOf(bundle, &specs.Spec{Root: &specs.Root{Path: place}, Annotations: annotations})
	if err != nil {
		return found, err
	}
	err = root.look(context.Background(), func(seen string) error {
		if found.init, found.path, err = guest.Detect(seen); err != nil {
			return noGuest(err)
		}
		found.machineID = guest.MachineID(seen)
		return nil
	})
	return found, err
}
