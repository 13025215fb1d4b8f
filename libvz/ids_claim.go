package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// holdIDs puts the container's ranges of ids on the host's record, where it is
// a whole operating system, and looks who else has them: two guests with the
// same ids are not separated by them, and share the kernel's limits for a user.
// A create is refused then. A restore is not, since images hold the ids: clones
// of one checkpoint have them in common, and a guest from another host brings
// its own.
//
// The caller holds the container's lock: until its state is written, that is
// how others know that it is there.
func (n *nascent) holdIDs(op string) error {
	spans := mappedSpans(n.spec.Linux.UIDMappings, n.spec.Linux.GIDMappings)
	spans = slices.DeleteFunc(spans, func(s idSpan) bool { return s.first == 0 || s.first+s.size > math.MaxUint32 })
	if n.spec.Annotations[annotationGuest] == "" || len(spans) == 0 || unprivileged() {
		return nil
	}
	shared, err := wantsSharedIDs(n.spec.Annotations)
	if err != nil {
		return err
	}
	record, err := n.host.lockIDs()
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		n.host.warn(n.id, "nobody knows of this container's ids: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer record.Close()
	bundle := realPath(n.bundle)
	other, err := n.host.otherHolder(record.Claims, bundle, n.id, spans)
	if err != nil {
		return err
	}
	if other != "" && !shared {
		if op == "create" {
			return withHint(fmt.Sprintf("give each its own with `vzrun spec --system`, or allow it with the annotation %s=shared", annotationIDs),
				"%w: ids %s are those of container %s, too", ErrRefused, spans[0], other)
		}
		n.host.warn(n.id, "ids %s are those of container %s, too: the two are not separated by ids", spans[0], other)
	}
	record.Claims = addClaims(record.Claims, spans, bundle, store.IDContainer{Root: n.host.opts.Root, ID: n.id})
	return record.Save()
}

func wantsSharedIDs(annotations map[string]string) (bool, error) {
	switch v := annotations[annotationIDs]; v {
	case "", "shared":
		return v != "", nil
	default:
		return false, fmt.Errorf("annotation %s: unknown value %q, shared is known", annotationIDs, v)
	}
}

// realPath is how the record names a bundle, whatever links lead there.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}

// addClaims adds a container to those of its bundle's claims.
func addClaims(claims []store.IDClaim, spans []idSpan, bundle string, ct store.IDContainer) []store.IDClaim {
	for _, s := range spans {
		i := slices.IndexFunc(claims, func(c store.IDClaim) bool { return c.Bundle == bundle && claimSpan(c) == s })
		if i < 0 {
			i = len(claims)
			claims = append(claims, store.IDClaim{First: uint32(s.first), Size: uint32(s.size), Bundle: bundle})
		}
		if !slices.Contains(claims[i].Containers, ct) {
			claims[i].Containers = append(claims[i].Containers, ct)
		}
	}
	return claims
}

// otherHolder names a container of another bundle that runs with some of the
// ids, "" where there is none.
func (h *Host) otherHolder(claims []store.IDClaim, bundle, id string, spans []idSpan) (string, error) {
	for _, c := range claims {
		if c.Bundle == bundle || !slices.ContainsFunc(spans, claimSpan(c).overlaps) {
			continue
		}
		containers, err := h.livingContainers(c)
		if err != nil {
			return "", err
		}
		for _, ct := range containers {
			if ct.Root == h.opts.Root && ct.ID == id {
				continue // an earlier one of that name
			}
			stopped, err := hasStopped(ct)
			if err != nil {
				return "", err
			}
			if !stopped {
				return ct.ID, nil
			}
		}
	}
	return "", nil
}

// livingContainers keeps those of a claim's containers that exist with its
// bundle, or are being made.
func (h *Host) livingContainers(c store.IDClaim) ([]store.IDContainer, error) {
	var live []store.IDContainer
	for _, ct := range c.Containers {
		lc, err := libcontainer.Load(ct.Root, ct.ID)
		if err == nil {
			bundle, _ := utils.Annotations(lc.Config().Labels)
			if realPath(bundle) == c.Bundle {
				live = append(live, ct)
			}
			continue
		}
		// A state that cannot be read may be one that uses them.
		held := !errors.Is(err, libcontainer.ErrNotExist)
		if !held {
			if held, err = store.Open(ct.Root).Held(ct.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		if held {
			live = append(live, ct)
		}
	}
	return live, nil
}

func hasStopped(ct store.IDContainer) (bool, error) {
	lc, err := libcontainer.Load(ct.Root, ct.ID)
	if err != nil {
		return false, nil // being made, or not to be told
	}
	st, err := lc.Status()
	return st == libcontainer.Stopped, err
}
