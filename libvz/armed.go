package libvz

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
)

// saveArmed records the tasks, and their timers and pressure triggers, while they are
// stopped.
func (c *Container) saveArmed(d *dumpPlan) error {
	pids, err := c.lc.Processes()
	if err != nil {
		return err
	}
	d.tasks, err = guestPids(pids)
	if err != nil {
		return err
	}
	d.manifest.Armed, err = criu.FindArmed(d.opts.Pid, d.tasks)
	return err
}

// rearm sets them again, before CRIU lets go of the tasks. They are whole by then:
// a timer that is late is no reason to end all.
func (r *revival) rearm() {
	err := func() error {
		cm, err := manager.New(r.config.Cgroups)
		if err != nil {
			return err
		}
		pids, err := cm.GetAllPids()
		if err != nil {
			return err
		}
		tasks, err := guestPids(pids)
		if err != nil {
			return err
		}
		return r.manifest.Armed.Rearm(r.pid, tasks)
	}()
	if err != nil {
		r.host.warn(r.id, "timers or pressure watches of the guest are not as they were: %v", err)
	}
}

// guestPids finds the pids that processes have in the guest. Those that have ended
// are left out.
func guestPids(pids []int) ([]criu.Task, error) {
	tasks := make([]criu.Task, 0, len(pids))
	for _, pid := range pids {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, line, _ := strings.Cut(string(status), "\nNSpid:")
		line, _, _ = strings.Cut(line, "\n")
		// The reader's pid comes first, then that of each namespace within.
		if fields := strings.Fields(line); len(fields) > 0 {
			guest, err := strconv.Atoi(fields[min(1, len(fields)-1)])
			if err != nil {
				return nil, err
			}
			tasks = append(tasks, criu.Task{Pid: pid, Guest: guest})
		}
	}
	return tasks, nil
}
