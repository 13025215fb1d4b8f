package libvz

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A container that is to tell when it is ready finds $NOTIFY_SOCKET, sd_notify(3),
// in a folder of its state directory that is mounted there. The socket is made
// by who serves it; the folder goes with the container's state.
const (
	notifyPlace  = "/run/notify" // in the container
	notifyFolder = "notify"      // in the state directory
	notifyName   = "notify.sock"
)

// NotifySocket is the path on the host of the socket that the container finds in
// $NOTIFY_SOCKET, and "" where CreateOptions.Notify did not ask for one.
// Whoever wants the messages makes a datagram socket there.
func (c *Container) NotifySocket() string {
	dir := filepath.Join(c.host.opts.Root, c.id, notifyFolder)
	if _, err := os.Lstat(dir); err != nil {
		return ""
	}
	return filepath.Join(dir, notifyName)
}

// offerNotify adds the mount and the variable to the configuration.
func (h *Host) offerNotify(id string, spec *specs.Spec) {
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: notifyPlace, Type: "bind", Source: filepath.Join(h.opts.Root, id, notifyFolder),
		Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"},
	})
	spec.Process.Env = append(spec.Process.Env, "NOTIFY_SOCKET="+notifyPlace+"/"+notifyName)
}

// offersNotify tells whether the mount is offerNotify's for that container.
func (h *Host) offersNotify(id string, spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool {
		return m.Destination == notifyPlace && m.Source == filepath.Join(h.opts.Root, id, notifyFolder)
	})
}

// hasNotify tells whether there is something mounted at the socket's place: in
// images it is the folder of a container that may be gone.
func hasNotify(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == notifyPlace })
}

// makeNotifyFolder makes the source of that mount, once the state directory is
// there.
func (h *Host) makeNotifyFolder(id string) error {
	dir := filepath.Join(h.opts.Root, id, notifyFolder)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	// The guest's users reach it whatever our own mask is.
	return os.Chmod(dir, 0o755)
}
