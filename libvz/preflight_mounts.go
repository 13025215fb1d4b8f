package libvz

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runc/libcontainer/configs"
)

// maxMountinfo bounds what is read of a guest's mounts: 100000 of them
// (fs.mount-max) of some hundred bytes.
const maxMountinfo = 64 << 20

// refuseFuse returns an error where the guest has mounted a FUSE file system:
// what it is made of is in a program, which CRIU cannot ask. Those that
// config.json mounts come from outside and are found again.
func (c *Container) refuseFuse(init int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", init))
	if err != nil {
		return fmt.Errorf("look at mounts: %w", err)
	}
	defer f.Close()
	config := c.lc.Config()
	places, err := fuseMounts(io.LimitReader(f, maxMountinfo), config.Mounts)
	if err != nil {
		return fmt.Errorf("look at mounts: %w", err)
	}
	if len(places) == 0 {
		return nil
	}
	return withHint(fmt.Sprintf("in the guest: umount %q", places[0]),
		"%w: FUSE file systems are mounted, which CRIU cannot save: %q", ErrRefused, places)
}

// fuseMounts decides: the places of FUSE mounts in a mountinfo, proc_pid_mountinfo(5),
// without those that are configured.
func fuseMounts(info io.Reader, configured []*configs.Mount) ([]string, error) {
	mounts, err := mountinfo.GetMountsFromReader(info, func(m *mountinfo.Info) (skip, stop bool) {
		isFuse := m.FSType == "fuse" || m.FSType == "fuseblk" || strings.HasPrefix(m.FSType, "fuse.")
		ours := slices.ContainsFunc(configured, func(c *configs.Mount) bool {
			return c.Destination == m.Mountpoint || strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(c.Destination, "/")+"/") && c.Device == "bind"
		})
		return !isFuse || ours, false
	})
	var places []string
	for _, m := range mounts {
		places = append(places, m.Mountpoint)
	}
	return places, err
}
