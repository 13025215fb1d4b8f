package cgroup

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// hostOwned is the recorded id of what belongs to no user of the guest.
const hostOwned = -1

// identity is the map of a guest without a user namespace.
func identity(m []specs.LinuxIDMapping) []specs.LinuxIDMapping {
	if len(m) == 0 {
		return []specs.LinuxIDMapping{{Size: ^uint32(0)}}
	}
	return m
}

// toGuest returns the guest's id for one of the host's, or hostOwned.
func toGuest(m []specs.LinuxIDMapping, id uint32) int64 {
	for _, r := range identity(m) {
		// 64 bits, since a range may reach up to the last id.
		if id >= r.HostID && uint64(id) < uint64(r.HostID)+uint64(r.Size) {
			return int64(r.ContainerID) + int64(id-r.HostID)
		}
	}
	return hostOwned
}

// toHost returns the host's id for one of the guest's, or -1, the kernel's
// "leave as it is", for hostOwned and for ids that the guest does not have.
func toHost(m []specs.LinuxIDMapping, id int64) int {
	for _, r := range identity(m) {
		if id >= int64(r.ContainerID) && id < int64(r.ContainerID)+int64(r.Size) {
			host := int64(r.HostID) + id - int64(r.ContainerID)
			if host >= int64(^uint32(0)) {
				return -1
			}
			return int(host)
		}
	}
	return -1
}
