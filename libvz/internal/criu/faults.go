package criu

import (
	"slices"
	"time"
)

// FaultStats are how long tasks waited for pages that they touched before they were
// there, in seconds: from the moment at which we heard of it to the one at which the page
// was in place. Pages that had no content are not counted.
type FaultStats struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// faults are those of one address space that wait, by the number of the page.
type faults []fault

type fault struct {
	number int
	since  time.Time
}

// begin notes that a task waits for a page.
func (f *faults) begin(number int, at time.Time) {
	same := func(other fault) bool { return other.number == number }
	if slices.ContainsFunc(*f, same) {
		return // a signal has interrupted a task that waits, or another thread does, too
	}
	*f = append(*f, fault{number, at})
}

// end ends those for pages from a number to before another, and returns how many seconds
// each has waited.
func (f *faults) end(first, end int, at time.Time) (waited []float64) {
	*f = slices.DeleteFunc(*f, func(one fault) bool {
		served := one.number >= first && one.number < end
		if served {
			waited = append(waited, at.Sub(one.since).Seconds())
		}
		return served
	})
	return waited
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
