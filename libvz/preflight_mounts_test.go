package libvz

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
)

func TestFuseMounts(t *testing.T) {
	const info = `30 1 8:1 / / rw - ext4 /dev/sda rw
31 30 0:5 / /proc rw - proc proc rw
32 31 0:40 /proc/meminfo /proc/meminfo rw - fuse.lxcfs lxcfs rw
33 30 0:41 / /mnt/a\040b rw - fuse.sshfs a rw
34 30 0:42 / /mnt/img ro - fuse e rw
35 30 7:0 / /mnt/ntfs rw - fuseblk /dev/loop0 rw
36 30 0:43 / /var/lib/lxcfs/x rw - fuse.lxcfs lxcfs rw
37 30 0:44 / /fusectl rw - fusectl none rw
`
	configured := []*configs.Mount{
		{Destination: "/proc", Device: "proc"},
		{Destination: "/proc/meminfo", Device: "bind"},
		{Destination: "/var/lib/lxcfs/", Device: "bind"},
	}
	got, err := fuseMounts(strings.NewReader(info), configured)
	if err != nil || !slices.Equal(got, []string{"/mnt/a b", "/mnt/img", "/mnt/ntfs"}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := fuseMounts(strings.NewReader("no mountinfo\n"), nil); err == nil {
		t.Error("accepted what is none")
	}
}
