package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// An earlier checkpoint of the same container gives way to a new one, since
// Podman has one place for a container's images and runc overwrites them. Until
// the new one has committed, the earlier one is in a folder of the directory. That
// this folder is there is what an undo goes by: it appears when all files have a
// second name in it, and is renamed when they have their first one again, or are no
// longer needed. So all of this can be interrupted and repeated.
const (
	replacedFolder = ".replaced"
	scrapFolder    = ".replaced.tmp"
)

// replaces tells whether a checkpoint to dir replaces an earlier one of the same
// container; what else holds images is refused by newImageDir. One that others
// build on is never replaced, nor one by a checkpoint whose memory goes elsewhere.
func (m *manifest) replaces(dir string, o CheckpointOptions) bool {
	if o.PreDump || o.LazyPages || o.PageServer != "" {
		return false
	}
	was, err := loadManifest(dir)
	if err != nil {
		was, err = loadManifest(filepath.Join(dir, replacedFolder)) // power was lost
	}
	return err == nil && was.Spec != nil && !was.PreDump && was.ID == m.ID && containerUUID(was.Spec) == containerUUID(m.Spec)
}

// setAside makes room in dir for a new checkpoint.
func setAside(dir string) error {
	// Where power was lost nobody has undone anything. A manifest says that the
	// images beside it are whole.
	settle := bringBack
	if _, err := os.Lstat(filepath.Join(dir, manifestName)); err == nil {
		settle = dropReplaced
	}
	if err := settle(dir); err != nil {
		return err
	}
	names, err := imageNames(dir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, scrapFolder), 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(dir, scrapFolder, name)); err != nil {
			return withHint("choose another --image-path, or remove what is there", "set the earlier checkpoint aside: %w", err)
		}
	}
	if err := os.Rename(filepath.Join(dir, scrapFolder), filepath.Join(dir, replacedFolder)); err != nil {
		return err
	}
	for _, name := range slices.Backward(names) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// bringBack undoes setAside, wherever it or bringBack was interrupted, and removes
// images that were made since.
func bringBack(dir string) error {
	aside := filepath.Join(dir, replacedFolder)
	names, err := imageNames(aside)
	if errors.Is(err, fs.ErrNotExist) {
		return store.RemoveTree(dir, scrapFolder)
	}
	if err != nil {
		return err
	}
	if err := discardImages(dir); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(filepath.Join(aside, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("bring the earlier checkpoint back: %w", err)
		}
	}
	return dropReplaced(dir)
}

// dropReplaced removes what setAside has put aside.
func dropReplaced(dir string) error {
	if err := store.RemoveTree(dir, scrapFolder); err != nil {
		return err
	}
	err := os.Rename(filepath.Join(dir, replacedFolder), filepath.Join(dir, scrapFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return store.RemoveTree(dir, scrapFolder)
}

// discardImages removes the images of a checkpoint that came to nothing.
func discardImages(dir string) error {
	// The manifest first: without it they are no checkpoint.
	err := os.Remove(filepath.Join(dir, manifestName))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = criu.Discard(dir)
	}
	if err != nil {
		return fmt.Errorf("discard images: %w", err)
	}
	return nil
}

// imageNames lists the files that make up a checkpoint, the manifest last.
func imageNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names, manifests []string
	for _, e := range entries {
		switch {
		case e.Name() == manifestName:
			manifests = append(manifests, manifestName)
		case filepath.Ext(e.Name()) == ".img":
			names = append(names, e.Name())
		}
	}
	return append(names, manifests...), nil
}
