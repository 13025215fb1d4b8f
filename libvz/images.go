package libvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// manifestName is the file that makes a directory of CRIU images a checkpoint.
// It is written last, so a directory without one is not a whole checkpoint.
const manifestName = "vzrun.json"

// manifestFormat is the version of the manifest; a higher one is refused.
const manifestFormat = 1

// manifest describes a checkpoint: what must be in its directory, what it was
// taken from, and what CRIU's images do not hold.
type manifest struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Arch    string    `json:"arch"`
	Kernel  string    `json:"kernel"`
	// Criu is the version that wrote the images, 4.2.1 as 40201.
	Criu  int   `json:"criu"`
	Tasks int   `json:"tasks"`
	Bytes int64 `json:"bytes"`
	// PreDump is true for memory only: it can be a parent, not restored.
	PreDump bool   `json:"pre_dump,omitempty"`
	Parent  string `json:"parent,omitempty"`
	// Lazy is true where the memory is not in the images but was asked for
	// page by page; PagesElsewhere where a page server got it.
	Lazy           bool `json:"lazy,omitempty"`
	PagesElsewhere bool `json:"pages_elsewhere,omitempty"`
	// Files are the images and their sizes in bytes.
	Files map[string]int64 `json:"files"`
	Spec  *specs.Spec      `json:"config"`
	// Cgroups is the guest's own cgroup2 subtree; nil where it has none.
	Cgroups *cgroup.Tree `json:"cgroups,omitempty"`
	Links   []vnet.Link  `json:"links,omitempty"`
	// Limits are those that were updated since the container was created.
	Limits *specs.LinuxResources `json:"limits,omitempty"`
	// Armed are timers and pressure triggers, which CRIU restores as others.
	Armed criu.Armed `json:"armed,omitzero"`
	// Stdio are the targets of the init's descriptors 0 to 2 when it was
	// created, as /proc/PID/fd shows them.
	Stdio          []string `json:"stdio,omitempty"`
	TCPEstablished bool     `json:"tcp_established,omitempty"`
	ExtUnixSockets bool     `json:"ext_unix_sockets,omitempty"`
	ShellJob       bool     `json:"shell_job,omitempty"`
	// EmptyNetwork is true where nothing of the network namespace was saved.
	EmptyNetwork bool `json:"empty_network,omitempty"`
	// Outside are namespaces that the container had joined, and that are not in
	// the images.
	Outside []specs.LinuxNamespaceType `json:"outside,omitempty"`
	// UsedUp is true from the moment at which a restore with AutoDedup began:
	// memory that it had read is no longer there.
	UsedUp bool `json:"used_up,omitempty"`
}

// newImageDir creates the directory of a checkpoint, open to root and its group
// alone (see shareImages). One
// that exists must hold no images: overwriting the last good one with one
// that may fail would leave none.
func newImageDir(dir string) error {
	if err := makeImageDir(dir); err != nil {
		return err
	}
	names, err := imageNames(dir)
	if err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	// One that was to be replaced comes back when that is undone.
	aside, err := imageNames(filepath.Join(dir, replacedFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image directory: %w", err)
	}
	if len(names)+len(aside) > 0 {
		return withHint("choose another --image-path, or remove what is there", "%s holds a checkpoint already, or other image files: %w", dir, fs.ErrExist)
	}
	return nil
}

func makeImageDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create image directory: %w", err)
	}
	return nil
}

// seal makes the images in dir fit to be restored and writes the manifest. With
// durable, the checkpoint survives a loss of power after it returns nil; without,
// it is only on its way into an archive.
func (m *manifest) seal(dir string, durable bool) error {
	if err := m.complete(dir); err != nil {
		return err
	}
	write := store.WriteState
	if durable {
		if err := syncFiles(dir, m.Files); err != nil {
			return err
		}
		write = store.WriteFile
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, manifestName), data, 0o600); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// complete makes the images in dir fit to be restored, and the manifest say what
// they are.
func (m *manifest) complete(dir string) error {
	if err := errors.Join(criu.ReviveRoutes(dir), criu.DropDefaults(dir)); err != nil {
		return err
	}
	if err := m.inventory(dir); err != nil {
		return err
	}
	m.Format, m.Arch, m.Created = manifestFormat, runtime.GOARCH, time.Now().UTC()
	m.Kernel = kernelRelease()
	return nil
}

// inventory notes which images there are.
func (m *manifest) inventory(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read image directory: %w", err)
	}
	m.Files, m.Bytes = map[string]int64{}, 0
	for _, e := range entries {
		if !e.Type().IsRegular() || filepath.Ext(e.Name()) != ".img" {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		m.Files[e.Name()] = st.Size()
		m.Bytes += st.Size()
	}
	return nil
}

// syncers is how many files are synced at once: file systems with a journal
// commit those that wait together in one go.
const syncers = 32

func syncFiles(dir string, files map[string]int64) error {
	names, errs := make(chan string), make(chan error, len(files))
	var wg sync.WaitGroup
	for range min(syncers, len(files)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for name := range names {
				errs <- syncFile(filepath.Join(dir, name))
			}
		}()
	}
	for name := range files {
		names <- name
	}
	close(names)
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// readManifest reads and checks the manifest of a checkpoint.
func readManifest(dir string) (*manifest, error) {
	m, err := loadManifest(dir)
	if err != nil {
		return nil, err
	}
	return m, m.check(dir)
}

// maxManifest bounds a manifest; one with a hundred thousand images would have
// a few megabytes.
const maxManifest = 64 << 20

func loadManifest(dir string) (*manifest, error) {
	path := filepath.Join(dir, manifestName)
	data, err := readRegular(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil, withHint("name the checkpoint's directory with --image-path", "image directory: %w", err)
		}
		if _, err := os.Stat(filepath.Join(dir, replacedFolder, manifestName)); err == nil {
			return nil, withHint("the one before is in its folder "+replacedFolder, "%s is no checkpoint: the last one was interrupted", dir)
		}
		return nil, withHint("a checkpoint that was interrupted has none: take another", "%s is no checkpoint of vzrun: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, withHint("the checkpoint is damaged: take another", "read %s: %w", path, err)
	}
	return m, nil
}

// maxChain bounds the pre-dumps before a checkpoint.
const maxChain = 64

// chain returns the directories that a checkpoint consists of, its own first
// and then the pre-dumps that it builds on, each checked.
func (m *manifest) chain(dir string) ([]string, error) {
	dirs := []string{dir}
	for parent := m.Parent; parent != ""; {
		dir = filepath.Join(dir, parent)
		if len(dirs) > maxChain || slices.Contains(dirs, dir) {
			return nil, withHint("the checkpoint is damaged: take another", "the pre-dumps of %s go in circles", dirs[0])
		}
		p, err := loadManifest(dir)
		if err == nil {
			err = p.checkFiles(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("pre-dump %s: %w", dir, err)
		}
		dirs = append(dirs, dir)
		parent = p.Parent
	}
	return dirs, nil
}

// checkParent refuses to build a checkpoint in dir on what is no pre-dump of the
// same guest, or on one that lacks something. It returns the directories of all
// pre-dumps that it builds on.
func (m *manifest) checkParent(dir string) ([]string, error) {
	if m.Parent == "" {
		return nil, nil
	}
	const hint = "name the directory of the last --pre-dump, relative to --image-path"
	if filepath.IsAbs(m.Parent) {
		return nil, withHint(hint, "--parent-path %s is not relative to the images", m.Parent)
	}
	path := filepath.Join(dir, m.Parent)
	p, err := loadManifest(path)
	if err != nil {
		return nil, withHint(hint, "--parent-path: %w", err)
	}
	switch {
	case p.Spec == nil || p.ID != m.ID || containerUUID(p.Spec) != containerUUID(m.Spec):
		return nil, withHint(hint, "parent %s is of another container", path)
	case !p.PreDump:
		return nil, withHint(hint, "parent %s is no pre-dump", path)
	}
	chain, err := p.chain(path)
	if err == nil {
		err = p.checkFiles(path)
	}
	return chain, err
}

// useUp notes that what is in dir can be restored no second time.
func (m *manifest) useUp(dir string) error {
	m.UsedUp = true
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := store.WriteFile(filepath.Join(dir, manifestName), data, 0o600); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// check compares the manifest with this host and with what is in dir.
func (m *manifest) check(dir string) error {
	const damaged = "the checkpoint is damaged: take another"
	switch {
	case m.Format > manifestFormat:
		return withHint("restore it with the vzrun that wrote it, or a newer one", "checkpoint format %d: %w", m.Format, ErrUnsupported)
	case m.Format < 1 || m.Spec == nil || m.Spec.Linux == nil:
		return withHint(damaged, "%s/%s is incomplete", dir, manifestName)
	case m.Arch != runtime.GOARCH:
		return withHint("restore it on a host like the one it is from", "checkpoint of a %s machine: %w on %s", m.Arch, ErrUnsupported, runtime.GOARCH)
	case m.UsedUp:
		return withHint("take another checkpoint", "%s is used up: a restore with --auto-dedup has begun from it", dir)
	case m.PreDump:
		return withHint("restore the final checkpoint of that chain", "%s is a pre-dump: it holds memory only", dir)
	}
	return m.checkFiles(dir)
}

// checkFiles compares the files in dir with the manifest.
func (m *manifest) checkFiles(dir string) error {
	const damaged = "the checkpoint is damaged: take another"
	if _, ok := m.Files["inventory.img"]; !ok {
		return withHint(damaged, "%s/%s lists no inventory.img", dir, manifestName)
	}
	for name, size := range m.Files {
		if filepath.Base(name) != name {
			return withHint(damaged, "image name %q is not a file name", name)
		}
		st, err := os.Lstat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return withHint(damaged, "image file %s is missing", name)
		}
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() || st.Size() != size {
			return withHint(damaged, "image file %s has %d bytes, %d were written", name, st.Size(), size)
		}
	}
	return nil
}

// sameGuest returns an error unless a bundle's configuration can hold the
// guest that the images were taken from. Host names, resources and paths of
// the rootfs may differ (a clone's do); what the images refer to may not.
func sameGuest(saved, bundle *specs.Spec) error {
	differs := func(what string, is, was any) error {
		return withHint("restore with the config.json of the container that was checkpointed, or a copy of it",
			"these images are of another container: %s is %v in the bundle and %v in the images", what, is, was)
	}
	if is, was := containerUUID(bundle), containerUUID(saved); is != was {
		return differs("container_uuid", is, was)
	}
	if is, was := processArgs(bundle), processArgs(saved); fmt.Sprint(is) != fmt.Sprint(was) {
		return differs("process.args", is, was)
	}
	if is, was := fmt.Sprint(bundle.Linux.UIDMappings, bundle.Linux.GIDMappings), fmt.Sprint(saved.Linux.UIDMappings, saved.Linux.GIDMappings); is != was {
		return differs("the id mapping", is, was)
	}
	if is, was := fmt.Sprint(namespaceTypes(bundle)), fmt.Sprint(namespaceTypes(saved)); is != was {
		return differs("linux.namespaces", is, was)
	}
	if is, was := fmt.Sprint(mountPoints(bundle)), fmt.Sprint(mountPoints(saved)); is != was {
		return differs("mounts", is, was)
	}
	if same, err := sameFeatures(bundle, saved); err != nil {
		return err
	} else if !same {
		return differs(annotationFeatures, bundle.Annotations[annotationFeatures], saved.Annotations[annotationFeatures])
	}
	if is, was := bundle.Annotations[annotationRootfs], saved.Annotations[annotationRootfs]; is != was {
		return differs(annotationRootfs, is, was)
	}
	if is, was := rootKind(bundle), rootKind(saved); is != was {
		return differs("the kind of rootfs", is, was)
	}
	return nil
}

// containerUUID is the identity that `spec --system` gave a configuration,
// from the environment of its init; "" where it has none.
func containerUUID(spec *specs.Spec) string {
	if spec.Process == nil {
		return ""
	}
	for _, kv := range spec.Process.Env {
		if uuid, found := strings.CutPrefix(kv, "container_uuid="); found {
			return uuid
		}
	}
	return ""
}

func processArgs(spec *specs.Spec) []string {
	if spec.Process == nil {
		return nil // images that no vzrun wrote
	}
	return spec.Process.Args
}

// namespaceTypes and mountPoints are sorted: an engine that makes a configuration
// anew (Podman at every restore) writes the same things in another order.
func namespaceTypes(spec *specs.Spec) []specs.LinuxNamespaceType {
	var out []specs.LinuxNamespaceType
	for _, ns := range spec.Linux.Namespaces {
		out = append(out, ns.Type)
	}
	slices.Sort(out)
	return out
}

func mountPoints(spec *specs.Spec) []string {
	var out []string
	for _, m := range spec.Mounts {
		out = append(out, m.Destination+" ("+m.Type+")")
	}
	slices.Sort(out)
	return out
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
