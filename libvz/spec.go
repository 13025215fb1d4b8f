package libvz

import (
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// SpecOptions of SystemSpec. Only Rootfs is required.
type SpecOptions struct {
	// Rootfs is the directory of the guest's root as config.json is to
	// name it: absolute, or relative to the bundle, which is the working
	// directory.
	Rootfs, Hostname string
	// Template and Image say what is mounted at Rootfs; at most one of them.
	// Template is one or more directories, separated by ':', that the guest
	// shares with others, and writes beside; Image is a file or block
	// device with a file system. "" = Rootfs is the guest's root itself.
	// Rootfs is made where it is missing.
	Template, Image string
	// RAM and Swap are limits in bytes, Swap beyond RAM; 0 = no limit.
	RAM, Swap int64
	CPUs      float64 // CPU time per wall time; 0 = no limit
	// Features is what the guest is allowed beyond the default: names with
	// commas between them, see docs/nesting.md; "" = nothing.
	Features string
	// IDBase is the host's uid and gid of the guest's root, the first of
	// IDSize; 0 takes a range that nobody has. IDSize 0 is 65536, and no
	// less will do.
	IDBase, IDSize uint32
	// MachineID is the identity of the guest, which no other one may have: ""
	// or "new" makes one, "keep" takes the rootfs's own if it has one, else it
	// is 32 hex digits.
	MachineID string
	// DNS, Hosts and Lxcfs are values of the annotations org.vzrun.dns,
	// org.vzrun.hosts and org.vzrun.lxcfs; "" = not set.
	DNS, Hosts, Lxcfs string
	// Net are the network interfaces, as in CreateOptions.
	Net []string
}

// SystemSpec returns the configuration of a whole operating system for the
// rootfs: what its init needs to boot and CRIU to save it. The range of ids in
// it is the bundle's from now on; it is free again if the calling process ends
// and the bundle has no such configuration.
func (h *Host) SystemSpec(o SpecOptions) (*specs.Spec, error) {
	s, err := h.systemSpec(o)
	return s, fail("spec", "", err)
}

func (h *Host) systemSpec(o SpecOptions) (*specs.Spec, error) {
	dir, err := filepath.Abs(o.Rootfs)
	if err != nil {
		return nil, err
	}
	net, err := JoinNets(o.Net)
	if err != nil {
		return nil, err
	}
	annotations, err := rootAnnotations(o)
	if err != nil {
		return nil, err
	}
	found, err := lookInside(dir, annotations)
	if err != nil {
		return nil, err
	}
	features, err := guest.ParseFeatures(o.Features)
	if err != nil {
		return nil, featureError("", err)
	}
	if err := errors.Join(checkNames(o.DNS, o.Hosts), checkLxcfs(o.Lxcfs)); err != nil {
		return nil, err
	}
	uuid, replaces, err := h.chooseMachineID(o.MachineID, found)
	if err != nil {
		return nil, err
	}
	if err := h.takeIDs(&o, dir); err != nil {
		return nil, err
	}
	h.noteLxcfs(o)
	spec, err := guest.Spec(guest.SpecOptions{
		Rootfs: o.Rootfs, Hostname: o.Hostname, Init: found.init, InitPath: found.path,
		RAM: o.RAM, Swap: o.Swap, CPUs: o.CPUs, IDBase: o.IDBase, IDSize: o.IDSize,
		UUID: uuid, Identify: replaces, DNS: o.DNS, Hosts: o.Hosts, Lxcfs: o.Lxcfs, Features: features,
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(spec.Annotations, annotations)
	if net != "" {
		spec.Annotations[annotationNet] = net
	}
	return spec, nil
}

// noteLxcfs says what a guest with limits will not see.
func (h *Host) noteLxcfs(o SpecOptions) {
	if o.Lxcfs == lxcfsNo || o.RAM == 0 && o.CPUs == 0 {
		return
	}
	if at, err := findLxcfs(lxcfsAuto); err == nil && at == "" {
		h.warn("", "no lxcfs is mounted: programs in the guest will see the host's memory and processors, not their limits")
	}
}

// chooseMachineID returns an identity, and whether the guest has to be told that
// it replaces the one in the rootfs: a copy of a guest that has run once.
func (h *Host) chooseMachineID(wish string, found foundSystem) (uuid string, replaces bool, err error) {
	has := found.machineID
	switch wish {
	case "keep":
		if has != "" {
			return has, false, nil
		}
	case "", "new":
	default:
		if !guest.ValidMachineID(wish) {
			return "", false, withHint("write new, keep, or 32 hex digits", "machine-id: %q is none of them", wish)
		}
		return strings.ToLower(wish), has != "" && has != strings.ToLower(wish), nil
	}
	uuid, err = newMachineID()
	if err != nil {
		return "", false, err
	}
	if has != "" && found.init != guest.Systemd {
		h.warn("", "the rootfs has a machine-id already, which its init keeps: if it is a copy, empty etc/machine-id in it")
	}
	return uuid, has != "", nil
}

// noGuest gives the remedy where a rootfs cannot be booted.
func noGuest(err error) error {
	switch {
	case errors.Is(err, guest.ErrNoInit):
		return withHint("install one in the rootfs, or leave out --system for a configuration for a single program", "%w", err)
	case errors.Is(err, guest.ErrForeign):
		return withHint("use a root file system that was made for this processor", "%w", err)
	case errors.Is(err, guest.ErrOldSystemd):
		return withHint("use a newer release of the guest's distribution", "%w", err)
	}
	return withHint("put an executable /sbin/init into the rootfs", "%w", err)
}

// takeIDs claims a range of ids for the bundle that is the working directory.
func (h *Host) takeIDs(o *SpecOptions, rootfs string) error {
	bundle, err := os.Getwd()
	if err != nil {
		return err
	}
	wish := idSpan{uint64(o.IDBase), uint64(o.IDSize)}
	switch {
	case o.IDBase == 0:
		wish = idSpan{}
	case o.IDSize == 0:
		wish.size = idRange
	case o.IDSize < idRange:
		return withHint("a whole system needs ids 0 to 65535", "a range of %d ids is too small", o.IDSize)
	}
	if wish.first+wish.size > math.MaxUint32 {
		return withHint("ids end at 4294967294", "ids %s are beyond the kernel's", wish)
	}
	got, err := h.claimRange(realPath(bundle), rootfs, wish)
	o.IDBase, o.IDSize = uint32(got.first), uint32(got.size)
	return err
}

// LoginProcess returns root's login shell in the guest, with a terminal, for
// Exec.
func (c *Container) LoginProcess() (specs.Process, error) {
	p, err := c.loginProcess()
	return p, fail("enter", c.id, err)
}

func (c *Container) loginProcess() (specs.Process, error) {
	spec, _, err := loadSpec(c.bundle())
	if err != nil {
		return specs.Process{}, err
	}
	p := *spec.Process
	p.Terminal = true
	p.Cwd = "/"
	p.User = specs.User{}
	// The shell is chosen inside the guest: reading its files from here
	// would be reading what guest root wrote, with the host's rights.
	p.Args = []string{"/bin/sh", "-c", loginScript}
	p.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "TERM=" + terminalType(), "container=vzrun",
	}
	return p, nil
}

// loginScript starts the shell that /etc/passwd names for uid 0 as a login
// shell. It needs nothing but a POSIX sh, which every init system needs too.
const loginScript = `cd "$HOME" 2>/dev/null || cd /
while IFS=: read -r _ _ uid _ _ _ shell; do
	[ "$uid" = 0 ] && break
done </etc/passwd
[ -x "$shell" ] || shell=/bin/sh
export SHELL="$shell"
exec "$shell" -l`

func terminalType() string {
	if t := os.Getenv("TERM"); t != "" && !strings.ContainsAny(t, "/ \n") {
		return t
	}
	return "linux"
}
