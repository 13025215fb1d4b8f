package guest

import (
	"testing"
	"time"
)

// A guest writes these files; whatever is in them must neither panic nor be taken
// for more than it is.
func FuzzSysvState(f *testing.F) {
	f.Add(record(1, '2', "~~"), []byte(inittab))
	f.Add([]byte{}, []byte(":::\n"))
	f.Fuzz(func(t *testing.T, utmp, tab []byte) {
		switch state := sysvState(parseUtmp(utmp), parseInittab(tab)); state {
		case "", "running", "stopping", "maintenance":
		default:
			t.Errorf("state %q", state)
		}
		anyService(parseInittab(tab), []child{{text: string(utmp)}})
		newRunit(nil).judge("a", utmp, time.Now())
		if v := systemdVersion(utmp); v < 0 || v > 999 {
			t.Errorf("version %d", v)
		}
	})
}
