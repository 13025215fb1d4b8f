package guest

import (
	"errors"
	"fmt"
	"math"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations that [Spec] writes. The bundle is the truth about a container,
// so everything a later verb has to know about the guest stands in it.
const (
	// AnnotationRootfs says how the rootfs meets the user namespace. "idmap":
	// files keep their un-shifted owners on disk (0 is root) and the runtime
	// mounts the rootfs id-mapped.
	AnnotationRootfs = "org.vzrun.rootfs"
	// AnnotationGuest holds the [Init] of the guest.
	AnnotationGuest = "org.vzrun.guest"
)

const (
	// minIDs is how many ids a guest needs at least: 0 to 65535, because
	// nobody is 65534 and dynamic users of systemd are 61184 to 65519.
	minIDs = 65536
	// minRAM is below what any init starts in. It catches "512" that was
	// meant as 512 MiB.
	minRAM = 16 << 20
	// pidsLimit keeps a fork bomb inside one guest (a task costs the host
	// about 20 KiB of kernel memory) and is what a 32-bit machine has in all.
	// systemd derives its DefaultTasksMax (15 %) from it.
	pidsLimit = 32768
	// cpuPeriod is the CFS period in microseconds, the kernel's default
	// (Documentation/scheduler/sched-bwc.rst).
	cpuPeriod = 100000
	// minCPUs gives a quota of 1 ms, the smallest that the kernel accepts.
	minCPUs = 0.01
)

// SpecOptions is what distinguishes one guest's config.json from another's.
type SpecOptions struct {
	Rootfs   string    // root.path as it is to stand in config.json; relative to the bundle or absolute. Required.
	Hostname string    // 1 to 64 bytes of letters, digits, '.', '-' and '_'; empty leaves the choice to the guest's /etc/hostname
	Init     Init      // as Detect returned it; empty counts as Unknown
	InitPath string    // absolute path of the init in the guest, as Detect returned it. Required.
	RAM      int64     // bytes of memory, at least 16 MiB; 0 = no limit
	Swap     int64     // bytes of swap beyond RAM; 0 = no limit, negative = none at all; not 0 needs RAM
	CPUs     float64   // CPU time per wall time, e.g. 1.5; at least 0.01; 0 = no limit
	IDBase   uint32    // host uid and gid of the guest's root. Required, never 0.
	IDSize   uint32    // ids in the range, at least 65536; 0 = 65536
	Features []Feature // goes into an annotation; [Open] acts on it when the container is made
	UUID     string    // becomes the machine-id of a guest that has none: 32 hex digits, dashes allowed; empty = the guest invents one
	Identify bool      // UUID becomes the machine-id also of a guest that has one; systemd alone does that
	// DNS, Hosts and Lxcfs are values of annotations, "" = not set.
	DNS, Hosts, Lxcfs string
}

// containerName is how an init is told what kind of container it is in.
const containerName = "vzrun"

// Spec returns the OCI config.json of a whole operating system that can be
// checkpointed. It reads nothing but its argument. The result follows
// systemd's container interface (https://systemd.io/CONTAINER_INTERFACE), which
// other inits are content with, and asks for nothing that a host without
// CAP_SYS_RESOURCE must refuse: no rlimits, no oom_score_adj.
//
// An error names the option that is missing or out of range.
func Spec(o SpecOptions) (*specs.Spec, error) {
	if o.IDSize == 0 {
		o.IDSize = minIDs
	}
	if o.Init == "" {
		o.Init = Unknown
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Hostname:    o.Hostname,
		Root:        &specs.Root{Path: o.Rootfs},
		Process:     process(o),
		Mounts:      mounts(o.RAM),
		Annotations: annotations(o),
		Linux:       linux(o),
	}
	if len(o.Features) > 0 {
		s.Annotations[AnnotationFeatures] = FormatFeatures(o.Features)
	}
	return s, nil
}

func annotations(o SpecOptions) map[string]string {
	all := map[string]string{AnnotationRootfs: "idmap", AnnotationGuest: string(o.Init)}
	for key, value := range map[string]string{AnnotationDNS: o.DNS, AnnotationHosts: o.Hosts, AnnotationLxcfs: o.Lxcfs} {
		if value != "" {
			all[key] = value
		}
	}
	return all
}

func (o SpecOptions) validate() error {
	switch {
	case o.Rootfs == "":
		return errors.New("rootfs: empty")
	case !path.IsAbs(o.InitPath):
		return fmt.Errorf("init path %q: not absolute", o.InitPath)
	case !validHostname(o.Hostname):
		return fmt.Errorf("hostname %q: want 1 to 64 letters, digits, '.', '-' or '_'", o.Hostname)
	case o.IDBase == 0:
		return errors.New("id base 0: would make the guest's root the host's root")
	case o.IDSize < minIDs:
		return fmt.Errorf("id size %d: a full system needs at least %d", o.IDSize, minIDs)
	case uint64(o.IDBase)+uint64(o.IDSize) > math.MaxUint32:
		// The last id, 2^32-1, means "no id" to the kernel.
		return fmt.Errorf("ids %d+%d: beyond the kernel's range", o.IDBase, o.IDSize)
	case o.RAM != 0 && o.RAM < minRAM:
		return fmt.Errorf("ram %d bytes: want at least %d, or 0 for no limit", o.RAM, minRAM)
	case o.Swap != 0 && o.RAM == 0:
		return errors.New("swap: needs a ram limit")
	case o.Swap > math.MaxInt64-o.RAM:
		return fmt.Errorf("swap %d bytes: too large", o.Swap)
	case o.CPUs != 0 && (!(o.CPUs >= minCPUs) || o.CPUs > math.MaxInt32):
		return fmt.Errorf("cpus %v: want at least %v, or 0 for no limit", o.CPUs, minCPUs)
	case o.UUID != "" && !validUUID(o.UUID):
		return fmt.Errorf("uuid %q: want 32 hex digits", o.UUID)
	case o.Lxcfs != "" && o.Lxcfs != "auto" && o.Lxcfs != "no" && !path.IsAbs(o.Lxcfs):
		return fmt.Errorf("lxcfs %q: want auto, no or an absolute path", o.Lxcfs)
	}
	if _, err := ParseDNS(o.DNS); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	if _, err := ParseHosts(o.Hosts); err != nil {
		return fmt.Errorf("hosts: %w", err)
	}
	return nil
}

// validHostname follows sethostname(2) for the length and hostname(7) for the
// characters, with '_' because Linux and systemd take it.
func validHostname(s string) bool {
	if len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return s == "" || s[0] != '.' && s[0] != '-'
}

// validUUID takes what systemd takes: plain, or dashed as in RFC 9562.
func validUUID(s string) bool {
	digits := 0
	for i, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			digits++
		case c == '-' && len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23):
		default:
			return false
		}
	}
	return digits == 32
}

func process(o SpecOptions) *specs.Process {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		// The kernel gives an init these two (init/main.c).
		"HOME=/",
		"TERM=linux",
		// Container interface: tells the init and ConditionVirtualization= where they are.
		"container=" + containerName,
		// Keeps PID 1 from opening a pressure-stall trigger. CRIU reopens such a
		// file without its trigger, and PID 1 then spins on EPOLLPRI.
		"MEMORY_PRESSURE_WATCH=/dev/null",
		"CPU_PRESSURE_WATCH=/dev/null",
		"IO_PRESSURE_WATCH=/dev/null",
	}
	if o.UUID != "" {
		env = append(env, "container_uuid="+o.UUID)
	}
	args := []string{o.InitPath}
	if o.Init == Systemd && o.Hostname != "" {
		// In a container systemd reads its own arguments as the kernel's command
		// line (systemd(1)). Without this the guest's /etc/hostname would win.
		args = append(args, "systemd.hostname="+o.Hostname)
	}
	if o.Init == Systemd && o.Identify && o.UUID != "" {
		// Likewise: systemd writes it to /etc/machine-id in place of what is there.
		args = append(args, "systemd.machine_id="+strings.ToLower(strings.ReplaceAll(o.UUID, "-", "")))
	}
	caps := capabilities()
	return &specs.Process{
		Args: args,
		Env:  env,
		Cwd:  "/",
		// No NoNewPrivileges: su, sudo and ping of the guest are set-uid.
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}

// mounts are those of the container interface: /proc, /sys (read-only, which
// keeps udev away), /dev, /dev/pts, /dev/shm, /run and the guest's own cgroup
// tree. /tmp and /run/lock are left to the guest, which knows its own policy.
func mounts(ram int64) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		// Type cgroup2, not cgroup: on a v1-hybrid host libcontainer makes v1
		// mounts of "cgroup", while "cgroup2" goes to mount(2) as it stands. In
		// the guest's cgroup namespace it shows the guest's subtree on both kinds of host.
		{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup2", Options: []string{"nosuid", "noexec", "nodev", "rw"}},
		// Sizes are systemd's own (tmpfs pages count against the guest's RAM).
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=4m", "nr_inodes=64k"}},
		// gid 5 is tty on every distribution; 0666 lets any user open /dev/ptmx.
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "gid=5", "mode=620", "ptmxmode=0666"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", tmpfsSize(ram, 2), "nr_inodes=1m"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "strictatime", "mode=755", tmpfsSize(ram, 5), "nr_inodes=800k"}},
	}
}

// tmpfsSize is one part in n of the guest's memory. Per cent would be of the
// host's memory, so they are only used for a guest that may take all of it.
func tmpfsSize(ram int64, n int64) string {
	if ram == 0 {
		return "size=" + strconv.FormatInt(100/n, 10) + "%"
	}
	return "size=" + strconv.FormatInt(ram/n/4096*4, 10) + "k"
}

func linux(o SpecOptions) *specs.Linux {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: o.IDBase, Size: o.IDSize}}
	return &specs.Linux{
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.UserNamespace},
			{Type: specs.PIDNamespace},
			// Not shared and created inside the user namespace, else the kernel refuses the sysfs mount.
			{Type: specs.NetworkNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.CgroupNamespace},
		},
		UIDMappings: ids,
		GIDMappings: ids,
		Resources:   resources(o),
		Seccomp:     seccomp(runtime.GOARCH),
		// Nothing mounted on the host later may appear in the guest: CRIU could
		// not dump it. (systemd makes / shared inside the guest, for itself.)
		RootfsPropagation: "rprivate",
		// MaskedPaths and ReadonlyPaths stay empty. All that they hide in an
		// application container (kcore, sysrq-trigger, host-wide sysctls, ACPI
		// tables) belongs to the host's root, who has no id in the guest; each
		// mask would be one more external mount in every checkpoint, and a
		// masked /proc makes the kernel refuse fresh ones to services and
		// containers inside the guest (mnt_already_visible).
	}
}

func resources(o SpecOptions) *specs.LinuxResources {
	pids := int64(pidsLimit)
	r := &specs.LinuxResources{
		// libcontainer adds null, zero, full, random, urandom, tty, console, ptmx
		// and pts. A user namespace cannot make device nodes, so this list is
		// the second line of defence.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if o.RAM != 0 {
		ram := o.RAM
		r.Memory = &specs.LinuxMemory{Limit: &ram}
		if o.Swap != 0 {
			// The specification counts memory and swap together.
			total := o.RAM + max(o.Swap, 0)
			r.Memory.Swap = &total
		}
	}
	if o.CPUs != 0 {
		period, quota := uint64(cpuPeriod), int64(math.Round(o.CPUs*cpuPeriod))
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	return r
}
