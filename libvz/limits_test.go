package libvz

import (
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestUpdatedLimits(t *testing.T) {
	limit, swap, pids, shares, quota, period := int64(512), int64(600), int64(100), uint64(512), int64(20000), uint64(100000)
	created := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap},
		CPU:    &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "0-1"},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	of := func(r *specs.LinuxResources) *cgroups.Resources {
		out := &cgroups.Resources{}
		if err := applyResources(out, r); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, same := range []*specs.LinuxResources{created, {}, nil} {
		now := &cgroups.Resources{}
		if same != nil {
			now = of(same)
		}
		if got := updatedLimits(same, now); got != nil {
			t.Errorf("nothing was updated: %+v", got)
		}
	}
	if got := updatedLimits(created, nil); got != nil {
		t.Errorf("without cgroups: %+v", got)
	}
	less, none, idle := int64(256), int64(-1), int64(1)
	for name, update := range map[string]*specs.LinuxResources{
		"memory":    {Memory: &specs.LinuxMemory{Limit: &less}},
		"unlimited": {Memory: &specs.LinuxMemory{Limit: &none, Swap: &none}, Pids: &specs.LinuxPids{Limit: &none}},
		"cpus":      {CPU: &specs.LinuxCPU{Quota: &none, Cpus: "1"}},
		"idle":      {CPU: &specs.LinuxCPU{Idle: &idle, Shares: ptr(uint64(0))}},
	} {
		for _, config := range []*specs.LinuxResources{created, nil} {
			now := &cgroups.Resources{}
			if config != nil {
				now = of(config)
			}
			if err := applyResources(now, update); err != nil {
				t.Fatal(err)
			}
			// What is kept, applied to what the configuration says, is what was.
			again := &cgroups.Resources{}
			if config != nil {
				again = of(config)
			}
			kept := updatedLimits(config, now)
			if kept == nil {
				t.Errorf("%s: nothing is kept", name)
				continue
			}
			if err := applyResources(again, kept); err != nil {
				t.Fatal(err)
			}
			// Shares are written as a weight too, which follows from them.
			again.CpuWeight, now.CpuWeight = 0, 0
			if !reflect.DeepEqual(again, now) {
				t.Errorf("%s: kept %+v\nrestored %+v\nwas      %+v", name, kept, again, now)
			}
		}
	}
	// Only what was updated is kept.
	now := of(created)
	now.Memory = 256
	if got := updatedLimits(created, now); got == nil || got.CPU != nil || got.Pids != nil || *got.Memory.Limit != 256 || got.Memory.Swap != nil {
		t.Errorf("kept %+v", got)
	}
}
