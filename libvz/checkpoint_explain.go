package libvz

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/preflight"
)

// explainDump names the guest's unit where CRIU names a task.
func (c *Container) explainDump(err error) error {
	var ce *criu.Error
	if !errors.As(err, &ce) {
		return err
	}
	if ce.Unsupported {
		return withHint(ce.Remedy, "%w: %w", ErrUnsupported, err)
	}
	remedy := ce.Remedy
	if is, err := c.lc.Status(); err == nil && is == libcontainer.Paused && ce.Retry {
		// What was on its way when it was paused stays so.
		remedy = "resume the container, pause it again if it is to be paused, and then try again"
	}
	if t, ok := c.taskOf(ce.Pid); ok && ce.Cause != "" {
		who := fmt.Sprintf("process %q", t.Command)
		if t.Unit != "" {
			who = "unit " + t.Unit
		}
		return withHint(remedy, "%w; it is %s (pid %d in the guest)", err, who, t.Guest)
	}
	return withHint(remedy, "%w", err)
}

// taskOf finds a task by the pid that CRIU's log gives, which is the host's in
// some messages and the guest's in others.
func (c *Container) taskOf(pid int) (preflight.Task, bool) {
	init, err := c.initPid()
	if err != nil || pid == 0 {
		return preflight.Task{}, false
	}
	pids, err := c.lc.Processes()
	if err != nil {
		return preflight.Task{}, false
	}
	tasks, err := tasksOf(init, pids)
	if err != nil {
		return preflight.Task{}, false
	}
	for _, t := range tasks {
		if t.Pid == pid {
			return t, true
		}
	}
	for _, t := range tasks {
		if t.Guest == pid {
			return t, true
		}
	}
	return preflight.Task{}, false
}
