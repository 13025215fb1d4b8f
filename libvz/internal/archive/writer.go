package archive

import (
	"archive/tar"
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
	frame   *frame
	tar     *tar.Writer
	options Options
	trees   []*Tree
	members []Member
	folder  bool // that images are in, is written
	total   int64
	done    int64
	buffer  []byte
}

// frame hashes what is no member's content on its way.
type frame struct {
	to      io.Writer
	hash    hash.Hash
	whole   hash.Hash // of everything, where a target wants it; else nil
	content bool
}

func (f *frame) Write(p []byte) (int, error) {
	if !f.content {
		f.hash.Write(p)
	}
	if f.whole != nil {
		f.whole.Write(p)
	}
	return f.to.Write(p)
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
	w := &Writer{target: target, encoder: enc, options: o, trees: plan.Trees, total: h.Bytes(), buffer: make([]byte, 1<<20)}
	w.frame = &frame{to: enc, hash: sha256.New(), whole: target.wholeHash()}
	w.tar = tar.NewWriter(w.frame)
	data, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if err := w.frameMember(headerName, data); err != nil {
		return nil, err
	}
	return w, nil
}

// frameMember writes a member whose content belongs to the frame.
func (w *Writer) frameMember(name string, data []byte) error {
	if err := w.header(name, int64(len(data))); err != nil {
		return err
	}
	_, err := w.tar.Write(data)
	if err == nil {
		err = w.tar.Flush()
	}
	return err
}

func (w *Writer) header(name string, size int64) error {
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.options.Modified.Truncate(time.Second)})
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
	return w.member(name, int64(len(data)), func(to io.Writer) error {
		_, err := to.Write(data)
		return err
	})
}

// beginImages writes the folder that images are in, by which others know an archive.
func (w *Writer) beginImages() error {
	if w.folder {
		return nil
	}
	w.folder = true
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: imagesFolder, Mode: 0o700, ModTime: w.options.Modified.Truncate(time.Second)})
	if err == nil {
		err = w.tar.Flush()
	}
	return err
}

// AddImage writes an image of exactly size bytes from a file.
func (w *Writer) AddImage(ctx context.Context, name string, f *os.File, size int64) error {
	if err := w.beginImages(); err != nil {
		return err
	}
	name = imagesFolder + name
	return w.member(name, size, func(to io.Writer) error {
		return w.copyExactly(ctx, to, f, size, name)
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
	if n, err := from.Read(w.buffer[:1]); n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
		return errors.Join(fmt.Errorf("%s has become longer", name), err)
	}
	return nil
}

// member writes one whose content fill writes.
func (w *Writer) member(name string, size int64, fill func(io.Writer) error) error {
	if err := w.header(name, size); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	w.frame.content = true
	sum := sha256.New()
	err := fill(&contentWriter{w: w, sum: sum})
	w.frame.content = false
	if err == nil {
		err = w.tar.Flush() // fails if size was wrong
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	w.members = append(w.members, Member{Name: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// contentWriter is where a member's content goes.
type contentWriter struct {
	w   *Writer
	sum hash.Hash
}

func (c *contentWriter) Write(p []byte) (int, error) {
	c.sum.Write(p)
	n, err := c.w.tar.Write(p)
	c.w.done += int64(n)
	if c.w.options.Progress != nil {
		c.w.options.Progress(c.w.done, c.w.total)
	}
	return n, err
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
	id := hex.EncodeToString(w.frame.hash.Sum(nil))
	if err := w.frameMember(endName, []byte(id)); err != nil {
		return "", err
	}
	if err := w.tar.Close(); err != nil {
		return "", err
	}
	if err := w.encoder.Close(); err != nil {
		return "", err
	}
	return id, w.target.commit(w.frame.whole)
}

// Discard leaves nothing of an archive that was not committed; after Commit
// has returned nil it does nothing.
func (w *Writer) Discard() {
	w.encoder.abandon()
	w.target.Discard()
}
