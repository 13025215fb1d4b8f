package criu

import "time"

const (
	// Between these, in bytes, is what is under way for which no task waits.
	windowLeast, windowMost = 128 << 10, 8 << 20
	// How much longer than the quickest answer one may take: a page for which a task
	// waits has to wait behind all that is under way. Below shortQueue there may be
	// more of it, above longQueue there must be less.
	shortQueue, longQueue = 8 * time.Millisecond, 12 * time.Millisecond
)

// pace says how much is asked for before a task waits for it. Not enough, and the connection is
// idle for a part of each round trip; too much, and tasks wait. So it follows what
// answers take, beyond what the quickest one took.
type pace struct {
	window   int // bytes
	quickest time.Duration
	narrowed time.Time // when the window was made smaller at last
}

// begin is called when a connection begins.
func (p *pace) begin() { *p = pace{window: windowLeast} }

// answered is told when something was asked for, and when the last byte of the answer
// came.
func (p *pace) answered(asked, came time.Time) {
	took := came.Sub(asked)
	if p.quickest == 0 || took < p.quickest {
		p.quickest = took
	}
	switch late := took - p.quickest; {
	case late < shortQueue:
		p.window = min(p.window+p.window/8, windowMost)
	case late > longQueue && asked.After(p.narrowed):
		// What was asked for before was held up by the window that there was then:
		// a moment in which a machine stood still counts once, not for each answer.
		p.window = max(p.window-p.window/8, windowLeast)
		p.narrowed = came
	}
}

// piece is how many bytes are to be asked for at a time: several of them fit into the
// window.
func (p *pace) piece() int { return p.window / 4 }
