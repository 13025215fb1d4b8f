package libvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// Annotations of config.json that libvz acts upon.
const (
	// annotationRootfs = "idmap" asks for a rootfs whose owners on disk are
	// not shifted: it is mounted with the user namespace's mapping.
	annotationRootfs = guest.AnnotationRootfs
	// annotationGuest names the init ("systemd") of a whole operating
	// system; without it the container is an ordinary one.
	annotationGuest = guest.AnnotationGuest
)

// maxConfigSize bounds config.json; real ones have a few ten kilobytes.
const maxConfigSize = 16 << 20

// LoadSpec reads and checks the config.json of a bundle. The rootfs must be a
// directory, and one given by a relative path must not lead out of the bundle.
func LoadSpec(bundle string) (*specs.Spec, error) {
	spec, _, err := loadSpec(bundle)
	return spec, err
}

// specOf returns a configuration that the caller has read, or reads it, and the
// bundle's absolute path.
func specOf(bundle string, spec *specs.Spec) (*specs.Spec, string, error) {
	if spec == nil {
		return loadSpec(bundle)
	}
	dir, err := filepath.Abs(bundle)
	return spec, dir, err
}

// loadSpec also returns the bundle's absolute path.
func loadSpec(bundle string) (*specs.Spec, string, error) {
	dir, err := filepath.Abs(bundle)
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "config.json")
	data, err := readConfig(path)
	if err != nil {
		return nil, "", err
	}
	spec, err := decodeSpec(data)
	if err != nil {
		return nil, "", withHint("`vzrun spec` writes a valid one", "%s is no valid JSON configuration: %w", path, err)
	}
	if err := checkSpec(spec); err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	spec.Root.Path, err = resolveRootfs(dir, spec.Root.Path)
	if err != nil {
		return nil, "", err
	}
	resolveSources(dir, spec.Mounts)
	return spec, dir, nil
}

// decodeSpec leaves out what config.json has for other systems: encoding/json
// prepares to decode all that a type may hold.
func decodeSpec(data []byte) (*specs.Spec, error) {
	type Spec struct { // the name is in error messages
		Version     string            `json:"ociVersion"`
		Process     *specs.Process    `json:"process"`
		Root        *specs.Root       `json:"root"`
		Hostname    string            `json:"hostname"`
		Domainname  string            `json:"domainname"`
		Mounts      []specs.Mount     `json:"mounts"`
		Hooks       *specs.Hooks      `json:"hooks"`
		Annotations map[string]string `json:"annotations"`
		Linux       *specs.Linux      `json:"linux"`
	}
	var s Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version: s.Version, Process: s.Process, Root: s.Root, Hostname: s.Hostname, Domainname: s.Domainname,
		Mounts: s.Mounts, Hooks: s.Hooks, Annotations: s.Annotations, Linux: s.Linux,
	}, nil
}

// resolveSources makes the sources of bind mounts absolute: they are relative
// to the bundle (runtime-spec, config.md, "Mounts").
func resolveSources(bundle string, mounts []specs.Mount) {
	for i := range mounts {
		m := &mounts[i]
		isBind := slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if isBind && !filepath.IsAbs(m.Source) {
			m.Source = filepath.Join(bundle, m.Source)
		}
	}
}

func readConfig(path string) ([]byte, error) {
	data, err := readRegular(path, maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, withHint("name the bundle with --bundle, or write one with `vzrun spec`", "no config.json in bundle %s: %w", filepath.Dir(path), err)
	}
	return data, err
}

func checkSpec(spec *specs.Spec) error {
	major, _, _ := strings.Cut(spec.Version, ".")
	switch {
	case spec.Version == "":
		return errors.New("ociVersion is missing")
	case major != "1":
		return withHint("version 1.x of the runtime specification is understood", "ociVersion %q: %w", spec.Version, ErrUnsupported)
	case spec.Root == nil || spec.Root.Path == "":
		return errors.New("root.path is missing")
	case spec.Linux == nil:
		return errors.New("the linux section is missing")
	case spec.Process == nil:
		return errors.New("the process section is missing")
	}
	return checkProcess(spec.Process)
}

// resolveRootfs returns the rootfs, a directory, as an absolute path without
// symbolic links.
func resolveRootfs(bundle, path string) (string, error) {
	resolved, err := resolveInBundle(bundle, path, "rootfs")
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return "", fmt.Errorf("rootfs %s: %w", resolved, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "", fmt.Errorf("rootfs %s is not a directory", resolved)
	}
	return resolved, nil
}

// resolveInBundle returns what a configuration names, as an absolute path
// without symbolic links. A relative path is resolved below the bundle: a link
// in an unpacked bundle could otherwise make any directory of the host
// somebody's root.
func resolveInBundle(bundle, path, what string) (string, error) {
	named := path
	if !filepath.IsAbs(path) {
		named = filepath.Join(bundle, path)
	}
	resolved, err := filepath.EvalSymlinks(named)
	if errors.Is(err, fs.ErrNotExist) {
		hint := "root.path in config.json is relative to the bundle"
		if what != "rootfs" {
			hint = "its path in config.json is absolute, or relative to the bundle"
		}
		return "", withHint(hint, "%s %s: %w", what, named, fs.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if !filepath.IsAbs(path) {
		home, err := filepath.EvalSymlinks(bundle)
		if err != nil {
			return "", err
		}
		if !within(resolved, home) {
			return "", withHint("give its absolute path in config.json if that is meant", "%s %s leads out of the bundle, to %s", what, path, resolved)
		}
	}
	return resolved, nil
}

// wantsIDMap tells whether the rootfs is to be mounted id-mapped.
func wantsIDMap(spec *specs.Spec) (bool, error) {
	switch v := spec.Annotations[annotationRootfs]; v {
	case "":
		return false, nil
	case "idmap":
		if len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0 {
			return false, fmt.Errorf("annotation %s=idmap needs a user namespace with mappings", annotationRootfs)
		}
		return true, nil
	default:
		return false, fmt.Errorf("annotation %s: unknown value %q, idmap is known", annotationRootfs, v)
	}
}
