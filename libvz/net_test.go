package libvz

import (
	"errors"
	"testing"

	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// A container counts before it has a state, however it comes about.
func TestAddressesOfContainersThatAreBeingMade(t *testing.T) {
	const text = "bridge=br0,ip=10.0.0.2/24"
	for op, want := range map[string]error{"create": vnet.ErrAddressInUse, "restore": vnet.ErrAddressInUse, opReceive: vnet.ErrAddressInUse, "delete": nil} {
		h, err := Open(Options{Root: t.TempDir()})
		must(t, err)
		e, err := h.lock("b")
		must(t, err)
		defer e.Close()
		must(t, e.Begin(store.Operation{Name: op, Net: text}))
		if err := h.refuseAddresses("a", text); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", op, err, want)
		}
	}
}
