package libvz

import (
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// outsider is a kind of namespace that is not in the images where a container has
// joined one, an engine's for example.
type outsider struct {
	kind specs.LinuxNamespaceType
	is   configs.NamespaceType
	key  string // CRIU's name of it in the images
}

// outsiders have libcontainer's keys, which runc's images have too. PID namespaces
// are none: CRIU 4.2 saves what has joined one, but cannot restore it there, and
// refuses to save it where it is not told that it lives on.
func outsiders() []outsider {
	return []outsider{{specs.NetworkNamespace, configs.NEWNET, "extRootNetNS"}}
}

// outsideNamespaces lists the outsiders that a container has joined, and what CRIU
// is to be told of them. Their paths may be gone by now.
func outsideNamespaces(st *libcontainer.State) (kinds []specs.LinuxNamespaceType, external []string, _ error) {
	for _, o := range outsiders() {
		if st.Config.Namespaces.PathOf(o.is) == "" {
			continue
		}
		name := configs.NsName(o.is)
		var ns unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", st.InitProcessPid, name), &ns); err != nil {
			return nil, nil, fmt.Errorf("%s namespace: %w", o.kind, err)
		}
		kinds = append(kinds, o.kind)
		external = append(external, fmt.Sprintf("%s[%d]:%s", name, ns.Ino, o.key))
	}
	return kinds, external, nil
}

// joinNamespaces opens the namespaces that the container is to join again: those
// that are not in the images, and of the others, whose content would be restored
// into a new one, those that it had joined. The files are the caller's to close.
func (r *revival) joinNamespaces() (files []*os.File, _ error) {
	open := func(kind specs.LinuxNamespaceType, path string) (*os.File, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, withHint("restore with a config.json that names one that is there", "%s namespace to join: %w", kind, err)
		}
		files = append(files, f)
		return f, nil
	}
	for _, o := range outsiders() {
		if !slices.Contains(r.manifest.Outside, o.kind) {
			continue
		}
		path := namespacePath(r.spec, o.kind)
		if path == "" {
			return files, withHint("name one in config.json, as the container had it at the checkpoint",
				"the images hold no %s namespace, and config.json has no path of one", o.kind)
		}
		f, err := open(o.kind, path)
		if err != nil {
			return files, err
		}
		r.inherit = append(r.inherit, criu.Inherit{Key: o.key, File: f})
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace} {
		path := namespacePath(r.spec, kind)
		if path == "" || namespacePath(r.manifest.Spec, kind) == "" {
			continue
		}
		f, err := open(kind, path)
		if err != nil {
			return files, err
		}
		r.opts.Join = append(r.opts.Join, criu.Join{Kind: string(kind), File: f})
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
