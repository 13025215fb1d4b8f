package libvz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// CheckpointOptions of Checkpoint.
type CheckpointOptions struct {
	// ImagePath is the directory of the checkpoint. It is created. A
	// checkpoint of the same container in it is replaced when the new one is
	// complete, and stays if that fails; other images, and a pre-dump, are
	// refused.
	ImagePath string
	// WorkPath is where CRIU's log and statistics go; "" = ImagePath.
	WorkPath string
	// ParentPath is an earlier pre-dump, relative to ImagePath; pages
	// unchanged since are not saved again.
	ParentPath string
	// LeaveRunning lets the container go on; PreDump saves memory only,
	// and lets it go on too.
	LeaveRunning, PreDump bool
	// TCPEstablished keeps open TCP connections, ExtUnixSockets unix
	// sockets that are connected to the outside, ShellJob terminals that
	// come from outside, FileLocks file locks (always kept for a whole
	// operating system), LinkRemap files that are open and deleted.
	TCPEstablished, ExtUnixSockets, ShellJob, FileLocks, LinkRemap bool
	// TCPSkipInFlight leaves out connections that nobody has accepted yet.
	// EmptyNetwork saves a network namespace without what is in it.
	// AutoDedup takes pages out of the chain before that are saved again.
	TCPSkipInFlight, EmptyNetwork, AutoDedup bool
	// EndSessions ends what was started from outside (Exec) instead of refusing it:
	// with SIGHUP, then SIGKILL after five seconds. Each is reported as a warning.
	// Logins inside the guest are saved and no such thing.
	EndSessions bool
	// ManageCgroups is CRIU's mode: "", ignore, none, props, soft, full,
	// strict.
	ManageCgroups string
	// LazyPages leaves most of the memory out of the images, and serves it
	// at PageServer, "ADDRESS:PORT", to one Restore with LazyPages elsewhere.
	// Checkpoint returns when that has all of it. If the connection is cut
	// before, nobody here knows whether the other side runs: the container
	// is paused and the error wraps ErrUnconfirmed. Resume lets it go on,
	// Delete gives it up. An error before that leaves it as it was.
	LazyPages bool
	// PageServer without LazyPages is a `criu page-server` that gets the
	// memory; it must be beside the other images before they are restored.
	PageServer string
	// Serving is called when memory can be asked for; nil = nobody.
	Serving func() error
	// Export writes the checkpoint as an archive, too; nil = no. Without an
	// ImagePath there is nothing but the archive then.
	Export *ExportOptions
}

// Checkpoint saves a running or paused container as a directory of images. The container
// is then gone, as if it were deleted, unless LeaveRunning or PreDump is set;
// its bundle and rootfs stay as they are. On an error it runs as before. One that was
// paused stays paused, and runs when it is restored.
//
// The images are durable before the first task ends, and so is an archive that is
// a file. Errors wrap ErrStatus,
// ErrBusy (the container, or the directory), fs.ErrExist (the directory), ErrUnsupported (no or an old CRIU) or
// ErrRefused (what runs in the guest cannot be saved) as they fit.
func (c *Container) Checkpoint(ctx context.Context, o CheckpointOptions) (*Stats, error) {
	var stats *Stats
	begun := time.Now()
	err := c.change("checkpoint", func(e *store.Entry) error {
		// Engines pause a container before they ask for a checkpoint.
		if err := c.need(libcontainer.Running, libcontainer.Paused); err != nil {
			return err
		}
		var err error
		stats, err = c.checkpoint(ctx, e, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	stats.Dump = time.Since(begun)
	return stats, nil
}

func (c *Container) checkpoint(ctx context.Context, e *store.Entry, o CheckpointOptions) (*Stats, error) {
	known, err := c.host.findCriu(ctx)
	if err != nil {
		return nil, err
	}
	if o.EndSessions {
		if err := c.makeWay(ctx, o); err != nil {
			return nil, err
		}
	}
	d, err := c.prepareDump(ctx, o)
	if err != nil {
		return nil, err
	}
	d.know(known)
	if o.Export != nil {
		if d.export, err = c.prepareExport(ctx, &o, d); err != nil {
			return nil, err
		}
		defer d.export.discard()
	}
	images, err := filepath.Abs(o.ImagePath)
	if err != nil || o.ImagePath == "" {
		return nil, withHint("name one with --image-path", "no image directory")
	}
	work := images
	if o.WorkPath != "" {
		if work, err = filepath.Abs(o.WorkPath); err != nil {
			return nil, err
		}
	}
	defer d.close()
	replaces, err := d.openImages(images, o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, fmt.Errorf("create work directory: %w", err)
	}
	d.opts.Images, d.opts.Work = images, work
	if err := c.planPages(e, d, o); err != nil {
		return nil, err
	}
	is, err := c.lc.Status()
	if err != nil {
		return nil, err
	}
	if err := e.Begin(store.Operation{
		Name: "checkpoint", Cgroups: d.state.CgroupPaths, Images: images, Init: d.opts.Pid, Paused: is == libcontainer.Paused,
		Net: netsOf(c.lc), Private: d.export.privatePath(), Replaces: replaces,
	}); err != nil {
		return nil, err
	}
	if replaces {
		if err := setAside(images); err != nil {
			return nil, errors.Join(err, c.host.undoCheckpoint(e))
		}
	}
	return c.dump(ctx, e, d)
}

// dumpPlan is what prepareDump found out.
type dumpPlan struct {
	state    *libcontainer.State
	manifest manifest
	opts     criu.DumpOptions
	system   bool // a whole operating system
	export   exporter
	listener net.Listener // for who wants the memory of a lazy one; may be nil
	locks    imageLocks
	sent     int64 // bytes of memory
	sealed   bool  // the images are complete
	// handOver, where not nil, is called in place of the commit, and undo in
	// place of undoCheckpoint where handOver did not leave the outcome open:
	// the images go to another host, and need not outlive this one.
	handOver func(criu.Stage) error
	undo     func(*store.Entry) error
	// stopped, where not nil, is called when all tasks stand still, in each
	// attempt; never, if the guest has no network of its own.
	stopped func()
	// stopping is when CRIU began to stop the tasks, which are known when it has.
	stopping time.Time
	tasks    []criu.Task
	known    criu.Known
}

func (d *dumpPlan) know(k criu.Known) {
	d.known, d.manifest.Criu, d.opts.Criu = k, k.Version, k.Path
}

func (d *dumpPlan) close() {
	if d.listener != nil {
		d.listener.Close()
	}
	d.locks.Close()
}

// saveCgroups records the guest's own cgroups. Only while its tasks are
// stopped are they those that the images speak of.
func (d *dumpPlan) saveCgroups() error {
	if path := d.state.CgroupPaths[""]; d.system && path != "" {
		linux := d.manifest.Spec.Linux
		tree, err := cgroup.Save(path, linux.UIDMappings, linux.GIDMappings)
		if err != nil {
			return fmt.Errorf("record the guest's cgroups: %w", err)
		}
		d.manifest.Cgroups = &tree
	}
	return nil
}

// seal makes the images whole and, where they are to outlive this host, durable.
func (d *dumpPlan) seal() error {
	if d.handOver != nil {
		return d.manifest.complete(d.opts.Images)
	}
	return d.manifest.seal(d.opts.Images, d.export.privatePath() == "")
}

// prepareDump looks at the container, refuses what cannot be saved and gathers
// what CRIU does not save. It changes nothing.
func (c *Container) prepareDump(ctx context.Context, o CheckpointOptions) (*dumpPlan, error) {
	st, err := c.lc.State()
	if err != nil {
		return nil, err
	}
	tasks, found, err := c.survey(ctx, st, o)
	if err == nil {
		err = refuse(found)
	}
	if err != nil {
		return nil, err
	}
	spec, bundle, err := loadSpec(c.bundle())
	if err != nil {
		return nil, err
	}
	if image := spec.Annotations[annotationImage]; image != "" && !filepath.IsAbs(image) {
		spec.Annotations[annotationImage] = filepath.Join(bundle, image) // for clones
	}
	nets, err := c.host.savedNetwork(c.id, netsOf(c.lc))
	if err != nil {
		return nil, err
	}
	recordNetwork(spec, nets) // flags may have changed it
	if c.NotifySocket() != "" {
		c.host.offerNotify(c.id, spec)
	}
	keepLxcfs(&st.Config, spec)
	d := &dumpPlan{state: st, export: noExporter{}, manifest: manifest{
		ID: c.id, Tasks: len(tasks), PreDump: o.PreDump, Parent: o.ParentPath, Spec: spec, Stdio: st.ExternalDescriptors,
		TCPEstablished: o.TCPEstablished, ExtUnixSockets: o.ExtUnixSockets, ShellJob: o.ShellJob,
		EmptyNetwork: o.EmptyNetwork,
	}}
	d.system = c.guestInit() != ""
	if spec.Linux != nil {
		d.manifest.Limits = updatedLimits(spec.Linux.Resources, st.Config.Cgroups.Resources)
	}
	if o.EmptyNetwork {
		recordNetwork(spec, "")
	} else if st.Config.Namespaces.IsPrivate(configs.NEWNET) {
		if d.manifest.Links, err = vnet.Capture(st.InitProcessPid); err != nil {
			return nil, fmt.Errorf("record network links: %w", err)
		}
	}
	mounts, err := outsideOf(st)
	if err != nil {
		return nil, err
	}
	outside, namespaces, err := outsideNamespaces(st)
	if err != nil {
		return nil, err
	}
	d.manifest.Outside = outside
	d.opts = criu.DumpOptions{
		Common: criu.Common{
			Root: st.Config.Rootfs, Mounts: mounts,
			ManageCgroups: o.ManageCgroups, TCPEstablished: o.TCPEstablished, ExtUnixSockets: o.ExtUnixSockets,
			ShellJob: o.ShellJob, FileLocks: o.FileLocks || d.system, LinkRemap: o.LinkRemap || d.system,
			ConfigFile: c.criuConfig(), AutoDedup: o.AutoDedup, EmptyNet: o.EmptyNetwork, Stalled: c.host.warnStalled(c.id),
		},
		Pid: st.InitProcessPid, Parent: o.ParentPath, Namespaces: namespaces, FreezeCgroup: freezer(st),
		LeaveRunning: o.LeaveRunning, PreDump: o.PreDump, TCPSkipInFlight: o.TCPSkipInFlight,
	}
	if lxcfsOf(&st.Config) != "" {
		d.opts.Unsized = lxcfsPlaces()
	}
	return d, nil
}

// freezer returns the cgroup that CRIU may freeze. On a pure cgroup2 host that
// is the container's one cgroup.
func freezer(st *libcontainer.State) string {
	if cgroups.IsCgroup2UnifiedMode() {
		return st.CgroupPaths[""]
	}
	return st.CgroupPaths["freezer"]
}

// dump runs CRIU and commits at its post-dump stage: until that is granted the
// guest can run on, and after it the images are whole.
func (c *Container) dump(ctx context.Context, e *store.Entry, d *dumpPlan) (*Stats, error) {
	c.host.event(Event{ID: c.id, Step: "dumping"})
	d.opts.Started = noteCriu(e)
	var waited time.Duration
	d.opts.Stage = func(s criu.Stage) error {
		asked := time.Now()
		defer func() { waited += time.Since(asked) }()
		switch s.Name {
		case "pre-dump":
			d.stopping = asked
			d.export.beforeDump(d.opts.Images)
		case criu.StageFrozen:
			if d.opts.PreDump {
				return d.refuseFrozen()
			}
		case "network-lock":
			if err := thawGuest(e); err != nil {
				return err
			}
			if d.stopped != nil {
				d.stopped()
			}
			return nil
		case "network-unlock":
			return refreezeGuest(e)
		case "post-dump":
			return c.atPostDump(ctx, e, d, s)
		}
		return nil
	}
	begun := time.Now()
	measured, err := d.runCriu(ctx)
	took := time.Since(begun) - waited
	if err != nil && d.undo != nil {
		if errors.Is(err, ErrUnconfirmed) {
			return nil, err
		}
		return nil, errors.Join(c.explainDump(err), d.undo(e))
	}
	if err != nil {
		return nil, errors.Join(d.export.explain(c.explainShared(e, c.explainDump(err))), c.host.undoCheckpoint(e))
	}
	if !d.sealed { // a pre-dump has no post-dump stage
		if err := d.manifest.seal(d.opts.Images, true); err != nil {
			return nil, errors.Join(err, c.host.undoCheckpoint(e))
		}
	}
	if err := d.export.afterDump(ctx, d); err != nil {
		return nil, errors.Join(err, c.host.undoCheckpoint(e))
	}
	stats := &Stats{
		Operation: "checkpoint", Frozen: measured.Frozen, Criu: took, Bytes: d.manifest.Bytes,
		Pages: measured.Pages, Tasks: d.manifest.Tasks, Attempts: measured.Attempts, Sent: d.sent,
	}
	if e.Operation.Replaces {
		if err := dropReplaced(d.opts.Images); err != nil {
			c.host.warn(c.id, "the checkpoint that was replaced is still there: %v", err)
		}
	}
	if d.opts.LeaveRunning || d.opts.PreDump {
		return stats, e.End()
	}
	c.host.event(Event{ID: c.id, Step: "removing"})
	return stats, c.afterDump(ctx, e, d.manifest.Links)
}

// atPostDump makes the images complete while the tasks stand still, and decides where
// that is the end of them here.
func (c *Container) atPostDump(ctx context.Context, e *store.Entry, d *dumpPlan, s criu.Stage) error {
	if err := refreezeGuest(e); err != nil {
		return err
	}
	if err := d.saveCgroups(); err != nil {
		return err
	}
	if err := c.saveArmed(d); err != nil {
		return err
	}
	if err := d.seal(); err != nil {
		return err
	}
	d.sealed = true
	if d.handOver != nil && d.opts.Lazy == nil {
		return d.handOver(s)
	}
	if err := d.export.atPostDump(ctx, d); err != nil {
		return err
	}
	if d.opts.LeaveRunning || d.opts.PreDump || d.opts.Lazy != nil {
		return nil // a lazy one commits when its memory has gone
	}
	if err := ctx.Err(); err != nil {
		return err // since CRIU asked; from here on it does not count
	}
	return e.Step(stepCommitted)
}

// runCriu has CRIU work in a mount namespace of its own, where it is told what is
// known of the kernel. Who answers it sees the host's mounts: files that were opened
// before have to be on the same.
func (d *dumpPlan) runCriu(ctx context.Context) (measured *criu.Stats, err error) {
	o := d.opts
	o.Stage = func(s criu.Stage) error { return onHost(func() error { return d.opts.Stage(s) }) }
	err = inPrivateMounts(func() error {
		// The memory of a server is in the images: whatever the directory's
		// mode, nobody but root and its group reads them.
		unix.Umask(0o027)
		if err := d.known.Lend(); err != nil {
			return err
		}
		measured, err = criu.Dump(ctx, o)
		return err
	})
	return measured, err
}

// noteCriu enters the criu that works in the journal, for who has to undo it.
func noteCriu(e *store.Entry) func(pid int) error {
	return func(pid int) error {
		start, err := startTime(pid)
		if err != nil {
			return fmt.Errorf("criu: %w", err)
		}
		e.Operation.Criu, e.Operation.CriuStart = pid, start
		return e.Save()
	}
}

// afterDump removes what is left of a container that lives on in its images.
func (c *Container) afterDump(ctx context.Context, e *store.Entry, links []vnet.Link) error {
	// Its images are whole: it is no use to want it back now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := c.host.clear(ctx, e); err != nil {
		return err
	}
	if err := vnet.Gone(ctx, links); err != nil {
		c.host.warn(c.id, "%v", err)
	}
	config := c.lc.Config()
	c.host.awaitRoot(ctx, c.id, &config)
	// Destroy goes by the status last seen, and a paused one has cgroups.
	if _, err := c.lc.Status(); err != nil {
		return err
	}
	// As in Delete.
	if err := c.lc.Destroy(); err != nil {
		c.host.warn(c.id, "%v", err)
	}
	return forget(e)
}
