package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// An init that lost something in its restore (a pressure trigger that no
// longer blocks, say) does not fail: it spins, and still says that all is
// well. So it is watched after a restore, in windows, until one is calm.
const (
	settleWindow  = 100 * time.Millisecond
	settleWindows = 10
	// calm is the share of one processor below which an init counts as
	// idle: one with nothing to do takes none, one that spins 0.3 or more.
	calm = 0.2
)

// settle watches the processor time of the process for one window after
// another and returns the share of the first calm one, or of the last: above
// calm it is busy for a second on end.
func settle(ctx context.Context, pid int) (float64, error) {
	tick := time.NewTicker(settleWindow)
	defer tick.Stop()
	before, err := cpuTime(pid)
	if err != nil {
		return 0, err
	}
	at, share := time.Now(), 0.0
	for range settleWindows {
		select {
		case <-ctx.Done():
			return share, ctx.Err()
		case <-tick.C:
		}
		after, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		now := time.Now()
		share = float64(after-before) / float64(now.Sub(at))
		if share < calm {
			break
		}
		before, at = after, now
	}
	return share, nil
}

// cpuTime returns the time that the main thread of a process has run, from
// /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst).
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/schedstat")
	if err != nil {
		return 0, fmt.Errorf("init: %w", err)
	}
	first, _, _ := strings.Cut(string(data), " ")
	ns, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
	if err != nil {
		return 0, errors.New("init: malformed schedstat")
	}
	return time.Duration(ns), nil
}
