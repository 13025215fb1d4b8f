package libvz

import (
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// nullKey is the name in the images of every masked file: /dev/null bound over
// it.
const nullKey = "/dev/null"

// externalMounts lists the mounts that come from outside the guest and are
// found again, not saved. For a dump, paths is nil and values are places in
// the guest; for a restore, paths are the container's directories by
// controller, and values are sources on the host.
func externalMounts(config *configs.Config, paths map[string]string) ([]criu.External, error) {
	var out []criu.External
	add := func(dest, src string) error {
		place, err := placeInRoot(config.Rootfs, dest)
		if err != nil {
			return err
		}
		if paths == nil {
			src = place
		}
		out = append(out, criu.External{Key: place, Val: src})
		return nil
	}
	for _, m := range config.Mounts {
		switch m.Device {
		case "bind":
			if err := add(m.Destination, m.Source); err != nil {
				return nil, err
			}
		case "cgroup":
			binds, err := cgroupBinds(config, m, paths)
			if err != nil {
				return nil, err
			}
			for _, b := range binds {
				if err := add(b.Key, b.Val); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, d := range config.Devices {
		if err := add(d.Path, d.Path); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// cgroupBinds are what a cgroup mount consists of on a cgroup v1 host for a
// container without a cgroup namespace: for every hierarchy a bind mount of the
// container's directory in it. With a namespace, and on cgroup2, it is a mount
// of the guest's own, which CRIU saves.
func cgroupBinds(config *configs.Config, m *configs.Mount, paths map[string]string) ([]criu.External, error) {
	if cgroups.IsCgroup2UnifiedMode() || config.Namespaces.Contains(configs.NEWCGROUP) {
		return nil, nil
	}
	hierarchies, err := cgroups.GetCgroupMounts(false)
	if err != nil {
		return nil, fmt.Errorf("look for cgroup mounts: %w", err)
	}
	var out []criu.External
	for _, h := range hierarchies {
		source := h.Mountpoint
		for _, controller := range h.Subsystems {
			if p := paths[controller]; p != "" {
				source = p
			}
		}
		out = append(out, criu.External{Key: filepath.Join(m.Destination, filepath.Base(h.Mountpoint)), Val: source})
	}
	return out, nil
}

// placeInRoot resolves a mount destination as it was when it was mounted:
// links inside the rootfs stay inside it.
func placeInRoot(rootfs, dest string) (string, error) {
	full, err := securejoin.SecureJoin(rootfs, dest)
	if err != nil {
		return "", fmt.Errorf("resolve %s in the rootfs: %w", dest, err)
	}
	rel, err := filepath.Rel(rootfs, full)
	if err != nil {
		return "", err
	}
	return "/" + rel, nil
}

// maskedFiles are the external mounts that hide files of /proc from the guest.
// Masked directories are empty tmpfs mounts that CRIU saves by itself.
func maskedFiles(config *configs.Config, init int) []criu.External {
	var out []criu.External
	for _, p := range config.MaskPaths {
		st, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", init, filepath.Clean("/"+p)))
		if err == nil && !st.IsDir() {
			out = append(out, criu.External{Key: p, Val: nullKey})
		}
	}
	return out
}
