//go:build !cgo || !seccomp

package bpfcache

// Enabled tells whether programs can be handed over at all.
const Enabled = false

// Adopt does nothing without libseccomp.
func Adopt(int) {}
