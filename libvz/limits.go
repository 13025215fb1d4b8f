package libvz

import (
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// updatedLimits returns what Update has made of the limits of a container since
// it was created from a configuration, in the form that Update takes; nil where
// nothing differs. The rest of a restored container's limits is that of the
// configuration it is restored with.
func updatedLimits(created *specs.LinuxResources, now *cgroups.Resources) *specs.LinuxResources {
	if now == nil {
		return nil
	}
	if created == nil {
		created = &specs.LinuxResources{}
	}
	var memory specs.LinuxMemory
	var cpu specs.LinuxCPU
	var pids specs.LinuxPids
	if m := created.Memory; m != nil {
		memory = *m
	}
	if c := created.CPU; c != nil {
		cpu = *c
	}
	if p := created.Pids; p != nil {
		pids = *p
	}
	changed := false
	var out specs.LinuxResources
	m := specs.LinuxMemory{
		Limit:       differs(&changed, memory.Limit, now.Memory),
		Reservation: differs(&changed, memory.Reservation, now.MemoryReservation),
		Swap:        differs(&changed, memory.Swap, now.MemorySwap),
	}
	if changed {
		out.Memory = &m
	}
	changed = false
	c := specs.LinuxCPU{
		Period: differs(&changed, cpu.Period, now.CpuPeriod),
		Quota:  differs(&changed, cpu.Quota, now.CpuQuota),
		Shares: differs(&changed, cpu.Shares, now.CpuShares),
	}
	if now.CpuBurst != nil {
		c.Burst = differs(&changed, cpu.Burst, *now.CpuBurst)
	}
	if now.CPUIdle != nil {
		c.Idle = differs(&changed, cpu.Idle, *now.CPUIdle)
	}
	if now.CpusetCpus != cpu.Cpus {
		c.Cpus, changed = now.CpusetCpus, true
	}
	if now.CpusetMems != cpu.Mems {
		c.Mems, changed = now.CpusetMems, true
	}
	if changed {
		out.CPU = &c
	}
	changed = false
	if now.PidsLimit != nil {
		if limit := differs(&changed, pids.Limit, *now.PidsLimit); changed {
			out.Pids = &specs.LinuxPids{Limit: limit}
		}
	}
	if out.Memory == nil && out.CPU == nil && out.Pids == nil {
		return nil
	}
	return &out
}

// differs returns a pointer to is, and notes that in changed, if a configuration
// that says was (nil and 0 say nothing) does not lead to it.
func differs[T comparable](changed *bool, was *T, is T) *T {
	var none T
	if was == nil {
		was = &none
	}
	if *was == is {
		return nil
	}
	*changed = true
	return &is
}
