package libvz

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// Features returns what this runtime can do, in the runtime specification's
// format (features.md there). It looks at nothing on the host.
func Features() *features.Features {
	yes := true
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         configs.KnownHookNames(),
		MountOptions:  mountOptions(),
		Annotations: map[string]string{
			"org.vzrun.checkpoint": "true",
			// What may be mounted at root.path, by the annotation that says so.
			"org.vzrun.rootfs.kinds": "directory,overlay,image",
			// Names that the annotation of that name knows in config.json.
			annotationFeatures: strings.Join(guest.Features(), ","),
			// The kinds of interfaces that the annotation may name.
			annotationNet: "bridge,routed,cni",
			// Engines ask it by this name before they offer checkpoints.
			"org.opencontainers.runc.checkpoint.enabled": "true",
		},
		Linux: &features.Linux{
			Namespaces:      specconv.KnownNamespaces(),
			Capabilities:    capabilities.KnownCapabilities(),
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy:    &features.MemoryPolicy{Modes: specconv.KnownMemoryPolicyModes(), Flags: specconv.KnownMemoryPolicyFlags()},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"bundle", "org.systemd.property.", "org.vzrun."},
	}
	if seccomp.Enabled {
		f.Linux.Seccomp = &features.Seccomp{
			Enabled: &yes, Actions: seccomp.KnownActions(), Operators: seccomp.KnownOperators(),
			Archs: seccomp.KnownArchs(), KnownFlags: seccomp.KnownFlags(), SupportedFlags: seccomp.SupportedFlags(),
		}
		major, minor, patch := seccomp.Version()
		f.Annotations["io.github.seccomp.libseccomp.version"] = fmt.Sprintf("%d.%d.%d", major, minor, patch)
	}
	return f
}

// mountOptions are those that libcontainer names and those that it only knows.
func mountOptions() []string {
	options := append(specconv.KnownMountOptions(), "idmap", "ridmap")
	slices.Sort(options)
	return slices.Compact(options)
}
