package libvz

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
)

func TestProcPlaces(t *testing.T) {
	const root = "30 1 8:1 / / rw - ext4 /dev/sda rw\n"
	config := func(mounts ...*configs.Mount) *configs.Config {
		return &configs.Config{Mounts: mounts, MaskPaths: []string{"/proc/kcore", "/sys/firmware", "/proc/keys/"}, ReadonlyPaths: []string{"/proc/sys"}}
	}
	proc := &configs.Mount{Destination: "/proc", Device: "proc"}
	host := &configs.Mount{Destination: "/host/", Device: "bind"}
	for _, tc := range []struct {
		name, info string
		config     *configs.Config
		bare       []string
		refused    string
	}{
		{
			name: "all in place", config: config(proc),
			info: "31 30 0:5 / /proc rw - proc proc rw\n32 31 0:6 /null /proc/kcore rw - tmpfs t rw\n33 31 0:6 /null /proc/keys rw - tmpfs t rw\n34 31 0:5 /sys /proc/sys ro - proc proc rw\n",
		},
		{
			name: "masks are missing", config: config(proc),
			info: "31 30 0:5 / /proc rw - proc proc rw\n34 31 0:5 /sys /proc/sys ro - proc proc rw\n",
			bare: []string{"/proc/kcore", "/proc/keys"},
		},
		{
			name: "mounted where a link led", config: config(proc),
			info: "31 30 0:5 / /fake rw - proc proc rw\n", refused: `at "/fake"`,
		},
		{name: "not there", config: config(proc), info: "31 30 0:5 /sys /proc rw - proc proc rw\n", refused: "no procfs is mounted at /proc"},
		{name: "nothing asked, nothing there", config: config(), info: ""},
		{
			name: "the host's, bound on purpose", config: config(host),
			info: "31 30 0:5 / /host/proc rw - proc proc rw\n32 30 0:5 /sys /x rw - proc proc rw\n",
		},
		{
			name: "another one, perhaps by way of links", config: config(proc, &configs.Mount{Destination: "/link/proc", Device: "proc"}),
			info: "31 30 0:5 / /proc rw - proc proc rw\n32 30 0:6 / /dir/proc rw - proc proc rw\n",
			bare: []string{"/proc/kcore", "/proc/keys", "/proc/sys"},
		},
		{name: "garbage", config: config(), info: "no mountinfo\n", refused: "verify mounts"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bare, err := procPlacesOf(tc.config).verify(strings.NewReader(root + tc.info))
			if (err != nil) != (tc.refused != "") || err != nil && !strings.Contains(err.Error(), tc.refused) {
				t.Fatalf("error %v, want %q", err, tc.refused)
			}
			if !slices.Equal(bare, tc.bare) {
				t.Errorf("bare %q, want %q", bare, tc.bare)
			}
		})
	}
}
