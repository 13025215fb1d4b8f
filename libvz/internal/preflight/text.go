package preflight

import (
	"path"
	"strings"
)

const (
	// textLimit is how much is shown of a path that a guest chose.
	textLimit = 80
	// unitLimit is what systemd allows, UNIT_NAME_MAX.
	unitLimit = 255
)

// clean makes text that a guest chose fit for a terminal, a log and a line.
func clean(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= limit {
			b.WriteString("...")
			break
		}
		if r < ' ' || r >= 0x7f {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// cleanUnit leaves what a unit's name may consist of, systemd.unit(5): it may be
// typed in by who reads it.
func cleanUnit(s string) string {
	return clean(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(`:-_.\@`, r) {
			return r
		}
		return '?'
	}, s), unitLimit)
}

// UnitOf finds the systemd unit in a cgroup path: the last element that is
// named like one that holds processes.
func UnitOf(cgroupPath string) string {
	for p := cgroupPath; p != "/" && p != "." && p != ""; p = path.Dir(p) {
		name := path.Base(p)
		if name == "init.scope" {
			return ""
		}
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return cleanUnit(name)
		}
	}
	return ""
}
