package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// DropDefaults removes, from a directory of images, those of network namespaces
// that say what each new one has anyway: no routes, the kernel's three rules, no
// old packet filters. CRIU takes one that is missing for an empty one, and starts a
// program of the host for each that is there: a third of a small guest's restore.
func DropDefaults(dir string) error {
	for pattern, isDefault := range map[string]func([]byte) bool{
		"iptables-*.img":  isEmpty,
		"ip6tables-*.img": isEmpty,
		"route-*.img":     noRoutes,
		"route6-*.img":    noRoutes,
		"rule-*.img":      defaultRules,
	} {
		images, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, image := range images {
			if err := dropDefault(image, isDefault); err != nil {
				return fmt.Errorf("image %s: %w", filepath.Base(image), err)
			}
		}
	}
	return nil
}

func dropDefault(image string, isDefault func([]byte) bool) error {
	st, err := os.Lstat(image)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxDefault {
		return err
	}
	data, err := os.ReadFile(image)
	if err != nil || !isDefault(data) {
		return err
	}
	if err := os.Remove(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxDefault is more than the largest of them has.
const maxDefault = 4096

func isEmpty(data []byte) bool { return len(data) == 0 }

func noRoutes(data []byte) bool {
	return len(data) == 4 && binary.NativeEndian.Uint32(data) == routesMagic
}

// rulesMagic begins what `ip rule save` writes (ip/iprule.c).
const rulesMagic = 0x71706986

// Attributes of a rule, and who made it (linux/fib_rules.h, rtnetlink.h).
const (
	fraPriority          = 6
	fraSuppressPrefixLen = 14
	fraTable             = 15
	fraProtocol          = 21
	fibRuleHeader        = 12
	toTable              = 1
)

type rule struct{ priority, table uint32 }

// defaultRules tells whether there are the three rules of a new network namespace
// (ip-rule(8)) and nothing else.
func defaultRules(data []byte) bool {
	if len(data) < 4 || binary.NativeEndian.Uint32(data) != rulesMagic {
		return false
	}
	var rules []rule
	for rest := data[4:]; len(rest) > 0; {
		if len(rest) < unix.SizeofNlMsghdr+fibRuleHeader {
			return false
		}
		size := int(binary.NativeEndian.Uint32(rest))
		if size < unix.SizeofNlMsghdr+fibRuleHeader || size > len(rest) || binary.NativeEndian.Uint16(rest[4:]) != unix.RTM_NEWRULE {
			return false
		}
		r, ok := plainRule(rest[unix.SizeofNlMsghdr:size])
		if !ok {
			return false
		}
		rules = append(rules, r)
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	return slices.Equal(rules, []rule{{0, unix.RT_TABLE_LOCAL}, {32766, unix.RT_TABLE_MAIN}, {32767, unix.RT_TABLE_DEFAULT}})
}

// plainRule reads a rule that does no more than to name a table.
func plainRule(msg []byte) (r rule, ok bool) {
	// struct fib_rule_hdr: family, lengths of destination and source, type of
	// service, table, two reserved, action, flags.
	h := msg[:fibRuleHeader]
	if h[0] != unix.AF_INET || h[1] != 0 || h[2] != 0 || h[3] != 0 || h[7] != toTable || binary.NativeEndian.Uint32(h[8:]) != 0 {
		return r, false
	}
	for attrs := msg[fibRuleHeader:]; len(attrs) >= unix.SizeofRtAttr; {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return r, false
		}
		switch value := attrs[unix.SizeofRtAttr:size]; {
		case kind == fraTable && len(value) == 4:
			r.table = binary.NativeEndian.Uint32(value)
		case kind == fraPriority && len(value) == 4:
			r.priority = binary.NativeEndian.Uint32(value)
		case kind == fraSuppressPrefixLen && len(value) == 4 && binary.NativeEndian.Uint32(value) == ^uint32(0):
		case kind == fraProtocol && len(value) == 1 && value[0] == unix.RTPROT_KERNEL:
		default:
			return r, false
		}
		attrs = attrs[min(len(attrs), (size+3)&^3):]
	}
	return r, true
}
