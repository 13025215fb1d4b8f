package libvz

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/utils"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// criuName is where beside the store's records lies what is known of CRIU.
const criuName = "criu"

// findCriu returns the criu to use.
func (h *Host) findCriu(ctx context.Context) (criu.Known, error) {
	return h.askCriu(ctx, filepath.Join(h.opts.Root, store.DirName, criuName))
}

// askCriu does that with what is known in a directory; "" = nothing is, nor will be.
func (h *Host) askCriu(ctx context.Context, known string) (criu.Known, error) {
	const hint = "install CRIU 4.2 or newer (contrib/bootstrap --runtime does), or name one with --criu"
	path, err := criu.Find(h.opts.Criu)
	if err != nil {
		return criu.Known{}, withHint(hint, "%w: %w", ErrUnsupported, err)
	}
	k, err := criu.Know(ctx, path, known, inPrivateMounts)
	if errors.Is(err, criu.ErrTooOld) {
		return k, withHint(hint, "%w: %w", ErrUnsupported, err)
	}
	return k, err
}

// annotationCriu names a configuration file of CRIU's, as runc has it: "" is
// none, and without it there is that of runc.
const (
	annotationCriu    = "org.criu.config"
	defaultCriuConfig = "/etc/criu/runc.conf"
)

func criuConfigOf(annotations map[string]string) string {
	if path, set := annotations[annotationCriu]; set {
		return path
	}
	return defaultCriuConfig
}

func (c *Container) criuConfig() string {
	_, all := utils.Annotations(c.lc.Config().Labels)
	return criuConfigOf(all)
}
