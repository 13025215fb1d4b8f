// Package doctor says of a host what it can do for containers and their
// checkpoints, what it cannot, what that means and what to do.
//
// It hides how each ability shows. Probe tries each out for real, in namespaces
// and on descriptors of its own, so that nothing of the host is changed; Judge,
// which is pure, says what the results mean. Versions are not compared.
package doctor

import "fmt"

// States of a finding.
const (
	OK       = "ok"
	Degraded = "degraded" // works in part
	Missing  = "missing"
)

// Result is what a probe has found.
type Result struct {
	// Err says why it does not work, Partly why not all of it does; nil = it does.
	Err, Partly error
	// Found is what there is, in words.
	Found string
}

// Finding is a Result with its meaning.
type Finding struct {
	Name, State, Found string
	// Means and Remedy are empty where State is OK.
	Means, Remedy string
	// Required says that nothing works without it.
	Required bool
}

// ability is one row of what is judged.
type ability struct {
	name     string
	required bool
	means    string // what follows if it is missing, or there in part
	remedy   string
}

// Names of what is probed, in the order in which it is told.
func abilities() []ability {
	return []ability{
		{"user", true, "containers with ids of their own, and checkpoints, are made by root only", "run vzrun as root"},
		{"capabilities", true, "containers cannot be made or saved", "run vzrun with all capabilities (outside a restricted container)"},
		{"CAP_SYS_RESOURCE", false, "raised limits, a negative oom_score_adj and large pipes are not granted; vzrun lowers them and says so", "grant that capability to vzrun"},
		{"kernel", true, "vzrun uses system calls that are not there", "use a newer kernel, or a seccomp profile that lets them pass"},
		{"namespaces", true, "containers cannot be isolated", "use a kernel with CONFIG_PID_NS, CONFIG_UTS_NS, CONFIG_IPC_NS and CONFIG_NET_NS"},
		{
			"user namespaces", true, "whole operating systems (spec --system) are not started, nor checkpointed where CAP_SYS_RESOURCE is missing",
			"raise user.max_user_namespaces; use a kernel with CONFIG_USER_NS",
		},
		{"time namespaces", false, "clocks jump at a restore", "use a kernel with CONFIG_TIME_NS"},
		{"id-mapped mounts", false, "root file systems there must be owned by the container's ids; images are given to the guest's root", "put them on ext4, xfs, btrfs or tmpfs"},
		{"overlay", false, "templates (spec --template) do not work, or watches of files in them prevent a checkpoint", "use a kernel with CONFIG_OVERLAY_FS, and index=on,nfs_export=on for overlays of your own"},
		{"loop devices", false, "images (spec --image) do not work", "load the module loop; give vzrun access to /dev/loop-control"},
		{"cgroups", true, "containers cannot be limited, counted or frozen", "mount cgroup2 at /sys/fs/cgroup"},
		{"pressure (PSI)", false, "vzrun top and guests know no pressure", "boot with psi=1"},
		{"seccomp", true, "system calls that CRIU cannot save are not kept from guests", "use a kernel with CONFIG_SECCOMP_FILTER"},
		{"AppArmor", false, "containers have no AppArmor profile", "nothing, unless your policy asks for it"},
		{"veth and bridges", false, "containers have no network interfaces of their own (run --net)", "load the modules veth and bridge"},
		{"nftables", true, "CRIU cannot lock the network of a container while it is saved; vzrun does not filter", "load the module nf_tables"},
		{"criu", true, "no checkpoint, restore or clone", "install CRIU 4.2 or newer (contrib/bootstrap --runtime does), or name one with --criu"},
		{"criu check", true, "CRIU cannot work with this kernel", "run `criu check` to see what it misses; use a kernel with CONFIG_CHECKPOINT_RESTORE"},
		{"soft-dirty", false, "no pre-dumps and incremental checkpoints (--pre-dump, --parent-path), no lazy-migrate --mode pre-copy or hybrid", "use a kernel with CONFIG_MEM_SOFT_DIRTY; else take whole checkpoints"},
		{"userfaultfd", false, "no restore that brings memory when it is asked for (lazy pages)", "set vm.unprivileged_userfaultfd=1, or provide /dev/userfaultfd"},
		{"pipe size", false, "lazy pages fail, and dumps of much memory are slower", "set fs.pipe-max-size to 4194304 or more, or grant CAP_SYS_RESOURCE"},
		{"/run", false, "what is there outlives a reboot, and the state of containers must not; CRIU used by itself looks at the kernel anew each time", "mount a tmpfs at /run"},
		{"lxcfs", false, "guests see the host's memory and processors in /proc instead of their own", "install and start lxcfs"},
		{"systemd", false, "no systemd cgroup driver (--systemd-cgroup), no units (vzrun@.service)", "nothing, unless you want them"},
		{"machined", false, "containers are not listed by machinectl", "install systemd-container, where systemd manages the host"},
		{"subordinate ids", false, "ranges of ids are taken from where no record says that they are free", "give user vzrun ids in /etc/subuid and /etc/subgid"},
		{"newuidmap", false, "users other than root have one id in their containers", "install uidmap (newuidmap and newgidmap)"},
	}
}

// Judge says what the results mean, in a fixed order. What was not probed is not
// told.
func Judge(results map[string]Result) []Finding {
	var out []Finding
	for _, a := range abilities() {
		r, ok := results[a.name]
		if !ok {
			continue
		}
		f := Finding{Name: a.name, State: OK, Found: r.Found, Required: a.required}
		for _, wrong := range []struct {
			err   error
			state string
		}{{r.Partly, Degraded}, {r.Err, Missing}} {
			if wrong.err == nil {
				continue
			}
			f.State, f.Means, f.Remedy = wrong.state, a.means, a.remedy
			if f.Found = wrong.err.Error(); r.Found != "" {
				f.Found = fmt.Sprintf("%s; %v", r.Found, wrong.err)
			}
		}
		out = append(out, f)
	}
	return out
}
