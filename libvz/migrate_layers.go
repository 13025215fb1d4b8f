//go:build !lean

package libvz

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// Of a root that is an overlay the upper directory is sent, and those templates that
// the other side has not.

// streamTemplate carries a template as streamRootfs does a root; before rsync's
// arguments comes its number.
const streamTemplate = "template"

// layer is a template below an overlay, as the source has it.
type layer struct {
	Path string `json:"path"` // absolute
	// Sum is what listingSum says, "" of one in the bundle, which goes with it. Disk
	// are the bytes that its files take.
	Sum  string `json:"sum"`
	Disk int64  `json:"disk"`
}

// movedTree is a directory that is sent.
type movedTree struct {
	dir   string
	upper bool     // of an overlay
	kind  string   // of the stream
	args  []string // before rsync's
}

// rootToMove decides what of a container's root is to be sent.
func rootToMove(g *guestRoot) (movedTree, error) {
	switch {
	case g.image != "":
		return movedTree{}, withHint("keep it on storage that both hosts have, and say --shared-storage",
			"%w: a root file system in an image is not sent, as it is written to while it is read", ErrUnsupported)
	case len(g.lowers) > 0:
		return movedTree{dir: filepath.Join(g.place, upperName), upper: true, kind: streamRootfs}, nil
	}
	return movedTree{dir: g.place, kind: streamRootfs}, nil
}

// layersOf describes the templates of a root.
func layersOf(g *guestRoot, bundle string) ([]layer, error) {
	var out []layer
	for _, dir := range g.lowers {
		sum := ""
		if !within(dir, realPath(bundle)) {
			var err error
			if sum, err = listingSum(dir); err != nil {
				return nil, fmt.Errorf("template: %w", err)
			}
		}
		disk, err := diskUse(dir)
		if err != nil {
			return nil, fmt.Errorf("template: %w", err)
		}
		out = append(out, layer{Path: dir, Sum: sum, Disk: disk})
	}
	return out, nil
}

// listingSum is a checksum of names, types, modes, owners, sizes, links and times in
// dir: of two templates of which one is a copy of the other it is the same, unless
// one was changed since. Contents are not read, which would take minutes.
func listingSum(dir string) (string, error) {
	sum := sha256.New()
	// In lexical order, which is the same everywhere.
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat %s: %w", path, errors.ErrUnsupported)
		}
		target := ""
		if e.Type() == fs.ModeSymlink {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		size, device := sys.Size, sys.Rdev
		if e.IsDir() {
			size = 0 // the file system's own affair
		}
		fmt.Fprintf(sum, "%q %o %d %d %d %d %d.%09d %q\n", strings.TrimPrefix(path, dir), sys.Mode, sys.Uid, sys.Gid,
			size, device, sys.Mtim.Sec, sys.Mtim.Nsec, target)
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

// sendTemplates sends what the other side has said that it lacks, while the guest
// runs: nobody writes to templates.
func (m *migration) sendTemplates(ctx context.Context) error {
	for _, n := range m.missing {
		t := movedTree{dir: m.layers[n].Path, kind: streamTemplate, args: []string{strconv.Itoa(n)}}
		if err := m.rsync(ctx, t, append(rsyncOptions(), "./", "vzrun:./"), nil); err != nil {
			return fmt.Errorf("template %s: %w", t.dir, err)
		}
	}
	return nil
}

// checkMissing refuses an answer that names templates which are none.
func checkMissing(missing []int, layers int) error {
	for i, n := range missing {
		if n < 0 || n >= layers || i > 0 && n <= missing[i-1] {
			return fmt.Errorf("%w: template %d of %d", wire.ErrProtocol, n, layers)
		}
	}
	return nil
}

// placeLayers decides, at the destination, which templates are here and which must
// come, and returns what annotationOverlay is to be.
func (r *reception) placeLayers(spec *specs.Spec) (string, error) {
	was := spec.Annotations[annotationOverlay]
	if r.offer.Shared || was == "" && len(r.offer.Layers) == 0 {
		return was, nil
	}
	if spec.Annotations[annotationImage] != "" || len(strings.Split(was, ":")) != len(r.offer.Layers) {
		return "", fmt.Errorf("%w: %d templates for %.200q", wire.ErrProtocol, len(r.offer.Layers), was)
	}
	var places []string
	for n, l := range r.offer.Layers {
		if !filepath.IsAbs(l.Path) || strings.Contains(l.Path, ":") || l.Disk < 0 {
			return "", fmt.Errorf("%w: template %.200q", wire.ErrProtocol, l.Path)
		}
		if sum, err := listingSum(l.Path); err == nil && sum == l.Sum {
			places = append(places, l.Path)
			continue
		}
		r.missing = append(r.missing, n)
		places = append(places, templateName(n))
	}
	return strings.Join(places, ":"), nil
}

// inspectLayers tells which templates are here.
func (r *reception) inspectLayers(add adder) {
	for n, l := range r.offer.Layers {
		there := "the same"
		if slices.Contains(r.missing, n) {
			there = "is not here, and is sent"
		}
		add("template "+strconv.Itoa(n), l.Path, there, true, "")
	}
}

// rootPlace is where a root file system that comes is put: below the bundle's
// rootfs, if it is an overlay's upper directory.
func (r *reception) rootPlace() string {
	place := filepath.Join(r.bundle, "rootfs")
	if len(r.offer.Layers) > 0 {
		return filepath.Join(place, upperName)
	}
	return place
}

// templatePlace is where a template that comes is put, which must be one that is
// missing.
func (r *reception) templatePlace(args []string) (string, error) {
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		if err == nil && slices.Contains(r.missing, n) {
			return filepath.Join(r.bundle, templateName(n)), nil
		}
	}
	return "", fmt.Errorf("%w: a template that was not asked for", wire.ErrProtocol)
}
