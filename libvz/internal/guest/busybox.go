package guest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// busybox's init leaves no mark. But it runs what inittab has for the boot one
// after the other, waiting for each, and only then turns to its services: it
// sleeps in another system call then, and they are its children.
func (w *waiter) busybox() (Status, bool, error) {
	tab, err := w.readFile("/etc/inittab", maxInittab)
	if err != nil && !absent(err) {
		return Status{}, false, err
	}
	children, err := w.children()
	if err != nil {
		return Status{}, false, err
	}
	if !w.sleepsInLoop() && !anyService(parseInittab(tab), children) {
		return Status{}, false, nil
	}
	failed, err := w.openrcFailed() // as Alpine Linux has it
	return degraded(failed), true, err
}

// sleepsInLoop tells whether the init waits as it does in its main loop and
// never before: for a signal, or for a second (busybox's init/init.c). False
// where the kernel does not say.
func (w *waiter) sleepsInLoop() bool {
	text, err := readProc(fmt.Sprintf("/proc/%d/syscall", w.pid), 256)
	if err != nil {
		return false
	}
	word, _, _ := strings.Cut(string(text), " ")
	number, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return false // "running"
	}
	switch number {
	case unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP:
		return true
	}
	return false
}

// anyService tells whether one of the init's children is what inittab has for
// after the boot. Without an inittab there are shells, which nobody can tell from
// others.
func anyService(tab []tabEntry, children []child) bool {
	for _, e := range tab {
		if e.action != "respawn" && e.action != "askfirst" {
			continue
		}
		// A "-" makes it a login shell.
		words := strings.Fields(strings.TrimPrefix(e.process, "-"))
		if len(words) == 0 {
			continue
		}
		for _, c := range children {
			// Before a script stands its interpreter.
			if args := c.args(); len(args) >= len(words) && slices.Equal(args[len(args)-len(words):], words) {
				return true
			}
		}
	}
	return false
}
