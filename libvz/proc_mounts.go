package libvz

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// maxMountinfo bounds what is read of a container's mounts: 100000 of them
// (fs.mount-max) of some hundred bytes.
const maxMountinfo = 64 << 20

// verifyProc refuses a container whose procfs is not where its configuration has
// it, or not covered as that says, before anything of it has run. Whoever can
// exchange /proc of the rootfs for a link in the middle of the mounting can
// have the procfs mounted in one place and its masks in another (the race of
// CVE-2019-19921).
func (n *nascent) verifyProc() error {
	if !n.config.Namespaces.IsPrivate(configs.NEWNS) {
		return nil
	}
	st, err := n.lc.State()
	if err != nil {
		return err
	}
	f, err := os.Open(procPath(st.InitProcessPid, "mountinfo"))
	if err != nil {
		return fmt.Errorf("verify mounts: %w", err)
	}
	defer f.Close()
	places, err := procPlacesOf(n.config).verify(io.LimitReader(f, maxMountinfo))
	if err != nil {
		return err
	}
	root, err := unix.Open(procPath(st.InitProcessPid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("verify mounts: %w", err)
	}
	defer unix.Close(root)
	for _, p := range places {
		// Kernels differ in what there is to be covered.
		fd, err := unix.Openat2(root, strings.TrimPrefix(p, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if err == nil {
			unix.Close(fd)
			return fmt.Errorf("%w: %s is not covered as configured: the rootfs changes while its mounts are made", ErrRefused, p)
		}
	}
	return nil
}

// procPlaces is what a configuration says of procfs.
type procPlaces struct {
	mounts  []string // where one must be mounted
	allowed []string // below which there may be others
	covered []string // masked and read-only paths below mounts
}

func procPlacesOf(config *configs.Config) procPlaces {
	var p procPlaces
	for _, m := range config.Mounts {
		switch m.Device {
		case "proc":
			if filepath.Clean(m.Destination) == "/proc" {
				p.mounts = append(p.mounts, "/proc")
			} else {
				// Links of the image may lead there, so that the kernel knows
				// the place by another name.
				p.allowed = append(p.allowed, "/")
			}
		case "bind":
			p.allowed = append(p.allowed, filepath.Clean(m.Destination))
		}
	}
	for _, path := range append(append([]string{}, config.MaskPaths...), config.ReadonlyPaths...) {
		if path = filepath.Clean(path); anyAbove(p.mounts, path) {
			p.covered = append(p.covered, path)
		}
	}
	return p
}

// verify reads a mountinfo, proc_pid_mountinfo(5), and returns what is to be
// covered and has no mount of its own.
func (p procPlaces) verify(info io.Reader) ([]string, error) {
	procs, all := map[string]bool{}, map[string]bool{}
	stray := ""
	_, err := mountinfo.GetMountsFromReader(info, func(m *mountinfo.Info) (skip, stop bool) {
		all[m.Mountpoint] = true
		if m.FSType == "proc" && m.Root == "/" {
			procs[m.Mountpoint] = true
			if !slices.Contains(p.mounts, m.Mountpoint) && !anyAbove(p.allowed, m.Mountpoint) {
				stray = m.Mountpoint
			}
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("verify mounts: %w", err)
	}
	if stray != "" {
		return nil, fmt.Errorf("%w: a procfs is mounted at %q, where none is configured: the rootfs changes while its mounts are made", ErrRefused, stray)
	}
	for _, m := range p.mounts {
		if !procs[m] {
			return nil, fmt.Errorf("%w: no procfs is mounted at %s: the rootfs changes while its mounts are made", ErrRefused, m)
		}
	}
	var bare []string
	for _, c := range p.covered {
		if !all[c] {
			bare = append(bare, c)
		}
	}
	return bare, nil
}

// anyAbove says whether path is one of places or below one.
func anyAbove(places []string, path string) bool {
	for _, p := range places {
		if path == p || strings.HasPrefix(path, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return false
}
