//go:build lean

package libvz

import (
	"context"
	"fmt"
)

// The tag lean builds a library without archives and migrations, and so without
// their ciphers and compression, which cost each start of a program time and
// memory: docs/decisions/0026-two-programs.md. Their clean-up is in it.

func (c *Container) prepareExport(context.Context, *CheckpointOptions, *dumpPlan) (exporter, error) {
	return nil, fmt.Errorf("archives: %w by this build", ErrUnsupported)
}
