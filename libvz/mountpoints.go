package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// makeMountPoints makes the files and directories that mounts are put on, as
// create does. CRIU makes none, and a rootfs that an engine has built anew from
// an archive lacks them: the archive holds what the guest has written, not what
// was mounted over.
func makeMountPoints(rootfs string, mounts []*configs.Mount) error {
	for i, m := range mounts {
		root, rest, found := mountHolder(rootfs, mounts[:i], m.Destination)
		// The directories of cgroup v1 are in a tmpfs, cgroup2's is in /sys.
		if !found || m.Device == "cgroup" {
			continue
		}
		dir := true
		if m.Device == "bind" {
			st, err := os.Stat(m.Source)
			if err != nil {
				return fmt.Errorf("source of the mount on %s: %w", m.Destination, err)
			}
			dir = st.IsDir()
		}
		if err := makeMountPoint(root, rest, dir); err != nil {
			return fmt.Errorf("make mount point %s: %w", m.Destination, err)
		}
	}
	return nil
}

// mountHolder tells which directory of the host holds a mount point, and where
// in it: the rootfs, or the source of an earlier bind mount. found is false
// where it is on a file system of the guest's own, whose contents are in the
// images.
func mountHolder(rootfs string, earlier []*configs.Mount, dest string) (root, rest string, found bool) {
	root, rest, found = rootfs, dest, true
	for _, m := range earlier {
		below, ok := strings.CutPrefix(filepath.Clean(dest), strings.TrimSuffix(filepath.Clean(m.Destination), "/")+"/")
		if !ok {
			continue
		}
		root, rest, found = m.Source, below, m.Device == "bind"
	}
	return root, rest, found
}

// makeMountPoint follows no link out of root. What is there already stays.
func makeMountPoint(root, rest string, dir bool) error {
	place, err := securejoin.SecureJoin(root, rest)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(place); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := rest
	if !dir {
		parent = filepath.Dir(filepath.Join("/", rest))
	}
	rootDir, err := os.OpenFile(root, unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer rootDir.Close()
	at, err := pathrs.MkdirAllHandle(rootDir, parent, 0o755)
	if err != nil {
		return err
	}
	defer at.Close()
	if dir {
		return nil
	}
	fd, err := unix.Openat(int(at.Fd()), filepath.Base(rest), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
