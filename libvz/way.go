package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// annotationOpen = "true" allows a rootfs with un-shifted owners where the
// host's users can walk to it.
const annotationOpen = "org.vzrun.rootfs.open"

// viewPlace is where a rootfs is mounted, in a private mount namespace, when
// the container's root may not walk to it: a directory that everybody may pass.
// On the host it stays empty.
const viewPlace = "/run/vzrun-rootfs"

// sourcesPlace is for the sources of a restored container's mounts, likewise:
// CRIU looks for them with the rights of the container's root, where at a create
// libcontainer does with those of the host's.
const sourcesPlace = "/run/vzrun-sources"

// noID is no user's and no group's.
const noID = 1<<32 - 1

// namespacePath returns the path of a namespace that is joined, "" where there
// is none.
func namespacePath(spec *specs.Spec, kind specs.LinuxNamespaceType) string {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == kind {
			return ns.Path
		}
	}
	return ""
}

// dirAccess is what decides who may pass a directory.
type dirAccess struct {
	path             string
	mode, owner, gid uint32
}

// wayTo lists the directories that lead to the rootfs, the nearest first.
func wayTo(rootfs string) ([]dirAccess, error) {
	var way []dirAccess
	for dir := filepath.Dir(rootfs); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return nil, fmt.Errorf("rootfs: %w", err)
		}
		way = append(way, dirAccess{dir, st.Mode, st.Uid, st.Gid})
		if dir == "/" {
			return way, nil
		}
	}
}

// closedTo returns the first directory that the container's root may not pass,
// "" where it may pass all: its first process enters the rootfs with that
// root's ids, and with capabilities over what belongs to ids that are mapped
// (user_namespaces(7)). Access control lists are not looked at.
func closedTo(way []dirAccess, uids, gids []specs.LinuxIDMapping) string {
	uid, gid := uids[0].HostID, gids[0].HostID
	for _, d := range way {
		if !maySearch(d.mode, d.owner, d.gid, uid, gid) && (!isMapped(d.owner, uids) || !isMapped(d.gid, gids)) {
			return d.path
		}
	}
	return ""
}

// openToAll tells whether every user of the host may walk the way.
func openToAll(way []dirAccess) bool {
	return !slices.ContainsFunc(way, func(d dirAccess) bool { return d.mode&0o001 == 0 })
}

// checkWay decides how the container's root meets its rootfs: at its place, or,
// where it may not walk there, at viewPlace. It refuses a rootfs that is open
// to the host's users although its owners on disk are not shifted (mapped): a
// set-uid program that the guest's root makes there is one of the host's root
// for them.
func (n *nascent) checkWay(mapped bool) error {
	uids, gids := n.spec.Linux.UIDMappings, n.spec.Linux.GIDMappings
	if namespacePath(n.spec, specs.UserNamespace) != "" && !unprivileged() {
		// Whose ids it has is not looked up: it may pass what all may.
		nobody := []specs.LinuxIDMapping{{HostID: noID, Size: 1}}
		uids, gids = nobody, nobody
	}
	if len(uids) == 0 || len(gids) == 0 {
		return nil
	}
	rootfs := n.root.place
	way, err := wayTo(rootfs)
	if err != nil {
		return err
	}
	if dir := closedTo(way, uids, gids); dir != "" {
		// Only mounts of its own show it the view.
		if unprivileged() || namespacePath(n.spec, specs.MountNamespace) != "" {
			return withHint("chmod o+x "+dir+", or move the bundle elsewhere",
				"the container's root (uid %d on the host) may not pass %s to its rootfs: %w", uids[0].HostID, dir, fs.ErrPermission)
		}
		n.view = viewPlace
		if err := os.Mkdir(viewPlace, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	if !mapped || n.root.hidden() || !openToAll(way) || n.spec.Annotations[annotationOpen] == "true" {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(rootfs, &st); err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	if st.Flags&unix.ST_NOSUID != 0 {
		return nil
	}
	return withHint(fmt.Sprintf("chmod go-rwx %s, or allow it with the annotation %s=true", filepath.Dir(rootfs), annotationOpen),
		"%w: every user of this host can walk to %s, where programs that are set-uid root in the guest are so on the host", ErrRefused, rootfs)
}

// showRootfs mounts what stands at the rootfs's place where the container's root
// may walk to it, for the calling thread's mount namespace.
func (n *nascent) showRootfs() error {
	if n.view == n.root.place {
		return nil
	}
	tree, err := cloneTree(n.root.place, unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer tree.Close()
	return attach(tree, n.view)
}

// passSources mounts at sourcesPlace what of the sources the container's root may
// not walk to, for the calling thread's mount namespace, and names them there.
func (r *revival) passSources(mounts []criu.External) error {
	uids, gids := r.spec.Linux.UIDMappings, r.spec.Linux.GIDMappings
	if len(uids) == 0 || len(gids) == 0 {
		return nil
	}
	made := false
	for i, m := range mounts {
		if !filepath.IsAbs(m.Val) {
			continue
		}
		way, err := wayTo(m.Val)
		if err != nil {
			return fmt.Errorf("source of %s: %w", m.Key, err)
		}
		if closedTo(way, uids, gids) == "" {
			continue
		}
		if !made {
			if err := makeSourcesPlace(); err != nil {
				return err
			}
			made = true
		}
		place := filepath.Join(sourcesPlace, strconv.Itoa(i))
		if err := showSource(m.Val, place); err != nil {
			return err
		}
		mounts[i].Val = place
	}
	return nil
}

func makeSourcesPlace() error {
	if err := os.Mkdir(sourcesPlace, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount("vzrun-sources", sourcesPlace, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711,size=1m"); err != nil {
		return fmt.Errorf("mount %s: %w", sourcesPlace, err)
	}
	return nil
}

// showSource makes place, of the kind that source is, and mounts source there.
func showSource(source, place string) error {
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = os.Mkdir(place, 0o711)
	} else {
		err = os.WriteFile(place, nil, 0o600)
	}
	if err != nil {
		return err
	}
	tree, err := cloneTree(source, unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer tree.Close()
	return attach(tree, place)
}

// isMapped tells whether an id of the host has a counterpart in the container.
func isMapped(id uint32, maps []specs.LinuxIDMapping) bool {
	return slices.ContainsFunc(maps, func(m specs.LinuxIDMapping) bool {
		return id >= m.HostID && id-m.HostID < m.Size
	})
}

// maySearch decides as the kernel does for a process without capabilities
// (path_resolution(7)): the first class that fits counts, not the best.
func maySearch(mode, owner, group, uid, gid uint32) bool {
	if uid == 0 {
		return true
	}
	switch {
	case owner == uid:
		return mode&0o100 != 0
	case group == gid:
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}
