//go:build lean

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vzrun/vzrun/internal/cli"
	"github.com/vzrun/vzrun/libvz"
)

// full is the program that has all verbs.
const full = "vzrun-full"

// selfExe is this program, wherever it is.
const selfExe = "/proc/self/exe"

// fullDir is where full is installed; set by the linker.
var fullDir = "/usr/local/libexec/vzrun"

// processors is how many this program uses at the most. Its verbs do one thing after
// the other: with a second one, each goroutine that begins starts or wakes a thread.
const processors = 1

// verbs are those that engines start for each container, and those with which a
// guest is used: what they link is paid by every start of every container.
func verbs() []*cli.Command {
	return []*cli.Command{
		createCommand(), startCommand(), runCommand(), stateCommand(), listCommand(),
		killCommand(), deleteCommand(), execCommand(), psCommand(), pauseCommand(),
		resumeCommand(), featuresCommand(), updateCommand(), eventsCommand(), readyCommand(), stopCommand(), enterCommand(),
		consoleCommand(), logsCommand(), holdConsoleCommand(),
	}
}

// handOver becomes the full program where the command line asks for what is not in
// this one: other verbs, help, and whatever is to be refused. It returns nil where
// the command line is for this one.
func handOver(app *cli.App, args []string) error {
	if isServed(app, args) {
		return nil
	}
	path, err := findFull()
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

// findFull looks beside this program, then in libexec below the same prefix, and then
// where the full one was to be installed.
func findFull() (string, error) {
	self, err := os.Readlink(selfExe)
	if err != nil {
		return "", err
	}
	beside := filepath.Dir(self)
	for _, dir := range []string{beside, filepath.Join(filepath.Dir(beside), "libexec", "vzrun"), fullDir} {
		path := filepath.Join(dir, full)
		switch err := checkOwner(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return "", &libvz.Error{
		Op: full, Err: errors.New("this program, which has all verbs, is missing"),
		Hint: "install it as " + filepath.Join(fullDir, full),
	}
}

// checkOwner refuses a program that somebody else has put beside this one, as
// into /tmp.
func checkOwner(path string) error {
	var ours, other syscall.Stat_t
	if err := syscall.Stat(path, &other); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := syscall.Stat(selfExe, &ours); err != nil {
		return &os.PathError{Op: "stat", Path: selfExe, Err: err}
	}
	if other.Uid != 0 && other.Uid != ours.Uid {
		return &libvz.Error{Op: full, Err: fmt.Errorf("%s belongs to user %d", path, other.Uid), Hint: "remove it, or give it to root"}
	}
	return nil
}
