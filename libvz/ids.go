package libvz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// DefaultIDs is the host's record of ranges of ids where Options name none. It
// outlives a reboot, as bundles do.
const DefaultIDs = "/var/lib/vzrun/ids.json"

const (
	idRange = 65536
	// Ranges start at multiples of idRange from firstID to lastID, far
	// from users (below 60000) and from systemd's own pools for
	// DynamicUser and nspawn, systemd.io/UIDS-GIDS.
	firstID = 0x10_0000
	lastID  = 0x6fff_0000 - 0x10_0000

	// idPatience is how long another process may hold the record, which it
	// does for moments.
	idPatience = 30 * time.Second
)

// annotationIDs = "shared" says that a container has its range of ids together
// with others, on purpose.
const annotationIDs = "org.vzrun.ids"

// idSpan is a range of host ids that is somebody's.
type idSpan struct{ first, size uint64 }

func (s idSpan) overlaps(t idSpan) bool {
	return s.first < t.first+t.size && t.first < s.first+s.size
}

func (s idSpan) String() string { return fmt.Sprintf("%d to %d", s.first, s.first+s.size-1) }

func claimSpan(c store.IDClaim) idSpan { return idSpan{uint64(c.First), uint64(c.Size)} }

// claimRange gives a bundle, whose configuration the caller writes next, a range
// that nobody else has: wish, or one of 65536 ids where wish.size is 0.
//
// Who has one is derived anew each time. A claim lapses when the configuration
// of its bundle is gone, or names another range, and no container with it is
// left. So nothing has to be given back, and nothing is lost when vzrun is
// killed.
func (h *Host) claimRange(bundle, rootfs string, wish idSpan) (idSpan, error) {
	if unprivileged() {
		if wish.size != 0 {
			return wish, nil // on no record, as no container of it can be
		}
		return wish, withHint("run it as root, or name a range with --ids", "%w: user id %d may not take ranges of ids", ErrUnsupported, os.Geteuid())
	}
	record, err := h.lockIDs()
	if err != nil {
		return wish, err
	}
	defer record.Close()
	if record.Claims, err = h.liveClaims(record.Claims); err != nil {
		return wish, err
	}
	if wish, err = h.pickRange(record.Claims, bundle, rootfs, wish); err != nil {
		return wish, err
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return wish, err
	}
	record.Claims = append(record.Claims, store.IDClaim{
		First: uint32(wish.first), Size: uint32(wish.size), Bundle: bundle, Pid: os.Getpid(), Start: start,
	})
	return wish, record.Save()
}

func (h *Host) lockIDs() (*store.IDRecord, error) {
	ctx, cancel := context.WithTimeout(context.Background(), idPatience)
	defer cancel()
	record, err := store.LockIDs(ctx, h.opts.IDs)
	switch {
	case errors.Is(err, store.ErrDamaged):
		return nil, withHint("put a copy of it back; or remove it, and start or delete every bundle that has ids before another is made",
			"record of ids: %w", err)
	case errors.Is(err, store.ErrNewer):
		return nil, withHint("use the version of vzrun that wrote it", "record of ids: %w", err)
	case errors.Is(err, store.ErrLocked):
		return nil, withHint("see who holds it with `lslocks`, and try again", "%w: record of ids: %w", ErrBusy, err)
	case err != nil:
		return nil, fmt.Errorf("record of ids: %w", err)
	}
	return record, nil
}

// pickRange decides on a range, given what is claimed.
func (h *Host) pickRange(claims []store.IDClaim, bundle, rootfs string, wish idSpan) (idSpan, error) {
	var taken []idSpan
	for _, c := range claims {
		if wish.size != 0 && c.Bundle != bundle && claimSpan(c).overlaps(wish) {
			return wish, withHint("name another range, or let vzrun choose one", "%w: ids %s belong to bundle %s", ErrRefused, claimSpan(c), c.Bundle)
		}
		taken = append(taken, claimSpan(c))
	}
	used, err := h.usedIDs()
	if err != nil {
		return wish, err
	}
	if wish.size != 0 {
		if i := slices.IndexFunc(used, wish.overlaps); i >= 0 {
			return wish, withHint("name another range, or let vzrun choose one", "%w: ids %s are in use", ErrRefused, used[i])
		}
		return wish, nil
	}
	uids, err := readSubordinate("/etc/subuid")
	if err != nil {
		return wish, err
	}
	gids, err := readSubordinate("/etc/subgid")
	if err != nil {
		return wish, err
	}
	sum := fnv.New32a()
	io.WriteString(sum, rootfs) //nolint:errcheck // a hash takes everything
	taken = append(taken, used...)
	for _, p := range idPools(uids, gids) {
		if base, ok := freeIDs(p.spans, append(slices.Clone(taken), p.taken...), sum.Sum32()); ok {
			return idSpan{base, idRange}, nil
		}
	}
	return wish, withHint("give user vzrun more ids in /etc/subuid and /etc/subgid, or remove bundles that are not needed", "no free range of %d ids is left", idRange)
}

// idPool is where ranges may be taken from, and what of it is somebody else's.
type idPool struct{ spans, taken []idSpan }

// idPools decides, after subuid(5) and subgid(5), the best pool first. What
// user vzrun has there is the only one. What root has (LXC's and Incus's
// convention) is better than what nobody has.
func idPools(uids, gids []subordinate) []idPool {
	pool := func(names ...string) idPool {
		mine := func(s subordinate) bool { return slices.Contains(names, s.user) }
		var p idPool
		for _, u := range uids {
			for _, g := range gids {
				if mine(u) && mine(g) && u.overlaps(g.idSpan) {
					first := max(u.first, g.first)
					p.spans = append(p.spans, idSpan{first, min(u.first+u.size, g.first+g.size) - first})
				}
			}
		}
		for _, s := range slices.Concat(uids, gids) {
			if !mine(s) {
				p.taken = append(p.taken, s.idSpan)
			}
		}
		return p
	}
	own := func(s subordinate) bool { return s.user == "vzrun" }
	if slices.ContainsFunc(uids, own) || slices.ContainsFunc(gids, own) {
		return []idPool{pool("vzrun")}
	}
	everything := pool()
	everything.spans = []idSpan{{firstID, lastID + idRange - firstID}}
	return []idPool{pool("root", "0"), everything}
}

// freeIDs decides: the first range of idRange ids in spans that none of taken
// overlaps, from a place that start chooses.
func freeIDs(spans, taken []idSpan, start uint32) (uint64, bool) {
	var slots uint64
	for _, s := range spans {
		slots += s.size / idRange
	}
	for i := range slots {
		n := (uint64(start) + i) % slots
		for _, s := range spans {
			if n >= s.size/idRange {
				n -= s.size / idRange
				continue
			}
			slot := idSpan{s.first + n*idRange, idRange}
			if slot.first != 0 && slot.first+idRange <= math.MaxUint32 && !slices.ContainsFunc(taken, slot.overlaps) {
				return slot.first, true
			}
			break
		}
	}
	return 0, false
}

// subordinate is a line of /etc/subuid or /etc/subgid.
type subordinate struct {
	user string
	idSpan
}

func readSubordinate(path string) ([]subordinate, error) {
	data, err := readRegular(path, 16<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseSubordinate(string(data)), nil
}

// parseSubordinate reads lines of NAME:FIRST:COUNT, subuid(5). What is no such
// line is left out, as newuidmap(1) does.
func parseSubordinate(text string) []subordinate {
	var out []subordinate
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		size, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && size > 0 {
			out = append(out, subordinate{f[0], idSpan{first, size}})
		}
	}
	return out
}

// usedIDs are the ranges of this state root's containers and of all user
// namespaces that have a process, whoever made them.
func (h *Host) usedIDs() ([]idSpan, error) {
	entries, err := os.ReadDir(h.opts.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var used []idSpan
	for _, e := range entries {
		if lc, err := libcontainer.Load(h.opts.Root, e.Name()); err == nil {
			config := lc.Config()
			for _, m := range slices.Concat(config.UIDMappings, config.GIDMappings) {
				used = append(used, idSpan{uint64(m.HostID), uint64(m.Size)})
			}
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		for _, kind := range []string{"uid_map", "gid_map"} {
			data, err := os.ReadFile(filepath.Join("/proc", p.Name(), kind))
			if err != nil || seen[string(data)] {
				continue
			}
			// One that has ended uses none, though its parent may not
			// have looked yet.
			if ended, err := exiting(pid); ended || err != nil {
				continue
			}
			seen[string(data)] = true
			used = append(used, parseIDMap(string(data))...)
		}
	}
	return used, nil
}

// parseIDMap reads the host's side of a /proc/PID/uid_map (user_namespaces(7)).
// A map of all ids is no range of a container's, and no single id is: users have
// those.
func parseIDMap(text string) []idSpan {
	var out []idSpan
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		size, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && size > 1 && size < math.MaxUint32 {
			out = append(out, idSpan{first, size})
		}
	}
	return out
}

// liveClaims keeps those that somebody has still.
func (h *Host) liveClaims(claims []store.IDClaim) ([]store.IDClaim, error) {
	var live []store.IDClaim
	for _, c := range claims {
		var err error
		if c.Containers, err = h.livingContainers(c); err != nil {
			return nil, err
		}
		writing := false
		if c.Pid != 0 {
			start, err := startTime(c.Pid)
			writing = err == nil && start == c.Start
		}
		names := bundleNames(c)
		if names && !writing {
			c.Pid, c.Start = 0, 0
		}
		if names || writing || len(c.Containers) > 0 {
			live = append(live, c)
		}
	}
	return live, nil
}

// bundleNames tells whether the configuration of a claim's bundle names its
// range, or part of it. One that cannot be read or understood may.
func bundleNames(c store.IDClaim) bool {
	data, err := readRegular(filepath.Join(c.Bundle, "config.json"), maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false
	}
	var config struct {
		Linux *struct {
			UIDMappings []specs.LinuxIDMapping `json:"uidMappings"`
			GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		} `json:"linux"`
	}
	if err != nil || json.Unmarshal(data, &config) != nil {
		return true
	}
	return config.Linux != nil &&
		slices.ContainsFunc(mappedSpans(config.Linux.UIDMappings, config.Linux.GIDMappings), claimSpan(c).overlaps)
}

// mappedSpans are the host's ids of a configuration, each range once.
func mappedSpans(uids, gids []specs.LinuxIDMapping) []idSpan {
	var spans []idSpan
	for _, m := range slices.Concat(uids, gids) {
		s := idSpan{uint64(m.HostID), uint64(m.Size)}
		if m.Size > 0 && !slices.Contains(spans, s) {
			spans = append(spans, s)
		}
	}
	return spans
}
