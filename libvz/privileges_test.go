package libvz

import (
	"errors"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestLower(t *testing.T) {
	const unlimited = unix.RLIM_INFINITY
	number := func(n int) *int { return &n }
	sets := func(names ...string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names, Inheritable: names, Ambient: names}
	}
	files := func(hard, soft uint64) []specs.POSIXRlimit {
		return []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 5, Soft: 5}, {Type: "RLIMIT_NOFILE", Hard: hard, Soft: soft}}
	}
	all := hostLimits{caps: ^uint64(0), oom: -1000}
	few := hostLimits{caps: 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN, rlimits: map[string]uint64{"RLIMIT_NOFILE": 4096}, oom: 0}
	for name, c := range map[string]struct {
		asks, gets specs.Process
		limits     hostLimits
		lowered    []string
	}{
		"nothing is asked for": {limits: few},
		"all is granted": {
			asks:   specs.Process{Capabilities: sets("CAP_SYS_ADMIN"), Rlimits: files(unlimited, 7), OOMScoreAdj: number(-1000)},
			gets:   specs.Process{Capabilities: sets("CAP_SYS_ADMIN"), Rlimits: files(unlimited, 7), OOMScoreAdj: number(-1000)},
			limits: all,
		},
		"capabilities are left out of all sets, and named once": {
			asks:    specs.Process{Capabilities: sets("CAP_SYS_RESOURCE", "CAP_KILL", "CAP_BPF")},
			gets:    specs.Process{Capabilities: sets("CAP_KILL")},
			limits:  few,
			lowered: []string{"CAP_BPF", "CAP_SYS_RESOURCE"},
		},
		"one set is enough to be named": {
			asks:    specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Ambient: []string{"CAP_BPF"}}},
			gets:    specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Ambient: []string{}}},
			limits:  few,
			lowered: []string{"CAP_BPF"},
		},
		"unknown capabilities are somebody else's": {
			asks:   specs.Process{Capabilities: sets("CAP_NONSENSE", "kill")},
			gets:   specs.Process{Capabilities: sets("CAP_NONSENSE", "kill")},
			limits: few,
		},
		"a hard limit takes the soft one with it": {
			asks: specs.Process{Rlimits: files(unlimited, 1048576)}, gets: specs.Process{Rlimits: files(4096, 4096)},
			limits: few, lowered: []string{"RLIMIT_NOFILE unlimited to 4096"},
		},
		"a soft limit below stays": {
			asks: specs.Process{Rlimits: files(4097, 10)}, gets: specs.Process{Rlimits: files(4096, 10)},
			limits: few, lowered: []string{"RLIMIT_NOFILE 4097 to 4096"},
		},
		"the bound itself is allowed": {
			asks: specs.Process{Rlimits: files(4096, 4096)}, gets: specs.Process{Rlimits: files(4096, 4096)}, limits: few,
		},
		"a negative score": {
			asks: specs.Process{OOMScoreAdj: number(-998)}, gets: specs.Process{OOMScoreAdj: number(0)},
			limits: few, lowered: []string{"oom_score_adj -998 to 0"},
		},
		"a positive score": {
			asks: specs.Process{OOMScoreAdj: number(500)}, gets: specs.Process{OOMScoreAdj: number(500)}, limits: few,
		},
	} {
		t.Run(name, func(t *testing.T) {
			given := c.asks
			given.Rlimits = slices.Clone(c.asks.Rlimits)
			got, lowered := lower(c.asks, c.limits)
			if !reflect.DeepEqual(got, c.gets) {
				t.Errorf("gets %+v, want %+v", got, c.gets)
			}
			if !slices.Equal(lowered, c.lowered) {
				t.Errorf("lowered %q, want %q", lowered, c.lowered)
			}
			if !reflect.DeepEqual(c.asks, given) {
				t.Error("what was asked for has changed")
			}
		})
	}
}

func TestParseCaps(t *testing.T) {
	const resource = 1 << unix.CAP_SYS_RESOURCE
	status := func(prm, eff, bnd uint64, nnp string) string {
		hex := func(n uint64) string { return strconv.FormatUint(n, 16) }
		return "Name:\tx\nCapInh:\t0\nCapPrm:\t" + hex(prm) + "\nCapEff:\t" + hex(eff) + "\nCapBnd:\t" + hex(bnd) + "\nNoNewPrivs:\t" + nnp + "\n"
	}
	for name, c := range map[string]struct {
		text string
		want ownPrivileges
	}{
		"full":              {status(^uint64(0), ^uint64(0), ^uint64(0), "0"), ownPrivileges{^uint64(0), true}},
		"bounded":           {status(3, 3, 3, "0"), ownPrivileges{3, false}},
		"not effective":     {status(resource, 0, resource, "0"), ownPrivileges{resource, false}},
		"regained by exec":  {status(1, 1, 3, "0"), ownPrivileges{3, false}},
		"no new privileges": {status(1, 1, 3, "1"), ownPrivileges{1, false}},
	} {
		got, err := parseCaps(c.text)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "Name:\tx\n", "CapBnd:\tzz\n"} {
		if _, err := parseCaps(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestWantsStrict(t *testing.T) {
	for value, want := range map[string]bool{"": false, "false": false, "true": true} {
		got, err := wantsStrict(map[string]string{annotationStrict: value})
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", value, got, err)
		}
	}
	if _, err := wantsStrict(map[string]string{annotationStrict: "yes"}); err == nil {
		t.Error("yes was accepted")
	}
}

// What the probes say must be what the kernel says when it is asked for real.
func TestProbes(t *testing.T) {
	read := func() string {
		data, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	before := read()
	for _, wanted := range []int{-1000, -1, 0, 1000} {
		p := &specs.Process{OOMScoreAdj: &wanted, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 40}}}
		limits, err := probeLimits(p, false)
		if err != nil {
			t.Fatal(err)
		}
		fitted, _ := lower(*p, limits)
		if read() != before {
			t.Fatalf("the probe for %d left oom_score_adj %s behind, before %s", wanted, read(), before)
		}
		// Only a child may keep it.
		cmd := []string{"/bin/sh", "-c", `ulimit -Hn "$2" && echo "$1" >/proc/$$/oom_score_adj`, "sh", strconv.Itoa(*fitted.OOMScoreAdj), strconv.FormatUint(fitted.Rlimits[0].Hard, 10)}
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Errorf("asked for %d, told %d and %d: %v: %s", wanted, *fitted.OOMScoreAdj, fitted.Rlimits[0].Hard, err, out)
		}
	}
}

func TestFitProcessStrict(t *testing.T) {
	hard := uint64(1 << 62) // more than any nr_open
	p := &specs.Process{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: hard, Soft: 10}}}
	_, err := fitProcess(p, false, true)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
		t.Errorf("strict: %v", err)
	}
	if p.Rlimits[0].Hard != hard {
		t.Error("the refused process was changed")
	}
	lowered, err := fitProcess(p, false, false)
	if err != nil || len(lowered) != 1 || p.Rlimits[0].Hard >= hard || p.Rlimits[0].Soft != 10 {
		t.Errorf("not strict: %q, %v, %+v", lowered, err, p.Rlimits)
	}
	lowered, err = fitProcess(p, false, true)
	if err != nil || len(lowered) != 0 {
		t.Errorf("once lowered: %q, %v", lowered, err)
	}
}
