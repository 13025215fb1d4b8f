package libvz

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Engines ask by default for more than some hosts have: 40 capabilities, a
// million open files, a negative oom_score_adj. Nothing in config.json tells
// these wishes from an operator's, so all of them are lowered to what the host
// can grant, with a warning, unless annotationStrict makes them binding. What
// is named on a command line (ExecOptions.Insist) is an operator's.

// annotationStrict = "true" makes it an error to ask for privileges that the
// host cannot grant.
const annotationStrict = "org.vzrun.strict"

// hostLimits is what the host can grant to a process, as far as it asks for it.
type hostLimits struct {
	caps    uint64            // by number
	rlimits map[string]uint64 // the highest hard limit; one that is missing has no bound
	oom     int               // the lowest oom_score_adj
}

// wantsStrict reads annotationStrict.
func wantsStrict(annotations map[string]string) (bool, error) {
	switch v := annotations[annotationStrict]; v {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fmt.Errorf("annotation %s: unknown value %q, true and false are known", annotationStrict, v)
	}
}

// fitInit lowers what the first process of a container asks for, and warns.
func (h *Host) fitInit(id string, spec *specs.Spec) error {
	strict, err := wantsStrict(spec.Annotations)
	if err != nil {
		return err
	}
	lowered, err := fitProcess(spec.Process, hasUserns(spec), strict)
	if err != nil {
		return err
	}
	h.warnLowered(id, lowered)
	return nil
}

// fitExec does so for another process. Its wishes are mostly the first one's
// again, and about those there was a warning.
func (c *Container) fitExec(p *specs.Process, insist []string) error {
	config := c.lc.Config()
	_, annotations := utils.Annotations(config.Labels)
	strict, err := wantsStrict(annotations)
	if err != nil {
		return err
	}
	// As another process keeps the container's, whatever it asks for.
	p.OOMScoreAdj = nil
	userns := config.Namespaces.Contains(configs.NEWUSER)
	lowered, err := fitProcess(p, userns, strict)
	if err != nil || len(lowered) == 0 {
		return err
	}
	for _, name := range insist {
		if slices.Contains(lowered, name) {
			return withHint("the engine or service manager that calls vzrun must have it itself",
				"%w: this host cannot grant %s", ErrUnsupported, name)
		}
	}
	if spec, _, err := loadSpec(c.bundle()); err == nil {
		if known, err := fitProcess(spec.Process, userns, false); err == nil {
			lowered = slices.DeleteFunc(lowered, func(s string) bool { return slices.Contains(known, s) })
		}
	}
	c.host.warnLowered(c.id, lowered)
	return nil
}

func (h *Host) warnLowered(id string, lowered []string) {
	if len(lowered) > 0 {
		h.warn(id, "this host cannot grant all that config.json asks for; lowered or left out: %s", strings.Join(lowered, ", "))
	}
}

// fitProcess changes p to what this host can grant and names the changes, or
// changes nothing and fails where strict.
func fitProcess(p *specs.Process, userns, strict bool) ([]string, error) {
	limits, err := probeLimits(p, userns)
	if err != nil {
		return nil, fmt.Errorf("look at our own privileges: %w", err)
	}
	fitted, lowered := lower(*p, limits)
	if len(lowered) > 0 && strict {
		return nil, withHint("ask for less, or take the annotation "+annotationStrict+" away to have it lowered",
			"%w: this host cannot grant %s", ErrUnsupported, strings.Join(lowered, ", "))
	}
	*p = fitted
	return lowered, nil
}

// lower decides. It leaves what p points to as it is.
func lower(p specs.Process, limits hostLimits) (specs.Process, []string) {
	var lowered []string
	if p.Capabilities != nil {
		var missing []string
		p.Capabilities, missing = lowerCaps(*p.Capabilities, limits.caps)
		lowered = append(lowered, missing...)
	}
	rlimits := slices.Clone(p.Rlimits)
	for i, r := range rlimits {
		bound, ok := limits.rlimits[r.Type]
		if !ok || r.Hard <= bound {
			continue
		}
		lowered = append(lowered, fmt.Sprintf("%s %s to %d", r.Type, limitText(r.Hard), bound))
		rlimits[i].Hard, rlimits[i].Soft = bound, min(r.Soft, bound)
	}
	p.Rlimits = rlimits
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < limits.oom {
		lowered = append(lowered, fmt.Sprintf("oom_score_adj %d to %d", *p.OOMScoreAdj, limits.oom))
		p.OOMScoreAdj = &limits.oom
	}
	return p, lowered
}

func limitText(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

// lowerCaps takes from all sets what is not granted. Names that are not known
// stay: libcontainer has its own word on them.
func lowerCaps(sets specs.LinuxCapabilities, granted uint64) (*specs.LinuxCapabilities, []string) {
	numbers := map[string]int{}
	for number, name := range capabilities.KnownCapabilities() {
		numbers[name] = number
	}
	missing := map[string]bool{}
	take := func(names []string) []string {
		if names == nil {
			return nil
		}
		kept := make([]string, 0, len(names))
		for _, name := range names {
			if number, known := numbers[name]; known && granted>>number&1 == 0 {
				missing[name] = true
			} else {
				kept = append(kept, name)
			}
		}
		return kept
	}
	sets.Bounding, sets.Effective, sets.Permitted = take(sets.Bounding), take(sets.Effective), take(sets.Permitted)
	sets.Inheritable, sets.Ambient = take(sets.Inheritable), take(sets.Ambient)
	return &sets, slices.Sorted(maps.Keys(missing))
}

// probeLimits looks at what the calling process may grant, no further than p
// makes it necessary: on most hosts nothing has to be asked.
func probeLimits(p *specs.Process, userns bool) (hostLimits, error) {
	limits := hostLimits{caps: ^uint64(0), rlimits: map[string]uint64{}, oom: -1000}
	own, err := ownCaps()
	if err != nil {
		return limits, err
	}
	// The first process of a user namespace has all capabilities there
	// (user_namespaces(7)), and so has one that joins it from its parent.
	if !userns {
		limits.caps = own.grantable
	}
	for _, r := range p.Rlimits {
		bound, ok, err := probeRlimit(r, own.resource)
		if err != nil {
			return limits, err
		}
		if ok {
			limits.rlimits[r.Type] = bound
		}
	}
	if p.OOMScoreAdj != nil && !own.resource {
		limits.oom, err = probeOOM(*p.OOMScoreAdj)
	}
	return limits, err
}

// probeRlimit returns the bound of a hard limit, if there is one that matters.
func probeRlimit(r specs.POSIXRlimit, resource bool) (bound uint64, ok bool, err error) {
	number, known := rlimitNumber(r.Type)
	if !known {
		return 0, false, nil // newProcess has the error
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(number, &own); err != nil {
		return 0, false, os.NewSyscallError("getrlimit", err)
	}
	switch {
	case r.Hard <= own.Max:
		return 0, false, nil
	case !resource:
		return own.Max, true, nil
	case number != unix.RLIMIT_NOFILE:
		return 0, false, nil
	}
	// Nobody may have more than this, see getrlimit(2).
	data, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0, false, err
	}
	bound, err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return bound, err == nil, err
}

// probeOOM returns the lowest oom_score_adj not below wanted that this process
// may give itself without CAP_SYS_RESOURCE. The kernel shows the bound nowhere
// (proc_pid_oom_score_adj(5)), so it is tried, and the old value put back.
func probeOOM(wanted int) (int, error) {
	const path = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, err
	}
	if wanted >= now || wanted < -1000 {
		return -1000, nil // allowed always, or never
	}
	err = os.WriteFile(path, []byte(strconv.Itoa(wanted)), 0)
	if errors.Is(err, os.ErrPermission) {
		return now, nil
	}
	if err != nil {
		return 0, err
	}
	return wanted, os.WriteFile(path, data, 0)
}

// ownPrivileges are those of the calling process.
type ownPrivileges struct {
	grantable uint64 // capabilities that a program it executes as root has
	resource  bool   // CAP_SYS_RESOURCE over the whole host
}

func ownCaps() (ownPrivileges, error) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return ownPrivileges{}, err
	}
	own, err := parseCaps(string(status))
	// In a user namespace it does not count for limits.
	own.resource = own.resource && !InUserNamespace()
	return own, err
}

// parseCaps reads /proc/PID/status. Root gets its bounding set at an exec, with
// no_new_privs no more than it had (capabilities(7)).
func parseCaps(status string) (ownPrivileges, error) {
	fields := map[string]uint64{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "CapPrm", "CapEff", "CapBnd", "NoNewPrivs":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return ownPrivileges{}, fmt.Errorf("%s: %w", name, err)
			}
			fields[name] = n
		}
	}
	if _, ok := fields["CapBnd"]; !ok {
		return ownPrivileges{}, errors.New("no CapBnd in /proc/thread-self/status")
	}
	own := ownPrivileges{
		grantable: fields["CapBnd"],
		resource:  fields["CapEff"]>>unix.CAP_SYS_RESOURCE&1 == 1,
	}
	if fields["NoNewPrivs"] != 0 {
		own.grantable &= fields["CapPrm"]
	}
	return own, nil
}

// hasUserns tells whether the container has or joins a user namespace.
func hasUserns(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.UserNamespace
	})
}
