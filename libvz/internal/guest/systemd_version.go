package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"sync"
)

// ErrOldSystemd says that the guest's systemd knows only cgroup v1.
var ErrOldSystemd = errors.New("it cannot use cgroup2, and a guest has nothing else")

const (
	// firstUnified is the first systemd that works on the cgroup2 file system of
	// kernels from 4.5 on (systemd's NEWS).
	firstUnified = 230
	// maxProgram bounds the search; systemd's own program has 0.1 to 2 MiB.
	maxProgram = 16 << 20
)

// checkSystemd refuses a systemd that is too old for the cgroups of a guest. One
// whose version does not show is let pass.
func checkSystemd(program *os.File) error {
	data, err := io.ReadAll(io.NewSectionReader(program, 0, maxProgram))
	if err != nil {
		return err
	}
	if v := systemdVersion(data); v != 0 && v < firstUnified {
		return fmt.Errorf("systemd %d: %w", v, ErrOldSystemd)
	}
	return nil
}

// versionMark is the library of systemd's own that each program is linked with
// since 231, or what it prints as its version.
var versionMark = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`libsystemd-shared-([0-9]{3})|systemd ([0-9]{2,3})[^0-9.]`)
})

// systemdVersion returns 0 where the program does not say. Messages can name
// older versions, so that the newest counts.
func systemdVersion(program []byte) int {
	newest := 0
	for _, m := range versionMark().FindAllSubmatch(program, -1) {
		v, err := strconv.Atoi(string(bytes.Join(m[1:], nil)))
		if err == nil {
			newest = max(newest, v)
		}
	}
	return newest
}
