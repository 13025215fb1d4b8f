package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpack says what is to be made of an archive.
type Unpack struct {
	// Images is an empty directory for the images; "" = only verify.
	Images string
	// Trees are empty directories for members that are trees; others are only
	// verified. Upper says of a tree that it is an overlay's.
	Trees map[string]string
	// Progress is told how many bytes of members were read; nil = nobody.
	Progress func(done int64)
}

// Contents is what was in an archive.
type Contents struct {
	// Digest identifies the archive; "" of a foreign one.
	Digest string
	// Members are all images, trees and small members in their order.
	Members []Member
	// Config, Spec and Record are the contents of config.dump, of spec.dump and of
	// vzrun.json among the images, which vzrun alone writes; nil = there is none.
	Config, Spec, Record []byte
}

// Unpack reads the archive to its end and verifies all of it while it unpacks.
// After an error, what is in the directories is worth nothing.
func (r *Reader) Unpack(ctx context.Context, u Unpack) (*Contents, error) {
	if err := r.checkSpace(u); err != nil {
		return nil, err
	}
	w := &walk{reader: r, ctx: ctx, unpack: u, seen: map[string]bool{}, buffer: make([]byte, 1<<20)}
	if u.Images != "" {
		dir, err := os.Open(u.Images)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		w.dir = dir
	}
	if err := w.all(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err() // nothing is wrong with the archive
		}
		return nil, err
	}
	return &w.contents, nil
}

// checkSpace compares what the archive declares with the room there is.
func (r *Reader) checkSpace(u Unpack) error {
	if r.Header == nil {
		return nil
	}
	if u.Images != "" {
		if err := hasRoom(u.Images, r.Header.Images); err != nil {
			return err
		}
	}
	for name, dir := range u.Trees {
		if t := r.Header.tree(name); t != nil {
			if err := hasRoom(dir, min(t.Disk, t.Size)); err != nil {
				return err
			}
		}
	}
	return nil
}

func hasRoom(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; bytes > free {
		return fmt.Errorf("%w: the archive needs %d bytes in %s, %d are free", ErrSpace, bytes, dir, free)
	}
	return nil
}

// walk is one way through an archive.
type walk struct {
	reader   *Reader
	ctx      context.Context
	unpack   Unpack
	dir      *os.File // for images; nil = only verify
	seen     map[string]bool
	names    int // bytes of them
	contents Contents
	images   int64
	done     int64
	ended    bool
	buffer   []byte
}

func (w *walk) all() error {
	r := w.reader
	for {
		h := r.first
		r.first = nil
		if h == nil {
			var err error
			if h, err = r.tar.Next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return damaged("%w", err)
			}
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if w.ended {
			return damaged("it goes on after its end")
		}
		if err := w.member(h); err != nil {
			return err
		}
	}
	return w.end()
}

// end checks what can be checked only when all was read.
func (w *walk) end() error {
	r := w.reader
	if r.Header != nil && !w.ended {
		return damaged("it is truncated")
	}
	if r.Header == nil && !w.seen[imagesFolder+"inventory.img"] {
		return fmt.Errorf("%w: there are no images of CRIU in it", ErrForeign)
	}
	if r.Header != nil && w.images != r.Header.Images {
		return damaged("it has %d bytes of images, %d were declared", w.images, r.Header.Images)
	}
	// A tar may be padded with zeros.
	const padding = 1 << 20
	rest, err := io.ReadAll(io.LimitReader(r.frame, padding+1))
	if err != nil {
		return damaged("%w", err)
	}
	if len(rest) > padding || !isZero(rest) || r.frame.stained {
		return damaged("it goes on after its end")
	}
	// The end of a tar: the last member's padding and two blocks.
	if r.Header != nil && r.frame.zeros < 2*blockSize+blockSize-2*sha256.Size {
		return damaged("it is truncated")
	}
	if r.blob != nil {
		return r.blob.verify()
	}
	return nil
}

// memberName returns the name of a member as we write it. Others write "./" before
// it, and "/" behind folders.
func (w *walk) memberName(h *tar.Header) (string, error) {
	name := h.Name
	if len(name) > maxName {
		return "", unsafeArchive("a member's name has %d bytes", len(name))
	}
	if w.reader.Header == nil {
		name = strings.TrimPrefix(name, "./")
	}
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/")
		if name == "" || name == "." {
			return ".", nil
		}
	}
	if name != path.Clean(name) || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
		return "", unsafeArchive("member %q leads out of it", h.Name)
	}
	return name, nil
}

func (w *walk) member(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader && w.reader.Header == nil {
		return nil
	}
	name, err := w.memberName(h)
	if err != nil {
		return err
	}
	if w.seen[name] {
		return unsafeArchive("member %q is there twice", name)
	}
	w.seen[name] = true
	w.names += len(name)
	if len(w.seen) > maxMembers || w.names > maxNames {
		return unsafeArchive("it has more than %d members, or their names more than %d bytes", maxMembers, maxNames)
	}
	if h.Typeflag == tar.TypeDir {
		if w.reader.Header != nil && name+"/" != imagesFolder {
			return unsafeArchive("there is a folder %q in it", name)
		}
		return nil
	}
	if h.Typeflag != tar.TypeReg || isSparse(h) {
		if w.reader.Header == nil && !isImage(name) && !IsTree(name) && !isSmall(name) {
			return nil // of no meaning to us, and nothing is made of it
		}
		return unsafeArchive("member %q is no regular file", name)
	}
	switch {
	case name == digestsName && w.reader.Header != nil:
		return w.digests(h)
	case name == endName && w.reader.Header != nil:
		return w.last(h)
	case isImage(name):
		return w.image(name, h)
	case IsTree(name):
		return w.tree(name, h)
	case isSmall(name):
		return w.small(name, h)
	case w.reader.Header != nil:
		return unsafeArchive("there is a member %q in it", name)
	}
	return w.content(name, h, io.Discard)
}

// isSparse tells whether a member has holes that its size does not tell of.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// content reads a member's content to its end, hashes it and notes it.
func (w *walk) content(name string, h *tar.Header, to io.Writer) error {
	w.reader.frame.content = true
	sum := sha256.New()
	from := &contentReader{w: w, sum: sum}
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, from, w.buffer)
	w.reader.frame.content = false
	if err != nil {
		return readError(name, err)
	}
	w.contents.Members = append(w.contents.Members, Member{Name: name, Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// readError tells an archive that cannot be read from a disk that cannot be
// written to.
func readError(name string, err error) error {
	var fromDisk *os.PathError
	if errors.As(err, &fromDisk) || errors.Is(err, ErrUnsafe) || errors.Is(err, ErrDamaged) ||
		errors.Is(err, context.Canceled) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("member %s: %w", name, err)
	}
	return damaged("member %s: %w", name, err)
}

type contentReader struct {
	w   *walk
	sum hash.Hash
}

func (c *contentReader) Read(p []byte) (int, error) {
	if err := c.w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.reader.tar.Read(p)
	c.sum.Write(p[:n])
	c.w.done += int64(n)
	if c.w.unpack.Progress != nil {
		c.w.unpack.Progress(c.w.done)
	}
	return n, err
}

func (w *walk) image(name string, h *tar.Header) error {
	w.images += h.Size
	if w.reader.Header != nil && w.images > w.reader.Header.Images {
		return damaged("it has more images than it declares")
	}
	to := io.Discard
	var kept *limited
	if name == recordName {
		kept = &limited{most: maxDigests}
		to = kept
	}
	if w.dir != nil {
		if w.reader.Header == nil {
			if err := hasRoom(w.unpack.Images, h.Size); err != nil {
				return err
			}
		}
		base := strings.TrimPrefix(name, imagesFolder)
		fd, err := unix.Openat(int(w.dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
		if err != nil {
			return &os.PathError{Op: "create", Path: path.Join(w.unpack.Images, base), Err: err}
		}
		f := os.NewFile(uintptr(fd), path.Join(w.unpack.Images, base))
		defer f.Close()
		to = f
		if kept != nil {
			to = io.MultiWriter(f, kept)
		}
	}
	if err := w.content(name, h, to); err != nil {
		return err
	}
	if kept != nil {
		w.contents.Record = kept.data
	}
	return nil
}

func (w *walk) tree(name string, h *tar.Header) error {
	if header := w.reader.Header; header != nil {
		if t := header.tree(name); t == nil || t.Size != h.Size {
			return damaged("member %s has %d bytes, which were not declared", name, h.Size)
		}
	}
	where := w.unpack.Trees[name]
	if where == "" {
		return w.content(name, h, io.Discard)
	}
	root, err := os.Open(where)
	if err != nil {
		return err
	}
	defer root.Close()
	// The inner tar ends before its member does where it is padded.
	r, pipe := io.Pipe()
	done := make(chan error, 1)
	go func() {
		u := &unpacker{ctx: w.ctx, root: root, upper: name == Diff, buffer: make([]byte, 1<<20)}
		err := u.unpack(r)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		r.CloseWithError(err)
		done <- err
	}()
	err = w.content(name, h, pipe)
	pipe.CloseWithError(err)
	if inner := <-done; inner != nil && err == nil {
		err = readError(name, inner)
	}
	return err
}

func (w *walk) small(name string, h *tar.Header) error {
	kept := &limited{most: maxSmall}
	if err := w.content(name, h, kept); err != nil {
		return err
	}
	switch name {
	case configName:
		w.contents.Config = kept.data
	case specName:
		w.contents.Spec = kept.data
	}
	return nil
}

// limited keeps what is written, up to a bound.
type limited struct {
	data []byte
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.data)+len(p) > l.most {
		return 0, unsafeArchive("it is longer than %d bytes", l.most)
	}
	l.data = append(l.data, p...)
	return len(p), nil
}

// digests compares what was read with what was written.
func (w *walk) digests(h *tar.Header) error {
	data, err := w.reader.small(h, maxDigests)
	if err != nil {
		return err
	}
	// One after the other: a list of nothings takes much more memory than text.
	written := json.NewDecoder(bytes.NewReader(data))
	if begin, err := written.Token(); err != nil || begin != json.Delim('[') {
		return damaged("its digests are no list")
	}
	n := 0
	for ; written.More(); n++ {
		if n == len(w.contents.Members) {
			return damaged("it has %d members, more were written", n)
		}
		var was Member
		if err := written.Decode(&was); err != nil {
			return damaged("digests: %w", err)
		}
		if is := w.contents.Members[n]; is != was {
			return damaged("member %s is not what was written", is.Name)
		}
	}
	if _, err := written.Token(); err != nil {
		return damaged("digests: %w", err)
	}
	if n != len(w.contents.Members) {
		return damaged("it has %d members, %d were written", len(w.contents.Members), n)
	}
	return nil
}

// last compares the frame's hash.
func (w *walk) last(h *tar.Header) error {
	if !w.seen[digestsName] {
		return damaged("it has no digests")
	}
	is := hex.EncodeToString(w.reader.frame.hash.Sum(nil))
	was, err := w.reader.small(h, maxSmall)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(is), was) != 1 {
		return damaged("its members' names or sizes are not those that were written")
	}
	w.contents.Digest, w.ended, w.reader.frame.tail = is, true, true
	return nil
}
