package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// cpuImage is the file that `criu cpuinfo` writes and reads.
const cpuImage = "cpuinfo.img"

// ErrOtherCPU says that a processor lacks what another one has.
var ErrOtherCPU = errors.New("the processor lacks features")

// CPU returns this machine's processor features for CheckCPU of another one. It
// is empty where CRIU knows none for the architecture.
func CPU(ctx context.Context, criu string) ([]byte, error) {
	if !hasCPUInfo() {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "vzrun-cpu-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if out, err := cpuinfo(ctx, criu, "dump", dir); err != nil {
		return nil, fmt.Errorf("criu cpuinfo: %w: %.200s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, cpuImage))
}

// CheckCPU returns ErrOtherCPU where a guest that ran on the machine whose CPU
// is given cannot go on with this machine's: it may use what is missing here.
func CheckCPU(ctx context.Context, criu string, cpu []byte) error {
	if len(cpu) == 0 || !hasCPUInfo() {
		return nil
	}
	dir, err := os.MkdirTemp("", "vzrun-cpu-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, cpuImage), cpu, 0o600); err != nil {
		return err
	}
	var exit *exec.ExitError
	if _, err := cpuinfo(ctx, criu, "check", dir); errors.As(err, &exit) {
		return ErrOtherCPU
	} else if err != nil {
		return fmt.Errorf("criu cpuinfo: %w", err)
	}
	return nil
}

func cpuinfo(ctx context.Context, criu, what, dir string) ([]byte, error) {
	return exec.CommandContext(ctx, criu, "cpuinfo", what, "--images-dir", dir).CombinedOutput()
}

// hasCPUInfo tells whether CRIU has code for it, criu(8).
func hasCPUInfo() bool { return runtime.GOARCH == "amd64" || runtime.GOARCH == "ppc64le" }
