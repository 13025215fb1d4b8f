package libvz

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// Fields of /proc/PID/stat, counted from 1 (proc_pid_stat(5)).
const (
	statFlags     = 9
	statStartTime = 22
)

// startTime is in clock ticks since boot: with the pid it names a process for
// good.
func startTime(pid int) (uint64, error) { return processStat(pid, statStartTime) }

// exiting tells whether a process is on its way out (PF_EXITING of
// include/linux/sched.h), or there is none any more.
func exiting(pid int) (bool, error) {
	const pfExiting = 0x4
	flags, err := processStat(pid, statFlags)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return flags&pfExiting != 0, err
}

func processStat(pid, field int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(data), field)
}

// parseStat finds a field of a line. The second one is the command in
// parentheses and may itself hold blanks and parentheses, so fields are counted
// from the last ")".
func parseStat(line string, field int) (uint64, error) {
	i := strings.LastIndexByte(line, ')')
	if i < 0 {
		return 0, errors.New("malformed stat line")
	}
	fields := strings.Fields(line[i+1:])
	if len(fields) <= field-3 {
		return 0, errors.New("short stat line")
	}
	return strconv.ParseUint(fields[field-3], 10, 64)
}
