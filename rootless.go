package main

import (
	"fmt"
	"strconv"

	"github.com/vzrun/vzrun/libvz"
)

// parseRootless understands what runc's --rootless does.
func parseRootless(s string) (libvz.Rootless, error) {
	if s == "" || s == "auto" {
		return libvz.RootlessAuto, nil
	}
	yes, err := strconv.ParseBool(s)
	switch {
	case err != nil:
		return 0, &usageError{
			msg:  fmt.Sprintf("--rootless %q is neither true, false nor auto", s),
			hint: "auto is right for nearly everyone",
		}
	case yes:
		return libvz.RootlessYes, nil
	}
	return libvz.RootlessNo, nil
}

// actsForUser tells whether our state belongs below the user's own runtime
// directory: for users other than root, and for a user's engine that has made
// itself root of a user namespace.
func actsForUser(euid int, inUserns func() bool, env func(string) (string, bool)) bool {
	if euid != 0 {
		return true
	}
	if name, ok := env("USER"); ok && name == "root" {
		return false
	}
	return inUserns()
}
