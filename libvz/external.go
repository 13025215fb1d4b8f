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
// found again, not saved. For a dump, source is false and values are places in
// the guest; for a restore, it is true and values are sources on the host.
func externalMounts(config *configs.Config, source bool) ([]criu.External, error) {
	var out []criu.External
	add := func(dest, src string) error {
		place, err := placeInRoot(config.Rootfs, dest)
		if err != nil {
			return err
		}
		if !source {
			src = place
		}
		out = append(out, criu.External{Key: place, Val: src})
		return nil
	}
	for _, m := range config.Mounts {
		switch {
		case m.Device == "bind":
		case m.Device == "cgroup" && !cgroups.IsCgroup2UnifiedMode() && !config.Namespaces.Contains(configs.NEWCGROUP):
			return nil, withHint("add a cgroup namespace to config.json, or leave that mount out",
				"%w: a cgroup v1 mount at %s without a cgroup namespace cannot be saved", ErrUnsupported, m.Destination)
		default:
			continue
		}
		if err := add(m.Destination, m.Source); err != nil {
			return nil, err
		}
	}
	for _, d := range config.Devices {
		if err := add(d.Path, d.Path); err != nil {
			return nil, err
		}
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
