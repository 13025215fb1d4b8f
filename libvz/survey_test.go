package libvz

import (
	"context"
	"math"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
)

func TestLoadOf(t *testing.T) {
	stats := func(change func(*cgroups.Stats)) *cgroups.Stats {
		s := cgroups.NewStats()
		s.MemoryStats.Usage.Usage = 100
		change(s)
		return s
	}
	for _, c := range []struct {
		name  string
		stats *cgroups.Stats
		is    func(*Load) bool
	}{
		{"v1: cache of the whole subtree", stats(func(s *cgroups.Stats) {
			s.MemoryStats.Stats["total_inactive_file"], s.MemoryStats.Stats["inactive_file"] = 30, 1
		}), func(l *Load) bool { return l.Memory == 70 }},
		{"v2", stats(func(s *cgroups.Stats) { s.MemoryStats.Stats["inactive_file"] = 30 }), func(l *Load) bool { return l.Memory == 70 }},
		{"more cache than usage", stats(func(s *cgroups.Stats) { s.MemoryStats.Stats["inactive_file"] = 300 }), func(l *Load) bool { return l.Memory == 0 }},
		{"swap is counted with memory", stats(func(s *cgroups.Stats) { s.MemoryStats.SwapUsage.Usage = 140 }), func(l *Load) bool { return l.Swap == 40 }},
		{"swap is not accounted", stats(func(*cgroups.Stats) {}), func(l *Load) bool { return l.Swap == 0 }},
		{"no limit of tasks", stats(func(s *cgroups.Stats) { s.PidsStats.Limit = math.MaxUint64 }), func(l *Load) bool { return l.TasksLimit == 0 }},
		{"devices are summed, v1 and v2 write it differently", stats(func(s *cgroups.Stats) {
			s.BlkioStats.IoServiceBytesRecursive = []cgroups.BlkioStatEntry{
				{Op: "Read", Value: 1}, {Op: "Write", Value: 2}, {Op: "Total", Value: 3}, {Op: "read", Value: 10}, {Op: "write", Value: 20},
			}
		}), func(l *Load) bool { return l.Read == 11 && l.Written == 22 }},
	} {
		if l := loadOf(c.stats, nil); !c.is(l) {
			t.Errorf("%s: got %+v", c.name, l)
		}
	}
	l := loadOf(cgroups.NewStats(), &cgroups.Cgroup{Resources: &cgroups.Resources{Memory: 512, CpuQuota: 150000, CpuPeriod: 100000}})
	if l.MemoryLimit != 512 || l.CPUs != 1.5 {
		t.Errorf("limits: got %+v", l)
	}
	l = loadOf(cgroups.NewStats(), &cgroups.Cgroup{Resources: &cgroups.Resources{Memory: -1, CpuQuota: -1}})
	if l.MemoryLimit != 0 || l.CPUs != 0 {
		t.Errorf("no limits: got %+v", l)
	}
}

// A guest that holds something up holds up nobody.
func TestAnswerWithin(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	release := make(chan struct{})
	defer close(release)
	if s, answered := answerWithin(ctx, func() string { <-release; return "late" }); answered || s != "" {
		t.Errorf("got %q", s)
	}
	if s, answered := answerWithin(context.Background(), func() string { return "soon" }); !answered || s != "soon" {
		t.Errorf("got %q", s)
	}
}

func TestUptimeOfOurselves(t *testing.T) {
	if up := uptimeOf(os.Getpid()); up < 0 || up > time.Hour {
		t.Errorf("got %v", up)
	}
	if up := uptimeOf(-1); up != 0 {
		t.Errorf("got %v of no process", up)
	}
}

func TestHarmless(t *testing.T) {
	if got := harmless("a\x1b[2Jb\xffé"); got != "a?[2Jb??" {
		t.Errorf("got %q", got)
	}
}
