package libvz

import (
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What is counted in a user namespace is counted for its owner on the host.
func TestUsernsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes namespaces for others")
	}
	const first = 1234567168
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: 65536}}
	for _, owner := range []uint32{0, first} {
		f, err := usernsFile(ids, ids, owner)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got, err := unix.IoctlGetUint32(int(f.Fd()), unix.NS_GET_OWNER_UID); err != nil || got != owner {
			t.Errorf("owner %d: %d, %v", owner, got, err)
		}
	}
	// The thread that did it is nobody else's.
	if os.Geteuid() != 0 {
		t.Error("no longer root")
	}
}
