package libvz

import (
	"context"
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/intelrdt"
	"github.com/opencontainers/runc/types"
)

// Usage is what a container uses of its limits, in the form that runc's events
// verb has made a standard: bytes, nanoseconds, counts.
type Usage = types.Stats

// Usage returns what the container uses now. An error wraps ErrStatus where it
// has ended, or ErrNotExist where it ends meanwhile.
func (c *Container) Usage() (*Usage, error) {
	if err := c.needAlive(); err != nil {
		return nil, fail("events", c.id, err)
	}
	stats, err := c.lc.Stats()
	if err != nil {
		return nil, fail("events", c.id, endedMeanwhile(err))
	}
	usage := usageOf(stats.CgroupStats)
	usage.NetworkInterfaces = stats.Interfaces
	if stats.IntelRdtStats != nil {
		usage.IntelRdt = rdtUsageOf(stats.IntelRdtStats)
	}
	return usage, nil
}

// OutOfMemory sends a value each time the kernel has killed a process of the
// container because its memory limit was reached. The channel is closed when
// the container's memory cgroup is gone.
func (c *Container) OutOfMemory(context.Context) (<-chan struct{}, error) {
	if err := c.needAlive(); err != nil {
		return nil, fail("events", c.id, err)
	}
	kills, err := c.lc.NotifyOOM()
	return kills, fail("events", c.id, err)
}

func (c *Container) needAlive() error {
	is, err := c.lc.Status()
	if err != nil {
		return err
	}
	if is == libcontainer.Stopped {
		return fmt.Errorf("%w: container with id %s is not running", ErrStatus, c.id)
	}
	return nil
}

func usageOf(s *cgroups.Stats) *types.Stats {
	cpu, memory, blkio := &s.CpuStats, &s.MemoryStats, &s.BlkioStats
	usage := &types.Stats{
		CPU: types.Cpu{
			Usage: types.CpuUsage{
				Total: cpu.CpuUsage.TotalUsage, Kernel: cpu.CpuUsage.UsageInKernelmode, User: cpu.CpuUsage.UsageInUsermode,
				Percpu: cpu.CpuUsage.PercpuUsage, PercpuKernel: cpu.CpuUsage.PercpuUsageInKernelmode,
				PercpuUser: cpu.CpuUsage.PercpuUsageInUsermode,
			},
			Throttling: types.Throttling{
				Periods: cpu.ThrottlingData.Periods, ThrottledPeriods: cpu.ThrottlingData.ThrottledPeriods,
				ThrottledTime: cpu.ThrottlingData.ThrottledTime,
			},
			PSI: cpu.PSI,
		},
		CPUSet: types.CPUSet(s.CPUSetStats),
		Memory: types.Memory{
			Cache: memory.Cache, Usage: memoryUsageOf(memory.Usage), Swap: memoryUsageOf(memory.SwapUsage),
			Kernel: memoryUsageOf(memory.KernelUsage), KernelTCP: memoryUsageOf(memory.KernelTCPUsage),
			Raw: memory.Stats, PSI: memory.PSI,
		},
		Pids: types.Pids{Current: s.PidsStats.Current, Limit: s.PidsStats.Limit},
		Blkio: types.Blkio{
			IoServiceBytesRecursive: blkioUsageOf(blkio.IoServiceBytesRecursive),
			IoServicedRecursive:     blkioUsageOf(blkio.IoServicedRecursive),
			IoQueuedRecursive:       blkioUsageOf(blkio.IoQueuedRecursive),
			IoServiceTimeRecursive:  blkioUsageOf(blkio.IoServiceTimeRecursive),
			IoWaitTimeRecursive:     blkioUsageOf(blkio.IoWaitTimeRecursive),
			IoMergedRecursive:       blkioUsageOf(blkio.IoMergedRecursive),
			IoTimeRecursive:         blkioUsageOf(blkio.IoTimeRecursive),
			SectorsRecursive:        blkioUsageOf(blkio.SectorsRecursive),
			PSI:                     blkio.PSI,
		},
		Hugetlb: make(map[string]types.Hugetlb, len(s.HugetlbStats)),
	}
	for size, h := range s.HugetlbStats {
		usage.Hugetlb[size] = types.Hugetlb{Usage: h.Usage, Max: h.MaxUsage, Failcnt: h.Failcnt}
	}
	return usage
}

func memoryUsageOf(d cgroups.MemoryData) types.MemoryEntry {
	return types.MemoryEntry{Limit: d.Limit, Usage: d.Usage, Max: d.MaxUsage, Failcnt: d.Failcnt}
}

func blkioUsageOf(entries []cgroups.BlkioStatEntry) []types.BlkioEntry {
	out := make([]types.BlkioEntry, len(entries))
	for i, e := range entries {
		out[i] = types.BlkioEntry(e)
	}
	return out
}

func rdtUsageOf(s *intelrdt.Stats) types.IntelRdt {
	usage := types.IntelRdt{Schemata: s.Schemata}
	if intelrdt.IsCATEnabled() {
		usage.L3CacheInfo = (*types.L3CacheInfo)(s.L3CacheInfo)
		usage.L3CacheSchemaRoot, usage.L3CacheSchema = s.L3CacheSchemaRoot, s.L3CacheSchema
	}
	if intelrdt.IsMBAEnabled() {
		usage.MemBwInfo = (*types.MemBwInfo)(s.MemBwInfo)
		usage.MemBwSchemaRoot, usage.MemBwSchema = s.MemBwSchemaRoot, s.MemBwSchema
	}
	if intelrdt.IsMBMEnabled() {
		usage.MBMStats = s.MBMStats
	}
	if intelrdt.IsCMTEnabled() {
		usage.CMTStats = s.CMTStats
	}
	return usage
}
