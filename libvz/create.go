package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/guest"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// CreateOptions of Create; the zero value is ready for use.
type CreateOptions struct {
	Stdio
	// NoPivot uses chroot(2) in place of pivot_root(2), for a rootfs on
	// the initial ramdisk.
	NoPivot bool
	// NoNewKeyring leaves the caller's session keyring in place.
	NoNewKeyring bool
	// Spec is what LoadSpec returned for the bundle, for a caller that has
	// read it already; nil = read it. It must not be used afterwards.
	Spec *specs.Spec
	// Notify gives the container a place for the socket that tells when it
	// is ready, see Container.NotifySocket.
	Notify bool
	// Net are the network interfaces that vzrun makes, in place of those of
	// the annotation org.vzrun.net, whose form they have; "none" alone takes
	// those away.
	Net []string
}

// Create makes a container from a bundle. Its namespaces, cgroups and mounts
// exist and its init waits for Start. On an error nothing is left behind.
// ErrExist, ErrInvalidID and ErrBusy are returned as they fit.
func (h *Host) Create(ctx context.Context, id, bundle string, o CreateOptions) (*Container, error) {
	c, err := h.create(ctx, id, bundle, o)
	return c, fail("create", id, err)
}

func (h *Host) create(ctx context.Context, id, bundle string, o CreateOptions) (_ *Container, retErr error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	spec, bundle, err := specOf(bundle, o.Spec)
	if err != nil {
		return nil, err
	}
	if err := h.fit(id, spec, o); err != nil {
		return nil, err
	}
	p, err := newProcess(spec.Process, o.Stdio)
	if err != nil {
		return nil, err
	}
	p.Init, p.LogLevel = true, h.opts.LogLevel
	n := &nascent{host: h, id: id, bundle: bundle, spec: spec, noPivot: o.NoPivot, noKeyring: o.NoNewKeyring}
	if err := n.openFeatures(); err != nil {
		return nil, err
	}
	if n.entry, err = h.claim(id); err != nil {
		return nil, err
	}
	defer n.entry.Close()
	defer func() { retErr = n.settle("create", retErr) }()
	defer func() { n.asked.Close() }()
	if err := n.build("create", func() error { return n.startInit(ctx, p, o.Notify) }); err != nil {
		return nil, err
	}
	if err := n.setUpNetwork(ctx); err != nil {
		return nil, err
	}
	if err := n.prepareGuest(); err != nil {
		return nil, err
	}
	h.warnOfTwins(id, n.entry.UUID)
	return &Container{host: h, id: id, lc: n.lc, init: &Process{lp: p}, loaded: h.stampOf(id)}, nil
}

// fit changes a configuration so that this host can do what it says, or refuses it.
func (h *Host) fit(id string, spec *specs.Spec, o CreateOptions) error {
	if err := checkUnprivileged(spec); err != nil {
		return err
	}
	if err := h.fitInit(id, spec); err != nil {
		return err
	}
	if err := checkIdentity(spec); err != nil {
		return err
	}
	if err := h.offerLxcfs(id, spec); err != nil {
		return err
	}
	if err := h.planNetwork(id, spec, o.Net); err != nil {
		return err
	}
	if o.Notify {
		h.offerNotify(id, spec)
	}
	return nil
}

// startInit mounts what the container's root is made of and starts its first
// process, which waits to be told to go on.
func (n *nascent) startInit(ctx context.Context, p *libcontainer.Process, notify bool) error {
	n.askNeighbours()
	if err := n.root.mount(ctx, n.userns); err != nil {
		return err
	}
	n.checkHandles()
	if err := n.makeNodes(); err != nil {
		return err
	}
	if err := n.showRootfs(); err != nil {
		return err
	}
	if notify {
		if err := n.host.makeNotifyFolder(n.id); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.start(p); err != nil {
		return err
	}
	if err := n.verifyProc(); err != nil {
		return err
	}
	return n.correctState()
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return withHint("run it as root", "%w: user id %d may not create containers", ErrUnsupported, os.Geteuid())
	}
	return nil
}

// claim takes the lock of an id that no container has yet.
func (h *Host) claim(id string) (*store.Entry, error) {
	entry, err := h.lock(id)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(h.opts.Root, id)); err == nil {
		entry.Close()
		return nil, withHint("choose another id, or delete that container", "%w", ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		entry.Close()
		return nil, err
	}
	return entry, nil
}

// nascent is a container that is being made, by Create or Restore.
type nascent struct {
	host               *Host
	entry              *store.Entry
	id, bundle         string
	spec               *specs.Spec
	noPivot, noKeyring bool
	nodes              []guest.Node    // devices that its features need
	asked              *vnet.Questions // nil where nobody was asked

	config *configs.Config
	lc     *libcontainer.Container
	// cgroups are the container's directories, by controller.
	cgroups map[string]string
	root    guestRoot
	userns  *os.File // nil unless the rootfs is id-mapped
	joins   bool     // the container is to join userns, not to make one
	// view is where the container finds its rootfs when it begins: the
	// rootfs itself, or viewPlace.
	view string
}

// build converts the configuration, journals the operation, makes
// libcontainer's container and runs fn; in private mounts and with the bundle
// as working directory where there is something to mount first.
func (n *nascent) build(op string, fn func() error) error {
	mapped, err := wantsIDMap(n.spec)
	if err != nil {
		return err
	}
	if n.root, err = rootOf(n.bundle, n.spec); err != nil {
		return err
	}
	n.view = n.root.place
	if err := n.checkWay(mapped); err != nil {
		return err
	}
	if err := n.holdIDs(op); err != nil {
		return err
	}
	if err := n.refuseFrozenRoot(); err != nil {
		return err
	}
	if mapped {
		if err := n.makeUserns(op); err != nil {
			return err
		}
		defer n.userns.Close()
	}
	make := func() error {
		if err := n.begin(op); err != nil {
			return err
		}
		return fn()
	}
	// A thread of its own costs a hand-over between threads at each wait.
	if !mapped && !n.root.mounted() && n.view != viewPlace && op != "restore" && len(n.nodes) == 0 {
		return make()
	}
	return inPrivateMounts(func() error {
		if err := unix.Chdir(n.bundle); err != nil {
			return fmt.Errorf("enter bundle: %w", err)
		}
		return make()
	})
}

// begin converts the configuration, journals the operation and makes
// libcontainer's container.
func (n *nascent) begin(op string) (err error) {
	n.nameCgroup()
	n.config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: n.id, UseSystemdCgroup: n.host.opts.SystemdCgroup,
		NoPivotRoot: n.noPivot, NoNewKeyring: n.noKeyring, Spec: n.spec,
		RootlessEUID: unprivileged(), RootlessCgroups: n.host.rootlessCgroups(),
	})
	if err != nil {
		return err
	}
	n.config.Labels = withBundle(n.config.Labels, n.bundle)
	n.entry.UUID = containerUUID(n.spec)
	nets := n.spec.Annotations[annotationNet]
	// The entry gets the cgroups once it is sure that they are ours: its undo
	// ends what runs in them.
	if err := n.journal(store.Operation{Name: op, Net: nets}); err != nil {
		return err
	}
	if err := n.host.refuseAddresses(n.id, nets); err != nil {
		return err
	}
	n.lc, err = libcontainer.Create(n.host.opts.Root, n.id, n.privateConfig())
	if err != nil {
		return hintAtCgroup(err)
	}
	st, err := n.lc.State()
	if err != nil {
		return err
	}
	n.cgroups = st.CgroupPaths
	if err := ownCgroups(n.cgroups); err != nil {
		return err
	}
	n.entry.Operation.Cgroups = maps.Clone(n.cgroups)
	return n.entry.Save()
}

// journal begins the operation, or goes on with that of a clone or of an archive,
// which has begun with its bundle.
func (n *nascent) journal(op store.Operation) error {
	if n.entry.Operation == nil {
		return n.entry.Begin(op)
	}
	n.entry.Operation.Net = op.Net
	return n.entry.Save()
}

// hintAtCgroup tells what to do where libcontainer refuses a cgroup in which
// somebody runs, or is frozen, or limits for which a user has no cgroup: cgroup v1 and
// cgroup2 have words of their own for that.
func hintAtCgroup(err error) error {
	switch {
	case strings.Contains(err.Error(), "container's cgroup is not empty"):
		return withHint("set another linux.cgroupsPath in config.json", "%w", err)
	case strings.Contains(err.Error(), "container's cgroup unexpectedly frozen"):
		return withHint("thaw it, or set another linux.cgroupsPath in config.json", "%w", err)
	case strings.Contains(err.Error(), "container could not join or create cgroup"),
		strings.Contains(err.Error(), "rootless needs no limits"):
		return withHint("leave linux.resources out of config.json, or run it as root, or in cgroups that are delegated to you", "%w", err)
	}
	return err
}

// nameCgroup gives a container without a cgroup path its place among the units
// of the host's systemd: whole operating systems among its machines. Elsewhere
// it is below our own cgroup, which libcontainer looks up for every controller
// of cgroup v1 anew; where all of them are the root, that is said here.
func (n *nascent) nameCgroup() {
	if n.spec.Linux.CgroupsPath != "" {
		return
	}
	if !n.host.opts.SystemdCgroup {
		if !n.host.rootlessCgroups() && inRootCgroups() {
			n.spec.Linux.CgroupsPath = "/" + n.id
		}
		return
	}
	slice := "system.slice"
	if n.host.rootlessCgroups() {
		slice = "user.slice"
	}
	if n.spec.Annotations[annotationGuest] != "" {
		slice = "machine.slice"
	}
	n.spec.Linux.CgroupsPath = slice + ":vzrun:" + n.id
}

// inRootCgroups tells whether we are in the root of each hierarchy of cgroup v1,
// and there are some.
func inRootCgroups() bool {
	of, err := cgroup.Of(0)
	if err != nil {
		return false
	}
	delete(of, "") // cgroup2
	for _, path := range of {
		if path != "/" {
			return false
		}
	}
	return len(of) > 0
}

// ownCgroups refuses cgroups in which somebody runs already: an undo ends what
// is in the container's cgroups, so they must be its own from the beginning.
func ownCgroups(paths map[string]string) error {
	for _, p := range paths {
		pids, err := cgroup.Procs(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(pids) > 0 {
			return withHint("set another linux.cgroupsPath in config.json", "container's cgroup is not empty: %d process(es) found in %s", len(pids), p)
		}
	}
	return nil
}

// withBundle replaces the bundle that libcontainer takes the working directory
// for.
func withBundle(labels []string, bundle string) []string {
	out := make([]string, 0, len(labels)+1)
	for _, l := range labels {
		if !strings.HasPrefix(l, "bundle=") {
			out = append(out, l)
		}
	}
	return append(out, "bundle="+bundle)
}

// checkHandles warns where an overlay cannot be checkpointed later.
func (n *nascent) checkHandles() {
	if len(n.root.lowers) > 0 && !hasHandles(n.root.place) {
		n.host.warn(n.id, "the overlay on %s has no file handles (index, nfs_export): a checkpoint will fail where a program watches files; "+
			"put template and bundle on ext4, xfs, btrfs or tmpfs", n.root.place)
	}
}

// start starts the container's first process, and keeps the seccomp program
// that it has compiled: nothing of the container has run yet, and where its pid
// namespace is its own nobody else sees that process.
func (n *nascent) start(p *libcontainer.Process) error {
	filter := n.host.filterTicket(p, n.config.Seccomp, n.config.Namespaces.IsPrivate(configs.NEWPID))
	defer filter.Close()
	if err := n.lc.Start(p); err != nil {
		return hintAtCgroup(err)
	}
	if filter == nil {
		return nil
	}
	if err := filter.Keep(); err != nil {
		n.host.warn(n.id, "seccomp program is not kept: %v", err)
	}
	return nil
}

// settle ends the operation: on success the journal entry goes, on failure
// everything that it names.
func (n *nascent) settle(op string, failed error) error {
	if failed == nil {
		n.host.handOver(n.entry)
		return n.entry.End()
	}
	if n.entry.Operation == nil { // only the lock was taken
		return errors.Join(failed, n.entry.Forget())
	}
	// Only a death after the commit is healed forward; what has failed is
	// not to be left behind.
	n.entry.Operation.Step, n.entry.Operation.Kept = "", time.Time{}
	if err := n.host.undo(n.entry); err != nil {
		return errors.Join(failed, fmt.Errorf("clean up after the failed %s: %w", op, err))
	}
	return failed
}

// prepareGuest hands a whole operating system its cgroup subtree and the
// settings in /run that it needs, before its init runs.
func (n *nascent) prepareGuest() error {
	init := n.spec.Annotations[annotationGuest]
	if init == "" {
		return nil
	}
	st, err := n.lc.State()
	if err != nil {
		return err
	}
	uid, gid, err := rootIDs(n.config)
	if err != nil {
		return err
	}
	if path := st.CgroupPaths[""]; path != "" {
		if err := cgroup.Delegate(path, uid, gid); err != nil {
			return fmt.Errorf("delegate cgroup: %w", err)
		}
	} else if guest.Init(init) == guest.Systemd {
		// It would be the host's tree that the guest sees, and may not change.
		return withHint("mount -t cgroup2 none /sys/fs/cgroup/unified", "%w: the guest's systemd needs cgroup2, which is mounted nowhere on this host", ErrUnsupported)
	}
	if err := guest.Install(st.InitProcessPid, uid, gid, guest.DropIns(guest.Init(init))); err != nil {
		return fmt.Errorf("prepare the guest's /run: %w", err)
	}
	if err := n.identify(st.InitProcessPid, uid, gid); err != nil {
		return err
	}
	if err := guest.KeepHostname(guest.Init(init), n.spec.Hostname, st.InitProcessPid, uid, gid); err != nil {
		return fmt.Errorf("write /etc/hostname of the guest: %w", err)
	}
	n.host.registerMachine(n.id, st.InitProcessPid, containerUUID(n.spec), n.config.Rootfs)
	return nil
}

// rootIDs returns the host's ids of the container's root.
func rootIDs(config *configs.Config) (uid, gid int, err error) {
	if uid, err = config.HostRootUID(); err != nil {
		return 0, 0, err
	}
	gid, err = config.HostRootGID()
	return uid, gid, err
}
