package main

/*
#include <malloc.h>
#include <stdlib.h>

__attribute__((constructor)) static void ease_malloc(void)
{
#ifdef M_ARENA_MAX
	// glibc: one arena for all threads. Go has threads of its own and calls little
	// C, and each arena is 128 MB of addresses to be mapped and trimmed.
	mallopt(M_ARENA_MAX, 1);
#else
	// musl gives the last block of a size back to the kernel, which Go's
	// runtime allocates and frees for each thread that it starts: a page that is
	// unmapped interrupts all processors.
	static void *volatile kept[8];

	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		kept[i] = malloc(16 * i + 8);
#endif
}
*/
import "C"

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
