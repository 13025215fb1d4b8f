package criu

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

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

// Faults reads what the process has logged, after Wait; nil where nothing can be
// read.
func (l *LazyPages) Faults() *FaultStats {
	f, err := os.Open(filepath.Join(l.work, LazyLog))
	if err != nil {
		return nil
	}
	defer f.Close()
	waits, err := readFaults(f)
	if err != nil {
		return nil
	}
	return summarize(waits)
}

// faultLine is a line of the log, in which a fault begins, or ends: with a copy of so
// many bytes, or of zeroes. A task is known by two numbers.
var faultLine = regexp.MustCompile(`^\(([0-9]+\.[0-9]+)\) uffd: ([0-9]+-[0-9]+): (#PF at|uffd_copy:|zero page at) 0x([0-9a-f]+)(?:/([0-9]+))?$`)

// fault is one that waits.
type fault struct {
	address uint64
	since   float64
}

// readFaults returns the waits in the order in which they ended.
func readFaults(log io.Reader) ([]float64, error) {
	var waits []float64
	open := map[string][]fault{}
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return waits, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		m := faultLine.FindSubmatch(line[:max(len(line)-1, 0)])
		if m == nil {
			continue
		}
		// The expression lets only numbers through.
		at, _ := strconv.ParseFloat(string(m[1]), 64)
		address, _ := strconv.ParseUint(string(m[4]), 16, 64)
		size, _ := strconv.ParseUint(string(m[5]), 10, 64)
		task := string(m[2])
		switch m[3][0] {
		case '#':
			open[task] = append(open[task], fault{address, at})
		case 'z':
			open[task] = slices.DeleteFunc(open[task], func(f fault) bool { return f.address == address })
		default:
			open[task] = slices.DeleteFunc(open[task], func(f fault) bool {
				served := f.address >= address && f.address-address < size
				if served {
					waits = append(waits, at-f.since)
				}
				return served
			})
		}
	}
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
