package doctor

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestJudge(t *testing.T) {
	wrong := errors.New("is not there")
	for name, tt := range map[string]struct {
		ability  string
		result   Result
		state    string
		required bool
		found    string
	}{
		"works":            {"criu", Result{Found: "4.2.1"}, OK, true, "4.2.1"},
		"nothing to say":   {"seccomp", Result{}, OK, true, ""},
		"required":         {"criu", Result{Err: wrong}, Missing, true, "is not there"},
		"not required":     {"lxcfs", Result{Err: wrong}, Missing, false, "is not there"},
		"in part":          {"userfaultfd", Result{Partly: wrong}, Degraded, false, "is not there"},
		"in part, and how": {"id-mapped mounts", Result{Partly: wrong, Found: "/a"}, Degraded, false, "/a; is not there"},
		"both":             {"cgroups", Result{Partly: errors.New("x"), Err: wrong, Found: "/a"}, Missing, true, "/a; is not there"},
	} {
		got := Judge(map[string]Result{tt.ability: tt.result})
		if len(got) != 1 || got[0].Name != tt.ability || got[0].State != tt.state || got[0].Required != tt.required || got[0].Found != tt.found {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		if (got[0].State == OK) != (got[0].Means == "" && got[0].Remedy == "") || got[0].State != OK && (got[0].Means == "" || got[0].Remedy == "") {
			t.Errorf("%s: meaning and remedy: %+v", name, got[0])
		}
	}
	if got := Judge(nil); len(got) != 0 {
		t.Errorf("nothing probed: %+v", got)
	}
}

func TestEachAbilityIsProbed(t *testing.T) {
	results := map[string]Result{}
	for _, name := range []string{"criu", "criu check", "lxcfs", "subordinate ids"} {
		results[name] = Result{Found: "by the caller"}
	}
	Probe(Host{Dirs: []string{"/"}}, results)
	for _, a := range abilities() {
		if _, ok := results[a.name]; !ok {
			t.Errorf("%s is not probed", a.name)
		}
	}
	if len(results) != len(abilities()) {
		t.Errorf("%d results of %d abilities", len(results), len(abilities()))
	}
	if r := results["criu"]; r.Found != "by the caller" {
		t.Errorf("replaced what the caller knows: %+v", r)
	}
	if r := results["kernel"]; r.Err != nil || !strings.Contains(r.Found, ".") {
		t.Errorf("kernel: %+v", r)
	}
	if r := results["user"]; (r.Err == nil) != (os.Geteuid() == 0) {
		t.Errorf("user: %+v", r)
	}
}

func TestJudgeCapabilities(t *testing.T) {
	if r := judgeCapabilities(^uint64(0)); r.Err != nil {
		t.Errorf("all: %v", r.Err)
	}
	r := judgeCapabilities(^uint64(0) &^ (1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_KILL | 1<<unix.CAP_SYS_RESOURCE))
	if r.Err == nil || r.Err.Error() != "without CAP_KILL, CAP_SYS_ADMIN" {
		t.Errorf("%v", r.Err)
	}
}

func TestControllers(t *testing.T) {
	first := firstVersion("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t4\t1\t1\nmemory\t0\t1\t1\npids\t7\t2\t1\nblkio\t3\t1\t0\n")
	if first != "cpuset pids" {
		t.Errorf("%q", first)
	}
	for controllers, want := range map[string]string{
		"cpuset cpu io memory pids":    "",
		"cpuset cpu blkio memory pids": "",
		"hugetlb cpuset pids":          "without the controllers memory, cpu, io",
		"":                             "without the controllers memory, pids, cpu, cpuset, io",
	} {
		err := judgeControllers(controllers)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%q: %v", controllers, err)
		}
	}
}
