package libvz

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// annotationClone names, in the bundle of a clone, the checkpoint that it was
// made from.
const annotationClone = "org.vzrun.clone"

// rootfsName is the place of the root in the bundle of a clone.
const rootfsName = "rootfs"

// spec returns the configuration of the clone: that of the images, with all
// that is the origin's own replaced. The ids are replaced later.
func (cl *cloning) spec(id string, m *manifest, root frozenRoot, o CloneOptions) (*specs.Spec, error) {
	spec, err := copySpec(m.Spec)
	if err != nil {
		return nil, err
	}
	spec.Root = &specs.Root{Path: rootfsName, Readonly: spec.Root.Readonly}
	dropNotify(spec)
	dropLxcfs(spec)
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	delete(spec.Annotations, annotationNet)
	delete(spec.Annotations, annotationOpen)
	if root.image != "" {
		spec.Annotations[annotationImage] = imageName
	} else {
		spec.Annotations[annotationOverlay] = strings.Join(root.layers, ":")
	}
	if root.flags != "" {
		spec.Annotations[annotationOverlayFlags] = root.flags
	}
	spec.Annotations[annotationClone] = m.ID + " " + m.Created.UTC().Format("2006-01-02T15:04:05.000000000Z")
	spec.Linux.CgroupsPath = cloneCgroup(spec.Linux.CgroupsPath, id)
	if spec.Hostname, err = cloneHostname(id, o.Hostname, m.Spec.Hostname); err != nil {
		return nil, err
	}
	if len(cl.oldUUID) != 32 && len(cl.oldUUID) != 36 {
		cl.machineID = "" // it has none that could be replaced
	}
	cl.rename(spec)
	return spec, nil
}

// rename replaces the origin's names in what the init is started with.
func (cl *cloning) rename(spec *specs.Spec) {
	uuid := dashedLike(cl.machineID, cl.oldUUID)
	if uuid == "" {
		uuid = cl.oldUUID
	}
	for i, kv := range spec.Process.Env {
		if strings.HasPrefix(kv, "container_uuid=") {
			spec.Process.Env[i] = "container_uuid=" + uuid
		}
	}
	for i, arg := range spec.Process.Args {
		switch {
		case strings.HasPrefix(arg, "systemd.hostname=") && spec.Hostname != "":
			spec.Process.Args[i] = "systemd.hostname=" + spec.Hostname
		case strings.HasPrefix(arg, "systemd.machine_id=") && cl.machineID != "":
			spec.Process.Args[i] = "systemd.machine_id=" + cl.machineID
		}
	}
}

// dashedLike writes an id with dashes where another one has them, so that it
// is as long.
func dashedLike(id, other string) string {
	if len(other) != 36 || len(id) != 32 {
		return id
	}
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

// copySpec returns a configuration that shares nothing with the first.
func copySpec(spec *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return decodeSpec(data)
}

// cloneHostname decides: what is wished for, else the id where that is a host
// name, else the origin's. A container without one has none.
func cloneHostname(id, wish, had string) (string, error) {
	switch {
	case wish != "" && !guest.ValidHostname(wish):
		return "", withHint("a name has 1 to 64 letters, digits and the characters . - _", "hostname: %q is none", wish)
	case wish != "":
		return wish, nil
	case had != "" && guest.ValidHostname(id):
		return id, nil
	}
	return had, nil
}

// cloneCgroup decides: beside that of the origin where that was named, else
// where containers go.
func cloneCgroup(had, id string) string {
	if had == "" {
		return ""
	}
	if parts := strings.Split(had, ":"); len(parts) == 3 {
		return parts[0] + ":" + parts[1] + ":" + id
	}
	return path.Join(path.Dir(had), id)
}

// dropNotify takes away what offerNotify adds.
func dropNotify(spec *specs.Spec) {
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == notifyPlace })
	spec.Process.Env = slices.DeleteFunc(spec.Process.Env, func(kv string) bool {
		return strings.HasPrefix(kv, "NOTIFY_SOCKET="+notifyPlace)
	})
}

// dropLxcfs takes away what keepLxcfs adds; bringLxcfs finds it again.
func dropLxcfs(spec *specs.Spec) {
	was := lxcfsIn(spec.Annotations)
	if was == "" {
		return
	}
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool {
		return m.Source == filepath.Join(was, m.Destination)
	})
}

// newMachineID returns a random id, as RFC 9562 marks random ones; machine-id(5).
func newMachineID() (string, error) {
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	random[6], random[8] = random[6]&0x0f|0x40, random[8]&0x3f|0x80
	return hex.EncodeToString(random), nil
}
