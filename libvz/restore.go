package libvz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// RestoreOptions of Restore; the zero value is ready for use.
type RestoreOptions struct {
	Stdio
	NoPivot, NoNewKeyring bool
	WorkPath              string // for CRIU's log and statistics; "" = the image directory
	// What the checkpoint was taken with is on again by itself.
	TCPEstablished, ExtUnixSockets, ShellJob, FileLocks bool
	ManageCgroups                                       string // as at the checkpoint
	// EmptyNetwork restores nothing into the network namespace; it is on by
	// itself where nothing was saved.
	EmptyNetwork bool
	// AutoDedup gives back the room of the images while memory is read: they
	// are used up, even if the restore fails.
	AutoDedup bool
	// LSMProfile, "apparmor:NAME" or "selinux:LABEL", and LSMMountContext, of
	// SELinux, replace what processes and mounts had; "" = as they were.
	LSMProfile, LSMMountContext string
	// Veth renames host ends of network links, "eth0=vzc1" or, attached to
	// a bridge, "eth0=vzc1@br0"; links not named keep the host end they had.
	Veth []string
	Spec *specs.Spec // as in CreateOptions
	// LazyPages lets the guest run before its memory is in place; see
	// AwaitMemory, which must be called then. The memory comes from
	// PageServer ("ADDRESS:PORT", a Checkpoint with LazyPages), or from the
	// images. Where neither is said and a `criu lazy-pages` listens in
	// WorkPath, that one is used, and is its owner's to look after.
	LazyPages  bool
	PageServer string
	// Claim, of an Import, has the id; nil = nobody has. A bundle that was made goes
	// with a restore that fails.
	Claim *Claim
	// dialPages connects to a criu.PageServer in another way.
	dialPages func(context.Context) (net.Conn, error)
	// cgroup takes the place of linux.cgroupsPath; "" does not.
	cgroup string
}

// Restore makes a container run again from the images of a checkpoint, under
// the same id or another (a clone), from a bundle with the configuration of the
// one that was saved. On an error nothing is left behind.
func (h *Host) Restore(ctx context.Context, id, bundle, images string, o RestoreOptions) (*Container, *Stats, error) {
	begun := time.Now()
	r, err := h.prepareRestore(ctx, id, bundle, images, o)
	if err != nil {
		return nil, nil, fail("restore", id, err)
	}
	defer func() {
		if r.lazy == nil {
			r.locks.Close()
			r.entry.Close()
		}
	}()
	stats, err := r.restore(ctx)
	if err = r.endRestore(err); err != nil {
		return nil, nil, fail("restore", id, err)
	}
	stats.Restore = time.Since(begun)
	r.settleInSoon(ctx, stats)
	return r.container(), stats, nil
}

// container is the handle to what was restored.
func (r *revival) container() *Container {
	c := &Container{host: r.host, id: r.id, lc: r.lc}
	if proc, err := os.FindProcess(r.pid); err == nil { // it never fails on Unix
		c.init = &Process{proc: proc}
	}
	if r.lazy != nil {
		c.arrival = &arrival{entry: r.entry, lazy: r.lazy, locks: r.locks}
	}
	return c
}

// revival is a container that is being restored.
type revival struct {
	nascent
	images   string
	chain    []string // images, and the pre-dumps that they build on
	locks    imageLocks
	manifest *manifest
	options  RestoreOptions
	opts     criu.RestoreOptions
	inherit  []criu.Inherit
	criu     *criu.Restorer
	known    criu.Known
	links    []vnet.Link
	hostNet  *os.File // the host's network namespace, where CRIU has another; nil = it has not
	coming   *linksComing
	pid      int
	decided  *atomic.Bool    // the guest runs, or is about to
	subtree  string          // the container's cgroup2 directory
	aside    string          // where criu is while the subtree is made; "" = it need not
	waited   time.Duration   // CRIU for our consent
	lazy     *criu.LazyPages // fills the guest's memory; nil = it is whole
	clone    *cloning        // nil = it is the one that was saved
	// consent, where not nil, is asked when the guest is whole, with the pid
	// of its init: an error ends it before it runs.
	consent func(pid int) error
}

// prepareRestore checks everything that can be checked before anything is
// made, and takes the lock of the new id, unless an import has it.
func (h *Host) prepareRestore(ctx context.Context, id, bundle, images string, o RestoreOptions) (*revival, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	if err := CheckID(id); err != nil {
		return nil, err
	}
	r, err := h.planRestore(ctx, id, bundle, images, o)
	if err != nil {
		return nil, err
	}
	if r.entry = o.Claim.take(); r.entry != nil {
		return r, nil
	}
	if r.entry, err = h.claim(id); err != nil {
		r.locks.Close()
		return nil, err
	}
	return r, nil
}

// planRestore is what of prepareRestore needs no lock of the container's.
func (h *Host) planRestore(ctx context.Context, id, bundle, images string, o RestoreOptions) (_ *revival, retErr error) {
	spec, bundle, err := specOf(bundle, o.Spec)
	if err != nil {
		return nil, err
	}
	if o.cgroup != "" {
		spec.Linux.CgroupsPath = o.cgroup
	}
	var locks imageLocks
	defer func() {
		if retErr != nil {
			locks.Close()
		}
	}()
	images, m, chain, err := locks.openCheckpoint(images, o.AutoDedup)
	if err != nil {
		return nil, err
	}
	if err := m.checkMemory(images, o); err != nil {
		return nil, err
	}
	if m.EmptyNetwork = m.EmptyNetwork || o.EmptyNetwork; m.EmptyNetwork {
		m.Links = nil
		recordNetwork(m.Spec, "")
	}
	if hasNotify(m.Spec) && !hasNotify(spec) {
		h.offerNotify(id, spec)
	}
	if err := bringLxcfs(m.Spec, spec); err != nil {
		return nil, err
	}
	if err := sameGuest(m.Spec, spec); err != nil {
		return nil, err
	}
	links, err := placeLinks(m.Links, o.Veth)
	if err != nil {
		return nil, err
	}
	if err := placeNetwork(spec, m.Spec, m.Links, links); err != nil {
		return nil, err
	}
	r, err := h.newRevival(ctx, id, bundle, spec, images, chain, m, links, o)
	if err != nil {
		return nil, err
	}
	r.locks = locks
	return r, nil
}

// openCheckpoint returns the absolute path of a checkpoint, its manifest and
// the directories that it consists of, all checked.
func openCheckpoint(images string) (string, *manifest, []string, error) {
	images, err := filepath.Abs(images)
	if err != nil {
		return "", nil, nil, err
	}
	m, err := readManifest(images)
	if err != nil {
		return "", nil, nil, err
	}
	chain, err := m.chain(images)
	return images, m, chain, err
}

// newRevival looks for CRIU, and opens what the configuration asks for.
func (h *Host) newRevival(ctx context.Context, id, bundle string, spec *specs.Spec, images string, chain []string, m *manifest,
	links []vnet.Link, o RestoreOptions,
) (*revival, error) {
	known, err := h.findCriu(ctx)
	if err != nil {
		return nil, err
	}
	if known.Version < m.Criu {
		h.warn(id, "the images were written by CRIU %s, this one is %s: it may not understand them", criu.FormatVersion(m.Criu), criu.FormatVersion(known.Version))
	}
	r := &revival{
		nascent: nascent{host: h, id: id, bundle: bundle, spec: spec, noPivot: o.NoPivot, noKeyring: o.NoNewKeyring},
		images:  images, chain: chain, manifest: m, options: o, links: links, known: known,
		decided: new(atomic.Bool),
	}
	return r, r.openFeatures()
}

// placeLinks decides where the host ends of the guest's links go.
func placeLinks(links []vnet.Link, wishes []string) ([]vnet.Link, error) {
	mappings := make([]vnet.Mapping, 0, len(wishes))
	for _, w := range wishes {
		m, err := vnet.Parse(w)
		if err != nil {
			return nil, withHint("write it as --veth INNER=HOST[@BRIDGE]", "%w", err)
		}
		mappings = append(mappings, m)
	}
	placed, err := vnet.Map(links, mappings)
	if err != nil {
		return nil, withHint("the guest had these links: "+linkNames(links), "%w", err)
	}
	if err := vnet.Conflicts(placed); err != nil {
		return nil, withHint("give the host end another name: --veth INNER=NAME[@BRIDGE]", "%w", err)
	}
	return placed, nil
}

func linkNames(links []vnet.Link) string {
	if len(links) == 0 {
		return "none"
	}
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, l.Inner)
	}
	return strings.Join(names, ", ")
}

func (r *revival) restore(ctx context.Context) (*Stats, error) {
	work := r.images
	if r.options.WorkPath != "" {
		var err error
		if work, err = filepath.Abs(r.options.WorkPath); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(work, 0o700); err != nil {
			return nil, fmt.Errorf("create work directory: %w", err)
		}
	}
	var stats *Stats
	err := r.build("restore", func() (err error) {
		stats, err = r.prepareAndRun(ctx, work)
		return err
	})
	return stats, err
}

// prepareAndRun makes what CRIU is to find, and has it restore.
func (r *revival) prepareAndRun(ctx context.Context, work string) (*Stats, error) {
	if r.host.offersNotify(r.id, r.spec) {
		if err := r.host.makeNotifyFolder(r.id); err != nil {
			return nil, err
		}
	}
	if err := r.reserveNetwork(ctx); err != nil {
		return nil, err
	}
	if err := r.startLazy(work); err != nil {
		return nil, err
	}
	if err := r.isolateNetwork(); err != nil {
		return nil, err
	}
	if r.hostNet != nil {
		defer r.hostNet.Close()
	}
	joined, err := r.joinNamespaces()
	defer closeAll(joined)
	if err != nil {
		return nil, err
	}
	inCgroups, err := r.startCriu()
	if err != nil {
		return nil, err
	}
	defer r.criu.Close()
	err = r.fillOptions(ctx, work)
	if r.opts.ImagesDir != nil {
		defer r.opts.ImagesDir.Close()
	}
	// Also where that has failed: nothing is undone while criu is being moved.
	if err = errors.Join(err, inCgroups()); err != nil {
		return nil, err
	}
	r.host.event(Event{ID: r.id, Step: "restoring"})
	return r.runCriu(ctx)
}

// startCriu starts CRIU, and puts it into the container's cgroups while the places are
// made that it restores into: both take the kernel some milliseconds. The function
// returned waits for that.
func (r *revival) startCriu() (inCgroups func() error, _ error) {
	if err := r.known.Lend(); err != nil {
		return nil, err
	}
	stdio := [3]*os.File{r.options.Stdin, r.options.Stdout, r.options.Stderr}
	for i, target := range r.manifest.Stdio {
		if i < 3 && strings.HasPrefix(target, "pipe:") && stdio[i] != nil {
			r.inherit = append(r.inherit, criu.Inherit{Key: target, File: stdio[i]})
		}
	}
	var err error
	r.criu, err = criu.StartRestorer(criu.RestorerOptions{
		Criu: r.known.Path, Stdio: stdio, Inherit: r.inherit,
		ConfigFile: criuConfigOf(r.spec.Annotations), ShareMemory: r.clone != nil && r.clone.share,
	})
	if errors.Is(err, criu.ErrNoMerge) {
		return nil, withHint("leave out --share-memory, or use Linux 6.7 or newer", "%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	if err := r.criuStarted(r.criu.Pid()); err != nil {
		r.criu.Close()
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- r.joinCgroups(r.criu.Pid()) }()
	return func() error { return <-done }, nil
}

// runCriu has CRIU restore, and loads what it made.
func (r *revival) runCriu(ctx context.Context) (*Stats, error) {
	if r.options.AutoDedup {
		if err := r.manifest.useUp(r.images); err != nil {
			return nil, err
		}
	}
	begun := time.Now()
	ctx, stop := r.untilMemoryFails(ctx)
	defer stop()
	defer r.abortAfter(ctx)()
	pid, measured, err := r.criu.Restore(ctx, r.opts)
	if r.lazy != nil && err != nil {
		err = errors.Join(r.lazy.Failure(), err)
	}
	r.awaitLinks() //nolint:errcheck // CRIU had no consent then
	var ce *criu.Error
	switch {
	case errors.As(err, &ce):
		if r.clone != nil && r.clone.briefLog {
			ce.Log = "" // it goes with the clone's bundle
		}
		return nil, withHint(ce.Remedy, "%w", err)
	case err != nil:
		return nil, err
	}
	r.pid = pid
	if r.lc, err = libcontainer.Load(r.host.opts.Root, r.id); err != nil {
		return nil, err
	}
	if err := r.leaveAside(ctx); err != nil {
		r.host.warn(r.id, "remove the cgroup of criu: %v", err)
	}
	return &Stats{
		Operation: "restore", Criu: time.Since(begun) - r.waited, Bytes: r.manifest.Bytes,
		Pages: measured.Pages, Tasks: r.manifest.Tasks,
	}, nil
}

// fillOptions makes the places that CRIU restores into. It runs in the private
// mount namespace.
func (r *revival) fillOptions(ctx context.Context, work string) error {
	m, o := r.manifest, r.options
	if err := r.root.mount(ctx, nil); err != nil {
		return err
	}
	if err := r.refuseChangedImage(ctx); err != nil {
		return err
	}
	mounts, err := externalMounts(r.config, r.cgroups)
	if err != nil {
		return err
	}
	if len(r.config.MaskPaths) > 0 {
		mounts = append(mounts, criu.External{Key: nullKey, Val: nullKey})
	}
	if err := r.passSources(mounts); err != nil {
		return err
	}
	system := r.spec.Annotations[annotationGuest] != ""
	r.opts.Common = criu.Common{
		Images: r.images, Work: work, Root: r.view, Mounts: mounts,
		ManageCgroups:  o.ManageCgroups,
		TCPEstablished: o.TCPEstablished || m.TCPEstablished, ExtUnixSockets: o.ExtUnixSockets || m.ExtUnixSockets,
		ShellJob: o.ShellJob || m.ShellJob, FileLocks: o.FileLocks || system, LinkRemap: system,
		AutoDedup: o.AutoDedup, EmptyNet: m.EmptyNetwork, Stage: r.stage, Stalled: r.host.warnStalled(r.id),
	}
	if r.clone != nil {
		r.opts.TCPEstablished, r.opts.TCPClose, r.opts.BriefLog = false, true, r.clone.briefLog
	}
	r.opts.LSMProfile, r.opts.LSMMountContext = o.LSMProfile, o.LSMMountContext
	for _, l := range r.links {
		if !l.Elsewhere {
			r.opts.Veths = append(r.opts.Veths, criu.Veth{Inner: l.Inner, Outer: l.Host})
		}
	}
	// Before owners are mapped: then the host's root is nobody.
	if err := makeMountPoints(r.config.Rootfs, r.config.Mounts); err != nil {
		return err
	}
	if err := r.makeNodes(); err != nil {
		return err
	}
	if r.clone != nil {
		if err := r.identifyRoot(); err != nil {
			return err
		}
	}
	if err := r.finishRoot(ctx); err != nil {
		return err
	}
	return r.shareImages()
}

// finishRoot makes the root a mount point, as CRIU wants it, with mapped owners
// where that is asked for, and shows it where the container's root may walk.
func (r *revival) finishRoot(ctx context.Context) error {
	if err := r.root.mapOwners(ctx, r.userns); err != nil {
		return err
	}
	if r.view != r.root.place {
		return r.showRootfs()
	}
	if r.userns != nil || r.root.mounted() {
		return nil
	}
	if err := unix.Mount(r.root.place, r.root.place, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount rootfs: %w", err)
	}
	return nil
}
