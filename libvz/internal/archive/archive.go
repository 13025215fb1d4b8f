// Package archive hides the form in which a checkpoint is moved: one stream
// that is a tar with the members that checkpointctl, Podman and CRI-O know
// (config.dump, spec.dump, checkpoint/, rootfs-diff.tar, ...), compressed with
// zstd and perhaps encrypted with age, or the same tar as the layer of an OCI
// image.
//
// Three members more make it one that can be trusted to be whole:
//
//	vzrun.archive  first: the Header, what is to come and how much of it
//	vzrun.digests  the size and SHA-256 of every other member
//	vzrun.end      last: the SHA-256 of all that is no member's content,
//	               the members' names and vzrun.digests among it
//
// So every byte of the tar is covered, and each is hashed once. The digests say
// that nothing was changed by accident, not who wrote it.
//
// An archive is a stranger's until it is verified: what is read is bounded by
// what the header declared, names that are not expected are refused, and only
// regular files are made of members.
package archive

import (
	"errors"
	"fmt"
	"strings"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"golang.org/x/sys/unix"
)

// newestFormat is the version of archives that are written; a higher one is refused.
const newestFormat = 1

// Names of members that are the tars of directories.
const (
	// Diff is the tar of what an overlay's guest has changed; Rootfs that of a
	// whole root.
	Diff   = metadata.RootFsDiffTar
	Rootfs = "rootfs.tar"
)

// Names of others. A member below imagesFolder is an image of CRIU, or vzrun's own
// record of them.
const (
	configName   = metadata.ConfigDumpFile
	specName     = metadata.SpecDumpFile
	networkName  = metadata.NetworkStatusFile
	deletedName  = metadata.DeletedFilesFile
	logName      = metadata.DumpLogFile
	statsName    = "stats-dump"
	imagesFolder = metadata.CheckpointDirectory + "/"
	recordName   = imagesFolder + "vzrun.json"
	// lower, with a number from 0 on and ".tar" behind it, is the tar of a
	// directory below the overlay.
	lower       = "rootfs-lower-"
	headerName  = "vzrun.archive"
	digestsName = "vzrun.digests"
	endName     = "vzrun.end"
)

// Bounds of what is read into memory, or made. Members that are no images and
// no trees are small.
const (
	maxSmall   = 16 << 20
	maxHeader  = 1 << 20
	maxDigests = 64 << 20
	maxMembers = 200_000
	// maxName bounds the path of a member, and of a file in a tree: no system call
	// takes a longer one. maxNames is the sum of all members', twice what as many
	// images as there may be have.
	maxName  = unix.PathMax
	maxNames = 16 << 20
)

var (
	// ErrDamaged says that an archive is truncated or was changed.
	ErrDamaged = errors.New("the archive is damaged")
	// ErrUnsafe says that an archive has what no program writes by accident,
	// such as names that lead out of it.
	ErrUnsafe = errors.New("the archive is refused")
	// ErrNewer says that a newer version wrote the archive.
	ErrNewer = errors.New("the archive was written by a newer version")
	// ErrForeign says that what is read is no archive of a checkpoint.
	ErrForeign = errors.New("no archive of a checkpoint")
	// ErrIdentity says that an archive is encrypted, and to none of the given
	// identities.
	ErrIdentity = errors.New("the archive is encrypted")
	// ErrSpace says that there is less room than the archive declares to need.
	ErrSpace = errors.New("not enough space")
)

// Header is what an archive declares before anything else. Sizes are bytes.
type Header struct {
	Format int    `json:"format"`
	Arch   string `json:"arch"` // as Go names it
	// Images is the sum of the sizes of all members that are images.
	Images int64      `json:"images"`
	Trees  []treeSize `json:"trees,omitempty"`
}

// treeSize is the size of a member that is the tar of a directory, and of the
// room that its files take.
type treeSize struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Disk int64  `json:"disk"`
}

// Has tells whether a member that is the tar of a directory is declared.
func (h *Header) Has(name string) bool { return h.tree(name) != nil }

// tree returns the declaration of a member, nil where there is none.
func (h *Header) tree(name string) *treeSize {
	for i := range h.Trees {
		if h.Trees[i].Name == name {
			return &h.Trees[i]
		}
	}
	return nil
}

// Bytes is the size of all images and trees.
func (h *Header) Bytes() int64 {
	n := h.Images
	for _, t := range h.Trees {
		n += t.Size
	}
	return n
}

// check refuses declarations that no writer makes.
func (h *Header) check() error {
	switch {
	case h.Format > newestFormat:
		return fmt.Errorf("%w (format %d)", ErrNewer, h.Format)
	case h.Format < 1 || h.Images < 0:
		return damaged("its header is none")
	}
	sum := h.Images
	for i, t := range h.Trees {
		if !IsTree(t.Name) || h.tree(t.Name) != &h.Trees[i] || t.Size < 0 || t.Disk < 0 || sum+t.Size < sum {
			return damaged("its header declares %q", t.Name)
		}
		sum += t.Size
	}
	return nil
}

// Member is the record of one in vzrun.digests.
type Member struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// IsImage tells whether a member is an image of CRIU, or vzrun's record of them.
func (m Member) IsImage() bool { return isImage(m.Name) }

// IsTree tells whether a member is the tar of a directory.
func IsTree(name string) bool {
	if name == Diff || name == Rootfs {
		return true
	}
	n, found := strings.CutPrefix(name, lower)
	n, tar := strings.CutSuffix(n, ".tar")
	return found && tar && n != "" && len(n) < 4 && strings.Trim(n, "0123456789") == ""
}

// LowerName is the member with the n-th directory below an overlay.
func LowerName(n int) string { return fmt.Sprintf("%s%d.tar", lower, n) }

// isImage tells whether a member is a file directly in the directory of images.
func isImage(name string) bool {
	base, found := strings.CutPrefix(name, imagesFolder)
	return found && base != "" && base != "." && base != ".." && !strings.Contains(base, "/")
}

// isSmall tells whether a member is one that is read into memory.
func isSmall(name string) bool {
	switch name {
	case configName, specName, networkName, deletedName, logName, statsName:
		return true
	}
	return false
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

func unsafeArchive(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnsafe, fmt.Errorf(format, args...))
}
