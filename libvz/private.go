package libvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// makeUserns makes the user namespace through which the rootfs is mounted. A
// container that is created joins it: libcontainer, and CRIU at a restore, make
// namespaces that belong to the host's root, and then what a guest uses up of
// root's limits is missing for all the others and for the host. But where
// root lacks CAP_SYS_RESOURCE only the owner of the namespace has it there
// (user_namespaces(7)), and CRIU needs it to read limits: then it stays root's.
func (n *nascent) makeUserns(op string) error {
	uids, gids := n.spec.Linux.UIDMappings, n.spec.Linux.GIDMappings
	own, err := ownCaps()
	if err != nil {
		return err
	}
	if op != "create" || !own.resource || namespacePath(n.spec, specs.UserNamespace) != "" || uids[0].ContainerID != 0 {
		n.userns, err = usernsFile(uids, gids, 0)
		return err
	}
	n.userns, err = usernsFile(uids, gids, uids[0].HostID)
	if errors.Is(err, fs.ErrPermission) {
		// vzrun's own file is not executable for all, or the host lets no
		// users make user namespaces.
		n.host.warn(n.id, "the guest's inotify instances and the like count as root's: %v", err)
		n.userns, err = usernsFile(uids, gids, 0)
		return err
	}
	n.joins = err == nil
	return err
}

// privateConfig is the configuration with what is only true while libcontainer
// starts the container, and only for this process.
func (n *nascent) privateConfig() *configs.Config {
	config := *n.config
	config.Rootfs = n.view
	if n.joins {
		config.Namespaces = slices.Clone(config.Namespaces)
		config.Namespaces.Add(configs.NEWUSER, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.userns.Fd()))
	}
	return &config
}

// correctState replaces what libcontainer has written of privateConfig.
func (n *nascent) correctState() error {
	if n.view == n.config.Rootfs && !n.joins {
		return nil
	}
	st, err := n.lc.State()
	if err != nil {
		return err
	}
	st.Config.Rootfs, st.Config.Namespaces = n.config.Rootfs, n.config.Namespaces
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := store.WriteState(filepath.Join(n.host.opts.Root, n.id, "state.json"), data, 0o600); err != nil {
		return err
	}
	n.lc, err = libcontainer.Load(n.host.opts.Root, n.id)
	return err
}
