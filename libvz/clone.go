package libvz

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/guest"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// CloneOptions of Clone; the zero value is ready for use.
type CloneOptions struct {
	RestoreOptions // without Spec, LazyPages and PageServer; TCPEstablished keeps nothing, see Clone
	// Bundle is the directory that is made for the clone, which must not be
	// there; "" = one beside the record of ids, which Delete removes.
	Bundle string
	// Hostname is that of the clone; "" = its id, as far as that is one.
	Hostname string
	// MachineID is 32 hex digits; "" or "new" makes one.
	MachineID string
	// Net are the clone's network interfaces, as in CreateOptions, by their
	// names in the container. Those that are not named stay on the bridge that
	// they were on, with a new MAC and without addresses.
	Net []string
	// ShareMemory lets the kernel merge equal pages of the clone with those of
	// others (KSM). How fast an access is then tells a guest what others have
	// in memory.
	ShareMemory bool
}

// Clone makes a new container from the images of a checkpoint, beside its
// origin and other clones: with a bundle, a root above the frozen one of its
// origin (of an image a copy of it), ids, a cgroup, a host name, a machine-id, MACs and addresses of its
// own. No task of it runs before it has them. Connections of the origin are
// closed ones in the clone. The images and the origin's root are only read; the
// latter must be as it was at the checkpoint, and is marked, so that nothing
// runs on it as long as a clone does.
//
// Errors wrap ErrExist, ErrInvalidID, ErrBusy, ErrUnsupported or ErrRefused (the
// origin's root is in use, or has changed) as they fit. On an error nothing is
// left behind.
func (h *Host) Clone(ctx context.Context, id, images string, o CloneOptions) (*Container, *Stats, error) {
	begun := time.Now()
	r, err := h.prepareClone(ctx, id, images, o)
	if err != nil {
		return nil, nil, fail("clone", id, err)
	}
	defer r.entry.Close()
	defer r.locks.Close()
	stats, err := r.restore(ctx)
	if err == nil {
		r.clone.renewing = r.clone.renew(ctx, r.container(), r.pid)
	} else if err = r.clone.explain(err); o.WorkPath == "" && errors.As(err, new(*criu.Error)) {
		err = keepLogHint(err)
	}
	if err = r.settle("restore", err); err != nil {
		return nil, nil, fail("clone", id, err)
	}
	stats.Restore = time.Since(begun)
	r.settleInSoon(ctx, nil)
	return r.container(), stats, nil
}

// keepLogHint says how to have CRIU's log, which goes with the clone's bundle,
// where there is no better advice.
func keepLogHint(err error) error {
	var h *hinted
	if errors.As(err, &h) && h.hint != "" {
		return err
	}
	return withHint("--work-path DIR keeps CRIU's log", "%w", err)
}

// CheckpointSpec returns the configuration of the container that a checkpoint was
// taken of.
func CheckpointSpec(images string) (*specs.Spec, error) {
	_, m, _, err := openCheckpoint(images)
	if err != nil {
		return nil, err
	}
	return m.Spec, nil
}

// cloning is what of a revival is a clone's.
type cloning struct {
	generation string // a new one for each clone
	machineID  string // "" = it keeps none
	bundle     string
	oldUUID    string
	oldName    string
	net        vnet.Cloned
	dns        guest.DNS // the zero value leaves what its origin had
	share      bool
	briefLog   bool // of CRIU, which goes with the bundle
	renewing   bool // the guest has been asked to make anew what must be unique
	// unchanged waits for the answer to whether the origin's root is as it was; nil
	// where the clone has a copy of it.
	unchanged func() error
}

// explain says that the origin's root has changed where a clone failed since, or
// although, it has. Nobody reads the root after that.
func (cl *cloning) explain(err error) error {
	if cl.unchanged == nil {
		return err
	}
	if changed := cl.unchanged(); errors.Is(changed, ErrRefused) {
		return changed
	}
	return err
}

// prepareClone makes the bundle of a clone, journalled, and checks everything
// that can be checked before that.
func (h *Host) prepareClone(ctx context.Context, id, images string, o CloneOptions) (_ *revival, retErr error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	if err := CheckID(id); err != nil {
		return nil, err
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
	if o.LazyPages || o.PageServer != "" {
		return nil, withHint("leave it out", "%w: a clone whose memory comes later", ErrUnsupported)
	}
	if err := m.checkMemory(images, o.RestoreOptions); err != nil {
		return nil, err
	}
	cl, err := h.planClone(id, o, m)
	if err != nil {
		return nil, err
	}
	root, err := frozenRootOf(m.Spec)
	if err != nil {
		return nil, err
	}
	spec, err := cl.spec(id, m, root, o)
	if err != nil {
		return nil, err
	}
	entry, err := h.claim(id)
	if err != nil {
		return nil, err
	}
	r := &revival{nascent: nascent{host: h, id: id, bundle: cl.bundle, entry: entry}, clone: cl, locks: locks}
	defer func() {
		if retErr != nil {
			retErr = r.settle("clone", cl.explain(retErr))
			entry.Close()
		}
	}()
	if err := entry.Begin(store.Operation{Name: "restore", Made: cl.bundle, MadeFor: cl.generation, Renew: true}); err != nil {
		return nil, err
	}
	if err := h.makeCloneBundle(id, cl.bundle, cl.generation, spec); err != nil {
		return nil, err
	}
	if root.image != "" {
		err = h.copyImage(ctx, id, root.image, cl.bundle)
	} else if err = h.freeze(root, m); err == nil {
		cl.unchanged = root.unchanged(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	return r, h.completeClone(ctx, r, images, chain, m, o)
}

// completeClone goes on as a restore does, with the bundle that is there now.
func (h *Host) completeClone(ctx context.Context, r *revival, images string, chain []string, m *manifest, o CloneOptions) error {
	spec, _, err := loadSpec(r.bundle)
	if err != nil {
		return err
	}
	if err := bringLxcfs(m.Spec, spec); err != nil {
		return err
	}
	if hasNotify(m.Spec) {
		h.offerNotify(r.id, spec)
	}
	ro := o.RestoreOptions
	if ro.WorkPath == "" {
		// Nobody sees the log there, as it goes with the clone.
		ro.WorkPath, r.clone.briefLog = filepath.Join(r.bundle, "criu"), true
	}
	entry, cl := r.entry, r.clone
	if err := h.planCloneNetwork(r.id, spec, m, cl, o); err != nil {
		return err
	}
	links, err := placeLinks(cl.net.Links, o.Veth)
	if err != nil {
		return err
	}
	cl.net.Nets = vnet.Follow(cl.net.Nets, cl.net.Links, links)
	recordNetwork(spec, vnet.FormatNets(cl.net.Nets))
	if err := h.planCloneDNS(r.id, spec, cl, o); err != nil {
		return err
	}
	full, err := h.newRevival(ctx, r.id, r.bundle, spec, images, chain, m, links, ro)
	if err != nil {
		return err
	}
	full.entry, full.clone, full.locks = entry, cl, r.locks
	*r = *full
	return nil
}

// planClone decides who the clone is to be.
func (h *Host) planClone(id string, o CloneOptions, m *manifest) (*cloning, error) {
	cl := &cloning{oldUUID: containerUUID(m.Spec), oldName: m.Spec.Hostname, share: o.ShareMemory}
	if o.ShareMemory {
		if err := h.checkMerging(id); err != nil {
			return nil, err
		}
	}
	var err error
	if cl.generation, err = newMachineID(); err != nil {
		return nil, err
	}
	switch {
	case o.MachineID == "" || o.MachineID == "new":
		if cl.machineID, err = newMachineID(); err != nil {
			return nil, err
		}
	case guest.ValidMachineID(o.MachineID):
		cl.machineID = strings.ToLower(o.MachineID)
	default:
		return nil, withHint("write new, or 32 hex digits", "machine-id: %q is neither", o.MachineID)
	}
	cl.bundle = filepath.Join(h.clones(), id)
	if o.Bundle != "" {
		if cl.bundle, err = filepath.Abs(o.Bundle); err != nil {
			return nil, err
		}
	}
	return cl, nil
}

func (h *Host) planCloneNetwork(id string, spec *specs.Spec, m *manifest, cl *cloning, o CloneOptions) error {
	had, err := parseNets(m.Spec.Annotations[annotationNet])
	if err != nil {
		return err
	}
	text, err := JoinNets(o.Net)
	if err != nil {
		return err
	}
	wanted, err := parseNets(text)
	if err != nil {
		return err
	}
	if cl.net, err = vnet.Clone(m.Links, had, wanted, id, h.macSeed(spec)); err != nil {
		return withHint("the guest had these links: "+linkNames(m.Links)+"; name= tells which is meant", "%w", err)
	}
	if slices.Equal(o.Net, []string{noNet}) {
		cl.net.Nets = nil
		for i := range cl.net.Links {
			l := &cl.net.Links[i]
			l.Master, l.Up, l.VLANs, l.Hairpin, l.Isolated = "", false, nil, false, false
		}
	}
	return nil
}

// planCloneDNS decides on name servers where an interface of the clone has been
// given some; else its root and its memory hold those of its origin.
func (h *Host) planCloneDNS(id string, spec *specs.Spec, cl *cloning, o CloneOptions) error {
	text, err := JoinNets(o.Net)
	if err != nil {
		return err
	}
	wanted, err := parseNets(text)
	if err != nil || len(vnet.DNS(wanted)) == 0 {
		return err
	}
	if err := checkDNS(spec, wanted); err != nil {
		return err
	}
	nets, err := parseNets(spec.Annotations[annotationNet])
	if err != nil {
		return err
	}
	cl.dns, err = h.dnsOf(id, spec, nets)
	return err
}

// becomeClone makes the container that CRIU has just restored the clone that it is to
// be. None of its tasks runs.
func (r *revival) becomeClone(pid int) error {
	cl := r.clone
	if cl.unchanged != nil {
		if err := cl.unchanged(); err != nil {
			return err
		}
	}
	if len(cl.net.MACs) > 0 && ownsNamespace(r.spec, specs.NetworkNamespace) {
		if err := inNetworkOf(pid, func() error { return vnet.Readdress(cl.net.MACs, cl.net.Nets) }); err != nil {
			return fmt.Errorf("network: %w", explainNet(err))
		}
	}
	if ownsNamespace(r.spec, specs.UTSNamespace) {
		if err := nameHost(pid, r.spec.Hostname); err != nil {
			return err
		}
	}
	if cl.machineID != "" && cl.oldUUID != "" {
		if err := replaceInMemory(pid, cl.oldUUID, containerUUID(r.spec)); err != nil {
			return fmt.Errorf("container_uuid of the guest's init: %w", err)
		}
	}
	if !hasTmpfs(r.spec, "/run") {
		return nil
	}
	uid, gid, err := rootIDs(r.config)
	if err != nil {
		return err
	}
	_, files := cl.dns.Files()
	files = append(files, guest.CloneFiles(guest.CloneInfo{
		ID: r.id, Generation: cl.generation, Hostname: r.spec.Hostname, UUID: containerUUID(r.spec),
		Init: guest.Init(r.spec.Annotations[annotationGuest]),
	})...)
	if err := guest.Install(pid, uid, gid, files); err != nil {
		return fmt.Errorf("tell the guest that it is a clone: %w", err)
	}
	return nil
}
