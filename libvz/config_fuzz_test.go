package libvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// minimal is the smallest configuration that is accepted.
const minimal = `{"ociVersion":"1.0.2","root":{"path":"/"},"process":{"args":["sh"],"cwd":"/"},
	"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}`

// seedSpecs are configurations of both kinds, and what has been wrong before.
func seedSpecs(f *testing.F) [][]byte {
	f.Helper()
	system, err := guest.Spec(guest.SpecOptions{
		Rootfs: "rootfs", Hostname: "web", Init: guest.Systemd, InitPath: "/sbin/init",
		RAM: 1 << 30, Swap: 1 << 20, CPUs: 1.5, IDBase: 1 << 20, UUID: strings.Repeat("ab", 16),
	})
	if err != nil {
		f.Fatal(err)
	}
	whole, err := json.Marshal(system)
	if err != nil {
		f.Fatal(err)
	}
	seeds := [][]byte{whole, []byte(minimal)}
	for _, part := range []string{
		`"mounts":[{"destination":"/x","type":"bind","source":"/","options":["rbind","ro","idmap","size=1"],"uidMappings":[{}]}]`,
		`"hooks":{"prestart":[{"path":""}],"createContainer":[{"path":"/x","timeout":0}],"poststop":null}`,
		`"annotations":{"org.vzrun.rootfs":"idmap","org.vzrun.guest":"systemd","org.vzrun.strict":"true"}`,
		`"hostname":"\u0000","domainname":"x"`,
		`"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NOTIFY","architectures":["x"],"syscalls":[{"names":[],"action":"SCMP_ACT_ERRNO","args":[{"index":9}]}]}}`,
		`"linux":{"devices":[{"path":"/dev/x","type":"q","major":-1}],"sysctl":{"net/..":"x"},"rootfsPropagation":"x"}`,
		`"linux":{"resources":{"memory":{"limit":-9},"cpu":{"quota":0},"devices":[{"type":"z","access":"q"}],"hugepageLimits":[{"pageSize":"0B"}]}}`,
		`"linux":{"uidMappings":[{"size":4294967295}],"gidMappings":null,"timeOffsets":{"x":{}},"personality":{"domain":"x"},"intelRdt":{"closID":".."}}`,
		`"process":{"args":[""],"cwd":"/","rlimits":[{"type":"RLIMIT_CPU"}],"scheduler":{"policy":"x"},"ioPriority":{"class":"x"},"execCPUAffinity":{"initial":"0-"}}`,
	} {
		seeds = append(seeds, []byte(minimal[:len(minimal)-1]+","+part+"}"))
	}
	return seeds
}

// FuzzConfig reads any config.json as Create does, up to the point where
// libcontainer would begin to change the host.
func FuzzConfig(f *testing.F) {
	for _, seed := range seedSpecs(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, second := readAny(data), readAny(data)
		// What libcontainer says comes from maps, in any order; whether it
		// says something does not.
		if (first == nil) != (second == nil) {
			t.Fatalf("once %v, once %v", first, second)
		}
	})
}

func readAny(data []byte) error {
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return err
	}
	if err := checkSpec(spec); err != nil {
		return err
	}
	if _, err := wantsIDMap(spec); err != nil {
		return err
	}
	if _, err := wantsStrict(spec.Annotations); err != nil {
		return err
	}
	hasUserns(spec)
	if _, err := newProcess(spec.Process, Stdio{}); err != nil {
		return err
	}
	if len(spec.Linux.Devices) > 0 || len(spec.Mounts) > 0 {
		// The paths are the input's: only /proc is known to be harmless to
		// look at.
		for i := range spec.Mounts {
			spec.Mounts[i].Source = "/proc"
		}
	}
	spec.Root.Path = "/"
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: "fuzz", Spec: spec})
	if err != nil {
		return err
	}
	for i := range config.Namespaces {
		config.Namespaces[i].Path = ""
	}
	return validate.Validate(config)
}

// FuzzProcess reads any process.json, for exec.
func FuzzProcess(f *testing.F) {
	f.Add([]byte(`{"args":["sh"],"cwd":"/","terminal":true,"consoleSize":{"height":1,"width":1}}`))
	f.Add([]byte(`{"args":["sh"],"cwd":"/","user":{"uid":4294967295,"additionalGids":[1]},"capabilities":{"bounding":["CAP_SYS_ADMIN","x"]}}`))
	f.Add([]byte(`{"args":["sh"],"cwd":"/","rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615}],"oomScoreAdj":-1001}`))
	f.Add([]byte(`{"args":["sh"],"cwd":"/","execCPUAffinity":{"initial":"0-3,7","final":"9999999999"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &specs.Process{}
		if json.Unmarshal(data, p) != nil || checkProcess(p) != nil {
			return
		}
		if p.Cwd[0] != '/' || len(p.Args) == 0 {
			t.Fatalf("accepted: %+v", p)
		}
		_, first := newProcess(p, Stdio{})
		_, second := newProcess(p, Stdio{})
		if fmt.Sprint(first) != fmt.Sprint(second) {
			t.Fatalf("once %v, once %v", first, second)
		}
		// Nothing is raised, and a second time nothing is left to lower.
		lowered, _ := lower(*p, hostLimits{oom: -100})
		again, said := lower(lowered, hostLimits{oom: -100})
		is, _ := json.Marshal(again)
		want, _ := json.Marshal(lowered)
		if len(said) > 0 || string(is) != string(want) {
			t.Fatalf("lowered twice: %v\n%s\n%s", said, want, is)
		}
	})
}

// FuzzResources applies any resources to any others, for update.
func FuzzResources(f *testing.F) {
	f.Add([]byte(`{"memory":{"limit":-1,"swap":5,"checkBeforeUpdate":true},"cpu":{"shares":2,"quota":-1,"idle":1,"cpus":"0-1"}}`), []byte(`{}`))
	f.Add([]byte(`{"pids":{"limit":-1},"hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"2MB","limit":2}]}`), []byte(`{"unified":{"a":"b"}}`))
	f.Add([]byte(`{"blockIO":{"weight":10,"weightDevice":[{"major":8,"weight":9}],"throttleReadBpsDevice":[{"major":8,"rate":1},{"major":8,"rate":2}]}}`), []byte(`{"cpu":{"shares":262145}}`))
	f.Fuzz(func(t *testing.T, was, change []byte) {
		var a, b specs.LinuxResources
		if json.Unmarshal(was, &a) != nil || json.Unmarshal(change, &b) != nil {
			return
		}
		once, twice := &cgroups.Resources{}, &cgroups.Resources{}
		for _, to := range []*cgroups.Resources{once, twice} {
			if applyResources(to, &a) != nil {
				return
			}
		}
		err := applyResources(once, &b)
		for range 2 {
			if again := applyResources(twice, &b); (again == nil) != (err == nil) {
				t.Fatalf("once %v, then %v", err, again)
			}
		}
		is, _ := json.Marshal(once)
		want, _ := json.Marshal(twice)
		if string(is) != string(want) {
			t.Fatalf("a second time changes something:\n%s\n%s", is, want)
		}
	})
}

// FuzzAnnotations takes any annotations: what is decided from them is decided
// the same way each time, and unknown values of our own are errors.
func FuzzAnnotations(f *testing.F) {
	f.Add("org.vzrun.rootfs", "idmap", "org.vzrun.guest", "systemd")
	f.Add("org.vzrun.strict", "true", "org.vzrun.rootfs", "IDMAP")
	f.Add("", "\x00", "org.vzrun.guest", "../x")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		spec := &specs.Spec{Annotations: map[string]string{k1: v1, k2: v2}, Linux: &specs.Linux{
			UIDMappings: []specs.LinuxIDMapping{{}}, GIDMappings: []specs.LinuxIDMapping{{}},
		}}
		before := maps.Clone(spec.Annotations)
		mapped, err := wantsIDMap(spec)
		if value, known := before[annotationRootfs], err == nil; known != (value == "" || value == "idmap") || mapped != (value == "idmap") {
			t.Fatalf("rootfs %q: %v, %v", value, mapped, err)
		}
		strict, err := wantsStrict(spec.Annotations)
		if value, known := before[annotationStrict], err == nil; known != (value == "" || value == "true" || value == "false") || strict != (value == "true") {
			t.Fatalf("strict %q: %v, %v", value, strict, err)
		}
		init := guest.Init(before[annotationGuest])
		if sig := guest.StopSignal(init); sig < 1 || sig > 64 {
			t.Fatalf("guest %q is stopped by signal %d", init, sig)
		}
		for _, file := range guest.DropIns(init) {
			if !filepath.IsLocal(file.Path) {
				t.Fatalf("guest %q: file %q", init, file.Path)
			}
		}
		if !maps.Equal(before, spec.Annotations) {
			t.Fatal("the annotations were changed")
		}
	})
}

// FuzzID tries ids: one that is accepted names one file below the state
// directory, and nothing of vzrun's own there.
func FuzzID(f *testing.F) {
	for _, id := range []string{"web", "..", ".", "@", "a/b", "a\x00", "-", "a+b_c.d", "a\n", strings.Repeat("x", 201)} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		const root = "/run/vzrun"
		err := CheckID(id)
		if err != nil {
			if !errors.Is(err, ErrInvalidID) || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("%q: %q", id, err)
			}
			return
		}
		path := filepath.Join(root, id)
		if filepath.Dir(path) != root || filepath.Base(path) != id || len(id) > maxIDLength {
			t.Fatalf("%q leads to %s", id, path)
		}
		if strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\@:%'"$*?`, r) }) {
			t.Fatalf("%q was accepted", id)
		}
	})
}
