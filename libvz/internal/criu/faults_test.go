package criu

import (
	"slices"
	"testing"
	"time"
)

func TestFaults(t *testing.T) {
	var f faults
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	f.begin(7, at(1))
	f.begin(9, at(2))
	f.begin(7, at(3)) // of another thread
	f.begin(30, at(4))
	for _, c := range []struct {
		first, end, at int
		want           []float64
	}{{8, 9, 5, nil}, {7, 30, 6, []float64{5, 4}}, {7, 8, 7, nil}, {30, 31, 10, []float64{6}}} {
		if got := f.end(c.first, c.end, at(c.at)); !slices.Equal(got, c.want) {
			t.Errorf("[%d, %d): %v, want %v", c.first, c.end, got, c.want)
		}
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
