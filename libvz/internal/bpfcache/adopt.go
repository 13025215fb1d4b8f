//go:build cgo && seccomp

package bpfcache

// #cgo pkg-config: libseccomp
// #cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array -Wl,--wrap=seccomp_export_bpf
// #include "adopt.h"
import "C"

// Enabled tells whether programs can be handed over at all.
const Enabled = true

// Adopt makes the calling process use the ticket that it was started with, if
// the descriptor is one: libseccomp then returns the ticket's program instead
// of compiling, or writes the one that it compiled into the ticket. The
// descriptor closes with the process's exec.
func Adopt(fd int) { C.vzrun_seccomp_adopt(C.int(fd)) }
