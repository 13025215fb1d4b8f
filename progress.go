package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

const (
	progressDelay  = time.Second // a verb that is quicker stays silent
	progressPeriod = 200 * time.Millisecond
	eraseLine      = "\r\x1b[K"
)

// progress draws the steps of a long operation as one line that rewrites
// itself, if stderr is a terminal. Warnings go to the log in any case.
type progress struct {
	mu    sync.Mutex
	out   io.Writer // nil: draw nothing
	began time.Time
	last  libvz.Event
	drawn bool
	quit  chan struct{}
}

// newProgress starts drawing; stop must be called before anybody else writes
// to the terminal.
func newProgress() *progress {
	p := &progress{began: time.Now(), quit: make(chan struct{})}
	if isTerminal(os.Stderr) {
		p.out = os.Stderr
		go p.redraw()
	}
	return p
}

// onEvent is the callback for libvz.
func (p *progress) onEvent(e libvz.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Warning != "" {
		p.erase()
		logrus.Warn(e.Warning)
		return
	}
	p.last = e
}

func (p *progress) redraw() {
	ticker := time.NewTicker(progressPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-p.quit:
			return
		case now := <-ticker.C:
			p.draw(now)
		}
	}
}

func (p *progress) draw(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	elapsed := now.Sub(p.began)
	if p.out == nil || p.last.Step == "" || elapsed < progressDelay {
		return
	}
	fmt.Fprint(p.out, eraseLine+progressLine(p.last, elapsed))
	p.drawn = true
}

func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.out, eraseLine)
		p.drawn = false
	}
}

// stop clears the line for good. It may be called twice.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	if p.out != nil {
		p.out = nil
		close(p.quit)
	}
}

// progressLine says what an operation is doing, in less than 80 columns.
func progressLine(e libvz.Event, elapsed time.Duration) string {
	line := fmt.Sprintf("%.24s: %.24s", e.ID, e.Step)
	if e.Round > 0 {
		line += fmt.Sprintf(" %d", e.Round)
	}
	if e.Pages > 0 {
		line += fmt.Sprintf(", %d pages", e.Pages)
	}
	switch {
	case e.Done == 0 && e.Round > 0: // nothing to compare
	case e.Total > 0:
		percent := min(100, 100*float64(e.Done)/float64(e.Total))
		line += fmt.Sprintf(" %.0f%% of %s", percent, units.BytesSize(float64(e.Total)))
	case e.Done > 0:
		line += " " + units.BytesSize(float64(e.Done))
	}
	return fmt.Sprintf("%s, %.0f s", line, elapsed.Seconds())
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
