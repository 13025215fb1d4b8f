package criu

import "slices"

// FaultStats are how long tasks waited for pages that they touched before they were
// there, in seconds: from the moment at which `criu lazy-pages` read of it to the
// one at which it put the page in place. Pages that had no content are not counted.
type FaultStats struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// faults are those that wait, by task, and how long others did.
type faults struct {
	open  map[string][]fault
	waits []float64
}

type fault struct {
	address uint64
	since   float64
}

func newFaults() faults { return faults{open: map[string][]fault{}} }

func (f *faults) begin(task string, address uint64, at float64) {
	same := func(other fault) bool { return other.address == address }
	if slices.ContainsFunc(f.open[task], same) {
		return // a signal has interrupted a task that waits, or another thread does, too
	}
	f.open[task] = append(f.open[task], fault{address, at})
}

// end ends those in so many bytes from an address.
func (f *faults) end(task string, address, size uint64, at float64) {
	f.open[task] = slices.DeleteFunc(f.open[task], func(one fault) bool {
		served := one.address >= address && one.address-address < size
		if served {
			f.waits = append(f.waits, at-one.since)
		}
		return served
	})
}

// drop forgets one.
func (f *faults) drop(task string, address uint64) {
	f.open[task] = slices.DeleteFunc(f.open[task], func(one fault) bool { return one.address == address })
}

// summarize computes percentiles by the nearest rank.
func summarize(waits []float64) *FaultStats {
	s := &FaultStats{Count: len(waits)}
	if s.Count == 0 {
		return s
	}
	slices.Sort(waits)
	rank := func(percent int) float64 { return waits[(s.Count*percent+99)/100-1] }
	s.P50, s.P95, s.P99, s.Max = rank(50), rank(95), rank(99), waits[s.Count-1]
	return s
}
