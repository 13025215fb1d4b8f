package libvz

import (
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestApplyResources(t *testing.T) {
	disk := func(rate uint64) []*cgroups.ThrottleDevice {
		return []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, rate)}
	}
	for name, tc := range map[string]struct {
		before cgroups.Resources
		update specs.LinuxResources
		after  cgroups.Resources
	}{
		"nothing": {
			before: cgroups.Resources{Memory: 5, PidsLimit: ptr(int64(7)), CpuQuota: 9},
			after:  cgroups.Resources{Memory: 5, PidsLimit: ptr(int64(7)), CpuQuota: 9},
		},
		"unlimited memory lifts the limit of swap": {
			before: cgroups.Resources{Memory: 5, MemorySwap: 10},
			update: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}},
			after:  cgroups.Resources{Memory: -1},
		},
		"memory alone leaves swap": {
			before: cgroups.Resources{Memory: 5, MemorySwap: 10},
			update: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(6))}},
			after:  cgroups.Resources{Memory: 6, MemorySwap: 10},
		},
		"quota alone leaves the period": {
			before: cgroups.Resources{CpuPeriod: 50, CpuQuota: 20},
			update: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(30)), Period: ptr(uint64(0))}},
			after:  cgroups.Resources{CpuPeriod: 50, CpuQuota: 30},
		},
		"shares set the weight of cgroup2": {
			update: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}},
			after:  cgroups.Resources{CpuShares: 1024, CpuWeight: cgroups.ConvertCPUSharesToCgroupV2Value(1024)},
		},
		"idle takes the weight back": {
			before: cgroups.Resources{CpuShares: 1024, CpuWeight: 39},
			update: specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}},
			after:  cgroups.Resources{CPUIdle: ptr(int64(1))},
		},
		"a device that is limited": {
			before: cgroups.Resources{BlkioThrottleReadBpsDevice: disk(100)},
			update: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(8, 200)}}},
			after:  cgroups.Resources{BlkioThrottleReadBpsDevice: disk(200)},
		},
		"one more device": {
			before: cgroups.Resources{BlkioThrottleReadBpsDevice: disk(100)},
			update: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(9, 200)}}},
			after:  cgroups.Resources{BlkioThrottleReadBpsDevice: append(disk(100), cgroups.NewThrottleDevice(9, 0, 200))},
		},
		"half of a device's weights": {
			before: cgroups.Resources{BlkioWeightDevice: []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 10, 20)}},
			update: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{weight(8, 30)}}},
			after:  cgroups.Resources{BlkioWeightDevice: []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 30, 20)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := tc.before
			if err := applyResources(&to, &tc.update); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(to, tc.after) {
				t.Errorf("got %+v, want %+v", to, tc.after)
			}
		})
	}
}

func throttle(major int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major = major
	return d
}

func weight(major int64, weight uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &weight}
	d.Major = major
	return d
}

func TestApplyResourcesRefusesShares(t *testing.T) {
	to := cgroups.Resources{}
	r := specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(262145))}}
	if err := applyResources(&to, &r); err == nil || to.CpuShares != 0 {
		t.Errorf("shares that the kernel would cut off were taken: %v, %d", err, to.CpuShares)
	}
}
