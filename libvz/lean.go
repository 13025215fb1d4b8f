//go:build lean

package libvz

import "fmt"

// The tag lean builds a library without archives and migrations, and so without
// their ciphers and compression, which cost each start of a program time and
// memory: docs/decisions/0026-two-programs.md. Their clean-up is in it.

func (c *Container) prepareExport(*CheckpointOptions, *dumpPlan) (exporter, error) {
	return nil, fmt.Errorf("archives: %w by this build", ErrUnsupported)
}
