package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/doctor"
)

// Finding is one ability of the host.
type Finding struct {
	Name string `json:"name"`
	// State is ok, degraded (it works in part) or missing.
	State string `json:"state"`
	// Found is what there is, or why there is not, in words; it may be empty.
	Found string `json:"found,omitempty"`
	// Means is what follows and Remedy what to do; both are empty if State is ok.
	Means  string `json:"means,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	// Required says that containers, or their checkpoints, do not work without it.
	Required bool `json:"required"`
}

// Works tells whether nothing that is required is missing.
func (f Finding) Works() bool { return !f.Required || f.State != doctor.Missing }

// Examine tries out what this host can do for containers and their checkpoints.
// Nothing is changed: it is done in namespaces, and on descriptors, of its own. dirs
// are directories in which root file systems are to lie; none = /var/lib and the
// state directory, or what there is above them.
func (h *Host) Examine(ctx context.Context, dirs ...string) []Finding {
	if len(dirs) == 0 {
		dirs = []string{"/var/lib", h.opts.Root}
	}
	where := doctor.Host{}
	for _, d := range dirs {
		if d = existing(d); !slices.Contains(where.Dirs, d) {
			where.Dirs = append(where.Dirs, d)
		}
	}
	ids := []specs.LinuxIDMapping{{HostID: firstID, Size: idRange}}
	where.UserNamespace, where.UserNamespaceErr = usernsFile(ids, ids, 0)
	if where.UserNamespace != nil {
		defer where.UserNamespace.Close()
	}
	if mount, pure, err := cgroup.Unified(); err == nil {
		where.Cgroup2, where.Unified = mount, pure
	}
	results := h.examineCriu(ctx)
	results["lxcfs"] = examineLxcfs()
	results["subordinate ids"] = examineIDs()
	doctor.Probe(where, results)
	var out []Finding
	for _, f := range doctor.Judge(results) {
		out = append(out, Finding(f))
	}
	return out
}

// existing returns a directory, or the nearest one above it that there is.
func existing(dir string) string {
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() || dir == "/" || dir == "." {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func (h *Host) examineCriu(ctx context.Context) map[string]doctor.Result {
	known, err := h.askCriu(ctx, "")
	if err != nil {
		return map[string]doctor.Result{"criu": {Err: err}, "criu check": {Err: errors.New("not tried without CRIU")}}
	}
	check := doctor.Result{Err: criu.Check(ctx, known.Path)}
	if check.Err == nil {
		features, err := criu.Features(ctx, known.Path)
		check.Partly, check.Found = err, fmt.Sprintf("tracks memory: %s, lazy pages: %s", yesNo(features.MemTrack), yesNo(features.Lazy))
	}
	return map[string]doctor.Result{"criu": {Found: criu.FormatVersion(known.Version) + " at " + known.Path}, "criu check": check}
}

func yesNo(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

func examineLxcfs() doctor.Result {
	dir, err := findLxcfs(lxcfsAuto)
	if err != nil {
		return doctor.Result{Err: err}
	}
	if dir == "" {
		return doctor.Result{Err: errors.New("is not mounted")}
	}
	if is, err := existsInTime(filepath.Join(dir, "proc/meminfo")); err != nil || !is {
		return doctor.Result{Found: "at " + dir, Err: errors.Join(errors.New("does not answer"), err)}
	}
	return doctor.Result{Found: "at " + dir}
}

// examineIDs says who has ranges for containers, subuid(5).
func examineIDs() doctor.Result {
	uids, err := readSubordinate("/etc/subuid")
	if err != nil {
		return doctor.Result{Err: err}
	}
	gids, err := readSubordinate("/etc/subgid")
	if err != nil {
		return doctor.Result{Err: err}
	}
	pools := idPools(uids, gids)
	var free uint64
	for _, s := range pools[0].spans {
		free += s.size / idRange
	}
	switch {
	case len(pools) == 1: // user vzrun's
		if free == 0 {
			return doctor.Result{Err: fmt.Errorf("user vzrun has no range of %d ids in both files", idRange)}
		}
		return doctor.Result{Found: fmt.Sprintf("user vzrun has room for %d containers", free)}
	case free > 0:
		return doctor.Result{Found: fmt.Sprintf("root has room for %d containers", free)}
	}
	return doctor.Result{Partly: errors.New("neither user vzrun nor root has a range")}
}
