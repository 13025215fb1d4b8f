package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is how much of an image is copied between two looks at the context.
const chunk = 64 << 20

// Copy makes to, an empty regular file, what from is. File systems that can do that
// share the blocks; else holes stay holes, and progress, if not nil, is told how many
// bytes have been copied.
func Copy(ctx context.Context, to, from *os.File, progress func(done int64)) error {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	var done int64
	for at := int64(0); ; {
		begin, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole to the end
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		end, err := from.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for holes: %w", err)
		}
		for at = begin; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(to, from, at, min(chunk, end-at))
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("copy: %w", io.ErrUnexpectedEOF) // it has become shorter
			}
			at, done = at+n, done+n
			if progress != nil {
				progress(done)
			}
		}
	}
}

// copyRange copies up to size bytes at an offset of both; the kernel does it where
// it can (copy_file_range(2)).
func copyRange(to, from *os.File, at, size int64) (int64, error) {
	for _, f := range []*os.File{to, from} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return 0, err
		}
	}
	n, err := io.CopyN(to, from, size)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
