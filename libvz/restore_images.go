package libvz

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// shareImages lets the guest's root read the images: tasks restore themselves,
// with the guest's ids, and open files of the image directory on the way. On
// disk it stays root's own, closed to others; what CRIU gets is a detached
// mount of it in which the owner, uid 0 on disk, is the guest's root.
//
// The group is not mapped and may read: the first task opens an image before
// CRIU has written the new namespace's map, and is the host's uid 0 without
// its capabilities until then. Its group is all that lets it in.
//
// Where the file system has no id-mapped mounts, the files are given to the
// guest's root instead.
func (r *revival) shareImages() error {
	if len(r.spec.Linux.UIDMappings) == 0 {
		return nil
	}
	var own map[string][]byte
	if r.clone != nil {
		var err error
		if own, err = r.cloneImages(); err != nil {
			return err
		}
	}
	for _, dir := range r.chain {
		if err := openToGroup(dir); err != nil {
			return err
		}
	}
	userns, err := usernsFile(r.spec.Linux.UIDMappings, []specs.LinuxIDMapping{{Size: 1}}, 0)
	if err != nil {
		return err
	}
	defer userns.Close()
	// A checkpoint after pre-dumps names them by relative paths, which lead
	// nowhere beyond the root of a detached mount.
	base := commonDir(r.chain)
	tree, err := idMapped(base, userns)
	if errors.Is(err, ErrUnsupported) && r.clone == nil {
		return r.giveImages()
	}
	if err != nil {
		return err
	}
	defer tree.Close()
	rel, err := filepath.Rel(base, r.images)
	if err != nil {
		return err
	}
	if len(own) > 0 {
		if err := r.coverImages(tree, filepath.Join(base, rel), own); err != nil {
			return err
		}
		tree.Close()
		r.opts.ImagesDir, err = os.Open(filepath.Join(base, rel))
		return err
	}
	dir, err := os.Open(filepath.Join("/proc/self/fd", strconv.Itoa(int(tree.Fd())), rel))
	if err != nil {
		return fmt.Errorf("open image directory: %w", err)
	}
	r.opts.ImagesDir = dir
	return nil
}

// coverImages mounts the view over the images themselves, in this mount
// namespace, and over some of its files others: those in the directory stay as
// they are.
func (r *revival) coverImages(tree *os.File, images string, own map[string][]byte) error {
	if err := attach(tree, tree.Name()); err != nil {
		return err
	}
	for name, data := range own {
		file := filepath.Join(r.bundle, "criu", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return fmt.Errorf("image of the clone: %w", err)
		}
		if err := unix.Mount(file, filepath.Join(images, name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
	}
	return nil
}

// commonDir is the deepest directory that holds all of dirs, which are clean
// and absolute, or is the only one of them.
func commonDir(dirs []string) string {
	common := dirs[0]
	for _, d := range dirs[1:] {
		for common != "/" && d != common && !strings.HasPrefix(d, common+"/") {
			common = filepath.Dir(common)
		}
	}
	return common
}

// openToGroup lets the group, which is root's, read what is opened early.
func openToGroup(images string) error {
	for path, bits := range map[string]os.FileMode{images: 0o050, filepath.Join(images, "timens-0.img"): 0o040} {
		st, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if st.Mode().Perm()&bits == bits {
			continue
		}
		if err := os.Chmod(path, st.Mode().Perm()|bits); err != nil {
			return err
		}
	}
	return nil
}

func (r *revival) giveImages() error {
	uid, _, err := rootIDs(r.config)
	if err != nil {
		return err
	}
	for _, dir := range r.chain {
		if err := os.Chown(dir, uid, 0); err != nil {
			return fmt.Errorf("give images to the guest's root: %w", err)
		}
		images, err := filepath.Glob(filepath.Join(dir, "*.img"))
		if err != nil {
			return err
		}
		for _, image := range images {
			if err := os.Lchown(image, uid, 0); err != nil {
				return fmt.Errorf("give images to the guest's root: %w", err)
			}
		}
	}
	return nil
}
