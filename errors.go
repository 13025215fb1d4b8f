package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// Exit codes. Verbs that pass on a guest's code may return any other.
const (
	codeError       = 1
	codeUsage       = 2
	codeBusy        = 3
	codeStatus      = 4
	codeUnsupported = 5
	codeUnconfirmed = 6
	// codeExecFailed is what engines know from runc: exec itself failed,
	// as opposed to the program it ran.
	codeExecFailed = 255
)

// usageError is a command line that vzrun does not understand.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

// guestExit is the exit code of a guest's process, to be passed on in silence.
type guestExit int

func (g guestExit) Error() string { return fmt.Sprintf("the process exited with code %d", int(g)) }

// passOn makes the verb exit like the guest's process.
func passOn(code int) error {
	if code == 0 {
		return nil
	}
	return guestExit(code)
}

// execFailure marks an error of exec that came before the guest's program ran.
type execFailure struct{ err error }

func (e *execFailure) Error() string { return e.err.Error() }
func (e *execFailure) Unwrap() error { return e.err }

func isGuestExit(err error) bool {
	var guest guestExit
	return errors.As(err, &guest)
}

func exitCode(err error) int {
	var (
		guest guestExit
		usage *usageError
		exec  *execFailure
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &guest):
		return int(guest)
	case errors.As(err, &usage), errors.Is(err, cli.ErrTopic):
		return codeUsage
	case errors.As(err, &exec):
		return codeExecFailed
	case errors.Is(err, libvz.ErrUnconfirmed):
		return codeUnconfirmed
	case errors.Is(err, libvz.ErrBusy):
		return codeBusy
	case errors.Is(err, libvz.ErrStatus):
		return codeStatus
	case errors.Is(err, libvz.ErrUnsupported):
		return codeUnsupported
	default:
		return codeError
	}
}

// hintOf returns the outermost hint in a tree of errors, or what generally
// helps against such an error.
func hintOf(err error) string {
	if hint := attachedHint(err); hint != "" {
		return hint
	}
	switch {
	case errors.Is(err, cli.ErrTopic):
		return "vzrun --help lists the verbs"
	case errors.Is(err, libvz.ErrNotExist):
		return "vzrun list shows the containers there are under --root"
	case errors.Is(err, libvz.ErrStatus):
		return "vzrun list shows the status of each container"
	case errors.Is(err, libvz.ErrBusy):
		return "another vzrun is at work on this container: wait until it is done"
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "run it as root"
	}
	return ""
}

// attachedHint walks the tree itself, since an empty hint gives way to one
// further in, which errors.As cannot express.
func attachedHint(err error) string {
	var hint string
	switch e := err.(type) { //nolint:errorlint // the tree is walked below
	case *usageError:
		return e.hint
	case *libvz.Error:
		hint = e.Hint
	case interface{ Hint() string }:
		hint = e.Hint()
	}
	if hint != "" {
		return hint
	}
	switch e := err.(type) { //nolint:errorlint // this is the walk
	case interface{ Unwrap() error }:
		return attachedHint(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			if hint := attachedHint(inner); hint != "" {
				return hint
			}
		}
	}
	return ""
}
