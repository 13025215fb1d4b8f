package libvz

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// lxcfs (https://linuxcontainers.org/lxcfs) is a FUSE file system that shows who
// reads it the limits of its own cgroups in the format of /proc and /sys. Its
// files are bound over the guest's. CRIU cannot save a FUSE mount, so each is an
// external mount, found again at a restore.

const (
	annotationLxcfs = guest.AnnotationLxcfs
	lxcfsAuto       = "auto"
	lxcfsNo         = "no"
	lxcfsType       = "fuse.lxcfs"
	// lxcfsPatience is how long lxcfs may take for an answer: one that is
	// stuck must not hold up vzrun.
	lxcfsPatience = 5 * time.Second
)

// lxcfsPlaces are the files that libcontainer lets be covered in /proc, and
// what lxcfs has in /sys, in the order in which they are mounted.
func lxcfsPlaces() []string {
	return []string{
		"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/slabinfo",
		"/proc/stat", "/proc/swaps", "/proc/uptime", "/sys/devices/system/cpu",
	}
}

// offerLxcfs adds lxcfs' mounts to the configuration of a whole operating system
// that is to be created, and notes in the annotation what was decided: the place
// of the lxcfs, or no.
func (h *Host) offerLxcfs(id string, spec *specs.Spec) error {
	if spec.Annotations[annotationGuest] == "" {
		return nil
	}
	wish := spec.Annotations[annotationLxcfs]
	if err := checkLxcfs(wish); err != nil {
		return err
	}
	dir, err := findLxcfs(wish)
	if err != nil {
		return err
	}
	spec.Annotations[annotationLxcfs] = lxcfsNo
	if dir == "" {
		if wish != lxcfsNo {
			h.event(Event{ID: id, Step: "no lxcfs is mounted: the guest sees the host's memory and processors"})
		}
		return nil
	}
	mounts, err := lxcfsMounts(dir, lxcfsPlaces(), spec.Mounts)
	if err != nil {
		return err
	}
	spec.Mounts = append(spec.Mounts, mounts...)
	spec.Annotations[annotationLxcfs] = dir
	return nil
}

func checkLxcfs(wish string) error {
	if wish == "" || wish == lxcfsAuto || wish == lxcfsNo || filepath.IsAbs(wish) {
		return nil
	}
	return withHint("write auto, no, or the absolute path of its mount point", "lxcfs (annotation %s): %q is none of them", annotationLxcfs, wish)
}

// findLxcfs returns the mount point of the lxcfs that is wished for, "" where
// there is none to be used.
func findLxcfs(wish string) (string, error) {
	if wish == lxcfsNo {
		return "", nil
	}
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	defer table.Close()
	all, err := lxcfsMountPoints(table)
	if err != nil {
		return "", fmt.Errorf("read mount table: %w", err)
	}
	if filepath.IsAbs(wish) {
		if slices.Contains(all, filepath.Clean(wish)) {
			return filepath.Clean(wish), nil
		}
		return "", withHint("start it there, or set the annotation to auto", "annotation %s: no lxcfs is mounted at %s", annotationLxcfs, wish)
	}
	if len(all) == 0 {
		return "", nil
	}
	return all[0], nil
}

// lxcfsMountPoints finds where lxcfs is mounted as a whole, in the order of a
// mount table (proc_pid_mountinfo(5)). What of it is bound elsewhere, as over
// the files of a container, has another root.
func lxcfsMountPoints(mountinfo io.Reader) ([]string, error) {
	var out []string
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if found && len(f) >= 5 && len(g) >= 1 && f[3] == "/" && g[0] == lxcfsType {
			out = append(out, unescapeMount(f[4]))
		}
	}
	return out, lines.Err()
}

// unescapeMount undoes what the kernel does to blanks and backslashes in paths.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// lxcfsMounts are the mounts of those places that lxcfs and the host's kernel
// have and that nothing else of the configuration is mounted on.
func lxcfsMounts(dir string, places []string, taken []specs.Mount) ([]specs.Mount, error) {
	var out []specs.Mount
	for _, place := range places {
		if slices.ContainsFunc(taken, func(m specs.Mount) bool { return filepath.Clean(m.Destination) == place }) {
			continue
		}
		source := filepath.Join(dir, place)
		is, err := existsInTime(source)
		if err != nil {
			return nil, err
		}
		if _, err := os.Lstat(place); is && err == nil {
			out = append(out, lxcfsMount(source, place))
		}
	}
	return out, nil
}

func lxcfsMount(source, place string) specs.Mount {
	return specs.Mount{
		Destination: place, Type: "bind", Source: source,
		Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
	}
}

// existsInTime asks a file system that may be stuck.
func existsInTime(path string) (bool, error) {
	const hint = "restart lxcfs (and the guests that have it), or set the annotation " + annotationLxcfs + " to no"
	ctx, cancel := context.WithTimeout(context.Background(), lxcfsPatience)
	defer cancel()
	var err error
	if _, answered := answerWithin(ctx, func() string { _, err = os.Lstat(path); return "" }); !answered {
		return false, withHint(hint, "lxcfs does not answer: %s: %w", path, ctx.Err())
	}
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return false, withHint(hint, "lxcfs has ended and its mount is left: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return err == nil, err
}

// lxcfsOf returns the lxcfs that a container was made with, "" for none.
func lxcfsOf(config *configs.Config) string {
	_, all := utils.Annotations(config.Labels)
	return lxcfsIn(all)
}

func lxcfsIn(annotations map[string]string) string {
	if dir := annotations[annotationLxcfs]; filepath.IsAbs(dir) {
		return dir
	}
	return ""
}

// keepLxcfs adds to the configuration that goes with the images what offerLxcfs
// had added to it when the container was made.
func keepLxcfs(config *configs.Config, spec *specs.Spec) {
	if spec.Annotations[annotationGuest] == "" {
		return
	}
	spec.Annotations[annotationLxcfs] = lxcfsNo
	dir := lxcfsOf(config)
	if dir == "" {
		return
	}
	spec.Annotations[annotationLxcfs] = dir
	for _, m := range config.Mounts {
		if m.Device == "bind" && m.Source == filepath.Join(dir, m.Destination) && slices.Contains(lxcfsPlaces(), m.Destination) {
			spec.Mounts = append(spec.Mounts, lxcfsMount(m.Source, m.Destination))
		}
	}
}

// bringLxcfs adds to the configuration for a restore the mounts that the images
// ask for: they must all be there again, and no other ones.
func bringLxcfs(saved, spec *specs.Spec) error {
	if spec.Annotations[annotationGuest] == "" {
		return nil
	}
	wish := spec.Annotations[annotationLxcfs]
	if err := checkLxcfs(wish); err != nil {
		return err
	}
	spec.Annotations[annotationLxcfs] = lxcfsNo
	was := lxcfsIn(saved.Annotations)
	if was == "" {
		return nil
	}
	if wish == lxcfsNo {
		wish = lxcfsAuto // the guest has it, whatever a new one is to have
	}
	dir, err := findLxcfs(wish)
	if err != nil {
		return err
	}
	if dir == "" {
		return withHint("start lxcfs on this host, then restore", "the guest was saved with lxcfs over its /proc, and none is mounted here: %w", ErrUnsupported)
	}
	var places []string
	for _, m := range saved.Mounts {
		if m.Source == filepath.Join(was, m.Destination) {
			places = append(places, m.Destination)
		}
	}
	mounts, err := lxcfsMounts(dir, places, spec.Mounts)
	if err != nil {
		return err
	}
	for _, p := range places {
		has := func(m specs.Mount) bool { return m.Destination == p }
		if !slices.ContainsFunc(mounts, has) && !slices.ContainsFunc(spec.Mounts, has) {
			return withHint("start the lxcfs of the host that the guest was saved on, or a newer one", "lxcfs at %s has no %s, which the guest was saved with: %w", dir, p, ErrUnsupported)
		}
	}
	spec.Mounts = append(spec.Mounts, mounts...)
	spec.Annotations[annotationLxcfs] = dir
	return nil
}
