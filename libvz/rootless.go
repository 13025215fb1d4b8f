package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A user who is not root makes containers in a user namespace that maps ids
// which are the user's own. What the kernel keeps from users is left out, as in
// runc: private mounts on the way to the rootfs, additional groups, and cgroups
// unless they were delegated to the user.

// unprivileged tells whether this process is an ordinary user's.
func unprivileged() bool { return os.Geteuid() != 0 }

// Rootless is a choice about containers without cgroups.
type Rootless int

const (
	// RootlessAuto allows them to users other than root, and to the root of
	// a user namespace.
	RootlessAuto Rootless = iota
	RootlessYes
	RootlessNo
)

func (h *Host) rootlessCgroups() bool {
	switch h.opts.Rootless {
	case RootlessYes:
		return true
	case RootlessNo:
		return false
	default:
		if h.opts.SystemdCgroup && !unprivileged() && hasOwnSystemd() {
			return false
		}
		return unprivileged() || InUserNamespace()
	}
}

// hasOwnSystemd tells the root of a whole operating system in a user namespace,
// whose systemd makes cgroups for it, from a user's root there: that one sees the
// host's systemd, and is not its root.
func hasOwnSystemd() bool {
	var st unix.Stat_t
	return unix.Stat("/run/systemd/private", &st) == nil && st.Uid == 0
}

// InUserNamespace tells whether root's rights end at a user namespace's border
// (user_namespaces(7)). Where it cannot be told they do not.
func InUserNamespace() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	return !slices.Equal(strings.Fields(string(ids)), []string{"0", "0", "4294967295"})
}

// checkUnprivileged says what root is needed for, before anything is begun.
func checkUnprivileged(spec *specs.Spec) error {
	if !unprivileged() {
		return nil
	}
	if !hasUserns(spec) {
		return withHint("`vzrun spec --rootless` writes a configuration for users; or run it as root",
			"%w: user id %d may create containers in a user namespace only", ErrUnsupported, os.Geteuid())
	}
	if mapped, err := wantsIDMap(spec); mapped && err == nil {
		return withHint("take the annotation "+annotationRootfs+" away and shift the owners on disk; or run it as root",
			"%w: user id %d may not mount an id-mapped rootfs", ErrUnsupported, os.Geteuid())
	}
	if kind := rootKind(spec); kind != "directory" {
		return withHint("mount it before, and take the annotation away; or run it as root",
			"%w: user id %d may not mount a rootfs that is an %s", ErrUnsupported, os.Geteuid(), kind)
	}
	return nil
}

// endWithoutCgroup kills the init of a container that has no cgroup to be found
// by, and with it the container's pid namespace.
func (h *Host) endWithoutCgroup(id string) error {
	lc, err := libcontainer.Load(h.opts.Root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	config := lc.Config()
	if !config.RootlessCgroups || !config.Namespaces.IsPrivate(configs.NEWPID) {
		return nil
	}
	if err := lc.Signal(unix.SIGKILL); !hasEnded(err) {
		return err
	}
	return nil
}

// pidsWithoutCgroup prefers a cgroup, should there be one.
func (c *Container) pidsWithoutCgroup() ([]int, error) {
	if pids, err := c.lc.Processes(); err == nil {
		return pids, nil
	}
	init, err := c.initPid()
	if errors.Is(err, ErrStatus) {
		return []int{}, nil
	}
	if err != nil {
		return nil, err
	}
	return pidsOfNamespace(init)
}

// pidsOfNamespace lists the processes of a container without a cgroup: those in
// the pid namespace of its init. What is in one below is not seen.
func pidsOfNamespace(init int) ([]int, error) {
	inode := func(pid string) (uint64, error) {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join("/proc", pid, "ns/pid"), &st)
		return st.Ino, err
	}
	ours, err := inode(strconv.Itoa(init))
	if err != nil {
		return nil, fmt.Errorf("pid namespace of %d: %w", init, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Others' processes cannot be looked at, and are not in it.
		switch n, err := inode(e.Name()); {
		case err == nil && n == ours:
			pids = append(pids, pid)
		case err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH):
			return nil, err
		}
	}
	return pids, nil
}
