package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// frozenMark is an extended attribute of a root.path that clones are made
// above: what runs there would change their roots. Only the host's root sees
// and sets those of this class (xattr(7)).
const frozenMark = "trusted.vzrun.frozen"

// frozenRoot is the root of a container that was checkpointed.
type frozenRoot struct {
	place  string   // root.path of the origin
	image  string   // that is copied; "" = the clone has an overlay
	layers []string // of the clone's overlay, the uppermost first
	owned  string   // what of it the origin could write to
	flags  string   // of its mount, as annotationOverlayFlags has them
}

// frozenRootOf decides how a clone sees its origin's root.
func frozenRootOf(saved *specs.Spec) (frozenRoot, error) {
	f := frozenRoot{place: saved.Root.Path}
	switch rootKind(saved) {
	case "image":
		var err error
		f.image, err = clonedImage(saved.Annotations[annotationImage])
		return f, err
	case "overlay":
		f.owned = filepath.Join(f.place, upperName)
		f.layers = append([]string{f.owned}, strings.Split(saved.Annotations[annotationOverlay], ":")...)
		f.flags = saved.Annotations[annotationOverlayFlags]
	default:
		f.owned = f.place
		f.layers = []string{f.place}
		var st unix.Statfs_t
		if err := unix.Statfs(f.place, &st); err != nil {
			return f, withHint("it must be where it was at the checkpoint", "rootfs of the origin, %s: %w", f.place, err)
		}
		f.flags = flagsOfMount(st.Flags)
	}
	if !filepath.IsAbs(f.place) {
		return f, withHint("take another checkpoint", "the checkpoint names its root %q, which is relative", f.place)
	}
	if i := slices.IndexFunc(f.layers, func(l string) bool { return strings.Contains(l, ":") }); i >= 0 {
		return f, withHint("move the bundle to a path without one", "%w: a colon in the path of a rootfs that is cloned, %s", ErrUnsupported, f.layers[i])
	}
	for _, l := range f.layers {
		if !filepath.IsAbs(l) {
			return f, withHint("name it by an absolute path and take another checkpoint", "%w: template %s of the origin is relative to its bundle", ErrUnsupported, l)
		}
	}
	return f, nil
}

// freeze marks a root, so that nobody runs on it from now on, and refuses it
// where somebody does. Whether somebody did since the checkpoint is looked for
// meanwhile, see unchanged.
//
// The clone's bundle is there and on record; then the root is marked, and then
// looked at. Who is to run there is on record first, too, and looks for mark and
// clones then (refuseFrozenRoot): of two at a time at least one finds the other. A
// mark without a clone does no harm, so that a failure leaves it.
func (h *Host) freeze(root frozenRoot, m *manifest) error {
	for _, dir := range root.layers {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return withHint("it must be where it was at the checkpoint", "rootfs of the origin: %s is not there", dir)
		}
	}
	if err := unix.Setxattr(root.place, frozenMark, []byte(m.ID), 0); err != nil {
		return withHint("clones need a root on a file system with extended attributes of the class trusted", "mark %s: %w", root.place, err)
	}
	user, err := h.runsOn(root.place)
	if err != nil {
		return err
	}
	if user != "" {
		return withHint("stop it, "+anotherToClone, "%w: container %s runs on the root of the checkpoint, %s", ErrRefused, user, root.place)
	}
	return nil
}

const anotherToClone = "take another checkpoint, and clone that"

// unchanged refuses a root that is frozen and in which something has changed since
// the checkpoint. It has to look at every file, so it begins at once and goes on
// while the clone is restored: the function returned waits for the answer, without
// which no clone runs.
func (f frozenRoot) unchanged(ctx context.Context, m *manifest) func() error {
	look := sync.OnceValue(func() error { return refuseChanged(ctx, f.owned, m) })
	go look() //nolint:errcheck // who asks is told
	return look
}

// refuseChanged refuses a directory in which something has changed since the
// checkpoint.
func refuseChanged(ctx context.Context, dir string, m *manifest) error {
	changed, err := changedSince(ctx, dir, m.Created)
	if err != nil {
		return fmt.Errorf("look for changes of %s: %w", dir, err)
	}
	if changed != "" {
		return withHint(anotherToClone, "%w: the root of the checkpoint has changed since: %s", ErrRefused, changed)
	}
	return nil
}

func isFrozen(place string) (bool, error) {
	_, err := unix.Getxattr(place, frozenMark, nil)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	}
	return false, fmt.Errorf("rootfs %s: %w", place, err)
}

func unfreeze(place string) error {
	err := unix.Removexattr(place, frozenMark)
	if err == nil || errors.Is(err, unix.ENODATA) {
		return nil
	}
	return fmt.Errorf("remove the mark of %s: %w", place, err)
}

// refuseFrozenRoot refuses to run on a root that clones are made above. A mark
// that the last of them has left is removed.
func (n *nascent) refuseFrozenRoot() error {
	frozen, err := isFrozen(n.root.place)
	if err != nil || !frozen || unprivileged() {
		return nil //nolint:nilerr // what has no attributes has no mark
	}
	clone, err := n.host.cloneAbove(n.root.place)
	if err != nil {
		return err
	}
	if clone != "" {
		return withHint("make a clone of the checkpoint; or delete its clones first", "%w: clones are made above %s, such as %s", ErrRefused, n.root.place, clone)
	}
	return unfreeze(n.root.place)
}

// cloneAbove names a bundle that has the root as a layer, "" where there is
// none. Clones without ids of their own are found while they exist, by their
// state in this state directory.
func (h *Host) cloneAbove(place string) (string, error) {
	above := func(layers string) bool {
		return slices.ContainsFunc(strings.Split(layers, ":"), func(l string) bool {
			return l == place || l == filepath.Join(place, upperName)
		})
	}
	record, err := h.lockIDs()
	if err != nil {
		return "", err
	}
	defer record.Close()
	claims, err := h.liveClaims(record.Claims)
	if err != nil {
		return "", err
	}
	for _, c := range claims {
		spec, _, err := loadSpec(c.Bundle)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("whether bundle %s is a clone: %w", c.Bundle, err)
		}
		if above(spec.Annotations[annotationOverlay]) {
			return c.Bundle, nil
		}
	}
	begun, err := h.store.Begun()
	if err != nil {
		return "", err
	}
	for _, r := range begun {
		if made := r.Operation.Made; made != "" && r.Operation.Name == "restore" {
			if spec, _, err := loadSpec(made); err == nil && above(spec.Annotations[annotationOverlay]) {
				return made, nil
			}
		}
	}
	return h.eachState(func(_ string, lc *libcontainer.Container) bool {
		return above(annotationsOf(lc)[annotationOverlay])
	})
}

// runsOn names a container that has its root at place and has not ended, "" where
// there is none: one of this state directory, or one with ids on the record.
func (h *Host) runsOn(place string) (string, error) {
	uses := func(id string, lc *libcontainer.Container) bool {
		if lc.Config().Rootfs != place {
			return false
		}
		st, err := lc.Status()
		return err != nil || st != libcontainer.Stopped
	}
	if id, err := h.eachState(uses); id != "" || err != nil {
		return id, err
	}
	record, err := h.lockIDs()
	if err != nil {
		return "", err
	}
	defer record.Close()
	for _, c := range record.Claims {
		for _, ct := range c.Containers {
			lc, err := libcontainer.Load(ct.Root, ct.ID)
			if err == nil && uses(ct.ID, lc) {
				return ct.ID, nil
			}
			if err == nil {
				continue
			}
			// It may be being made.
			held, err := store.Open(ct.Root).Held(ct.ID)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			if spec, _, err := loadSpec(c.Bundle); held && err == nil && spec.Root.Path == place {
				return ct.ID, nil
			}
		}
	}
	return "", nil
}

// eachState names the first container of this state directory for which fn says
// yes.
func (h *Host) eachState(fn func(id string, lc *libcontainer.Container) bool) (string, error) {
	entries, err := os.ReadDir(h.opts.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if CheckID(e.Name()) != nil {
			continue
		}
		if lc, err := libcontainer.Load(h.opts.Root, e.Name()); err == nil && fn(e.Name(), lc) {
			return e.Name(), nil
		}
	}
	return "", nil
}

// changedSince names something below a directory that was made, removed or
// changed in any way after a moment, "" where nothing was. The kernel keeps the
// time of the last change of each inode, which no program can set
// (inode(7), ctime); only the directory itself has the mark.
func changedSince(ctx context.Context, dir string, moment time.Time) (string, error) {
	limit := unix.NsecToTimespec(moment.UnixNano())
	later := func(t unix.Timespec) bool {
		return t.Sec > limit.Sec || t.Sec == limit.Sec && t.Nsec > limit.Nsec
	}
	top, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer top.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return "", err
	}
	if later(st.Mtim) {
		return dir, nil
	}
	return walkChanged(ctx, top, dir, st.Dev, later)
}

func walkChanged(ctx context.Context, dir *os.File, path string, dev uint64, later func(unix.Timespec) bool) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		var st unix.Stat_t
		name := filepath.Join(path, e.Name())
		if err := unix.Fstatat(int(dir.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		if later(st.Ctim) {
			return name, nil
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Dev != dev {
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		below := os.NewFile(uintptr(fd), name)
		changed, err := walkChanged(ctx, below, name, dev, later)
		below.Close()
		if changed != "" || err != nil {
			return changed, err
		}
	}
	return "", nil
}

func annotationsOf(lc *libcontainer.Container) map[string]string {
	_, all := utils.Annotations(lc.Config().Labels)
	return all
}
