//go:build !lean

package libvz

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// Kinds of streams of a migration.
const (
	streamImages = "images" // a tar of image files, the manifest last
	streamRootfs = "rootfs" // a dialogue of two rsyncs
)

// arrived is what the other side reports of the images.
type arrived struct {
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"`
}

// sendImages sends the files of a checkpoint, and returns how many bytes once
// the other side has them.
func sendImages(ctx context.Context, s *wire.Session, dir string, m *manifest, kind string, args ...string) (int64, error) {
	stream, err := s.Open(kind, args...)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	// A stream knows no context, but an end.
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	sent := writeImages(stream, dir, m)
	if sent == nil {
		sent = stream.CloseWrite()
	}
	// What it says of its failure is more than that a write failed here.
	var there arrived
	err = stream.Result(&there)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err == nil && there.Error != "":
		return 0, fmt.Errorf("the other side cannot store the images: %.500s", there.Error)
	case sent != nil:
		return 0, fmt.Errorf("send images: %w", sent)
	case err != nil:
		return 0, fmt.Errorf("send images: %w", err)
	}
	return there.Bytes, nil
}

func writeImages(w io.Writer, dir string, m *manifest) error {
	out := tar.NewWriter(w)
	for name, size := range m.Files {
		if err := writeImage(out, filepath.Join(dir, name), size); err != nil {
			return err
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Name: manifestName, Size: int64(len(data)), Mode: 0o600, Format: tar.FormatPAX}); err != nil {
		return err
	}
	if _, err := out.Write(data); err != nil {
		return err
	}
	return out.Close()
}

func writeImage(out *tar.Writer, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := out.WriteHeader(&tar.Header{Name: filepath.Base(path), Size: size, Mode: 0o640, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.CopyN(out, f, size)
	return err
}

// maxImages bounds how many files a checkpoint may have.
const maxImages = 1 << 20

// receiveImages stores what sendImages sends in dir, which holds no images, and
// reports it. Whatever arrives, only new files with names of images are made, in
// dir itself.
func receiveImages(stream *wire.Stream, dir string) error {
	n, err := readImages(stream, dir)
	there := arrived{Bytes: n}
	if err != nil {
		there.Error = oneLine(err.Error())
	}
	if reported := stream.Report(there); err == nil {
		err = reported
	}
	// The sender hangs up, or the connection is gone.
	if err == nil {
		_, err = io.Copy(io.Discard, stream)
	}
	return errors.Join(err, ignoreClosed(stream.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func readImages(r io.Reader, dir string) (int64, error) {
	in := tar.NewReader(r)
	total, manifests := int64(0), 0
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read images: %w", err)
		}
		isImage := strings.HasSuffix(h.Name, ".img") && h.Name != ".img"
		if n > maxImages || h.Typeflag != tar.TypeReg || filepath.Base(h.Name) != h.Name || !isImage && h.Name != manifestName {
			return 0, fmt.Errorf("%w: image %.100q", wire.ErrProtocol, h.Name)
		}
		if h.Name == manifestName {
			manifests++
		}
		if err := storeImage(filepath.Join(dir, h.Name), in, h.Size); err != nil {
			return 0, fmt.Errorf("store image: %w", err)
		}
		total += h.Size
	}
	if manifests != 1 {
		return 0, fmt.Errorf("%w: images without a manifest", wire.ErrProtocol)
	}
	return total, nil
}

func storeImage(path string, r io.Reader, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, r, size)
	return errors.Join(err, f.Close())
}
