//go:build !lean

package libvz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/archive"
	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// Inspection is what is in a checkpoint. Sizes are bytes.
type Inspection struct {
	// Form is directory, tar or oci; Compression "", gzip or zstd.
	Form        string `json:"form"`
	Compression string `json:"compression,omitempty"`
	Encrypted   bool   `json:"encrypted"`
	// Verified says that every byte is what was written, which only archives of
	// vzrun can tell; Digest identifies such a one.
	Verified bool   `json:"verified"`
	Digest   string `json:"digest,omitempty"`

	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Arch    string    `json:"arch"`
	Kernel  string    `json:"kernel"`
	Criu    string    `json:"criu"`
	Tasks   int       `json:"tasks"`
	Bytes   int64     `json:"bytes"` // of the images
	PreDump bool      `json:"pre_dump"`
	Parent  string    `json:"parent,omitempty"`
	// Rootfs is the kind of the guest's root: directory, overlay or image.
	Rootfs   string   `json:"rootfs"`
	Hostname string   `json:"hostname,omitempty"`
	Args     []string `json:"args"`
	Links    []string `json:"links,omitempty"`
	// Hooks are programs that a restore with the archive's configuration runs
	// on the host, Sources what it mounts from there.
	Hooks   []string `json:"hooks,omitempty"`
	Sources []string `json:"sources,omitempty"`

	TCPEstablished bool `json:"tcp_established"`
	ExtUnixSockets bool `json:"ext_unix_sockets"`
	ShellJob       bool `json:"shell_job"`

	Annotations map[string]string `json:"annotations,omitempty"` // of the image
	Members     []InspectedFile   `json:"members"`
}

// InspectedFile is a member of an archive, or a file of a directory.
type InspectedFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // only in archives
}

// Inspect reads a checkpoint, an archive to its end, and changes nothing.
// onProgress is told how much was read; nil = nobody.
func Inspect(ctx context.Context, s ArchiveSource, onProgress func(Event)) (*Inspection, error) {
	i, err := inspect(ctx, s, onProgress)
	return i, fail("checkpoint inspect", "", explainArchive(err))
}

func inspect(ctx context.Context, s ArchiveSource, onProgress func(Event)) (*Inspection, error) {
	if _, err := os.Lstat(filepath.Join(s.Path, manifestName)); s.Path != "" && err == nil {
		return inspectDirectory(s.Path)
	}
	source, err := openArchive(ctx, s)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	i := &Inspection{Form: "tar", Compression: source.Compression, Encrypted: source.Encrypted, Annotations: source.Annotations}
	if source.Annotations != nil {
		i.Form = "oci"
	}
	var total int64
	if source.Header != nil {
		total = source.Header.Bytes()
	}
	c, err := source.Unpack(ctx, archive.Unpack{Progress: func(done int64) {
		if onProgress != nil {
			onProgress(Event{ID: filepath.Base(s.Path), Step: "reading", Done: done, Total: total})
		}
	}})
	if err != nil {
		return nil, err
	}
	i.Digest, i.Verified = c.Digest, c.Digest != ""
	for _, m := range c.Members {
		i.Members = append(i.Members, InspectedFile{m.Name, m.Size, m.SHA256})
	}
	if c.Record == nil {
		return i, i.describeForeign(c)
	}
	m := &manifest{}
	if err := json.Unmarshal(c.Record, m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", archive.ErrDamaged, manifestName, err)
	}
	if m.Spec == nil {
		return nil, fmt.Errorf("%w: %s is incomplete", archive.ErrDamaged, manifestName)
	}
	i.describe(m)
	return i, nil
}

func inspectDirectory(dir string) (*Inspection, error) {
	m, err := loadManifest(dir)
	if err == nil {
		err = m.checkFiles(dir)
	}
	if err != nil {
		return nil, err
	}
	if m.Spec == nil {
		return nil, withHint("the checkpoint is damaged: take another", "%s/%s is incomplete", dir, manifestName)
	}
	i := &Inspection{Form: "directory"}
	for name, size := range m.Files {
		i.Members = append(i.Members, InspectedFile{Name: name, Size: size})
	}
	slices.SortFunc(i.Members, func(a, b InspectedFile) int { return strings.Compare(a.Name, b.Name) })
	i.describe(m)
	return i, nil
}

func (i *Inspection) describe(m *manifest) {
	i.ID, i.Created, i.Arch, i.Kernel, i.Criu = m.ID, m.Created, m.Arch, m.Kernel, criu.FormatVersion(m.Criu)
	i.Tasks, i.Bytes, i.PreDump, i.Parent = m.Tasks, m.Bytes, m.PreDump, m.Parent
	i.Rootfs, i.Hostname, i.Args = rootKind(m.Spec), m.Spec.Hostname, processArgs(m.Spec)
	i.TCPEstablished, i.ExtUnixSockets, i.ShellJob = m.TCPEstablished, m.ExtUnixSockets, m.ShellJob
	for _, l := range m.Links {
		i.Links = append(i.Links, l.Inner+"="+l.Host)
	}
	i.Hooks = hookPaths(m.Spec.Hooks)
	for _, mount := range m.Spec.Mounts {
		if strings.HasPrefix(mount.Source, "/") {
			i.Sources = append(i.Sources, mount.Source)
		}
	}
}

// describeForeign says what is known of an archive of another program.
func (i *Inspection) describeForeign(c *archive.Contents) error {
	var config struct {
		ID      string    `json:"id"`
		Created time.Time `json:"checkpointedTime"`
	}
	if c.Config != nil {
		if err := json.Unmarshal(c.Config, &config); err != nil {
			return fmt.Errorf("%w: its description of the container: %w", archive.ErrDamaged, err)
		}
	}
	i.ID, i.Created = config.ID, config.Created
	spec, err := decodeSpec(c.Spec)
	if err != nil {
		return errors.Join(fmt.Errorf("%w: its configuration", archive.ErrDamaged), err)
	}
	i.Hostname, i.Args, i.Hooks = spec.Hostname, processArgs(spec), hookPaths(spec.Hooks)
	for _, m := range c.Members {
		if m.IsImage() {
			i.Bytes += m.Size
		}
	}
	return nil
}

func hookPaths(h *specs.Hooks) []string {
	if h == nil {
		return nil
	}
	var paths []string
	//nolint:staticcheck // engines still use Prestart
	for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
		for _, hook := range list {
			paths = append(paths, hook.Path)
		}
	}
	return paths
}

// Table returns it as rows of a name and a value for people, without control
// characters: an archive may be anybody's.
func (i *Inspection) Table() [][2]string {
	form := strings.TrimSpace(i.Form + " " + i.Compression)
	if i.Encrypted {
		form += " encrypted"
	}
	verified := "no"
	switch {
	case i.Verified:
		verified = "yes, " + i.Digest
	case i.Form == "directory":
		verified = "names and sizes"
	}
	rows := [][2]string{
		{"container", i.ID},
		{"form", form},
		{"verified", verified},
		{"created", i.Created.Format(time.RFC3339)},
		{"host", strings.TrimSpace(i.Arch + " " + i.Kernel)},
		{"criu", i.Criu},
		{"tasks", strconv.Itoa(i.Tasks)},
		{"images", units.BytesSize(float64(i.Bytes))},
		{"rootfs", i.rootfs()},
		{"hostname", i.Hostname},
		{"command", strings.Join(i.Args, " ")},
		{"links", strings.Join(i.Links, " ")},
		{"hooks", strings.Join(i.Hooks, " ")},
		{"from the host", strings.Join(i.Sources, " ")},
	}
	if i.PreDump {
		rows = append(rows, [2]string{"pre-dump", "yes"})
	}
	if i.Parent != "" {
		rows = append(rows, [2]string{"parent", i.Parent})
	}
	rows = slices.DeleteFunc(rows, func(r [2]string) bool { return r[1] == "" })
	for n := range rows {
		rows[n][1] = oneLine(rows[n][1])
	}
	return rows
}

// rootfs says what the root is, and how much of it is in the archive.
func (i *Inspection) rootfs() string {
	var parts []string
	for _, m := range i.Members {
		if archive.IsTree(m.Name) {
			parts = append(parts, m.Name+" "+units.BytesSize(float64(m.Size)))
		}
	}
	if len(parts) == 0 {
		return strings.TrimSpace(i.Rootfs + ", not included")
	}
	return i.Rootfs + ": " + strings.Join(parts, ", ")
}
