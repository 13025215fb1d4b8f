package libvz

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/machine1"
)

// machineClass is how systemd-machined files us: as a container, by vzrun.
const (
	machineService = "vzrun"
	machineClass   = "container"
)

// registerMachine makes a whole operating system known to the host's
// systemd-machined, so that machinectl lists it and journalctl --machine finds
// it (org.freedesktop.machine1(5)). machined forgets it when its leader ends.
// It is done where systemd manages the cgroups, and a host without machined is
// no worse for it: a failure is a warning.
func (h *Host) registerMachine(id string, pid int, uuid, rootfs string) {
	if !h.opts.SystemdCgroup {
		return
	}
	conn, err := machine1.New()
	if err != nil {
		return // no system bus
	}
	defer conn.Close()
	machineID, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(machineID) != 16 {
		machineID = nil
	}
	if err := conn.RegisterMachine(machineName(id), machineID, machineService, machineClass, pid, rootfs); err != nil {
		h.warn(id, "machinectl will not list it: %v", err)
	}
}

// machineName turns an id into a name that machined takes: host name characters
// only, at most 64 of them (hostname(7)).
func machineName(id string) string {
	const longest = 64
	name := strings.Map(func(r rune) rune {
		if r == '_' || r == '+' {
			return '-'
		}
		return r
	}, id)
	name = strings.Trim(name, "-.")
	if len(name) > longest {
		name = strings.TrimRight(name[:longest], "-.")
	}
	if name == "" {
		return fmt.Sprintf("vzrun-%x", id)
	}
	return name
}
