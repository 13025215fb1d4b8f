package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Directories of an overlay below its place: what the guest has changed, and
// what the kernel needs beside it. They are on one file system, as it demands.
const (
	upperName = "upper"
	workName  = "work"
	// unfinishedName is the upper one's until it has owner and mode.
	unfinishedName = ".upper.new"
)

// checkLayers refuses layers that overlap: what the guest writes would appear
// in the template, or the template in itself.
func (g *guestRoot) checkLayers() error {
	for _, lower := range g.lowers {
		if within(lower, g.place) || within(g.place, lower) {
			return withHint("keep templates outside of bundles", "template %s and rootfs %s overlap", lower, g.place)
		}
	}
	return nil
}

// mountOverlay mounts an overlay of the templates and the upper directory.
//
// An overlay has no id-mapped mounts, but it sees its layers through mounts,
// and these may be mapped: then its files have the guest's ids, and what it
// writes has un-shifted owners on disk. So the mapped clone of every layer is
// attached over the layer itself. Layers are named by descriptors: paths may
// hold any character, and the guest, who sees the options of its root, learns
// nothing of the host.
//
// index and nfs_export give files handles that outlive the mount: inotify
// watches are saved by them (Documentation/filesystems/overlayfs.rst). The
// index is also what makes the kernel refuse an upper directory that is in use
// already, or belongs to another template.
func (g *guestRoot) mountOverlay(ctx context.Context, userns *os.File) error {
	if err := g.makeUpper(); err != nil {
		return err
	}
	var layers []*os.File
	defer func() {
		for _, f := range layers {
			f.Close()
		}
	}()
	for _, dir := range append([]string{g.place}, g.lowers...) {
		f, err := openLayer(dir, userns)
		if err != nil {
			return err
		}
		layers = append(layers, f)
	}
	if userns != nil {
		// Only when all are open: one may be below another.
		for _, f := range layers {
			if err := attach(f, f.Name()); err != nil {
				return err
			}
		}
	}
	own := descriptorPath(layers[0])
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/%s,workdir=%s/%s,index=on,nfs_export=on,xino=auto",
		joinLayers(layers[1:]), own, upperName, own, workName)
	mount := func() error { return unix.Mount("overlay", g.place, "overlay", g.flags, data) }
	err := patiently(ctx, rootPatience, unix.EBUSY, func() error {
		if userns == nil {
			return mount()
		}
		return asFsUser(g.uid, g.gid, mount)
	})
	if err != nil {
		return g.explainOverlay(err)
	}
	return g.checkWritable()
}

// mountFlags are the flags of a mount that a user namespace may not take away
// (mount_namespaces(7)), by their names in mount(8) and in statfs(2).
func mountFlags() []struct {
	name        string
	mount, stat uintptr
} {
	return []struct {
		name        string
		mount, stat uintptr
	}{
		{"nosuid", unix.MS_NOSUID, unix.ST_NOSUID},
		{"nodev", unix.MS_NODEV, unix.ST_NODEV},
		{"noexec", unix.MS_NOEXEC, unix.ST_NOEXEC},
		{"noatime", unix.MS_NOATIME, unix.ST_NOATIME},
		{"nodiratime", unix.MS_NODIRATIME, unix.ST_NODIRATIME},
		{"relatime", unix.MS_RELATIME, unix.ST_RELATIME},
		{"strictatime", unix.MS_STRICTATIME, 0},
	}
}

// overlayFlags reads annotationOverlayFlags.
func overlayFlags(annotations map[string]string) (uintptr, error) {
	text := annotations[annotationOverlayFlags]
	if text == "" {
		return unix.MS_NODEV, nil
	}
	var flags uintptr
	for _, name := range strings.Split(text, ",") {
		known := false
		for _, f := range mountFlags() {
			if f.name == name {
				flags, known = flags|f.mount, true
			}
		}
		if !known {
			return 0, fmt.Errorf("annotation %s: %q is not known", annotationOverlayFlags, name)
		}
	}
	return flags, nil
}

// flagsOfMount writes the flags that a statfs(2) tells for annotationOverlayFlags.
func flagsOfMount(stat int64) string {
	var names []string
	for _, f := range mountFlags() {
		if f.stat != 0 && uintptr(stat)&f.stat != 0 {
			names = append(names, f.name)
		}
	}
	if stat&(unix.ST_NOATIME|unix.ST_RELATIME) == 0 {
		names = append(names, "strictatime")
	}
	return strings.Join(names, ",")
}

// asFsUser runs fn with other ids for file systems (setfsuid(2)) than the rest
// of the process, and its capabilities, on the calling thread. Whoever mounts
// an overlay is who the kernel works as in its layers, and the host's root has
// no id in those that are mapped.
func asFsUser(uid, gid int, fn func() error) error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	// Neither call tells whether it worked; root's does.
	oldGid, _ := unix.SetfsgidRetGid(gid)
	oldUid, _ := unix.SetfsuidRetUid(uid)
	defer func() {
		_, _ = unix.SetfsuidRetUid(oldUid)
		_, _ = unix.SetfsgidRetGid(oldGid)
	}()
	// A user that is not root has lost those over files (capabilities(7)); with
	// root they come back.
	if err := unix.Capset(header, &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return fn()
}

// checkWritable: where the kernel cannot write to its work directory it mounts
// an overlay read-only, and only logs why.
func (g *guestRoot) checkWritable() error {
	var st unix.Statfs_t
	if err := unix.Statfs(g.place, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return withHint("is its file system full? The kernel's log says more (overlayfs)", "mount an overlay on %s: the kernel cannot write to %s",
			g.place, filepath.Join(g.place, workName))
	}
	return nil
}

// showOverlay returns a directory with what the guest would see, for the
// calling thread's mount namespace.
func (g *guestRoot) showOverlay() (string, error) {
	dirs := g.lowers
	upper := filepath.Join(g.place, upperName)
	if st, err := os.Lstat(upper); err == nil && st.IsDir() {
		dirs = append([]string{upper}, dirs...)
	}
	if len(dirs) == 1 { // an overlay has two layers or more
		return dirs[0], nil
	}
	var layers []*os.File
	defer func() {
		for _, f := range layers {
			f.Close()
		}
	}()
	for _, dir := range dirs {
		f, err := openLayer(dir, nil)
		if err != nil {
			return "", err
		}
		layers = append(layers, f)
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("overlay", g.place, "overlay", flags, "lowerdir="+joinLayers(layers)); err != nil {
		return "", g.explainOverlay(err)
	}
	return g.place, nil
}

// openLayer opens a directory, or a detached clone of its mount in which
// owners are mapped.
func openLayer(dir string, userns *os.File) (*os.File, error) {
	if userns != nil {
		return idMapped(dir, userns)
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("layer of the rootfs: %w", err)
	}
	return f, nil
}

func descriptorPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func joinLayers(layers []*os.File) string {
	paths := make([]string, 0, len(layers))
	for _, f := range layers {
		paths = append(paths, descriptorPath(f))
	}
	return strings.Join(paths, ":")
}

// makeUpper makes the directories of an overlay that is mounted for the first
// time. The guest's root has owner and mode of the upper one.
func (g *guestRoot) makeUpper() error {
	var st unix.Stat_t
	if err := unix.Stat(g.lowers[0], &st); err != nil {
		return fmt.Errorf("template: %w", err)
	}
	upper, work := filepath.Join(g.place, upperName), filepath.Join(g.place, workName)
	if err := os.Mkdir(work, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return explainSpace(err, g.place)
	}
	if _, err := os.Lstat(upper); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// It has its name when it is complete: who is killed before leaves one that the
	// next takes.
	unfinished := filepath.Join(g.place, unfinishedName)
	if err := os.Mkdir(unfinished, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return explainSpace(err, g.place)
	}
	// Owner first: chown(2) may clear bits of the mode.
	if err := os.Lchown(unfinished, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(unfinished, st.Mode&0o7777); err != nil {
		return err
	}
	return os.Rename(unfinished, upper)
}

func explainSpace(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return withHint("free space or inodes on the file system of "+dir, "prepare the rootfs: %w", err)
	}
	return fmt.Errorf("prepare the rootfs: %w", err)
}

// explainOverlay says what the kernel's error means.
func (g *guestRoot) explainOverlay(err error) error {
	upper := filepath.Join(g.place, upperName)
	switch {
	case errors.Is(err, unix.EBUSY):
		return withHint("stop the container that has it; each guest needs a root.path of its own", "rootfs %s: %s is in use: %w", g.place, upper, err)
	case errors.Is(err, unix.ESTALE):
		return withHint("restore its template; if it is a copy of another guest's, remove "+filepath.Join(g.place, workName),
			"rootfs %s: %s belongs to another template, or is a copy: %w", g.place, upper, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return explainSpace(err, g.place)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return withHint("put template and bundle on ext4, xfs, btrfs or tmpfs, with Linux 5.19 or newer; the kernel's log says more",
			"mount an overlay on %s: %w by these file systems: %w", g.place, ErrUnsupported, err)
	}
	return fmt.Errorf("mount an overlay on %s: %w", g.place, err)
}

// hasHandles tells whether files of a mounted overlay have handles. Where a
// layer cannot have them the kernel mounts it without, and only logs it.
func hasHandles(dir string) bool {
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	return !errors.Is(err, unix.EOPNOTSUPP)
}
