package libvz

import (
	"errors"
	"testing"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

type held struct {
	status  libcontainer.Status
	err     error
	resumed int
}

func (c *held) Status() (libcontainer.Status, error) { return c.status, c.err }

func (c *held) Resume() error {
	c.resumed++
	return nil
}

// A container of which nobody knows whether it is frozen may stay so: the undo has to
// be tried again.
func TestLetGo(t *testing.T) {
	unknown := errors.New("input/output error")
	for what, c := range map[string]struct {
		held
		paused  bool // before the checkpoint
		resumed int
	}{
		"frozen":        {held{status: libcontainer.Paused}, false, 1},
		"paused before": {held{status: libcontainer.Paused}, true, 0},
		"running":       {held{status: libcontainer.Running}, false, 0},
		"stopped":       {held{status: libcontainer.Stopped}, false, 0},
		"unknown":       {held{status: -1, err: unknown}, false, 0},
	} {
		e := &store.Entry{Record: store.Record{ID: "a", Operation: &store.Operation{Name: "checkpoint", Paused: c.paused}}}
		is := c.held
		if err := (&Host{}).letGo(e, &is); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || is.resumed != c.resumed {
			t.Errorf("%s: resumed %d times, %v", what, is.resumed, err)
		}
	}
}
