// Command holder runs in a guest and holds one of everything that the kernel
// keeps for a process: sockets with data under way, System V and POSIX IPC, locks,
// deleted files, terminals, descriptors for events, timers. In the end it looks at
// all of it again.
//
//	holder DIR [NAME...]   make all of it (or the named things, and those that are
//	                       made only when they are named), write DIR/ready;
//	                       at SIGTERM check it, write DIR/report and end: a line
//	                       for each, "ok NAME" or "failed NAME: WHY"
//
// Nothing but the standard library is used, so that it builds without the module's
// dependencies and runs in any root file system.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// thing is made before a checkpoint, and checked once after it.
type thing struct {
	name string
	// make returns the check. dir is its own.
	make func(dir string) (check func() error, err error)
}

// onlyNamed are those that CRIU refuses, or restores as something else.
func onlyNamed(name string) bool {
	return slices.Contains([]string{"posix-mqueue", "eventfd-semaphore", "udp-queued", "inotify-unread", "timer-posix"}, name)
}

func things() []thing {
	return slices.Concat(sockets(), ipc(), files(), events(), clocks(), processes())
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		os.Exit(child(os.Args[2]))
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: holder DIR [NAME...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "holder:", err)
		os.Exit(1)
	}
}

func run(dir string, names []string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	type held struct {
		name  string
		check func() error
	}
	var all []held
	for _, t := range things() {
		if !slices.Contains(names, t.name) && (len(names) > 0 || onlyNamed(t.name)) {
			continue
		}
		own := filepath.Join(dir, t.name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		check, err := t.make(own)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		all = append(all, held{t.name, check})
	}
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o644); err != nil {
		return err
	}
	<-end
	var report strings.Builder
	for _, h := range all {
		if err := limited(h.check); err != nil {
			fmt.Fprintf(&report, "failed %s: %v\n", h.name, err)
			continue
		}
		fmt.Fprintf(&report, "ok %s\n", h.name)
	}
	return os.WriteFile(filepath.Join(dir, "report"), []byte(report.String()), 0o644)
}

// limited ends a check that waits for what will not come.
func limited(check func() error) error {
	result := make(chan error, 1)
	go func() { result <- check() }()
	select {
	case err := <-result:
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("no end after 20 s")
	}
}

// call is a system call whose arguments are numbers, or pointers to what lives on.
func call(number, a, b, c, d, e uintptr) (uintptr, error) {
	r, _, errno := syscall.Syscall6(number, a, b, c, d, e, 0)
	if errno != 0 {
		return r, errno
	}
	return r, nil
}

// same compares what came with what was sent.
func same(what string, got, want any) error {
	if got != want {
		return fmt.Errorf("%s: %.60v, not %.60v", what, got, want)
	}
	return nil
}
