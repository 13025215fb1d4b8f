package criu

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const lazyLog = `(00.000100) uffd: Waiting for incoming connections on lazy-pages.socket
(00.000200) uffd: 7-12: uffd_copy: 0x7f0000800000/4096
(00.000300) uffd: 7-12: zero page at 0x7f0000900000
(00.000400) uffd: 7-12: Found 12 pages to be handled by UFFD
(00.000500) uffd: 7-19: UNMAP: 7f0000100000(3000)
(00.000600) uffd: 7-19: UFFD transferred pages: (1/12)
(00.010000) uffd: 7-12: #PF at 0x7f0000001000
(00.010500) uffd: 8-13: #PF at 0x7f0000001000
(00.010600) uffd: 7-12: #PF at 0x7f0000001000
(00.011000) uffd: 7-12: uffd_copy: 0x7f0000001000/4096
(00.012000) uffd: 7-12: #PF at 0x7f0000009000
(00.012100) uffd: 7-12: zero page at 0x7f0000009000
(00.013000) uffd: 7-12: UNMAP: 7f0000100000(3000)
(00.013000) uffd: 8-13: REMOVE: 7f0000200000(1000)
(00.020000) uffd: 7-12: #PF at 0x7f0000012000
(00.021000) uffd: 7-12: #PF at 0x7f0000013000
(00.021500) uffd: 7-12: #PF at 0x7f0000014000
(00.024000) uffd: 7-12: uffd_copy: 0x7f0000010000/16384
(00.025000) uffd: 7-12: UFFD transferred pages: (9/12)
LONG
(100.010500) uffd: 8-13: uffd_copy: 0x7f0000001000/8192
(100.010600) uffd: 8-13: uffd_copy: 0x7f00000`

func TestLogIsReadAsItIsWritten(t *testing.T) {
	text := strings.Replace(lazyLog, "LONG", strings.Repeat("x", 9000), 1)
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type pages struct{ pid, address, count uint64 }
	var gone []pages
	ended := make(chan uint64, 2)
	r := newLogReader(
		func(pid, address, count uint64) { gone = append(gone, pages{pid, address, count}) },
		func(pid uint64) { ended <- pid },
	)
	done, read := make(chan struct{}), make(chan error, 1)
	go func() { read <- r.followLog(path, done) }()
	write := func(from, to int) {
		if _, err := f.WriteString(text[from:to]); err != nil {
			t.Fatal(err)
		}
	}
	middle := strings.Index(text, "xxx")
	write(0, 30)
	write(30, middle)
	// That is the one which was restored, not a child of it.
	if pid := <-ended; pid != 7 { // before the log has ended
		t.Errorf("%d has ended", pid)
	}
	write(middle, len(text))
	close(done)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if want := []pages{{7, 0x7f0000100000, 3}, {8, 0x7f0000200000, 1}}; !slices.Equal(gone, want) {
		t.Errorf("gone: %+v", gone)
	}
	same := slices.EqualFunc(r.faults.waits, []float64{0.001, 0.004, 0.003, 100}, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })
	if !same {
		t.Errorf("waits: %v", r.faults.waits)
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
