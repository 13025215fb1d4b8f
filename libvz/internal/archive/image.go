package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// Open begins to read the archive at a path, a file or the directory of an OCI image
// layout, which the Reader closes. Errors are those of ReadFile and of open(2).
func Open(ctx context.Context, path string, identities []age.Identity) (*Reader, error) {
	if isLayout(path) {
		return openLayout(path, identities)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	r, err := func() (*Reader, error) {
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return nil, fmt.Errorf("%w: %s is a directory without %s", ErrForeign, path, layoutFile)
		}
		return ReadFile(ctx, f, identities)
	}()
	if err != nil {
		f.Close()
		return nil, err
	}
	r.file = f
	return r, nil
}

// isLayout tells whether a directory is an OCI image layout.
func isLayout(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, layoutFile))
	return err == nil
}

// maxJSON bounds the documents of a layout.
const maxJSON = 4 << 20

// openLayout finds the archive in an image layout: the one layer of its one image.
func openLayout(dir string, identities []age.Identity) (*Reader, error) {
	var index imageIndex
	if err := readJSON(filepath.Join(dir, indexFile), nil, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%w: the layout has %d images", ErrForeign, len(index.Manifests))
	}
	var image imageManifest
	if err := readBlob(dir, index.Manifests[0], &image); err != nil {
		return nil, err
	}
	if err := readBlob(dir, image.Config, &imageConfig{}); err != nil {
		return nil, err
	}
	if len(image.Layers) != 1 {
		return nil, fmt.Errorf("%w: the image has %d layers", ErrForeign, len(image.Layers))
	}
	layer := image.Layers[0]
	path, err := blobPath(dir, layer)
	if err != nil {
		return nil, err
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	b := &blob{from: f, want: layer, sum: sha256.New()}
	r, err := read(b, identities)
	if err != nil {
		f.Close()
		return nil, err
	}
	r.blob, r.file, r.Annotations = b, f, image.Annotations
	return r, nil
}

// blob hashes a file that is named by its digest.
type blob struct {
	from io.Reader
	want descriptor
	sum  hash.Hash
	size int64
}

func (b *blob) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.sum.Write(p[:n])
	b.size += int64(n)
	return n, err
}

func (b *blob) verify() error {
	if b.size != b.want.Size || hexDigest(b.sum) != b.want.Digest {
		return damaged("layer %s has another digest", b.want.Digest)
	}
	return nil
}

func blobPath(dir string, d descriptor) (string, error) {
	name, found := strings.CutPrefix(d.Digest, "sha256:")
	if raw, err := hex.DecodeString(name); !found || err != nil || len(raw) != sha256.Size || strings.ToLower(name) != name {
		return "", damaged("digest %q", d.Digest)
	}
	return filepath.Join(dir, blobs, name), nil
}

func readBlob(dir string, d descriptor, v any) error {
	path, err := blobPath(dir, d)
	if err != nil {
		return err
	}
	return readJSON(path, &d, v)
}

// readJSON reads a document, which has to be what a descriptor says.
func readJSON(path string, want *descriptor, v any) error {
	f, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return damaged("%w", err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return err
	}
	if len(data) > maxJSON {
		return damaged("%s is longer than %d bytes", path, maxJSON)
	}
	if want != nil {
		sum := sha256.Sum256(data)
		if int64(len(data)) != want.Size || "sha256:"+hex.EncodeToString(sum[:]) != want.Digest {
			return damaged("%s has another digest", path)
		}
	}
	if err := json.Unmarshal(data, v); err != nil {
		return damaged("%s: %w", path, err)
	}
	return nil
}

// openRegular opens a file that somebody else may have put there.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = unsafeArchive("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
