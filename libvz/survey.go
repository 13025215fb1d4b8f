package libvz

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// Facts say what Survey is to find out of each container beside its state.
// Some of it is a question to the guest.
type Facts struct {
	UUID    bool // Overview.UUID
	Init    bool // Overview.Init
	Network bool // Hostname, Addresses, NetworkNamespace
	System  bool // OS
	Usage   bool // Load
}

// Or returns the facts of both.
func (f Facts) Or(g Facts) Facts {
	return Facts{
		UUID: f.UUID || g.UUID, Init: f.Init || g.Init, Network: f.Network || g.Network,
		System: f.System || g.System, Usage: f.Usage || g.Usage,
	}
}

// NoAnswer is the Overview.Init of a guest that did not answer in time.
const NoAnswer = "no answer"

// Overview is a container at a glance. What was not asked for, and what there
// is not or cannot be found out, is zero. Text that comes from the guest is
// bounded and free of control characters.
type Overview struct {
	State
	// Guest is the kind of init of a whole operating system.
	Guest string
	// UUID is container_uuid of its configuration.
	UUID string
	// Init is what the init of a running guest says of the system, in
	// systemd's words: starting, running, degraded, maintenance, stopping, ...
	// or NoAnswer.
	Init     string
	Hostname string
	// Addresses are those of its network namespace, if that is its own:
	// global ones, IPv4 first, 64 at the most.
	Addresses []netip.Addr
	// NetworkNamespace is the number that ls -l /proc/PID/ns/net shows.
	NetworkNamespace uint64
	// OS is the name of its operating system, os-release(5).
	OS string
	// Uptime is the time since it was started, or restored here.
	Uptime time.Duration
	// Load is nil where its cgroups do not say.
	Load *Load
}

// Load is what a container uses now, and has used since its start.
type Load struct {
	// Memory in bytes is what is charged to the container without the file
	// cache that the kernel can drop at once; Swap is beside it. A limit of
	// 0 is none.
	Memory, MemoryLimit, Swap uint64
	CPU                       time.Duration // processor time used so far
	CPUs                      float64       // limit: processor time per wall time; 0 = none
	Tasks, TasksLimit         uint64        // threads; 0 = no limit
	Read, Written             uint64        // bytes of block devices so far
}

const (
	// surveyTime is how long Survey waits for all guests together. An init
	// answers in a millisecond, also on a busy host.
	surveyTime = 2 * time.Second
	// surveyors is how many containers are looked at at once.
	surveyors = 16
)

// Survey returns what List does and more of each container. A guest that does
// not answer delays it by two seconds at the most, all of them together.
func (h *Host) Survey(ctx context.Context, f Facts) ([]Overview, error) {
	containers, states, err := h.list()
	ctx, cancel := context.WithTimeout(ctx, surveyTime)
	defer cancel()
	out := make([]Overview, len(states))
	var wg sync.WaitGroup
	turn := make(chan struct{}, surveyors)
	for i := range states {
		wg.Add(1)
		turn <- struct{}{}
		go func() {
			defer wg.Done()
			out[i] = containers[i].overview(ctx, states[i], f)
			<-turn
		}()
	}
	wg.Wait()
	if states == nil {
		out = nil
	}
	return out, err
}

func (c *Container) overview(ctx context.Context, s State, f Facts) Overview {
	o := Overview{State: s, Guest: c.guestInit()}
	if f.UUID {
		if spec, _, err := loadSpec(c.bundle()); err == nil {
			o.UUID = containerUUID(spec)
		}
	}
	alive := s.Pid > 0
	if alive {
		o.Uptime = uptimeOf(s.Pid)
	}
	if alive && f.Usage {
		o.Load = c.load()
	}
	if alive && f.Network {
		o.Hostname = hostnameOf(s.Pid)
		o.NetworkNamespace = networkNamespaceOf(s.Pid)
		if addresses, err := vnet.Addresses(s.Pid); err == nil {
			o.Addresses = addresses
		}
	}
	if f.Init {
		o.Init = c.askInit(ctx, s)
	}
	if f.System {
		root := s.Rootfs
		if alive {
			root = procPath(s.Pid, "root")
		}
		o.OS, _ = answerWithin(ctx, func() string {
			name, err := guest.OSName(root)
			if err != nil {
				return ""
			}
			return name
		})
	}
	return o
}

// askInit asks the init of a running guest. One that is being changed is left
// alone: a connection from outside is what CRIU refuses to save.
func (c *Container) askInit(ctx context.Context, s State) string {
	if guest.Init(c.guestInit()) != guest.Systemd || s.Status != "running" {
		return ""
	}
	if r, err := c.host.store.Read(c.id); err == nil && r.Operation != nil {
		return ""
	}
	config := c.lc.Config()
	uid, gid, err := rootIDs(&config)
	if err != nil {
		return ""
	}
	state, answered := answerWithin(ctx, func() string {
		state, err := guest.Ask(ctx, s.Pid, uint32(uid), uint32(gid))
		switch {
		case errors.Is(err, guest.ErrInitGone):
			return ""
		case err != nil:
			return NoAnswer
		}
		return state
	})
	if !answered {
		return NoAnswer
	}
	return state
}

// answerWithin calls fn, which a guest may hold up for ever, and leaves it behind
// when ctx ends: what it waits for ends with the process.
func answerWithin(ctx context.Context, fn func() string) (string, bool) {
	done := make(chan string, 1)
	go func() { done <- fn() }()
	select {
	case s := <-done:
		return s, true
	case <-ctx.Done():
		return "", false
	}
}

// errorWithin is answerWithin for what only fails: with the context's cause, where
// that ends first.
func errorWithin(ctx context.Context, fn func() error) error {
	failed := make(chan error, 1)
	go func() { failed <- fn() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hostnameOf returns the host name in the UTS namespace of a process.
func hostnameOf(pid int) string {
	ns, err := unix.Open(procPath(pid, "ns/uts"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(ns)
	done := make(chan string, 1)
	go func() {
		// Never unlocked: the thread ends in the guest's namespace.
		runtime.LockOSThread()
		var u unix.Utsname
		if unix.Setns(ns, unix.CLONE_NEWUTS) != nil || unix.Uname(&u) != nil {
			done <- ""
			return
		}
		done <- unix.ByteSliceToString(u.Nodename[:])
	}()
	return harmless(<-done)
}

// harmless makes a name that a guest chose fit for a terminal.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}

func procPath(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func networkNamespaceOf(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat(procPath(pid, "ns/net"), &st) != nil {
		return 0
	}
	return st.Ino
}

// ticksPerSecond is USER_HZ, the unit of times in /proc/PID/stat, which Linux
// has at 100 on all architectures that Go runs on.
const ticksPerSecond = 100

// uptimeOf returns how long ago a process started, 0 where that is not known.
func uptimeOf(pid int) time.Duration {
	ticks, err := startTime(pid)
	var now unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return max(0, time.Duration(now.Nano())-time.Duration(ticks)*time.Second/ticksPerSecond)
}

// load reads the cgroups and, for the limits, the configuration as the last
// update left it.
func (c *Container) load() *Load {
	stats, err := c.lc.Stats()
	if err != nil || stats.CgroupStats == nil {
		return nil
	}
	config := c.lc.Config()
	return loadOf(stats.CgroupStats, config.Cgroups)
}

// loadOf decides.
func loadOf(s *cgroups.Stats, config *cgroups.Cgroup) *Load {
	memory := s.MemoryStats.Usage.Usage
	// Names of cgroup v1, where the container's own is not the whole, and v2.
	idle, v1 := s.MemoryStats.Stats["total_inactive_file"]
	if !v1 {
		idle = s.MemoryStats.Stats["inactive_file"]
	}
	l := &Load{
		Memory: memory - min(idle, memory),
		CPU:    time.Duration(s.CpuStats.CpuUsage.TotalUsage),
		Tasks:  s.PidsStats.Current, TasksLimit: s.PidsStats.Limit,
	}
	// Memory and swap are counted together, as on cgroup v1.
	if both := s.MemoryStats.SwapUsage.Usage; both > memory {
		l.Swap = both - memory
	}
	if l.TasksLimit == math.MaxUint64 {
		l.TasksLimit = 0
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			l.Read += e.Value
		case "write":
			l.Written += e.Value
		}
	}
	if config == nil || config.Resources == nil {
		return l
	}
	r := config.Resources
	if r.Memory > 0 {
		l.MemoryLimit = uint64(r.Memory)
	}
	if r.CpuQuota > 0 {
		period := r.CpuPeriod
		if period == 0 {
			period = 100_000 // the kernel's
		}
		l.CPUs = float64(r.CpuQuota) / float64(period)
	}
	return l
}
