package libvz

import (
	"context"
	"os"
)

// ExportOptions say how a checkpoint is written as an archive.
type ExportOptions struct {
	// Path is a file, or with Layout a directory, that does not exist yet. ""
	// writes to To, which may be a pipe; how durable it is there is the
	// reader's business.
	Path string
	To   *os.File
	// Layout asks for an OCI image layout in place of one file.
	Layout bool
	// Level is that of zstd, 1 to 22; 0 does not compress.
	Level int
	// Rootfs adds the whole root file system. Without it an overlay's upper
	// directory is in the archive, and nothing of another root.
	Rootfs bool
	// Recipients are those of age who can read it, one a line; "" = everybody.
	Recipients string
	// Version is the caller's, for the annotations of an image.
	Version string
}

// exporter makes an archive of what is dumped, noExporter makes none.
type exporter interface {
	// privatePath is the directory that the images are in until they are in the
	// archive; "" where the caller keeps them.
	privatePath() string
	// beforeDump is called before CRIU writes the first image, in each attempt.
	beforeDump(images string)
	// atPostDump is called while the tasks are frozen and CRIU waits for consent.
	atPostDump(ctx context.Context, d *dumpPlan) error
	// afterDump is called when a guest that is left running runs again.
	afterDump(ctx context.Context, d *dumpPlan) error
	// explain returns what was in the way of the archive in place of CRIU's err.
	explain(err error) error
	// discard removes what is not wanted any more. It is idempotent.
	discard()
}

type noExporter struct{}

func (noExporter) privatePath() string                         { return "" }
func (noExporter) beforeDump(string)                           {}
func (noExporter) atPostDump(context.Context, *dumpPlan) error { return nil }
func (noExporter) afterDump(context.Context, *dumpPlan) error  { return nil }
func (noExporter) explain(err error) error                     { return err }
func (noExporter) discard()                                    {}
