package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"filippo.io/age"
)

// Options of a Writer.
type Options struct {
	// Level is zstd's, 1 to 22; 0 = not compressed.
	Level int
	// Recipients are who can read the archive; none = everybody.
	Recipients []age.Recipient
	// Progress is told how many bytes of members are written, of about how many; nil =
	// nobody.
	Progress func(done, total int64)
	// Early is what was compressed of images before there was an archive for them;
	// nil = nothing. It must have been stopped, and is used up.
	Early *Early
	// Modified is the time that members carry.
	Modified time.Time
}

// Plan is what an archive is to hold.
type Plan struct {
	Arch   string // as Go names it
	Images int64  // the sum of their sizes
	Trees  []*Tree
}

// Documents are what other programs read, as JSON.
type Documents struct{ Config, Spec, Network any }

// Writer writes one archive: documents, trees, images, logs. Its methods are called from one goroutine; after an
// error only Discard is of use.
type Writer struct {
	target  Target
	encoder *encoder
	frame   hash.Hash // of all that is no member's content
	whole   hash.Hash // of everything, where a target wants it; else nil
	options Options
	trees   []*Tree
	members []Member
	folder  bool // that images are in, is written
	total   int64
	done    int64
	buffer  []byte
}

// NewWriter looks at the trees of a plan, and begins an archive with its header.
func NewWriter(ctx context.Context, target Target, plan Plan, o Options) (*Writer, error) {
	h := Header{Format: newestFormat, Arch: plan.Arch, Images: plan.Images}
	for _, t := range plan.Trees {
		if err := t.measure(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		h.Trees = append(h.Trees, treeSize{Name: t.Name, Size: t.size, Disk: t.disk})
	}
	enc, err := encode(target, o.Level, o.Recipients)
	if err != nil {
		return nil, err
	}
	w := &Writer{
		target: target, encoder: enc, frame: sha256.New(), whole: target.wholeHash(), options: o, trees: plan.Trees,
		total: h.Bytes(), buffer: make([]byte, copySize),
	}
	data, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if err := w.frameMember(headerName, data); err != nil {
		return nil, err
	}
	return w, nil
}

// copySize is how many bytes of a file are read at a time.
const copySize = 1 << 20

// frameMember writes a member whose content belongs to the frame.
func (w *Writer) frameMember(name string, data []byte) error {
	if err := w.header(name, int64(len(data))); err != nil {
		return err
	}
	if err := w.framed(data); err != nil {
		return err
	}
	return w.pad(int64(len(data)))
}

// framed writes what is no member's content.
func (w *Writer) framed(p []byte) error {
	w.frame.Write(p)
	if w.whole != nil {
		w.whole.Write(p)
	}
	_, err := w.encoder.Write(p)
	return err
}

// pad fills up the last block of a member of size bytes.
func (w *Writer) pad(size int64) error {
	if over := size % blockSize; over > 0 {
		return w.framed(make([]byte, blockSize-over))
	}
	return nil
}

func (w *Writer) header(name string, size int64) error {
	return w.tarHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600})
}

func (w *Writer) tarHeader(h *tar.Header) error {
	h.ModTime = w.options.Modified.Truncate(time.Second)
	var blocks bytes.Buffer
	if err := tar.NewWriter(&blocks).WriteHeader(h); err != nil {
		return err
	}
	return w.framed(blocks.Bytes())
}

// AddDocuments writes what other programs read, and what the guest has deleted of the
// template of an overlay.
func (w *Writer) AddDocuments(d Documents) error {
	var deleted []string
	for _, t := range w.trees {
		deleted = append(deleted, t.gone...)
	}
	documents := []struct {
		name string
		v    any
	}{{configName, d.Config}, {specName, d.Spec}, {networkName, d.Network}, {deletedName, deleted}}
	if deleted == nil {
		documents = documents[:3]
	}
	for _, doc := range documents {
		data, err := json.MarshalIndent(doc.v, "", "  ")
		if err != nil {
			return err
		}
		if err := w.add(doc.name, data); err != nil {
			return err
		}
	}
	return nil
}

// AddLogs writes CRIU's log and statistics, as far as read can read files of these
// names: no restore needs them.
func (w *Writer) AddLogs(read func(name string) ([]byte, error)) error {
	for _, name := range []string{logName, statsName} {
		data, err := read(name)
		if err != nil {
			continue
		}
		if err := w.add(name, data); err != nil {
			return err
		}
	}
	return nil
}

// add writes a small member.
func (w *Writer) add(name string, data []byte) error {
	return w.member(name, int64(len(data)), func(c *content) error {
		_, err := c.Write(data)
		return err
	})
}

// beginImages writes the folder that images are in, by which others know an archive.
func (w *Writer) beginImages() error {
	if w.folder {
		return nil
	}
	w.folder = true
	return w.tarHeader(&tar.Header{Typeflag: tar.TypeDir, Name: imagesFolder, Mode: 0o700})
}

// AddImage writes an image of exactly size bytes from a file. What Options.Early
// has of that file is not read again.
func (w *Writer) AddImage(ctx context.Context, name string, f *os.File, size int64) error {
	if err := w.beginImages(); err != nil {
		return err
	}
	name = imagesFolder + name
	return w.member(name, size, func(c *content) error {
		if err := c.takeEarly(f); err != nil {
			return err
		}
		return c.readAll(ctx, f, name)
	})
}

// copyExactly copies a file that has the size that was announced.
func (w *Writer) copyExactly(ctx context.Context, to io.Writer, from io.Reader, size int64, name string) error {
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(from, w.buffer[:min(int64(len(w.buffer)), left)])
		if _, err := to.Write(w.buffer[:n]); err != nil {
			return err
		}
		left -= int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%s has become shorter", name)
		}
		if err != nil {
			return err
		}
	}
	return hasEnded(from, w.buffer, name)
}

// hasEnded tells of more than was announced.
func hasEnded(from io.Reader, buffer []byte, name string) error {
	if n, err := from.Read(buffer[:1]); n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
		return errors.Join(fmt.Errorf("%s has become longer", name), err)
	}
	return nil
}

// member writes one whose content fill writes.
func (w *Writer) member(name string, size int64, fill func(*content) error) error {
	if err := w.header(name, size); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	c := &content{w: w, left: size, sum: sha256.New()}
	err := fill(c)
	if err == nil && c.left > 0 {
		err = fmt.Errorf("%d bytes of it are missing", c.left)
	}
	if err == nil {
		err = w.pad(size)
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	w.members = append(w.members, Member{Name: name, Size: size, SHA256: hex.EncodeToString(c.sum.Sum(nil))})
	return nil
}

// content is where a member's content goes.
type content struct {
	w    *Writer
	left int64 // what is still to come of it
	sum  hash.Hash
}

func (c *content) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		return 0, tar.ErrWriteTooLong
	}
	c.hashed(p)
	n, err := c.w.encoder.Write(p)
	c.count(int64(n))
	return n, err
}

func (c *content) hashed(p []byte) {
	c.sum.Write(p)
	if c.w.whole != nil {
		c.w.whole.Write(p)
	}
}

func (c *content) count(n int64) {
	c.left -= n
	c.w.done += n
	if c.w.options.Progress != nil {
		c.w.options.Progress(c.w.done, c.w.total)
	}
}

// readAll reads what is left of a file to where it is compressed, without a copy.
func (c *content) readAll(ctx context.Context, f *os.File, name string) error {
	for c.left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		space := c.w.encoder.space()
		n, err := f.Read(space[:min(int64(len(space)), copySize, c.left)])
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s has become shorter", name)
		}
		if err != nil {
			return err
		}
		c.hashed(space[:n])
		if err := c.w.encoder.advance(n); err != nil {
			return err
		}
		c.count(int64(n))
	}
	return hasEnded(f, c.w.buffer, name)
}

// takeEarly writes what was compressed of a file while that was written, and has
// the rest of it read.
func (c *content) takeEarly(f *os.File) error {
	if c.w.encoder.frames == nil || c.w.whole != nil {
		return nil
	}
	frames, err := c.w.options.Early.take(f, c.left)
	if err != nil || len(frames) == 0 {
		return err
	}
	for _, frame := range frames {
		if err := c.w.encoder.frames.insert(frame.packed); err != nil {
			return err
		}
		frame.packed = nil // memory is free as soon as it is written
		c.count(earlySize)
	}
	c.sum = frames[len(frames)-1].sum
	_, err = f.Seek(int64(len(frames))*earlySize, io.SeekStart)
	return err
}

// Commit ends the archive and makes it durable under its name, as far as its
// target can. It returns what identifies it: the SHA-256 in its last member.
func (w *Writer) Commit() (string, error) {
	data, err := json.Marshal(w.members)
	if err != nil {
		return "", err
	}
	if err := w.frameMember(digestsName, data); err != nil {
		return "", err
	}
	id := hex.EncodeToString(w.frame.Sum(nil))
	if err := w.frameMember(endName, []byte(id)); err != nil {
		return "", err
	}
	if err := w.framed(make([]byte, 2*blockSize)); err != nil { // the end of a tar
		return "", err
	}
	if err := w.encoder.Close(); err != nil {
		return "", err
	}
	return id, w.target.commit(w.whole)
}

// Discard leaves nothing of an archive that was not committed; after Commit
// has returned nil it does nothing.
func (w *Writer) Discard() {
	w.encoder.abandon()
	w.target.Discard()
}
