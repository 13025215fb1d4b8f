package main

import (
	"os"
	"runtime/debug"

	_ "github.com/opencontainers/runc/libcontainer/nsenter" // its C constructor enters the namespaces before Go starts

	"github.com/vzrun/vzrun/libvz"
)

// init serves the re-execution `vzrun init`, by which libcontainer becomes a
// container's first process. It must come before main: by then the command
// line would be parsed and threads started in somebody else's namespaces.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		// It makes a few megabytes of garbage and is gone with its exec.
		debug.SetGCPercent(-1)
		libvz.BecomeInit()
	}
}
