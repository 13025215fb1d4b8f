package libvz

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// What callers branch on. Errors of this package wrap one of them where it
// fits; the rest are plain failures.
var (
	ErrNotExist    = errors.New("container does not exist")
	ErrExist       = errors.New("container already exists")
	ErrInvalidID   = errors.New("invalid container id")
	ErrStatus      = errors.New("container has the wrong status")
	ErrBusy        = errors.New("container is busy")
	ErrUnsupported = errors.New("not supported here")
	// ErrRefused says that a check before the operation found what would
	// make it fail; nothing was changed.
	ErrRefused = errors.New("refused")
	// ErrUnconfirmed says that the other side's answer to a commit is
	// missing: the operation may or may not have taken place.
	ErrUnconfirmed = errors.New("outcome unconfirmed")
)

// Error is an error with the operation and the container that it is about,
// and a hint where there is something that the caller can do.
type Error struct {
	Op, ID string // either may be empty
	Err    error
	Hint   string // one sentence, lower case; may be empty
}

// Error is one line without control characters: it may quote a config.json or a
// guest, and goes to terminals and logs.
func (e *Error) Error() string {
	text := oneLine(e.Err.Error())
	what := strings.TrimSpace(e.Op + " " + e.ID)
	if what == "" {
		return text
	}
	return what + ": " + text
}

func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r):
			return '?'
		}
		return r
	}, strings.TrimRight(text, "\n"))
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// hinted is an error that knows its remedy before it knows its operation.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint makes the remedy readable where the error is not wrapped in an Error.
func (h *hinted) Hint() string { return h.hint }

func withHint(hint, format string, args ...any) error {
	return &hinted{error: fmt.Errorf(format, args...), hint: hint}
}

// fail wraps err for the caller of op, and is nil where err is.
func fail(op, id string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e.Op == op && e.ID == id {
		return err
	}
	if errors.Is(err, ErrInvalidID) {
		id = "" // err quotes it, as it may hold anything
	}
	wrapped := &Error{Op: op, ID: id, Err: err}
	var h *hinted
	if errors.As(err, &h) {
		wrapped.Hint = h.hint
	}
	if wrapped.Hint == "" && errors.As(err, &e) {
		wrapped.Hint = e.Hint
	}
	return wrapped
}
