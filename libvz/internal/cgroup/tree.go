package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Tree is a guest's cgroup2 subtree as Save records it: one cgroup and those
// below it. It can be kept as JSON; ids in it are the guest's, so that a clone
// may have another range on the host.
//
// Not in it: the root's limits, which are the host's business; limits that
// name block devices (io.max, io.latency) or that take a privilege
// (cpuset.cpus.partition, cpuset.cpus.exclusive), since neither means the same
// elsewhere; counters.
type Tree struct {
	// Name is empty for the root.
	Name Name `json:"name,omitempty"`
	// Dir is the directory's owner.
	Dir Owner `json:"dir"`
	// Files is the owner of the control files. For the root, only what is in
	// Differ and delegated counts.
	Files Owner `json:"files"`
	// Differ has the control files whose owner or mode is another.
	Differ map[string]Owner `json:"differ,omitempty"`
	// Xattrs has the extended attributes "user.*" and "trusted.*", except for
	// the root. systemd keeps there what it delegated and the invocation's id.
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	// Control has the controllers of cgroup.subtree_control.
	Control []string `json:"control,omitempty"`
	// Threaded says that cgroup.type is "threaded".
	Threaded bool `json:"threaded,omitempty"`
	// Frozen says that cgroup.freeze is 1. Refreeze brings it back.
	Frozen bool `json:"frozen,omitempty"`
	// Limits has what differs from the default, by file name.
	Limits map[string]string `json:"limits,omitempty"`
	// Children has the cgroups below, at most MaxDirs in all.
	Children []Tree `json:"children,omitempty"`
}

// Owner is to whom a file or directory belongs: ids of the guest, or -1 for
// what is not one of the guest's users. A Mode of 0 is the kernel's default.
type Owner struct {
	UID  int64  `json:"uid"`
	GID  int64  `json:"gid"`
	Mode uint32 `json:"mode,omitempty"`
}

// Name is the name of a cgroup. It can hold any byte but '/', NUL and line
// feed, and JSON only Unicode, so what is no printable character, and '%', is
// written there as %XX.
type Name string

// MarshalText implements encoding.TextMarshaler.
func (n Name) MarshalText() ([]byte, error) {
	var out []byte
	for rest := string(n); rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		bad := r == utf8.RuneError && size == 1
		if bad || r < ' ' || r == '%' || r == 0x7f {
			out = fmt.Appendf(out, "%%%02X", rest[0])
		} else {
			out = append(out, rest[:size]...)
		}
		rest = rest[size:]
	}
	return out, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Name) UnmarshalText(text []byte) error {
	var out []byte
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			out = append(out, text[i])
			continue
		}
		if i+3 > len(text) {
			return fmt.Errorf("%w: name %q", ErrInvalid, text)
		}
		b, err := strconv.ParseUint(string(text[i+1:i+3]), 16, 8)
		if err != nil {
			return fmt.Errorf("%w: name %q", ErrInvalid, text)
		}
		out = append(out, byte(b))
		i += 2
	}
	*n = Name(out)
	return nil
}

// check refuses what Save cannot have made. A record comes back from an image
// directory, perhaps of another host, and Create runs as root.
func (t *Tree) check() error {
	if t.Name != "" {
		return fmt.Errorf("%w: the root has the name %q", ErrInvalid, t.Name)
	}
	left := MaxDirs + 1
	return t.checkBelow(0, &left)
}

func (t *Tree) checkBelow(depth int, left *int) error {
	if *left--; *left < 0 || depth > MaxDepth {
		return tooBig(string(t.Name))
	}
	for _, controller := range t.Control {
		if !isWord(controller) {
			return fmt.Errorf("%w: controller %q", ErrInvalid, controller)
		}
	}
	for file, value := range t.Limits {
		if _, ok := limitDefault(file); !ok || strings.ContainsAny(value, "\n\x00") {
			return fmt.Errorf("%w: limit %q = %q", ErrInvalid, file, value)
		}
	}
	for file := range t.Differ {
		if !isName(file) {
			return fmt.Errorf("%w: file %q", ErrInvalid, file)
		}
	}
	for name := range t.Xattrs {
		if !isXattr(name) {
			return fmt.Errorf("%w: extended attribute %q", ErrInvalid, name)
		}
	}
	for i := range t.Children {
		if c := &t.Children[i]; !isName(string(c.Name)) {
			return fmt.Errorf("%w: name %q", ErrInvalid, c.Name)
		}
		if err := t.Children[i].checkBelow(depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

func isName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\n\x00")
}

func isWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

func isXattr(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

// limitDefault returns the value that a limit has in a new cgroup, and whether
// it is one that is recorded. From cgroup-v2.rst, "Controllers" and "Core
// Interface Files".
func limitDefault(file string) (string, bool) {
	switch file {
	case "memory.min", "memory.low", "memory.oom.group", "cpu.max.burst", "cpu.idle":
		return "0", true
	case "memory.high", "memory.max", "memory.swap.high", "memory.swap.max", "memory.zswap.max",
		"pids.max", "cpu.uclamp.max", "cgroup.max.depth", "cgroup.max.descendants":
		return "max", true
	case "memory.zswap.writeback", "cgroup.pressure":
		return "1", true
	case "cpu.weight":
		return "100", true
	case "cpu.max":
		return "max 100000", true
	case "cpu.uclamp.min":
		return "0.00", true
	case "io.weight":
		return "default 100", true
	case "cpuset.cpus", "cpuset.mems":
		return "", true
	}
	// hugetlb.<size>.max and hugetlb.<size>.rsvd.max
	part := strings.Split(strings.Replace(file, ".rsvd.max", ".max", 1), ".")
	if len(part) == 3 && part[0] == "hugetlb" && part[1] != "" && part[2] == "max" {
		return "max", true
	}
	return "", false
}

// sortedKeys makes what we do to a cgroup the same each time; and some limits
// want it: cpu.max before cpu.max.burst, which may not exceed it.
func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
