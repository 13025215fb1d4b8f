package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PAX records of a tree's entries. SCHILY.xattr is what GNU tar, bsdtar and
// star write; a tar has no sockets, so that one is an empty file with a record.
const (
	paxXattr  = "SCHILY.xattr."
	paxSocket = "VZRUN.socket"
)

// Whiteouts as image-spec has them (layer.md), and as an overlay has them
// (Documentation/filesystems/overlayfs.rst).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	overlayPrefix  = "trusted.overlay."
	overlayOpaque  = overlayPrefix + "opaque"
)

// Tree is a directory to be packed as the member Name. Its files must not change
// between NewWriter and AddTrees: a guest's do not while it is frozen.
type Tree struct {
	Name, Dir string
	// Upper says that it is the upper directory of an overlay: what the guest
	// has deleted becomes whiteouts of an image's layer.
	Upper bool

	size int64    // of the tar, in bytes
	disk int64    // the room that the files take
	gone []string // paths of the whiteouts
}

// measure finds out how long the tar will be, which its header has to tell
// before its content. It reads no content, and refuses more of it than a disk has.
func (t *Tree) measure(ctx context.Context) error {
	count := &counter{}
	p := &packer{ctx: ctx, tree: t, tar: tar.NewWriter(count), count: count}
	var err error
	if p.most, err = roomFor(t.Dir); err != nil {
		return err
	}
	t.gone, t.disk = nil, 0
	if err := p.pack(); err != nil {
		return err
	}
	t.size = count.n
	return nil
}

// AddTrees writes the tars of the plan's trees.
func (w *Writer) AddTrees(ctx context.Context) error {
	for _, t := range w.trees {
		if err := w.addTree(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) addTree(ctx context.Context, t *Tree) error {
	return w.member(t.Name, t.size, func(c *content) error {
		p := &packer{ctx: ctx, tree: t, tar: tar.NewWriter(c), content: w}
		err := p.pack()
		if errors.Is(err, tar.ErrWriteTooLong) {
			return fmt.Errorf("files in %s have changed meanwhile", t.Dir)
		}
		return err
	})
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// packer walks a tree. It goes by descriptors and follows no link, so that it
// never leaves the tree; what is mounted in it stays out.
type packer struct {
	ctx     context.Context
	tree    *Tree
	tar     *tar.Writer
	content *Writer // copies content; nil while it is measured
	count   *counter
	most    int64 // bytes of content that there may be, while it is measured
	mount   uint64
	links   map[inode]string // files with more than one name
}

type inode struct{ dev, ino uint64 }

func (p *packer) pack() error {
	p.links = map[inode]string{}
	root, err := os.OpenFile(p.tree.Dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	st, err := lstatAt(root, ".")
	if err != nil {
		return err
	}
	p.mount = st.Mnt_id
	if err := p.entry(root, ".", ".", st); err != nil {
		return err
	}
	if err := p.folder(root, ""); err != nil {
		return err
	}
	return p.tar.Close()
}

func lstatAt(dir *os.File, name string) (*unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	if err != nil {
		return nil, &os.PathError{Op: "statx", Path: name, Err: err}
	}
	return &st, nil
}

// folder packs what is in a directory, in the order of names.
func (p *packer) folder(dir *os.File, prefix string) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.named(dir, name, prefix+name); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) named(dir *os.File, name, full string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	// With what an overlay's may have in front of its last part, or behind it.
	if len(full)+len("/"+whiteoutOpaque) > maxName {
		return fmt.Errorf("%.100q... is a path of %d bytes, which no restore could make", full, len(full))
	}
	st, err := lstatAt(dir, name)
	if err != nil {
		return err
	}
	if p.tree.Upper && strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("%s has a name that means a deleted file in a layer", full)
	}
	if p.tree.Upper && isWhiteout(st) {
		p.tree.deleted(p, full)
		return p.plain(path.Join(path.Dir(full), whiteoutPrefix+name), st)
	}
	if st.Mnt_id != p.mount {
		return nil
	}
	if err := p.entry(dir, name, full, st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: full, Err: err}
	}
	sub := os.NewFile(uintptr(fd), full)
	defer sub.Close()
	return p.folder(sub, full+"/")
}

func (t *Tree) deleted(p *packer, full string) {
	if p.content == nil {
		t.gone = append(t.gone, "/"+full)
	}
}

func isWhiteout(st *unix.Statx_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == 0 && st.Rdev_minor == 0
}

// plain packs an empty regular file.
func (p *packer) plain(full string, st *unix.Statx_t) error {
	return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: full, Mode: 0, ModTime: modTime(st), Format: tar.FormatPAX})
}

func modTime(st *unix.Statx_t) time.Time { return time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)) }

// entry packs one file, not what is in a directory.
func (p *packer) entry(dir *os.File, name, full string, st *unix.Statx_t) error {
	h := &tar.Header{
		Name: full, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: modTime(st),
		Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	opaque, err := p.attributes(dir, name, h)
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", full, err)
	}
	id := inode{uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), st.Ino}
	if first, found := p.links[id]; found {
		h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, first, nil
		return p.tar.WriteHeader(h)
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		p.links[id] = full
	}
	p.tree.disk += int64(st.Blocks) * 512
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.regular(dir, name, h, int64(st.Size))
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if err := p.tar.WriteHeader(h); err != nil || !opaque {
			return err
		}
		return p.plain(path.Join(full, whiteoutOpaque), st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkAt(dir, name); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFSOCK:
		h.Typeflag, h.PAXRecords[paxSocket] = tar.TypeReg, "1"
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(st.Rdev_major), int64(st.Rdev_minor)
	default:
		return fmt.Errorf("%s is of an unknown kind", full)
	}
	return p.tar.WriteHeader(h)
}

func readlinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

func (p *packer) regular(dir *os.File, name string, h *tar.Header, size int64) error {
	h.Typeflag, h.Size = tar.TypeReg, size
	if p.content == nil {
		return p.measured(h)
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	return p.content.copyExactly(p.ctx, p.tar, f, size, h.Name)
}

// attributes adds the extended attributes of a file, without those by which an
// overlay finds its way: they hold handles of this file system. It tells
// whether a directory hides what is below it.
func (p *packer) attributes(dir *os.File, name string, h *tar.Header) (opaque bool, err error) {
	at := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
	names, err := listAttributes(at)
	if err != nil {
		return false, err
	}
	for _, attr := range names {
		if p.tree.Upper && strings.HasPrefix(attr, overlayPrefix) {
			switch strings.TrimPrefix(attr, overlayPrefix) {
			case "opaque":
				value, err := attribute(at, attr)
				if err != nil {
					return false, err
				}
				opaque = value == "y"
			case "redirect", "metacopy":
				return false, fmt.Errorf("%s: a renamed directory or a file without its data cannot be told in a layer", attr)
			}
			continue
		}
		value, err := attribute(at, attr)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", attr, err)
		}
		h.PAXRecords[paxXattr+attr] = value
	}
	return opaque, nil
}

func listAttributes(at string) ([]string, error) {
	n, err := unix.Llistxattr(at, nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && n == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	if n, err = unix.Llistxattr(at, buf); err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

func attribute(at, name string) (string, error) {
	n, err := unix.Lgetxattr(at, name, nil)
	if err != nil {
		return "", err
	}
	buf := make([]byte, n)
	if n, err = unix.Lgetxattr(at, name, buf); err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
