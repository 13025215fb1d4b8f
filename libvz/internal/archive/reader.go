package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"

	"filippo.io/age"
)

// Reader reads one archive. It must be closed.
type Reader struct {
	// Header is what the archive declares; nil of one that another program
	// wrote, in which nothing says what is whole.
	Header *Header
	// Encrypted and Compression ("", "gzip" or "zstd") say how it is stored.
	Encrypted   bool
	Compression string
	// Annotations are those of the image whose layer it is; nil = it is no image.
	Annotations map[string]string

	file    *os.File // to be closed with it; nil = the caller's
	decoder *decoder
	frame   *unframe
	tar     *tar.Reader
	first   *tar.Header // of a foreign archive, read and not looked at yet
	blob    *blob       // of an image; nil = none
}

// blockSize is a tar's. The header of the last member takes one.
const blockSize = 512

// unframe hashes what is no member's content, but for the last block of it: when
// the header of the last member has been read, it has the hash of all before.
type unframe struct {
	from    io.Reader
	hash    hash.Hash
	last    []byte
	content bool
	// tail says that only zeros are to follow, and zeros counts them; stained
	// that others did.
	tail, stained bool
	zeros         int
}

func (f *unframe) Read(p []byte) (int, error) {
	n, err := f.from.Read(p)
	switch {
	case f.tail:
		f.stained = f.stained || !isZero(p[:n])
		f.zeros += n
	case !f.content:
		f.last = append(f.last, p[:n]...)
		if over := len(f.last) - blockSize; over > 0 {
			f.hash.Write(f.last[:over])
			f.last = append(f.last[:0], f.last[over:]...)
		}
	}
	return n, err
}

// ReadFile begins to read an archive from a file that the caller has opened, perhaps
// a pipe: how it is stored and what it declares. Reading ends with ctx, also where
// nothing comes any more. The error wraps ErrForeign, ErrIdentity, ErrNewer or
// ErrDamaged, or is that of ctx.
func ReadFile(ctx context.Context, f *os.File, identities []age.Identity) (*Reader, error) {
	from, err := fromFile(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	r, err := read(from, identities)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err() // nothing is wrong with the archive
	}
	return r, err
}

func read(from io.Reader, identities []age.Identity) (*Reader, error) {
	d, err := decode(from, identities)
	if err != nil {
		return nil, err
	}
	r := &Reader{decoder: d, Encrypted: d.encrypted, Compression: d.compression}
	r.frame = &unframe{from: d, hash: sha256.New()}
	r.tar = tar.NewReader(r.frame)
	if err := r.begin(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) begin() error {
	h, err := r.tar.Next()
	if err != nil {
		if r.Compression == "" && !r.Encrypted {
			return fmt.Errorf("%w: it is no tar", ErrForeign)
		}
		return damaged("%w", err)
	}
	if h.Name != headerName {
		r.first = h
		return nil
	}
	data, err := r.small(h, maxHeader)
	if err != nil {
		return err
	}
	header := &Header{}
	if err := json.Unmarshal(data, header); err != nil {
		return damaged("header: %w", err)
	}
	r.Header = header
	return header.check()
}

// Close frees what reading took. What was given to ReadFile stays open.
func (r *Reader) Close() {
	r.decoder.close()
	if r.file != nil {
		r.file.Close()
	}
}

// small reads a member that belongs to the frame, of so many bytes at most.
func (r *Reader) small(h *tar.Header, most int64) ([]byte, error) {
	if h.Typeflag != tar.TypeReg || h.Size > most {
		return nil, damaged("member %s", h.Name)
	}
	data, err := io.ReadAll(r.tar)
	if err != nil {
		return nil, damaged("member %s: %w", h.Name, err)
	}
	return data, nil
}
