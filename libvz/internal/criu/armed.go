package criu

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Armed are descriptors of tasks that are set to wake them, and that CRIU does not
// restore as they were:
//
//   - A timer (timerfd_create(2)) that was set to a point of time comes back with
//     the time that was left at the checkpoint, without the nanoseconds of the
//     clock: too late on the wall clock by as long as the guest was away, and up to
//     a second too early on the others. One that has expired expires once more.
//   - A file of pressure stall information comes back without its trigger, and then
//     always has an event: who waits for it spins.
//
// Tasks are named by their pids in the guest.
type Armed struct {
	Timers   []Timer   `json:"timers,omitempty"`
	Triggers []Trigger `json:"triggers,omitempty"`
}

// Timer is set to At, on a clock as the guest sees it.
type Timer struct {
	Pid   int           `json:"pid"`
	FD    int           `json:"fd"`
	Clock int           `json:"clock"` // of clock_gettime(2)
	Flags int           `json:"flags"` // of timerfd_settime(2)
	At    time.Duration `json:"at"`    // ns; 0 = it has expired, and does not again
	Every time.Duration `json:"every,omitempty"`
	Ticks uint64        `json:"ticks,omitempty"` // expirations that nobody has read yet
}

// Trigger is a file of pressure stall information that is open for writing.
type Trigger struct {
	Pid  int    `json:"pid"`
	FD   int    `json:"fd"`
	Text string `json:"text"`
}

// Task is a process by its pids, here and in the guest.
type Task struct{ Pid, Guest int }

// FindArmed looks through the descriptors of tasks, which must be stopped; those
// that are gone have none. init is the pid of the guest's init.
func FindArmed(init int, tasks []Task) (Armed, error) {
	var found Armed
	ahead, err := clocksAhead(init)
	if err != nil {
		return found, err
	}
	for _, t := range tasks {
		dir := filepath.Join("/proc", strconv.Itoa(t.Pid))
		fds, err := names(filepath.Join(dir, "fd"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("descriptors of process %d: %w", t.Guest, err)
		}
		for _, name := range fds {
			found.look(t, dir, name, ahead)
		}
	}
	return found, nil
}

// maxArmed bounds what a guest can have us remember: hundreds are many.
const maxArmed = 1 << 16

// look adds a descriptor of a task if it is armed.
func (a *Armed) look(t Task, dir, name string, ahead map[int]time.Duration) {
	if len(a.Timers)+len(a.Triggers) >= maxArmed {
		return
	}
	target, err := os.Readlink(filepath.Join(dir, "fd", name))
	if err != nil || target != "anon_inode:[timerfd]" && !isPressure(target) {
		return
	}
	fd, err := strconv.Atoi(name)
	if err != nil {
		return
	}
	info, err := os.ReadFile(filepath.Join(dir, "fdinfo", name))
	if err != nil {
		return
	}
	if isPressure(target) {
		if writable(string(info)) {
			a.Triggers = append(a.Triggers, Trigger{t.Guest, fd, triggerText(dir, target)})
		}
		return
	}
	if timer, ok := parseTimer(string(info)); ok {
		timer.Pid, timer.FD = t.Guest, fd
		if timer.At > 0 || timer.Every > 0 {
			timer.At += clockNow(timer.Clock) + ahead[timer.Clock]
		}
		a.Timers = append(a.Timers, timer)
	}
}

// names lists a directory: what os.ReadDir asks of each entry costs as much as the
// target of a link.
func names(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// Rearm sets everything again in tasks that were restored and do not run yet. It
// goes on after an error: what is missing then is a timer, or a process that
// spins.
func (a Armed) Rearm(init int, tasks []Task) error {
	if len(a.Timers)+len(a.Triggers) == 0 {
		return nil
	}
	ahead, err := clocksAhead(init)
	if err != nil {
		return err
	}
	pids := make(map[int]int, len(tasks))
	for _, t := range tasks {
		pids[t.Guest] = t.Pid
	}
	var failed error
	for _, t := range a.Timers {
		err := withDescriptor(pids[t.Pid], t.FD, func(fd int) error { return t.set(fd, ahead[t.Clock]) })
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("timer %d of process %d: %w", t.FD, t.Pid, err))
		}
	}
	for _, t := range a.Triggers {
		if err := withDescriptor(pids[t.Pid], t.FD, t.set); err != nil {
			failed = errors.Join(failed, fmt.Errorf("pressure trigger %d of process %d: %w", t.FD, t.Pid, err))
		}
	}
	return failed
}

// withDescriptor calls fn with a descriptor that a task has.
func withDescriptor(pid, fd int, fn func(fd int) error) error {
	if pid == 0 {
		return errors.New("no such process")
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	own, err := unix.PidfdGetfd(handle, fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	return fn(own)
}

// set takes with the time what CRIU has counted of expirations. The kernel begins a
// timer with an interval anew when somebody reads it, so one that has expired has to
// do so here.
func (t Timer) set(fd int, ahead time.Duration) error {
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(int64(t.Every))}
	if t.At != 0 {
		spec.Value = unix.NsecToTimespec(int64(t.At - ahead))
	}
	if err := unix.TimerfdSettime(fd, t.Flags, &spec, nil); err != nil || t.Ticks == 0 {
		return err
	}
	if t.Every > 0 {
		if err := awaitExpiry(fd); err != nil {
			return err
		}
	}
	const setTicks = 0x40085400 // TFD_IOC_SET_TICKS
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), setTicks, uintptr(unsafe.Pointer(&t.Ticks)))
	if errno != 0 {
		return fmt.Errorf("count of expirations: %w", errno)
	}
	return nil
}

// awaitExpiry returns when a timer whose time has passed is known to have expired,
// or, where its next time is to come, after a moment.
func awaitExpiry(fd int) error {
	const moment = 20 // ms
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, moment)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for its expiry: %w", err)
	}
	return nil
}

// set writes only where a guest's own process could: what the descriptor is, is
// for the kernel to say and not for the images.
func (t Trigger) set(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	if !isPressure(target) || fs.Type != unix.CGROUP2_SUPER_MAGIC && !isProcPressure(fd, target) || !isTrigger(t.Text) {
		return fmt.Errorf("%q is no pressure file", target)
	}
	_, err = unix.Write(fd, append([]byte(t.Text), 0))
	if errors.Is(err, unix.EBUSY) { // it has one
		return nil
	}
	return err
}

// isProcPressure: in all instances of procfs the file has the same number.
func isProcPressure(fd int, target string) bool {
	var own, theirs unix.Stat_t
	return unix.Fstat(fd, &theirs) == nil && unix.Stat("/proc/pressure/"+filepath.Base(target), &own) == nil && own.Ino == theirs.Ino
}

// isPressure goes by the name: in a cgroup memory.pressure, and cpu and io; of the
// whole system /proc/pressure/memory, and so on.
func isPressure(target string) bool {
	name := filepath.Base(target)
	switch name {
	case "memory.pressure", "cpu.pressure", "io.pressure":
		return true
	case "memory", "cpu", "io":
		return filepath.Base(filepath.Dir(target)) == "pressure"
	}
	return false
}

// defaultTrigger is systemd's (sd_event_add_memory_pressure(3)), and one that
// needs no privilege.
const defaultTrigger = "some 200000 2000000"

// triggerText returns what a task wrote to a pressure file. The kernel does not
// tell. systemd's protocol (https://systemd.io/PRESSURE) has it in the
// environment; where it is not there, it is the default.
func triggerText(dir, target string) string {
	kind, _, _ := strings.Cut(filepath.Base(target), ".")
	f, err := os.Open(filepath.Join(dir, "environ"))
	if err != nil {
		return defaultTrigger
	}
	defer f.Close()
	const enough = 256 << 10 // the guest says how much there is
	environ, _ := io.ReadAll(io.LimitReader(f, enough))
	for entry := range strings.SplitSeq(string(environ), "\x00") {
		value, ok := strings.CutPrefix(entry, strings.ToUpper(kind)+"_PRESSURE_WRITE=")
		if !ok {
			continue
		}
		text, err := base64.StdEncoding.DecodeString(value)
		if s := strings.TrimRight(string(text), "\x00\n"); err == nil && isTrigger(s) {
			return s
		}
	}
	return defaultTrigger
}

func isTrigger(text string) bool {
	return regexp.MustCompile(`^(some|full) \d{1,12} \d{1,12}$`).MatchString(text)
}

func writable(fdinfo string) bool {
	flags, err := strconv.ParseUint(field(fdinfo, "flags:"), 8, 64)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}

func field(fdinfo, key string) string {
	for line := range strings.SplitSeq(fdinfo, "\n") {
		if value, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// parseTimer reads /proc/PID/fdinfo/FD of a timer that is or was set to a point of
// time; At is the time until then.
func parseTimer(fdinfo string) (Timer, bool) {
	var t Timer
	flags, err := strconv.ParseUint(field(fdinfo, "settime flags:"), 8, 32)
	if err != nil || flags&unix.TFD_TIMER_ABSTIME == 0 {
		return t, false
	}
	t.Flags = int(flags)
	if t.Clock, err = strconv.Atoi(field(fdinfo, "clockid:")); err != nil {
		return t, false
	}
	if t.Ticks, err = strconv.ParseUint(field(fdinfo, "ticks:"), 10, 64); err != nil {
		return t, false
	}
	left, ok := parsePair(field(fdinfo, "it_value:"))
	every, ok2 := parsePair(field(fdinfo, "it_interval:"))
	t.At, t.Every = left, every
	return t, ok && ok2
}

func parsePair(text string) (time.Duration, bool) {
	var seconds, nanoseconds int64
	if _, err := fmt.Sscanf(text, "(%d, %d)", &seconds, &nanoseconds); err != nil {
		return 0, false
	}
	// Seconds, 136 years: what is further away stands for never, and has no room in
	// nanoseconds since 1970.
	const most = int64(1) << 32
	if seconds < 0 || seconds > most || nanoseconds < 0 || nanoseconds >= int64(time.Second) {
		return 0, false
	}
	return time.Duration(seconds)*time.Second + time.Duration(nanoseconds), true
}

func clockNow(clock int) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(clock), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// clocksAhead returns how far the clocks of the time namespace of init, by their
// numbers, are ahead of ours.
func clocksAhead(init int) (map[int]time.Duration, error) {
	ahead := map[int]time.Duration{}
	for _, of := range []struct {
		pid  string
		sign time.Duration
	}{{strconv.Itoa(init), 1}, {"self", -1}} {
		text, err := os.ReadFile(filepath.Join("/proc", of.pid, "timens_offsets"))
		if errors.Is(err, os.ErrNotExist) { // before Linux 5.5
			continue
		}
		if err != nil {
			return nil, err
		}
		monotonic, boottime := parseOffsets(string(text))
		ahead[unix.CLOCK_MONOTONIC] += of.sign * monotonic
		for _, clock := range []int{unix.CLOCK_BOOTTIME, unix.CLOCK_BOOTTIME_ALARM} {
			ahead[clock] += of.sign * boottime
		}
	}
	return ahead, nil
}

// parseOffsets reads /proc/PID/timens_offsets (time_namespaces(7)).
func parseOffsets(text string) (monotonic, boottime time.Duration) {
	for line := range strings.SplitSeq(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		seconds, err := strconv.ParseInt(fields[1], 10, 64)
		nanoseconds, err2 := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || err2 != nil {
			continue
		}
		offset := time.Duration(seconds)*time.Second + time.Duration(nanoseconds)
		switch fields[0] {
		case "monotonic":
			monotonic = offset
		case "boottime":
			boottime = offset
		}
	}
	return monotonic, boottime
}
