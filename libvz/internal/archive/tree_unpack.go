package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unpacker makes a tree of the tar of one, below a directory that is empty and
// nobody else's. Every parent is opened below it without following links
// (openat2(2)), so that an entry is made in the tree or not at all.
type unpacker struct {
	ctx    context.Context
	root   *os.File
	upper  bool
	buffer []byte
	times  []folderTime // of directories, set when all is in them
}

type folderTime struct {
	name string
	at   time.Time
}

func (u *unpacker) unpack(from io.Reader) error {
	r := tar.NewReader(from)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("%.*q: %w", maxName, h.Name, err)
		}
	}
	for i := len(u.times) - 1; i >= 0; i-- {
		if err := u.setTime(u.times[i]); err != nil {
			return err
		}
	}
	return nil
}

// cleanName returns the path of an entry below the root, "." for itself.
func cleanName(name string) (string, error) {
	name = strings.TrimSuffix(name, "/")
	if len(name) > maxName {
		return "", unsafeArchive("the path has %d bytes", len(name))
	}
	if name == "" || name != path.Clean(name) || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) {
		return "", unsafeArchive("the path leads out of the tree")
	}
	return name, nil
}

// parent opens the directory that an entry is in.
func (u *unpacker) parent(name string) (*os.File, error) {
	fd, err := unix.Openat2(int(u.root.Fd()), path.Dir(name), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTDIR) {
		return nil, unsafeArchive("the path leads through what is no directory")
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, unsafeArchive("its directory is missing")
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path.Dir(name)), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if isSparse(h) {
		return unsafeArchive("it has holes that its size does not tell of")
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 1<<32-2 || int64(h.Gid) > 1<<32-2 {
		return unsafeArchive("its owner is no id")
	}
	dir, err := u.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	base := path.Base(name)
	if u.upper && strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return unsafeArchive("the root is no directory")
		}
	} else if err := u.create(dir, base, h, content); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return nil // it is the other name's
	}
	if h.Typeflag == tar.TypeDir {
		u.times = append(u.times, folderTime{name, h.ModTime})
	}
	return u.dress(dir, base, h)
}

// create makes the file itself; one that is there is never replaced.
func (u *unpacker) create(dir *os.File, base string, h *tar.Header, content io.Reader) error {
	fd := int(dir.Fd())
	made := func(err error) error {
		if errors.Is(err, unix.EEXIST) {
			return unsafeArchive("it is there twice")
		}
		return err
	}
	node := func(kind uint32) error {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 1<<32-1 || h.Devminor > 1<<32-1 {
			return unsafeArchive("its device number is none")
		}
		return made(unix.Mknodat(fd, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))))
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if h.PAXRecords[paxSocket] != "" {
			return made(unix.Mknodat(fd, base, unix.S_IFSOCK|0o600, 0))
		}
		return made(u.regular(dir, base, h.Size, content))
	case tar.TypeDir:
		return made(unix.Mkdirat(fd, base, 0o700))
	case tar.TypeSymlink:
		return made(unix.Symlinkat(h.Linkname, fd, base))
	case tar.TypeFifo:
		return made(unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0))
	case tar.TypeChar:
		return node(unix.S_IFCHR)
	case tar.TypeBlock:
		return node(unix.S_IFBLK)
	case tar.TypeLink:
		first, err := cleanName(h.Linkname)
		if err != nil {
			return err
		}
		from, err := u.parent(first)
		if err != nil {
			return err
		}
		defer from.Close()
		return made(unix.Linkat(int(from.Fd()), path.Base(first), fd, base, 0))
	}
	return unsafeArchive("it is of an unknown kind (%q)", string(h.Typeflag))
}

// holeSize is what has to be zero for a hole to be made of it.
const holeSize = 64 << 10

func (u *unpacker) regular(dir *os.File, base string, size int64, content io.Reader) error {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if err := copySparsely(u.ctx, f, content, size, u.buffer); err != nil {
		return err
	}
	return f.Close()
}

// copySparsely writes size bytes, and holes for long zeros.
func copySparsely(ctx context.Context, f *os.File, content io.Reader, size int64, buffer []byte) error {
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, buffer[:min(int64(len(buffer)), size-at)])
		if err != nil {
			return err
		}
		for chunk := buffer[:n]; len(chunk) > 0; {
			part := chunk[:min(len(chunk), holeSize)]
			if len(part) < holeSize || !isZero(part) {
				if _, err := f.WriteAt(part, at); err != nil {
					return err
				}
			}
			at += int64(len(part))
			chunk = chunk[len(part):]
		}
	}
	return f.Truncate(size)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// whiteout makes what a layer says was deleted into what an overlay has for it.
func (u *unpacker) whiteout(dir *os.File, base string) error {
	if base == whiteoutOpaque {
		return unix.Fsetxattr(int(dir.Fd()), overlayOpaque, []byte("y"), 0)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteoutPrefix) {
		return unsafeArchive("it says that nothing was deleted")
	}
	err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, int(unix.Mkdev(0, 0)))
	if errors.Is(err, unix.EEXIST) {
		return unsafeArchive("it was deleted, and is there")
	}
	return err
}

// dress gives a file its owner, mode, attributes and time. In this order: a
// change of the owner clears bits of the mode and capabilities (chown(2)).
func (u *unpacker) dress(dir *os.File, base string, h *tar.Header) error {
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// It was made here and is nobody's link.
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
	}
	at := "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base
	for key, value := range h.PAXRecords {
		attr, found := strings.CutPrefix(key, paxXattr)
		if !found {
			continue
		}
		if u.upper && strings.HasPrefix(attr, overlayPrefix) {
			return unsafeArchive("it has an attribute that is the overlay's own, %s", attr)
		}
		if err := unix.Lsetxattr(at, attr, []byte(value), 0); err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil // later
	}
	return setTimeAt(fd, base, h.ModTime)
}

func setTimeAt(fd int, base string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return unsafeArchive("its time is none")
	}
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) setTime(t folderTime) error {
	dir, err := u.parent(t.name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return setTimeAt(int(dir.Fd()), path.Base(t.name), t.at)
}
