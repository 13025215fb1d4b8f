package libvz

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/preflight"
)

// Obstacle is one thing that prevents a checkpoint, or that a restore would fail
// at. Text that comes from the guest is bounded and printable.
type Obstacle struct {
	// Kind is container, namespace, session, descriptor, socket, connection,
	// traced, queue, mount, deleted-file, outside-file, memory, lock, frozen,
	// network, incomplete or host.
	Kind string `json:"kind"`
	// Unit is that of the guest's systemd, "" where the process has none.
	Unit string `json:"unit,omitempty"`
	// Pid is in the guest's pid namespace and HostPid in the caller's; both are 0
	// where it is no one process's.
	Pid     int    `json:"pid,omitempty"`
	HostPid int    `json:"host_pid,omitempty"`
	Command string `json:"command,omitempty"`
	What    string `json:"what"`
	Remedy  string `json:"remedy"`
	// Count is how often the process has it, 1 or more.
	Count int `json:"count"`
}

// ObstacleSession is the Kind of what was started from outside, and of what
// CheckpointOptions.EndSessions takes away.
const ObstacleSession = preflight.Session

// String names the task as an administrator of the guest knows it.
func (o Obstacle) String() string {
	switch {
	case o.Pid == 0:
		return o.What
	case o.Unit != "":
		return fmt.Sprintf("unit %s (pid %d, %s) %s", o.Unit, o.Pid, o.Command, o.What)
	}
	return fmt.Sprintf("process %q (pid %d) %s", o.Command, o.Pid, o.What)
}

// Check lists all that would prevent a checkpoint with these options, or that a
// restore would fail at, in one pass over a running or paused container: nil where
// there is nothing. What comes and goes, such as helpers of a service that is just
// being started, is looked at again for a third of a second before it counts.
//
// It takes no lock and changes nothing, and a guest can hold it up by five seconds
// at the most. Errors wrap ErrStatus; ErrBusy while another operation is under
// way, in which tasks may be stopped; and ErrRefused if a process can not be
// looked at in time.
func (c *Container) Check(ctx context.Context, o CheckpointOptions) ([]Obstacle, error) {
	found, err := c.check(ctx, o)
	return found, fail("check", c.id, err)
}

func (c *Container) check(ctx context.Context, o CheckpointOptions) ([]Obstacle, error) {
	if err := c.need(libcontainer.Running, libcontainer.Paused); err != nil {
		return nil, err
	}
	if e, err := c.host.store.Read(c.id); err == nil && e.Operation != nil {
		return nil, fmt.Errorf("%w: %s", ErrBusy, e.Operation.Name)
	}
	host := c.host.checkCriu(ctx, o)
	st, err := c.lc.State()
	if err != nil {
		return nil, err
	}
	_, found, err := c.survey(ctx, st, o)
	return append(host, found...), err
}

// checkCriu says what of the host is in the way.
func (h *Host) checkCriu(ctx context.Context, o CheckpointOptions) []Obstacle {
	known, err := h.findCriu(ctx)
	if err != nil {
		remedy := "see vzrun doctor"
		var hinted interface{ Hint() string }
		if errors.As(err, &hinted) {
			remedy = hinted.Hint()
		}
		return []Obstacle{{Kind: "host", What: err.Error(), Remedy: remedy, Count: 1}}
	}
	if !o.PreDump && o.ParentPath == "" {
		return nil
	}
	features, err := criu.Features(ctx, known.Path)
	if err == nil && !features.MemTrack {
		return []Obstacle{{
			Kind: "host", What: "this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY)",
			Remedy: "take a whole checkpoint, without --pre-dump and --parent-path", Count: 1,
		}}
	}
	return nil
}

// refuse turns obstacles into one error, nil where there are none.
func refuse(found []Obstacle) error {
	if len(found) == 0 {
		return nil
	}
	lines := make([]string, 0, maxRefusals+1)
	for _, o := range found[:min(len(found), maxRefusals)] {
		lines = append(lines, o.String())
	}
	hint := found[0].Remedy
	if more := len(found) - maxRefusals; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	if len(found) > 1 {
		hint += "; vzrun checkpoint --check lists what there is, with remedies"
	}
	return withHint(hint, "%w: %s", ErrRefused, strings.Join(lines, "; "))
}

const (
	// maxRefusals is how many obstacles one error names.
	maxRefusals = 5
	// Helpers of systemd that set a service up, such as (sd-mkuserns), are
	// obstacles for some milliseconds; one that stays this long is to be refused.
	obstacleLooks = 10
	obstaclePause = 30 * time.Millisecond
	// busLooks is for how long an init may have a connection to somebody outside: a
	// vzrun that asks it whether it is up, or has it reload after a restore.
	busLooks = 100
	// obstacleAge is what no such helper reaches: an older process is no helper.
	obstacleAge = time.Second
)

// survey looks at a container's tasks and what they have. It returns the tasks, the
// init first, and what prevents a checkpoint.
func (c *Container) survey(ctx context.Context, st *libcontainer.State, o CheckpointOptions) ([]preflight.Task, []Obstacle, error) {
	outside, err := outsideOf(st)
	if err != nil {
		return nil, nil, err
	}
	system := c.guestInit() != ""
	asked := preflight.Options{
		SkipInFlight:   o.TCPSkipInFlight,
		TCPEstablished: o.TCPEstablished, ExtUnixSockets: o.ExtUnixSockets, ShellJob: o.ShellJob,
		FileLocks: o.FileLocks || system, LinkRemap: o.LinkRemap || system, GhostLimit: criu.GhostLimit,
		// Elsewhere CRIU has no stage at which they could be thawed.
		RefuseFrozen: o.PreDump || !st.Config.Namespaces.IsPrivate(configs.NEWNET),
	}
	if data, err := readRegular(c.criuConfig(), maxConfigSize); err == nil {
		allowed(string(data), &asked)
	}
	var before []preflight.Obstacle
	for n := 1; ; n++ {
		facts, err := c.look(ctx, st, outside, asked)
		if err != nil {
			return nil, nil, err
		}
		found := preflight.Decide(facts, asked)
		if len(found) == 0 || n >= looksFor(found) || n > 1 && slices.Equal(found, before) && !slices.ContainsFunc(found, mayPass) {
			return facts.Tasks, published(found), nil
		}
		before = found
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(obstaclePause):
		}
	}
}

// allowed adds what a configuration file of CRIU allows, criu(8): CRIU heeds it more
// than what it is told otherwise. One that cannot be read is CRIU's to complain of.
func allowed(text string, o *preflight.Options) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(strings.ReplaceAll(line, "=", " "))
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "tcp-established", "tcp-close":
			o.TCPEstablished = true
		case "skip-in-flight":
			o.SkipInFlight = true
		case "ext-unix-sk":
			o.ExtUnixSockets = true
		case "shell-job":
			o.ShellJob = true
		case "file-locks":
			o.FileLocks = true
		case "link-remap":
			o.LinkRemap = true
		case "ghost-limit":
			o.GhostLimit = math.MaxUint64 // CRIU compares
		case "external", "ext-mount-map", "enable-fs", "enable-external-masters", "enable-external-sharing", "skip-mnt":
			o.AnyMounts = true
		}
	}
}

func (c *Container) look(ctx context.Context, st *libcontainer.State, outside []criu.External, asked preflight.Options) (*preflight.Facts, error) {
	pids, err := c.lc.Processes()
	if err != nil {
		return nil, err
	}
	g := preflight.Guest{
		Init: st.InitProcessPid, Pids: pids, OwnNetwork: st.Config.Namespaces.IsPrivate(configs.NEWNET),
		JoinedCgroups: st.Config.Namespaces.PathOf(configs.NEWCGROUP) != "", Locks: !asked.FileLocks,
	}
	for _, e := range outside {
		g.Outside = append(g.Outside, e.Key)
	}
	if path := st.CgroupPaths[""]; path != "" && asked.RefuseFrozen {
		if g.Frozen, err = cgroup.Frozen(path); err != nil {
			return nil, err
		}
	}
	facts, err := preflight.Look(ctx, g)
	if errors.Is(err, preflight.ErrStuck) {
		return nil, withHint("see what that process waits for, and end it", "%w: %w", ErrRefused, err)
	}
	return facts, err
}

// mayPass tells whether an obstacle may be gone in a moment: it is a helper's, or a
// connection of the init's.
func mayPass(o preflight.Obstacle) bool {
	return o.Host != 0 && uptimeOf(o.Host) < obstacleAge || ofBus(o)
}

func ofBus(o preflight.Obstacle) bool { return o.Kind == preflight.Connection && o.Pid == 1 }

// looksFor says how often to look before obstacles are believed.
func looksFor(found []preflight.Obstacle) int {
	if len(found) == 1 && ofBus(found[0]) {
		return busLooks
	}
	return obstacleLooks
}

func published(found []preflight.Obstacle) []Obstacle {
	var out []Obstacle
	for _, o := range found {
		out = append(out, Obstacle{
			Kind: o.Kind, Unit: o.Unit, Pid: o.Pid, HostPid: o.Host, Command: o.Command,
			What: o.What, Remedy: o.Remedy, Count: o.Count,
		})
	}
	return out
}

// outsideOf are the mounts of a running container that come from outside it.
func outsideOf(st *libcontainer.State) ([]criu.External, error) {
	config := st.Config
	config.Rootfs = seenRoot(&config, st.InitProcessPid)
	mounts, err := externalMounts(&config, nil)
	return append(mounts, maskedFiles(&st.Config, st.InitProcessPid)...), err
}

// tasksOf reads what names the processes of a container, its init first, without
// their files. Those that end meanwhile are left out.
func tasksOf(init int, pids []int) ([]preflight.Task, error) {
	first, err := preflight.ReadTask(init)
	if err != nil {
		return nil, fmt.Errorf("look at init: %w", err)
	}
	tasks := []preflight.Task{first}
	for _, pid := range pids {
		if pid == init {
			continue
		}
		if t, err := preflight.ReadTask(pid); err == nil {
			tasks = append(tasks, t)
		}
	}
	return tasks, nil
}
