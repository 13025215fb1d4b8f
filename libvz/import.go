//go:build !lean

package libvz

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"filippo.io/age"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/archive"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// ArchiveSource is where an archive is read.
type ArchiveSource struct {
	// Path is a file or a directory; "" reads From.
	Path string
	From *os.File
	// Identity is the text of a file with identities of age; "" = none.
	Identity string
}

// ImportOptions of Import.
type ImportOptions struct {
	ArchiveSource
	// Bundle is used if it exists, with its rootfs; otherwise it is made of
	// what is in the archive. "" is DefaultBundles/ID, which must not exist.
	Bundle string
	// ImagePath, a new directory, keeps the images; "" = until Close.
	ImagePath string
	// WorkPath is where private directories are made; "" = on the disk of
	// /var/tmp.
	WorkPath string
}

// Imported is an archive that was verified and unpacked for a Restore, which takes the
// Claim among its options. It must be closed.
type Imported struct {
	// Images and Bundle are what is restored, Work where its log may go.
	Images, Bundle, Work string
	// Claim has the id, and the bundle that was made; nil where none was.
	Claim *Claim

	private *archive.Folder
}

// Import reads an archive to its end, verifies all of it, and unpacks what a
// restore under that id needs. The id is locked until the restore is over or Close
// is called, if a bundle was made: one that a process leaves that is killed goes
// with the next call for the id. Nothing is left, and no container was touched, where
// it returns an error: one that wraps ErrExist (the container), ErrBusy,
// ErrUnsupported (another architecture, a newer version), ErrRefused (an archive that
// is damaged, or that no checkpoint makes) or another.
func (h *Host) Import(ctx context.Context, id string, o ImportOptions) (*Imported, error) {
	i, err := h.importArchive(ctx, id, o)
	return i, fail("restore", id, explainArchive(err))
}

// Close removes what the restore no longer needs: private images, and a bundle that
// was made and that nothing was restored from. A log of CRIU that failure may name
// stays.
func (i *Imported) Close(failure error) error {
	var ce *criu.Error
	return errors.Join(dropPrivate(i.private, criu.RestoreLog, errors.As(failure, &ce)), i.Claim.release())
}

func (h *Host) importArchive(ctx context.Context, id string, o ImportOptions) (i *Imported, err error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if _, err := h.load(id); err == nil || errors.Is(err, ErrBusy) {
		return nil, withHint("choose another id, or delete that container", "%w", ErrExist)
	}
	source, err := openArchive(ctx, o.ArchiveSource)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	plan, err := planImport(id, o, source.Header)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, plan.discard())
		}
	}()
	if err := plan.makeFolders(); err != nil {
		return nil, err
	}
	var total int64
	if source.Header != nil {
		total = source.Header.Bytes()
	}
	contents, err := source.Unpack(ctx, archive.Unpack{
		Images: plan.images, Trees: plan.trees,
		Progress: func(done int64) { h.event(Event{ID: id, Step: "importing", Done: done, Total: total}) },
	})
	if err != nil {
		return nil, err
	}
	if contents.Digest == "" {
		h.warn(id, "the archive was written by another program: nothing in it says that it is whole")
	}
	return h.settleImport(plan, id, contents)
}

func openArchive(ctx context.Context, o ArchiveSource) (*archive.Reader, error) {
	var identities []age.Identity
	if o.Identity != "" {
		var err error
		if identities, err = age.ParseIdentities(strings.NewReader(o.Identity)); err != nil {
			return nil, withHint("name a file as age-keygen writes it", "identity: %w", err)
		}
	}
	var r *archive.Reader
	var err error
	if o.Path == "" {
		r, err = archive.ReadFile(ctx, o.From, identities)
	} else {
		r, err = archive.Open(ctx, o.Path, identities)
	}
	if err != nil {
		return nil, err
	}
	if h := r.Header; h != nil && h.Arch != runtime.GOARCH {
		r.Close()
		return nil, withHint("restore it on a host like the one it is from", "checkpoint of a %.20q machine: %w on %s", h.Arch, ErrUnsupported, runtime.GOARCH)
	}
	return r, nil
}

// explainArchive puts an archive's error into this package's words.
func explainArchive(err error) error {
	const again = "copy it again from where it was written, or take another checkpoint"
	switch {
	case errors.Is(err, archive.ErrDamaged):
		return withHint(again, "%w: %w", ErrRefused, err)
	case errors.Is(err, archive.ErrUnsafe):
		return withHint("no checkpoint makes such a thing: ask who gave it to you", "%w: %w", ErrRefused, err)
	case errors.Is(err, archive.ErrNewer):
		return withHint("restore it with the vzrun that wrote it, or a newer one", "%w: %w", ErrUnsupported, err)
	case errors.Is(err, archive.ErrForeign):
		return withHint("vzrun checkpoint --export writes one", "%w: %w", ErrRefused, err)
	case errors.Is(err, archive.ErrIdentity):
		return withHint("name the file with your secret key: --identity FILE", "%w: %w", ErrRefused, err)
	case errors.Is(err, archive.ErrSpace), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return withHint("free some, or name a directory elsewhere with --work-path or --bundle", "%w", err)
	}
	return err
}

// importPlan is what an import makes.
type importPlan struct {
	bundle    string
	keep      string // where images are kept; "" = nowhere
	trees     map[string]string
	images    string
	lowers    int // templates that come with the archive
	private   *archive.Folder
	newBundle *archive.Folder // nil where there is a bundle
	parent    string          // of private
	makes     bool
}

// planImport decides where things go, before anything is made.
func planImport(id string, o ImportOptions, h *archive.Header) (*importPlan, error) {
	p := &importPlan{bundle: o.Bundle, keep: o.ImagePath, parent: o.WorkPath, trees: map[string]string{}}
	if p.parent == "" {
		p.parent = privateParent
	}
	if p.keep != "" {
		p.parent = filepath.Dir(p.keep)
		if _, err := os.Lstat(p.keep); err == nil {
			return nil, withHint("choose another --image-path, or remove what is there", "%s: %w", p.keep, fs.ErrExist)
		}
	}
	if p.bundle == "" {
		p.bundle = filepath.Join(DefaultBundles, id)
		if _, err := os.Lstat(p.bundle); err == nil {
			return nil, withHint("name it with --bundle to use it as it is, or name another", "the bundle %s is there already: %w", p.bundle, fs.ErrExist)
		}
	}
	if _, err := os.Stat(p.bundle); err == nil {
		return p, nil
	}
	p.makes = true
	switch {
	case h != nil && h.Has(archive.Rootfs):
	case h != nil && h.Has(archive.Diff):
		for h.Has(archive.LowerName(p.lowers)) {
			p.lowers++
		}
	default:
		return nil, withHint("name a bundle with the rootfs as it was at the checkpoint (--bundle), or export with --with-rootfs",
			"there is no root file system in the archive, and no bundle %s: %w", p.bundle, ErrRefused)
	}
	p.trees[archive.Rootfs], p.trees[archive.Diff] = "rootfs", "rootfs/"+upperName
	if h.Has(archive.Rootfs) {
		delete(p.trees, archive.Diff)
	} else {
		delete(p.trees, archive.Rootfs)
	}
	for n := range p.lowers {
		p.trees[archive.LowerName(n)] = templateName(n)
	}
	return p, nil
}

// bundlePrefix begins the names of bundles that have no name of their own yet.
const bundlePrefix = ".vzrun-bundle-"

// templateName is the n-th directory below an overlay, in a bundle that was made
// of an archive.
func templateName(n int) string { return fmt.Sprintf("%s/%d", templatesName, n) }

const templatesName = "templates"

func (p *importPlan) makeFolders() (err error) {
	if p.private, err = archive.NewFolder(p.parent, privatePrefix, store.RemoveTree); err != nil {
		return fmt.Errorf("directory for images: %w", err)
	}
	p.images = filepath.Join(p.private.Path, privateImages)
	if err := os.Mkdir(p.images, 0o700); err != nil {
		return err
	}
	if !p.makes {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.bundle), 0o700); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if p.newBundle, err = archive.NewFolder(filepath.Dir(p.bundle), bundlePrefix, store.RemoveTree); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	for name, rel := range p.trees {
		dir := filepath.Join(p.newBundle.Path, rel)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		p.trees[name] = dir
	}
	return nil
}

func (p *importPlan) discard() error {
	return errors.Join(p.private.Remove(), p.newBundle.Remove())
}

// settleImport checks what the archive says of the container, and gives what was
// made its names.
func (h *Host) settleImport(p *importPlan, id string, c *archive.Contents) (*Imported, error) {
	m, err := importedManifest(p.images, c)
	if err != nil {
		return nil, err
	}
	i := &Imported{Images: p.images, Bundle: p.bundle, Work: p.private.Path, private: p.private}
	if p.makes {
		if err := p.writeConfig(id, m, c.Spec); err != nil {
			return nil, err
		}
	}
	if p.keep != "" {
		if err := os.Chmod(p.images, 0o750); err != nil {
			return nil, err
		}
		if err := unix.Renameat2(unix.AT_FDCWD, p.images, unix.AT_FDCWD, p.keep, unix.RENAME_NOREPLACE); err != nil {
			return nil, &os.PathError{Op: "keep images in", Path: p.keep, Err: err}
		}
		i.Images = p.keep
	}
	if !p.makes {
		return i, nil
	}
	entry, err := h.claim(id)
	if err != nil {
		return nil, err
	}
	i.Claim = &Claim{host: h, entry: entry}
	if err := p.nameBundle(entry); err != nil {
		return nil, errors.Join(err, i.Close(err))
	}
	return i, nil
}

// importedManifest is that of images that were unpacked. Images that another runtime
// has made have none.
func importedManifest(images string, c *archive.Contents) (*manifest, error) {
	if c.Record == nil {
		return nil, withHint("restore it with the program that wrote it",
			"%w: there is no %s in the archive; what other runtimes save does not tell which mounts and links were the guest's", ErrUnsupported, manifestName)
	}
	m, err := readManifest(images)
	if err != nil {
		return nil, err
	}
	if m.Parent != "" {
		return nil, withHint("export a checkpoint without --parent-path", "%w: a part of its memory is in %s, which is not in the archive", ErrRefused, m.Parent)
	}
	return m, nil
}

// nameBundle gives the bundle its name: from the journal on it goes with an undo.
func (p *importPlan) nameBundle(entry *store.Entry) error {
	owner := rand.Text()
	if err := store.WriteState(filepath.Join(p.newBundle.Path, ownerName), []byte(owner), 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := entry.Begin(store.Operation{Name: "restore", Made: p.bundle, MadeFor: owner}); err != nil {
		return err
	}
	if err := p.newBundle.Rename(p.bundle); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

// writeConfig writes the configuration of a bundle that is made.
func (p *importPlan) writeConfig(id string, m *manifest, data []byte) error {
	spec, err := decodeSpec(data)
	if err == nil {
		err = checkSpec(spec)
	}
	if err != nil {
		return fmt.Errorf("%w: its configuration: %w", ErrRefused, err)
	}
	if err := p.adapt(id, m, spec); err != nil {
		return err
	}
	data, err = json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	return store.WriteFile(filepath.Join(p.newBundle.Path, "config.json"), data, 0o600)
}

// adapt makes the configuration one of the new bundle and the new id.
func (p *importPlan) adapt(id string, m *manifest, spec *specs.Spec) error {
	spec.Root.Path = "rootfs"
	if was := spec.Annotations[annotationOverlay]; was != "" {
		layers := strings.Split(was, ":")
		for n := range layers {
			if p.lowers > 0 {
				layers[n] = templateName(n)
			} else if st, err := os.Stat(layers[n]); err != nil || !st.IsDir() {
				return withHint("copy it to this host, or export with --with-rootfs",
					"%w: the template %s of the guest's overlay is not here", ErrRefused, layers[n])
			}
		}
		if p.lowers > 0 && p.lowers != len(layers) {
			return fmt.Errorf("%w: the archive has %d templates of %d", ErrRefused, p.lowers, len(layers))
		}
		spec.Annotations[annotationOverlay] = strings.Join(layers, ":")
	}
	// A cgroup that was named after the container goes on being that.
	path := spec.Linux.CgroupsPath
	if at := strings.LastIndexAny(path, "/:") + 1; path[at:] == m.ID {
		spec.Linux.CgroupsPath = path[:at] + id
	}
	return nil
}
