package libvz

import (
	"errors"
	"strconv"
	"strings"
)

// parseStartTime finds field 22 of a /proc/PID/stat line. The second field is
// the command in parentheses and may itself hold blanks and parentheses, so
// fields are counted from the last ")".
func parseStartTime(stat string) (uint64, error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("malformed stat line")
	}
	fields := strings.Fields(stat[i+1:])
	const startTimeField = 22 - 3
	if len(fields) <= startTimeField {
		return 0, errors.New("short stat line")
	}
	return strconv.ParseUint(fields[startTimeField], 10, 64)
}
