package libvz

import (
	"os"
	"testing"

	"github.com/opencontainers/runc/libcontainer"
)

func TestIsInit(t *testing.T) {
	start, err := startTime(os.Getpid())
	must(t, err)
	st := &libcontainer.State{}
	for _, c := range []struct {
		pid   int
		start uint64
		want  bool
	}{{os.Getpid(), start, true}, {os.Getpid(), start - 1, false}, {-1, start, false}} {
		st.InitProcessPid, st.InitProcessStartTime = c.pid, c.start
		if got := isInit(st); got != c.want {
			t.Errorf("%d from %d: %v", c.pid, c.start, got)
		}
	}
}
