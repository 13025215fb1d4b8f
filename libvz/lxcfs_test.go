package libvz

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestLxcfsMountPoints(t *testing.T) {
	const table = `25 30 0:22 / /proc rw,nosuid shared:13 - proc proc rw
91 30 0:51 / /var/lib/lx\040cfs rw,nosuid,nodev,relatime shared:7 - fuse.lxcfs lxcfs rw,user_id=0,group_id=0,allow_other
92 25 0:51 /proc/meminfo /proc/meminfo ro,nosuid,nodev - fuse.lxcfs lxcfs rw,user_id=0,group_id=0,allow_other
93 30 0:52 / /fuse.lxcfs rw - tmpfs fuse.lxcfs rw
94 30 0:53 / /second rw - fuse.lxcfs lxcfs rw
malformed
`
	got, err := lxcfsMountPoints(strings.NewReader(table))
	if err != nil || fmt.Sprintf("%q", got) != `["/var/lib/lx cfs" "/second"]` {
		t.Errorf("got %q, %v", got, err)
	}
}

// fakeLxcfs makes a directory with some of lxcfs's files.
func fakeLxcfs(t *testing.T, places ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range places {
		if err := os.MkdirAll(filepath.Dir(dir+p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func destinations(mounts []specs.Mount) []string {
	var out []string
	for _, m := range mounts {
		out = append(out, m.Destination)
	}
	return out
}

func TestLxcfsMounts(t *testing.T) {
	dir := fakeLxcfs(t, "/proc/meminfo", "/proc/uptime", "/proc/stat", "/proc/nowhere-else")
	taken := []specs.Mount{{Destination: "/proc/uptime/"}}
	got, err := lxcfsMounts(dir, append(lxcfsPlaces(), "/proc/nowhere-else"), taken)
	if want := []string{"/proc/meminfo", "/proc/stat"}; err != nil || !slices.Equal(destinations(got), want) {
		t.Errorf("got %v, %v, want %v", destinations(got), err, want)
	}
	if got[0].Source != dir+"/proc/meminfo" || !slices.Contains(got[0].Options, "ro") {
		t.Errorf("got %+v", got[0])
	}
}

func TestLxcfsGoesWithTheImages(t *testing.T) {
	config := &configs.Config{
		Labels: []string{"bundle=/b", annotationLxcfs + "=/var/lib/lxcfs"},
		Mounts: []*configs.Mount{
			{Destination: "/proc", Device: "proc", Source: "proc"},
			{Destination: "/proc/meminfo", Device: "bind", Source: "/var/lib/lxcfs/proc/meminfo"},
			{Destination: "/proc/uptime", Device: "bind", Source: "/somebody/else"},
			{Destination: "/srv", Device: "bind", Source: "/var/lib/lxcfs/srv"},
		},
	}
	spec := &specs.Spec{Annotations: map[string]string{annotationGuest: "systemd", annotationLxcfs: "auto"}}
	keepLxcfs(config, spec)
	if got := destinations(spec.Mounts); !slices.Equal(got, []string{"/proc/meminfo"}) || spec.Annotations[annotationLxcfs] != "/var/lib/lxcfs" {
		t.Errorf("got %v, %v", got, spec.Annotations)
	}
	app := &specs.Spec{}
	keepLxcfs(config, app)
	if len(app.Mounts) != 0 || app.Annotations != nil {
		t.Errorf("an application got %+v", app)
	}
	config.Labels = nil
	none := &specs.Spec{Annotations: map[string]string{annotationGuest: "systemd"}}
	keepLxcfs(config, none)
	if len(none.Mounts) != 0 || none.Annotations[annotationLxcfs] != "no" {
		t.Errorf("without lxcfs: got %+v", none)
	}
}

func TestCheckLxcfs(t *testing.T) {
	for wish, good := range map[string]bool{"": true, "auto": true, "no": true, "/var/lib/lxcfs": true, "yes": false, "lxcfs": false} {
		if err := checkLxcfs(wish); (err == nil) != good {
			t.Errorf("%q: %v", wish, err)
		}
	}
	if _, err := findLxcfs("/nowhere/lxcfs"); err == nil {
		t.Error("an lxcfs that is not there is found")
	}
	if dir, err := findLxcfs("no"); dir != "" || err != nil {
		t.Errorf("got %q, %v", dir, err)
	}
}

func TestSameUUID(t *testing.T) {
	if !sameUUID("01234567-89AB-cdef-0123-456789abcdef", "0123456789abcdef0123456789abcdef") || sameUUID("a", "b") {
		t.Error("dashes and case do not matter, digits do")
	}
}

// Images without lxcfs are restored without it, whatever the host has.
func TestBringLxcfs(t *testing.T) {
	system := func(lxcfs string, mounts ...specs.Mount) *specs.Spec {
		return &specs.Spec{Annotations: map[string]string{annotationGuest: "systemd", annotationLxcfs: lxcfs}, Mounts: mounts}
	}
	spec := system("auto")
	if err := bringLxcfs(system("no"), spec); err != nil || len(spec.Mounts) != 0 || spec.Annotations[annotationLxcfs] != "no" {
		t.Errorf("got %+v, %v", spec, err)
	}
	if err := bringLxcfs(system(""), system("")); err != nil {
		t.Error(err)
	}
	if err := bringLxcfs(system("no"), system("maybe")); err == nil {
		t.Error("a wrong value is taken")
	}
	saved := system("/var/lib/lxcfs", lxcfsMount("/var/lib/lxcfs/proc/meminfo", "/proc/meminfo"))
	if err := bringLxcfs(saved, system("/nowhere/lxcfs")); err == nil {
		t.Error("an lxcfs that is not there is taken")
	}
	app := &specs.Spec{}
	if err := bringLxcfs(saved, app); err != nil || len(app.Mounts) != 0 {
		t.Errorf("an application: got %+v, %v", app, err)
	}
}

func TestCheckIdentity(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        string
	}{
		{nil, ""},
		{map[string]string{annotationGuest: "systemd", "org.vzrun.dns": "host", "org.vzrun.hosts": "self"}, ""},
		{map[string]string{"org.vzrun.dns": "none"}, ""},
		{map[string]string{"org.vzrun.dns": "host"}, "org.vzrun.dns: not supported"},
		{map[string]string{"org.vzrun.hosts": "self"}, "org.vzrun.hosts: not supported"},
		{map[string]string{annotationGuest: "systemd", "org.vzrun.dns": "x"}, `name servers: "x"`},
		{map[string]string{annotationGuest: "systemd", "org.vzrun.hosts": "x"}, `hosts: "x"`},
	} {
		err := checkIdentity(&specs.Spec{Annotations: c.annotations})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v", c.annotations, err)
		}
	}
}
