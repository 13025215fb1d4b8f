//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/archive"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// Where private directories of images are made, if nobody says otherwise: on
// a disk, as they are as large as the guest's memory.
const (
	privateParent = "/var/tmp"
	privatePrefix = ".vzrun-images-"
	// privateImages is the directory of images in a private one.
	privateImages = "checkpoint"
)

// makeSmaller is what can be done about archive.ErrTooLarge.
const makeSmaller = "remove the file, or make it smaller: an archive has all zeros of its holes"

// export is an archive in the making.
type export struct {
	host    *Host
	id      string
	options ExportOptions
	target  archive.Target
	writer  *archive.Writer // nil before the guest is frozen
	trees   []*archive.Tree
	spec    *specs.Spec
	created time.Time
	// private is the directory that the images are in until they are in the
	// archive; nil where the caller keeps them.
	private *archive.Folder
	// logged says that CRIU's log in there is worth more than its room.
	logged bool
	// early compresses memory while CRIU writes it; nil = nobody does.
	early *archive.Early
	// failure is why the archive could not be written. CRIU then only says that
	// it was not given consent.
	failure error
}

// prepareExport refuses what can be refused before the guest is touched, and
// says where the images go.
func (c *Container) prepareExport(ctx context.Context, o *CheckpointOptions, d *dumpPlan) (exporter, error) {
	switch {
	case o.PreDump:
		return nil, withHint("export the checkpoint that ends the chain, without --parent-path", "a pre-dump holds memory only: %w as an archive", ErrUnsupported)
	case o.LazyPages || o.PageServer != "":
		return nil, withHint("leave out --lazy-pages and --page-server", "an archive without its memory: %w", ErrUnsupported)
	case o.ParentPath != "":
		return nil, withHint("leave out --parent-path: then all memory is in the archive", "an archive of memory that is elsewhere: %w", ErrUnsupported)
	}
	x := &export{host: c.host, id: c.id, options: *o.Export, created: d.state.Created, logged: true}
	var err error
	if x.spec, err = x.planTrees(c.bundle()); err != nil {
		return nil, err
	}
	x.host.event(Event{ID: x.id, Step: "looking at the rootfs"})
	if err := archive.CheckSizes(ctx, x.trees); errors.Is(err, archive.ErrTooLarge) {
		return nil, withHint(makeSmaller, "export: %w", err)
	} else if err != nil {
		return nil, err
	}
	about := archive.About{
		Name: c.id, Version: x.options.Version, Criu: criu.FormatVersion(d.manifest.Criu), Arch: runtime.GOARCH,
		Kernel: kernelRelease(), Cgroups: "1", Created: time.Now().UTC(),
	}
	if cgroups.IsCgroup2UnifiedMode() {
		about.Cgroups = "2"
	}
	if err := x.openTarget(ctx, about); err != nil {
		return nil, err
	}
	if o.ImagePath != "" {
		return x, nil
	}
	parent := privateParent
	switch {
	case o.WorkPath != "":
		parent = o.WorkPath
		if err := os.MkdirAll(parent, 0o700); err != nil {
			x.discard()
			return nil, fmt.Errorf("create work directory: %w", err)
		}
	case x.options.Path != "":
		parent = filepath.Dir(x.options.Path)
	}
	if x.private, err = archive.NewFolder(parent, privatePrefix, store.RemoveTree); err != nil {
		x.discard()
		return nil, fmt.Errorf("directory for images: %w", err)
	}
	o.ImagePath = filepath.Join(x.private.Path, privateImages)
	if o.WorkPath == "" {
		o.WorkPath = x.private.Path
	}
	return x, nil
}

// planTrees decides which directories go into the archive, and returns the
// configuration as the bundle has it.
func (x *export) planTrees(bundle string) (*specs.Spec, error) {
	data, err := readConfig(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	raw, err := decodeSpec(data)
	if err != nil {
		return nil, err
	}
	spec, dir, err := loadSpec(bundle)
	if err != nil {
		return nil, err
	}
	root, err := rootOf(dir, spec)
	if err != nil {
		return nil, err
	}
	switch {
	case root.image != "" && x.options.Rootfs:
		return nil, withHint("copy "+root.image+" after the checkpoint, or use an overlay or a directory as rootfs",
			"--with-rootfs with a root in an image: %w", ErrUnsupported)
	case len(root.lowers) > 0:
		raw.Annotations[annotationOverlay] = strings.Join(root.lowers, ":")
		x.trees = append(x.trees, &archive.Tree{Name: archive.Diff, Dir: filepath.Join(root.place, upperName), Upper: true})
		for i, lower := range root.lowers {
			if x.options.Rootfs {
				x.trees = append(x.trees, &archive.Tree{Name: archive.LowerName(i), Dir: lower})
			}
		}
	case x.options.Rootfs:
		x.trees = append(x.trees, &archive.Tree{Name: archive.Rootfs, Dir: root.place})
	}
	return raw, nil
}

func (x *export) openTarget(ctx context.Context, about archive.About) (err error) {
	o := x.options
	if _, err := age.ParseRecipients(strings.NewReader(o.Recipients)); err != nil && o.Recipients != "" {
		return withHint("age-keygen makes a pair of keys", "recipients: %w", err)
	}
	switch {
	case o.Path == "":
		x.target, err = archive.ToStream(ctx, o.To)
	case o.Layout:
		x.target, err = archive.ToLayout(o.Path, about, o.Level > 0, store.RemoveTree)
	default:
		x.target, err = archive.ToFile(o.Path)
	}
	if errors.Is(err, fs.ErrExist) {
		return withHint("choose another name, or remove what is there", "export to %w", err)
	}
	return err
}

// beforeDump has processors that CRIU leaves idle compress memory. An image with
// pages only grows at its end (write_pages_loc in criu/page-xfer.c splices to where
// the file ends, and pages of parents alone are given up by --auto-dedup), and none
// of the changes that vzrun makes to images is to these.
func (x *export) beforeDump(images string) {
	x.early.Close() // what an attempt before this one has written is gone
	x.early = nil
	if x.options.Level == 0 || x.options.Layout || runtime.GOMAXPROCS(0) < 2 {
		return
	}
	var err error
	if x.early, err = archive.NewEarly(images, x.options.Level, criu.IsPages); err != nil {
		x.early = nil // it takes longer without
	}
}

// beginFrozen writes what has to be as it is while no task runs.
func (x *export) beginFrozen(ctx context.Context, d *dumpPlan) error {
	images, err := x.images(d)
	if err != nil {
		return err
	}
	plan := archive.Plan{Arch: runtime.GOARCH, Trees: x.trees}
	for _, i := range images {
		plan.Images += i.size
	}
	options := archive.Options{Level: x.options.Level, Early: x.early, Modified: d.manifest.Created, Progress: func(done, total int64) {
		x.host.event(Event{ID: x.id, Step: "exporting", Done: done, Total: total})
	}}
	if x.options.Recipients != "" {
		if options.Recipients, err = age.ParseRecipients(strings.NewReader(x.options.Recipients)); err != nil {
			return err
		}
	}
	x.host.event(Event{ID: x.id, Step: "looking at the rootfs"})
	if x.writer, err = archive.NewWriter(ctx, x.target, plan, options); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	err = x.writer.AddDocuments(archive.Documents{
		Config: metadata.ContainerConfig{
			ID: x.id, Name: x.id, OCIRuntime: "vzrun", CreatedTime: x.created.UTC(), CheckpointedAt: d.manifest.Created,
		},
		Spec: x.spec, Network: networkStatus(d.manifest.Spec),
	})
	if err == nil {
		err = x.writer.AddTrees(ctx)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// podmanInterface is one in Podman's network.status.
type podmanInterface struct {
	Subnets []podmanSubnet `json:"subnets"`
	MAC     string         `json:"mac_address"`
}

type podmanSubnet struct {
	IPNet   string `json:"ipnet"`
	Gateway string `json:"gateway,omitempty"`
}

// networkStatus is what is known of the interfaces that vzrun made, in the words
// of Podman: by network, what its "interfaces" are.
func networkStatus(spec *specs.Spec) map[string]map[string]map[string]podmanInterface {
	status := map[string]map[string]map[string]podmanInterface{}
	nets, err := vnet.ParseNets(spec.Annotations[annotationNet])
	if err != nil {
		return status // for reading only: it is not worth a checkpoint
	}
	for _, n := range nets {
		network := n.Master
		if network == "" {
			network = "routed"
		}
		i := podmanInterface{MAC: n.MAC.String()}
		for at, ip := range n.IPs {
			subnet := podmanSubnet{IPNet: ip.String()}
			if at < len(n.Gateways) {
				subnet.Gateway = n.Gateways[at].String()
			}
			i.Subnets = append(i.Subnets, subnet)
		}
		if status[network] == nil {
			status[network] = map[string]map[string]podmanInterface{"interfaces": {}}
		}
		status[network]["interfaces"][n.Name] = i
	}
	return status
}

type exportImage struct {
	name string
	size int64
}

// images lists the images with the manifest, in the order of names.
func (x *export) images(d *dumpPlan) ([]exportImage, error) {
	st, err := os.Stat(filepath.Join(d.opts.Images, manifestName))
	if err != nil {
		return nil, err
	}
	list := []exportImage{{manifestName, st.Size()}}
	for name, size := range d.manifest.Files {
		list = append(list, exportImage{name, size})
	}
	slices.SortFunc(list, func(a, b exportImage) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

// finish writes the images and commits: when it returns nil, the archive is as
// durable as its target can make it. Private images go as they are written.
func (x *export) finish(ctx context.Context, d *dumpPlan) error {
	images, err := x.images(d)
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := x.image(ctx, filepath.Join(d.opts.Images, i.name), i); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	// CRIU writes the statistics when it lets go of the guest.
	err = x.writer.AddLogs(func(name string) ([]byte, error) { return readRegular(filepath.Join(d.opts.Work, name), maxExportLog) })
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	x.host.event(Event{ID: x.id, Step: "syncing the archive"})
	if _, err := x.writer.Commit(); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// maxExportLog bounds what goes along that no restore needs.
const maxExportLog = 8 << 20

func (x *export) image(ctx context.Context, path string, i exportImage) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := x.writer.AddImage(ctx, i.name, f, i.size); err != nil {
		return err
	}
	if x.private == nil {
		return nil
	}
	return os.Remove(path)
}

// atPostDump is what has to be done before the guest goes on, or ends: of one
// that goes on, the images can be read later.
func (x *export) atPostDump(ctx context.Context, d *dumpPlan) error {
	x.logged = false // CRIU has done its work
	x.early.Stop()
	x.failure = x.beginFrozen(ctx, d)
	if x.failure == nil && !d.opts.LeaveRunning {
		x.failure = x.finish(ctx, d)
	}
	return x.failure
}

// explain returns the error to tell of where CRIU returns err.
func (x *export) explain(err error) error {
	switch {
	case x.failure == nil:
		return err
	case errors.Is(x.failure, unix.ENOSPC), errors.Is(x.failure, unix.EDQUOT):
		return withHint("the guest goes on; free some space, or export to another file system", "%w", x.failure)
	case errors.Is(x.failure, archive.ErrTooLarge):
		return withHint("the guest goes on; "+makeSmaller, "%w", x.failure)
	}
	return withHint("the guest goes on, and nothing of the archive is left", "%w", x.failure)
}

// afterDump is the rest.
func (x *export) afterDump(ctx context.Context, d *dumpPlan) error {
	if !d.opts.LeaveRunning {
		return nil
	}
	x.failure = x.finish(ctx, d)
	return x.explain(x.failure)
}

// privatePath is the directory of private images, "" where there is none.
func (x *export) privatePath() string {
	if x.private == nil {
		return ""
	}
	return x.private.Path
}

// discard leaves nothing of an archive that has not been committed, and no
// private images. It is idempotent.
func (x *export) discard() {
	x.early.Close()
	if x.writer != nil {
		x.writer.Discard()
	} else if x.target != nil {
		x.target.Discard()
	}
	if err := dropPrivate(x.private, criu.DumpLog, x.logged); err != nil {
		x.host.warn(x.id, "remove images: %v", err)
	}
}

// dropPrivate removes a directory of private images. Where an error has named a
// log in it, that one stays until the next directory is made beside it.
func dropPrivate(f *archive.Folder, log string, named bool) error {
	if f == nil || f.Path == "" || !named {
		return f.Remove()
	}
	if _, err := os.Lstat(filepath.Join(f.Path, log)); err != nil {
		return f.Remove()
	}
	defer f.Release()
	return store.RemoveTree(f.Path, privateImages)
}
