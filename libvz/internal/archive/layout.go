package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"golang.org/x/sys/unix"
)

// Media types of image-spec, and the names in a layout (image-layout.md).
const (
	layoutFile     = "oci-layout"
	indexFile      = "index.json"
	blobs          = "blobs/sha256"
	mediaIndex     = "application/vnd.oci.image.index.v1+json"
	mediaManifest  = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig    = "application/vnd.oci.image.config.v1+json"
	mediaLayer     = "application/vnd.oci.image.layer.v1.tar"
	mediaLayerZstd = mediaLayer + "+zstd"
	mediaLayerGzip = mediaLayer + "+gzip"
)

// About is what the annotations of an image say of a checkpoint
// (org.criu.checkpoint.*).
type About struct {
	Name    string // of the container
	Version string // of vzrun
	Criu    string
	Arch    string
	Kernel  string
	Cgroups string // "1" or "2"
	Created time.Time
}

func (a About) annotations() map[string]string {
	all := map[string]string{
		metadata.CheckpointAnnotationEngine:         "vzrun",
		metadata.CheckpointAnnotationEngineVersion:  a.Version,
		metadata.CheckpointAnnotationName:           a.Name,
		metadata.CheckpointAnnotationRuntimeName:    "vzrun",
		metadata.CheckpointAnnotationRuntimeVersion: a.Version,
		metadata.CheckpointAnnotationCriuVersion:    a.Criu,
		metadata.CheckpointAnnotationHostArch:       a.Arch,
		metadata.CheckpointAnnotationHostKernel:     a.Kernel,
		metadata.CheckpointAnnotationCgroupVersion:  a.Cgroups,
	}
	for key, value := range all {
		if value == "" {
			delete(all, key)
		}
	}
	return all
}

// descriptor names a blob (image-spec, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type imageManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type imageIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []descriptor `json:"manifests"`
}

type imageConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// ToLayout writes a new directory with an OCI image layout, whose one image has
// the archive as its one layer. It has another name until it is whole.
func ToLayout(path string, about About, compressed bool, remove Remover) (Target, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	folder, err := NewFolder(filepath.Dir(path), hiddenName(path), remove)
	if err != nil {
		return nil, err
	}
	l := &layout{folder: folder, path: path, about: about, compressed: compressed, sum: sha256.New()}
	if err := os.MkdirAll(l.at(blobs), 0o700); err != nil {
		l.Discard()
		return nil, err
	}
	if l.layer, err = os.OpenFile(l.at(blobs, "layer"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600); err != nil {
		l.Discard()
		return nil, err
	}
	return l, nil
}

type layout struct {
	folder     *Folder
	path       string
	about      About
	compressed bool
	layer      *os.File
	sum        hash.Hash
	size       int64
	pushed     pushed
}

func (l *layout) at(names ...string) string {
	return filepath.Join(append([]string{l.folder.Path}, names...)...)
}

func (l *layout) wholeHash() hash.Hash { return sha256.New() }

func (l *layout) Write(p []byte) (int, error) {
	n, err := l.layer.Write(p)
	l.pushed.push(l.layer, n)
	l.sum.Write(p[:n])
	l.size += int64(n)
	return n, err
}

func (l *layout) Discard() {
	if l.layer != nil {
		l.layer.Close() //nolint:errcheck // nobody wants it
	}
	_ = l.folder.Remove() // what is left the next export removes
}

func (l *layout) commit(whole hash.Hash) error {
	layer := descriptor{MediaType: mediaLayer, Digest: hexDigest(l.sum), Size: l.size}
	if l.compressed {
		layer.MediaType = mediaLayerZstd
	}
	if err := l.layer.Sync(); err != nil {
		return err
	}
	if err := os.Rename(l.layer.Name(), l.at(blobs, layer.Digest[len("sha256:"):])); err != nil {
		return err
	}
	config := imageConfig{Created: l.about.Created, Architecture: l.about.Arch, OS: "linux"}
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []string{hexDigest(whole)}
	configured, err := l.blob(mediaConfig, config)
	if err != nil {
		return err
	}
	image, err := l.blob(mediaManifest, imageManifest{
		SchemaVersion: 2, MediaType: mediaManifest, Config: configured, Layers: []descriptor{layer}, Annotations: l.about.annotations(),
	})
	if err != nil {
		return err
	}
	image.Annotations = map[string]string{"org.opencontainers.image.ref.name": "checkpoint"}
	if err := l.json(imageIndex{SchemaVersion: 2, MediaType: mediaIndex, Manifests: []descriptor{image}}, indexFile); err != nil {
		return err
	}
	if err := l.json(map[string]string{"imageLayoutVersion": "1.0.0"}, layoutFile); err != nil {
		return err
	}
	for _, dir := range []string{l.at(blobs), l.at("blobs"), l.at()} {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return l.folder.Rename(l.path)
}

// blob writes JSON under its digest.
func (l *layout) blob(media string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	return descriptor{MediaType: media, Digest: "sha256:" + name, Size: int64(len(data))}, writeSynced(l.at(blobs, name), data)
}

func (l *layout) json(v any, name string) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeSynced(l.at(name), data)
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func hexDigest(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
