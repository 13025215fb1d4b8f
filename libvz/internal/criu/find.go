// Package criu is the checkpoint/restore engine: it speaks CRIU's RPC
// (criu.org/RPC) with a `criu swrk` process of its own for every operation,
// and turns what CRIU's log says into one error. It knows process ids,
// directories and mounts, and no containers.
//
// go-criu's message types are used, its client is not: that one keeps the pid
// of its process to itself (a journal needs it), cannot pass stdio or place
// the process into cgroups before it starts to work, and drops the file
// descriptors that come with a notification (the pty master of a restored
// terminal).
package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// MinVersion is the oldest CRIU that can dump a system container: 4.1.1 fails
// on the sockets of recent kernels, 3.x on their vDSO.
const MinVersion = 40200

var (
	// ErrNotFound says that no criu executable was found.
	ErrNotFound = errors.New("criu not found")
	// ErrTooOld says that the criu found is older than MinVersion.
	ErrTooOld = errors.New("criu is too old")
)

// Find returns the criu to use: explicit where it is not empty, else the one
// that was installed for vzrun (<prefix>/libexec/vzrun/criu, with the prefix
// of the running executable, which may lie in that directory itself, /usr/local and
// /usr), else the first in PATH.
// The error is ErrNotFound. The version is not looked at.
func Find(explicit string) (string, error) {
	if explicit != "" {
		path, err := exec.LookPath(explicit)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return path, nil
	}
	const below = "libexec/vzrun"
	dirs := []string{filepath.Join("/usr/local", below), filepath.Join("/usr", below)}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		if !strings.HasSuffix(dir, "/"+below) {
			dir = filepath.Join(filepath.Dir(dir), below)
		}
		dirs = append([]string{dir}, dirs...)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, "criu")
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath("criu")
	if err != nil {
		return "", ErrNotFound
	}
	return path, nil
}

// CheckVersion runs `path --version` and returns the version as a number,
// 4.2.1 as 40201. The error is ErrTooOld below MinVersion.
func CheckVersion(ctx context.Context, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	if v < MinVersion {
		return v, fmt.Errorf("%s is version %s, %s or newer is needed: %w", path, FormatVersion(v), FormatVersion(MinVersion), ErrTooOld)
	}
	return v, nil
}

var versionLine = pattern(`(?m)^Version: (\d+)\.(\d+)(?:\.(\d+))?`)

func parseVersion(out string) (int, error) {
	m := versionLine().FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no version in %q", strings.TrimSpace(out))
	}
	v := 0
	for _, part := range m[1:] {
		n := 0
		if part != "" {
			var err error
			if n, err = strconv.Atoi(part); err != nil || n > 99 {
				return 0, fmt.Errorf("strange version %q", m[0])
			}
		}
		v = v*100 + n
	}
	return v, nil
}

// FormatVersion writes a version number as people do: 40201 as 4.2.1.
func FormatVersion(v int) string { return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100) }

// ask has a criu process of its own answer one question.
func ask(ctx context.Context, path string, req *rpc.CriuReq) (resp *rpc.CriuResp, retErr error) {
	s, err := serve(path, [3]*os.File{})
	if err != nil {
		return nil, err
	}
	defer func() {
		// CRIU's answer says more than its exit status.
		if err := s.close(); err != nil && retErr == nil {
			retErr = fmt.Errorf("criu: %w", err)
		}
	}()
	return s.do(ctx, req, func(Stage) error { return nil })
}

// Feature is what this kernel and this CRIU can do beyond the necessary.
type Feature struct {
	MemTrack bool // tell which pages have changed, for pre-dumps
	Lazy     bool // bring memory when it is asked for
}

// Features asks CRIU.
func Features(ctx context.Context, path string) (Feature, error) {
	resp, err := ask(ctx, path, &rpc.CriuReq{
		Type:     rpc.CriuReqType_FEATURE_CHECK.Enum(),
		Features: &rpc.CriuFeatures{MemTrack: new(true), LazyPages: new(true)},
	})
	if err != nil {
		return Feature{}, fmt.Errorf("%s: check features: %w", path, err)
	}
	f := resp.GetFeatures()
	return Feature{MemTrack: f.GetMemTrack(), Lazy: f.GetLazyPages()}, nil
}

// Check asks CRIU whether this kernel has all that it cannot do without.
func Check(ctx context.Context, path string) error {
	if _, err := ask(ctx, path, &rpc.CriuReq{Type: rpc.CriuReqType_CHECK.Enum()}); err != nil {
		return fmt.Errorf("%s: check: %w", path, err)
	}
	return nil
}
