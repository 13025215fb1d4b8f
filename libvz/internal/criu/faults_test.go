package criu

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestReadFaults(t *testing.T) {
	log := `(00.000100) uffd: Waiting for incoming connections on lazy-pages.socket
(00.010000) uffd: 7-12: #PF at 0x7f0000001000
(00.010500) uffd: 8-13: #PF at 0x7f0000001000
(00.011000) uffd: 7-12: uffd_copy: 0x7f0000001000/4096
(00.012000) uffd: 7-12: #PF at 0x7f0000009000
(00.012100) uffd: 7-12: zero page at 0x7f0000009000
(00.020000) uffd: 7-12: #PF at 0x7f0000012000
(00.021000) uffd: 7-12: #PF at 0x7f0000013000
(00.021500) uffd: 7-12: #PF at 0x7f0000014000
(00.024000) uffd: 7-12: uffd_copy: 0x7f0000010000/16384
` + strings.Repeat("x", 9000) + `
(100.010500) uffd: 8-13: uffd_copy: 0x7f0000001000/8192
(100.010600) uffd: 8-13: uffd_copy: 0x7f00000`
	got, err := readFaults(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	same := slices.EqualFunc(got, []float64{0.001, 0.004, 0.003, 100}, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })
	if !same {
		t.Errorf("%v", got)
	}
}

func TestSummarize(t *testing.T) {
	if s := summarize(nil); *s != (FaultStats{}) {
		t.Errorf("of none: %+v", *s)
	}
	if s := summarize([]float64{3}); *s != (FaultStats{1, 3, 3, 3, 3}) {
		t.Errorf("of one: %+v", *s)
	}
	var waits []float64
	for i := 200; i > 0; i-- {
		waits = append(waits, float64(i))
	}
	if s := summarize(waits); *s != (FaultStats{200, 100, 190, 198, 200}) {
		t.Errorf("%+v", *s)
	}
}
