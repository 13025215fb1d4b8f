package libvz

import (
	"context"
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/intelrdt"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// Update is a change of a container's limits.
type Update struct {
	// Resources in the units of the runtime specification. What is nil or
	// empty stays as it is; memory, swap, quota and pids of -1 are
	// unlimited. Devices' access rules are not changed.
	Resources specs.LinuxResources
	// L3CacheSchema and MemBwSchema change the container's Intel RDT group;
	// "" leaves it alone.
	L3CacheSchema, MemBwSchema string
}

// Update changes limits of a container that is created, running or paused. On
// an error the limits are as they were before.
func (c *Container) Update(_ context.Context, u Update) error {
	return c.change("update", func(*store.Entry) error {
		if err := c.need(libcontainer.Running, libcontainer.Created, libcontainer.Paused); err != nil {
			return err
		}
		config := c.lc.Config()
		resources := *config.Cgroups.Resources
		if err := applyResources(&resources, &u.Resources); err != nil {
			return err
		}
		// Rules that a device plugin added are not in our configuration.
		resources.SkipDevices = true
		cg := *config.Cgroups
		cg.Resources = &resources
		config.Cgroups = &cg
		rdt, err := updatedRdt(config.IntelRdt, u)
		if err != nil {
			return err
		}
		config.IntelRdt = rdt
		return c.lc.Set(config)
	})
}

// applyResources writes what r sets over what to holds.
func applyResources(to *cgroups.Resources, r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		applyMemory(to, m)
	}
	if cpu := r.CPU; cpu != nil {
		if err := applyCPU(to, cpu); err != nil {
			return err
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		limit := *r.Pids.Limit
		to.PidsLimit = &limit
	}
	if io := r.BlockIO; io != nil {
		applyBlockIO(to, io)
	}
	for _, h := range r.HugepageLimits {
		to.HugetlbLimit = replace(to.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit},
			func(l *cgroups.HugepageLimit) bool { return l.Pagesize == h.Pagesize })
	}
	if len(r.Unified) > 0 {
		to.Unified = r.Unified
	}
	return nil
}

func applyMemory(to *cgroups.Resources, m *specs.LinuxMemory) {
	set(&to.Memory, m.Limit)
	set(&to.MemoryReservation, m.Reservation)
	set(&to.MemorySwap, m.Swap)
	set(&to.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
		// A limit of memory and swap together cannot be without one of
		// memory; without either the manager lifts both.
		to.MemorySwap = 0
	}
}

func applyCPU(to *cgroups.Resources, cpu *specs.LinuxCPU) error {
	// A period or quota alone goes with the other as it was; 0 means the
	// same as nothing (specs-go, LinuxCPU).
	if cpu.Period != nil && *cpu.Period != 0 {
		to.CpuPeriod = *cpu.Period
	}
	if cpu.Quota != nil && *cpu.Quota != 0 {
		to.CpuQuota = *cpu.Quota
	}
	if cpu.Burst != nil {
		burst := *cpu.Burst
		to.CpuBurst = &burst
	}
	set(&to.CpuRtPeriod, cpu.RealtimePeriod)
	set(&to.CpuRtRuntime, cpu.RealtimeRuntime)
	if cpu.Shares != nil {
		if most := uint64(262144); *cpu.Shares > most {
			return withHint(fmt.Sprintf("the kernel takes 2 to %d", most), "cpu shares of %d are too many", *cpu.Shares)
		}
		to.CpuShares = *cpu.Shares
		to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
	}
	if cpu.Idle != nil {
		idle := *cpu.Idle
		to.CPUIdle = &idle
		if cpu.Shares == nil {
			// The weight of an idle cgroup cannot be written: EINVAL
			// (kernel/sched/fair.c, sched_group_set_shares).
			to.CpuShares, to.CpuWeight = 0, 0
		}
	}
	if cpu.Cpus != "" {
		to.CpusetCpus = cpu.Cpus
	}
	if cpu.Mems != "" {
		to.CpusetMems = cpu.Mems
	}
	return nil
}

func applyBlockIO(to *cgroups.Resources, io *specs.LinuxBlockIO) {
	set(&to.BlkioWeight, io.Weight)
	set(&to.BlkioLeafWeight, io.LeafWeight)
	for _, d := range io.WeightDevice {
		same := func(w *cgroups.WeightDevice) bool { return w.Major == d.Major && w.Minor == d.Minor }
		is := cgroups.WeightDevice{BlockIODevice: cgroups.BlockIODevice{Major: d.Major, Minor: d.Minor}}
		for _, w := range to.BlkioWeightDevice {
			if same(w) {
				is = *w
			}
		}
		set(&is.Weight, d.Weight)
		set(&is.LeafWeight, d.LeafWeight)
		to.BlkioWeightDevice = replace(to.BlkioWeightDevice, &is, same)
	}
	for _, kind := range []struct {
		to   *[]*cgroups.ThrottleDevice
		from []specs.LinuxThrottleDevice
	}{
		{&to.BlkioThrottleReadBpsDevice, io.ThrottleReadBpsDevice},
		{&to.BlkioThrottleWriteBpsDevice, io.ThrottleWriteBpsDevice},
		{&to.BlkioThrottleReadIOPSDevice, io.ThrottleReadIOPSDevice},
		{&to.BlkioThrottleWriteIOPSDevice, io.ThrottleWriteIOPSDevice},
	} {
		for _, d := range kind.from {
			*kind.to = replace(*kind.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate),
				func(t *cgroups.ThrottleDevice) bool { return t.Major == d.Major && t.Minor == d.Minor })
		}
	}
}

// updatedRdt returns the Intel RDT configuration after u. Only a container that
// was created with one has a group to change.
func updatedRdt(is *configs.IntelRdt, u Update) (*configs.IntelRdt, error) {
	switch {
	case u.L3CacheSchema == "" && u.MemBwSchema == "":
		return is, nil
	case u.L3CacheSchema != "" && !intelrdt.IsCATEnabled():
		return nil, fmt.Errorf("%w: Intel RDT/CAT: l3 cache schema is not enabled", ErrUnsupported)
	case u.MemBwSchema != "" && !intelrdt.IsMBAEnabled():
		return nil, fmt.Errorf("%w: Intel RDT/MBA: memory bandwidth schema is not enabled", ErrUnsupported)
	case is == nil:
		return nil, withHint("create the container with linux.intelRdt in config.json",
			"updating a non-existent Intel RDT configuration is not supported")
	}
	changed := *is
	if u.L3CacheSchema != "" {
		changed.L3CacheSchema = u.L3CacheSchema
	}
	if u.MemBwSchema != "" {
		changed.MemBwSchema = u.MemBwSchema
	}
	return &changed, nil
}

// set writes *from where there is one.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// replace returns a copy of list with the last element for which same is true
// replaced by with (the last of several is the one that holds), or with it
// added.
func replace[T any](list []*T, with *T, same func(*T) bool) []*T {
	out := append([]*T(nil), list...)
	for i := len(out) - 1; i >= 0; i-- {
		if same(out[i]) {
			out[i] = with
			return out
		}
	}
	return append(out, with)
}
