package guest

import "strings"

// maxInittab bounds /etc/inittab; real ones have a few kilobytes.
const maxInittab = 64 << 10

// tabEntry is a line of inittab(5): ID:RUNLEVELS:ACTION:PROCESS. busybox has the
// same fields; its ID is a terminal, and it ignores RUNLEVELS.
type tabEntry struct{ id, levels, action, process string }

func parseInittab(data []byte) []tabEntry {
	var all []tabEntry
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(line, ":", 4)
		if len(f) == 4 {
			all = append(all, tabEntry{f[0], f[1], f[2], strings.TrimSpace(f[3])})
		}
	}
	return all
}
