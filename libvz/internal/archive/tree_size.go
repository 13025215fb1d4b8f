package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that the files of a tree have more content, most of it holes, than
// an archive can be made of in any time.
var ErrTooLarge = errors.New("too large for an archive")

const (
	// contentFactor is how many times the size of their file system the files of a
	// tree may have: compression (btrfs) and the holes of disks' images and data bases
	// are honest. A guest can make a file of exabytes, and a tar has every zero of
	// it: it would stand still for ever.
	contentFactor = 4
	// contentLeast may be on any: hashing so many zeros takes minutes.
	contentLeast = 64 << 30
	// contentMost is where nothing is known of the file system. The sum of all trees
	// is an int64.
	contentMost = 1 << 50
)

// mostContent is how many bytes the files of a tree may have together, in a file
// system of so many blocks.
func mostContent(blocks uint64, size int64) int64 {
	if blocks == 0 || size <= 0 || blocks > contentMost/contentFactor/uint64(size) {
		return contentMost
	}
	return max(int64(blocks)*size*contentFactor, contentLeast)
}

// roomFor returns how many bytes that is for a directory.
func roomFor(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return mostContent(fs.Blocks, fs.Bsize), nil
}

// CheckSizes looks for what is too large while the guest still runs: the error wraps
// ErrTooLarge, or is that of ctx. Files come and go meanwhile, so that other errors
// say nothing; NewWriter looks again when nothing changes any more.
func CheckSizes(ctx context.Context, trees []*Tree) error {
	for _, t := range trees {
		looked := *t
		if err := looked.measure(ctx); errors.Is(err, ErrTooLarge) {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	return ctx.Err()
}

// measured counts a file, with content that is not read.
func (p *packer) measured(h *tar.Header) error {
	if h.Size > p.most {
		return fmt.Errorf("%w: %q has %d bytes, and with what is before it there may be %d more", ErrTooLarge, h.Name, h.Size, p.most)
	}
	p.most -= h.Size
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	p.count.n += (h.Size + blockSize - 1) / blockSize * blockSize
	p.tar = tar.NewWriter(p.count) // the one before waits for the content
	return nil
}
