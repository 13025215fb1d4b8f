package libvz

import "testing"

func TestWarningsControlNoTerminal(t *testing.T) {
	got := ""
	h := &Host{opts: Options{OnEvent: func(e Event) { got = e.Warning }}}
	h.warn("a", "interface %s", "e\x1b[2Jt\u009bh\x07\n0\n")
	if want := "interface e?[2Jt?h? 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
