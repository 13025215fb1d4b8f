package guest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// AnnotationFeatures lists what a container is allowed beyond the default, by
// names with commas between them, see [ParseFeatures].
const AnnotationFeatures = "org.vzrun.features"

// Feature is a name for one opening of a container.
type Feature string

// nesting lets container engines run inside. All that it needs is in [Open].
const nesting Feature = "nesting"

// Node is a device of the host that a feature gives to a guest, as a node of
// the guest's own at the same place.
type Node struct {
	Feature      Feature
	Path         string // absolute, on the host and in the guest
	File         string // a name without slashes, unlike that of every other node
	Major, Minor uint32 // Documentation/admin-guide/devices.txt
	Mode         uint32 // permissions, those that udev gives it on a host
	Module       string // of the kernel
}

// opening is what a feature consists of.
type opening struct {
	nodes []Node
	calls []string // system calls that the profile of [Spec] refuses
}

func openings() map[Feature]opening {
	node := func(f Feature, path string, major, minor, mode uint32, module string) opening {
		return opening{nodes: []Node{{f, path, string(f), major, minor, mode, module}}}
	}
	return map[Feature]opening{
		nesting:    {},
		"fuse":     node("fuse", "/dev/fuse", 10, 229, 0o666, "fuse"),
		"tun":      node("tun", "/dev/net/tun", 10, 200, 0o666, "tun"),
		"ppp":      node("ppp", "/dev/ppp", 108, 0, 0o600, "ppp_generic"),
		"kvm":      node("kvm", "/dev/kvm", 10, 232, 0o666, "kvm"),
		"keyctl":   {calls: []string{"add_key", "keyctl", "request_key"}},
		"io_uring": {calls: []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}},
	}
}

// noFeature says of names that other systems know why they are none here.
func noFeature() map[string]struct{ why, remedy string } {
	there := struct{ why, remedy string }{"every guest may do that already", "leave it out"}
	return map[string]struct{ why, remedy string }{
		"bridge": there, "sit": there, "ipip": there, "ipgre": there, "sysfs": there,
		// No FS_USERNS_MOUNT in the kernel's fs/nfs.
		"nfs":   {"the kernel lets only the host's root mount NFS", "mount it on the host and add a bind mount of it to config.json, or use a FUSE client with the feature fuse"},
		"nfsd":  {"the kernel's NFS server is the host's", "run one that is a program, such as nfs-ganesha"},
		"loop":  {"a loop device is one of the host's disks, and the kernel mounts none of them in a user namespace", "mount the image on the host, or use fuse2fs with the feature fuse"},
		"mknod": {"the kernel makes no device nodes in a user namespace", "add the device to linux.devices in config.json"},
	}
}

// FeatureError says what is wrong with a name in a list of features.
type FeatureError struct {
	Name, Why string
	Remedy    string // a sentence in lower case; what to do about it
}

func (e *FeatureError) Error() string { return fmt.Sprintf("feature %q: %s", e.Name, e.Why) }

// Features returns the names of all features, sorted.
func Features() []string {
	var names []string
	for f := range maps.Keys(openings()) {
		names = append(names, string(f))
	}
	slices.Sort(names)
	return names
}

// ParseFeatures reads a list with commas, sorts it and takes out what is there
// twice. Spaces around names do not count; an empty list is none. The error is a
// *FeatureError for a name that is not known.
func ParseFeatures(list string) ([]Feature, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	known := openings()
	var out []Feature
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if other, ok := noFeature()[name]; ok {
			return nil, &FeatureError{name, other.why, other.remedy}
		}
		if _, ok := known[Feature(name)]; !ok {
			return nil, &FeatureError{name, "not known", "one of: " + strings.Join(Features(), ", ")}
		}
		out = append(out, Feature(name))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// FormatFeatures is ParseFeatures' inverse.
func FormatFeatures(list []Feature) string {
	names := make([]string, 0, len(list))
	for _, f := range list {
		names = append(names, string(f))
	}
	return strings.Join(names, ",")
}

// Open changes the configuration of a container to have the features, and
// returns the device nodes that the caller has to make for it: when the container
// is mounted they must stand in the place of the host's. Whatever the
// configuration has beside them stays. The error is a *FeatureError where a
// feature cannot work with it.
func Open(spec *specs.Spec, list []Feature) ([]Node, error) {
	var out []Node
	known := openings()
	for _, f := range list {
		if f == nesting {
			if len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0 {
				return nil, &FeatureError{string(f), "needs a user namespace with mappings", "`vzrun spec --system` writes a configuration with one"}
			}
			showHidden(spec)
		}
		for _, n := range known[f].nodes {
			addNode(spec, n)
			out = append(out, n)
		}
		if calls := known[f].calls; len(calls) > 0 && spec.Linux.Seccomp != nil {
			allow(spec.Linux.Seccomp, calls)
		}
	}
	return out, nil
}

// addNode mounts a node that is made for the guest, and lets it be used. The
// rule has no "m": nodes are made outside.
func addNode(spec *specs.Spec, n Node) {
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: n.Path, Type: "bind", Source: n.Path, Options: []string{"bind", "nosuid", "noexec"},
	})
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	major, minor := int64(n.Major), int64(n.Minor)
	spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices,
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
}

// hidden is where a guest with nesting has a /proc and a /sys to which nothing
// was done. It is LXC's place: engines that look for all devices below /dev, as
// for a privileged container, know by its name to leave it out.
const hidden = "/dev/.lxc"

// showHidden adds mounts that make the kernel allow the same to containers
// inside. In a user namespace it makes a fresh procfs or sysfs only where one
// that is as open can be seen already (fs/namespace.c, mnt_already_visible), be
// it elsewhere. So /sys itself can stay read-only, which keeps udev away, and
// the masks of /proc that an engine has asked for stay, too.
//
// The order matters: all sysfs mounts of one network namespace are one file
// system, which is read-only for all of them if its first mount was; the later
// one at /sys is read-only by itself.
func showHidden(spec *specs.Spec) {
	at := func(dest string) int {
		return slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == dest })
	}
	dev, sys := at("/dev"), at("/sys")
	if sys >= 0 && dev > sys {
		m := spec.Mounts[dev]
		spec.Mounts = slices.Insert(slices.Delete(spec.Mounts, dev, dev+1), sys, m)
		dev = sys
	}
	// Between /dev, which holds the places, and /sys.
	spec.Mounts = slices.Insert(spec.Mounts, dev+1,
		specs.Mount{Destination: hidden + "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		specs.Mount{Destination: hidden + "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev"}})
}

// allow takes calls out of the refusals of a profile, and adds them to what is
// permitted where that is the exception.
func allow(profile *specs.LinuxSeccomp, calls []string) {
	var rules []specs.LinuxSyscall
	for _, rule := range profile.Syscalls {
		if rule.Action != specs.ActAllow {
			rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool { return slices.Contains(calls, name) })
		}
		if len(rule.Names) > 0 {
			rules = append(rules, rule)
		}
	}
	if profile.DefaultAction != specs.ActAllow {
		rules = append(rules, specs.LinuxSyscall{Names: calls, Action: specs.ActAllow})
	}
	profile.Syscalls = rules
}

// Device is the node's number as mknod(2) wants it.
func (n Node) Device() uint64 { return unix.Mkdev(n.Major, n.Minor) }
