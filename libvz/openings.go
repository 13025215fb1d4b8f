package libvz

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// annotationFeatures lists what a container is allowed beyond the default.
const annotationFeatures = guest.AnnotationFeatures

// GuestFeatures returns the names that the annotation org.vzrun.features knows.
func GuestFeatures() []string { return guest.Features() }

// featuresOf reads annotationFeatures.
func featuresOf(annotations map[string]string) ([]guest.Feature, error) {
	list, err := guest.ParseFeatures(annotations[annotationFeatures])
	if err != nil {
		return nil, featureError("annotation "+annotationFeatures+": ", err)
	}
	return list, nil
}

// featureError gives an error of package guest its hint.
func featureError(prefix string, err error) error {
	var fe *guest.FeatureError
	if errors.As(err, &fe) {
		return withHint(fe.Remedy, "%s%w", prefix, err)
	}
	return err
}

// openFeatures changes the configuration of a container that is being made to
// have its features. The device nodes that they need come later, see makeNodes.
func (n *nascent) openFeatures() error {
	list, err := featuresOf(n.spec.Annotations)
	if err != nil {
		return err
	}
	n.nodes, err = guest.Open(n.spec, list)
	if err != nil {
		return featureError("", err)
	}
	for _, node := range n.nodes {
		if unprivileged() {
			return withHint("run it as root, or leave the feature out", "%w: feature %q needs a device node, which user id %d may not make", ErrUnsupported, node.Feature, os.Geteuid())
		}
		if err := checkNode(node); err != nil {
			return err
		}
	}
	return nil
}

// checkNode compares a device with the host's, since a node without a driver
// would only fail in the guest.
func checkNode(n guest.Node) error {
	var st unix.Stat_t
	err := unix.Stat(n.Path, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != n.Device()) {
		err = fmt.Errorf("%s is not the device %d:%d", n.Path, n.Major, n.Minor)
	} else if err != nil {
		err = &os.PathError{Op: "stat", Path: n.Path, Err: err}
	}
	if err != nil {
		return withHint("on the host: modprobe "+n.Module+"; or leave the feature out", "%w: feature %q: this host lacks its device: %w", ErrUnsupported, n.Feature, err)
	}
	return nil
}

// makeNodes makes the device nodes for a container and mounts each over the
// host's, for the calling thread's private mounts: there the container's mounts
// find them, and CRIU, which opens what it needs as the guest's root. The nodes
// are the guest's own, so that its root can give them to others; nothing of the
// host's /dev is shown to it, nor do the modes there count.
func (n *nascent) makeNodes() error {
	if len(n.nodes) == 0 {
		return nil
	}
	uid, gid, err := rootIDs(n.config)
	if err != nil {
		return err
	}
	// On the rootfs for this moment, as a place that is there for sure.
	dir := n.config.Rootfs
	if err := unix.Mount("vzrun", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k,nr_inodes=64"); err != nil {
		return fmt.Errorf("device nodes: mount tmpfs: %w", err)
	}
	for _, node := range n.nodes {
		if err := makeNode(filepath.Join(dir, node.File), node, uid, gid); err != nil {
			return fmt.Errorf("device node for %s: %w", node.Path, err)
		}
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("device nodes: umount tmpfs: %w", err)
	}
	return nil
}

func makeNode(path string, n guest.Node, uid, gid int) error {
	if err := unix.Mknod(path, unix.S_IFCHR|n.Mode, int(n.Device())); err != nil {
		return os.NewSyscallError("mknod", err)
	}
	// Whatever our own mask is.
	if err := unix.Chmod(path, n.Mode); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	if err := unix.Lchown(path, uid, gid); err != nil {
		return os.NewSyscallError("chown", err)
	}
	return os.NewSyscallError("mount", unix.Mount(path, n.Path, "", unix.MS_BIND, ""))
}

// sameFeatures compares what two configurations are allowed.
func sameFeatures(a, b *specs.Spec) (bool, error) {
	one, err := featuresOf(a.Annotations)
	if err != nil {
		return false, err
	}
	other, err := featuresOf(b.Annotations)
	return err == nil && guest.FormatFeatures(one) == guest.FormatFeatures(other), err
}
