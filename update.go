package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func updateCommand() *cli.Command {
	text := func(name, usage string) cli.Flag { return &cli.StringFlag{Name: name, Usage: usage} }
	obsolete := func(name string) cli.Flag { return &cli.StringFlag{Name: name, Hidden: true} }
	return &cli.Command{
		Name:      "update",
		Usage:     "change the limits of a container while it runs",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "take linux.resources of the OCI specification from `FILE`, - is stdin; other flags are then ignored"},
			&cli.IntFlag{Name: "blkio-weight", Usage: "share of block I/O, `10..1000`"},
			text("cpu-period", "period of the CPU limit in `MICROSECONDS`"),
			text("cpu-quota", "CPU time in each period in `MICROSECONDS`, -1 is unlimited"),
			text("cpu-burst", "unused CPU time that may be used up later, in `MICROSECONDS`"),
			text("cpu-share", "`SHARE` of CPU time beside other containers, 2..262144"),
			text("cpu-rt-period", "period of the realtime limit in `MICROSECONDS`"),
			text("cpu-rt-runtime", "realtime CPU time in each period in `MICROSECONDS`"),
			text("cpuset-cpus", "`CPUS` to run on, such as 0-2,7"),
			text("cpuset-mems", "memory `NODES` to use"),
			text("cpu-idle", "1: run only where the CPU is idle, `0`: as usual"),
			text("memory", "limit of memory in `BYTES` (1g, 512m); -1 is unlimited"),
			text("memory-reservation", "memory in `BYTES` that is left under pressure"),
			text("memory-swap", "limit of memory and swap together in `BYTES`; -1 is unlimited"),
			obsolete("kernel-memory"), obsolete("kernel-memory-tcp"),
			&cli.Int64Flag{Name: "pids-limit", Usage: "at most `N` processes; -1 is unlimited"},
			text("l3-cache-schema", "Intel RDT/CAT `SCHEMA`"),
			text("mem-bw-schema", "Intel RDT/MBA `SCHEMA`"),
		},
		Action: update,
	}
}

func update(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	resources, err := wantedResources(c)
	if err != nil {
		return err
	}
	return ct.Update(c.Context, libvz.Update{
		Resources:     *resources,
		L3CacheSchema: c.String("l3-cache-schema"),
		MemBwSchema:   c.String("mem-bw-schema"),
	})
}

func wantedResources(c *cli.Context) (*specs.LinuxResources, error) {
	switch file := c.String("resources"); file {
	case "":
		return resourceFlags(c)
	case "-":
		return readResources(os.Stdin)
	default:
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readResources(f)
	}
}

// maxResources bounds what is read: nobody has that many devices to limit.
const maxResources = 1 << 20

func readResources(in io.Reader) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if err := json.NewDecoder(io.LimitReader(in, maxResources)).Decode(r); err != nil {
		return nil, &libvz.Error{Op: "update", Err: fmt.Errorf("resources: %w", err), Hint: "they are what linux.resources of config.json is"}
	}
	warnKernelMemory(r.Memory)
	return r, nil
}

func resourceFlags(c *cli.Context) (*specs.LinuxResources, error) {
	memory, cpu := &specs.LinuxMemory{}, &specs.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	r := &specs.LinuxResources{Memory: memory, CPU: cpu}
	err := firstError(
		number(c, "cpu-period", &cpu.Period, parseUint),
		number(c, "cpu-quota", &cpu.Quota, parseInt),
		number(c, "cpu-burst", &cpu.Burst, parseUint),
		number(c, "cpu-share", &cpu.Shares, parseUint),
		number(c, "cpu-rt-period", &cpu.RealtimePeriod, parseUint),
		number(c, "cpu-rt-runtime", &cpu.RealtimeRuntime, parseInt),
		number(c, "cpu-idle", &cpu.Idle, parseInt),
		number(c, "memory", &memory.Limit, parseBytes),
		number(c, "memory-reservation", &memory.Reservation, parseBytes),
		number(c, "memory-swap", &memory.Swap, parseBytes),
		number(c, "kernel-memory", &memory.Kernel, parseBytes), //nolint:staticcheck // taken so that it can be refused
		number(c, "kernel-memory-tcp", &memory.KernelTCP, parseBytes),
	)
	if err != nil {
		return nil, err
	}
	warnKernelMemory(memory)
	if weight := c.Int("blkio-weight"); weight != 0 {
		if weight < 10 || weight > 1000 {
			return nil, &usageError{msg: fmt.Sprintf("update: --blkio-weight %d is not in 10..1000", weight)}
		}
		w := uint16(weight)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	if c.IsSet("pids-limit") {
		limit := c.Int64("pids-limit")
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return r, nil
}

// warnKernelMemory says what no kernel does any more (since Linux 5.16).
func warnKernelMemory(m *specs.LinuxMemory) {
	if m != nil && (m.Kernel != nil || m.KernelTCP != nil) { //nolint:staticcheck // see the function's comment
		logrus.Warn("kernel memory settings are ignored: kernels have no such limit any more")
	}
}

// number parses the flag into to; a flag that is not given leaves it nil.
func number[T int64 | uint64](c *cli.Context, name string, to **T, parse func(string) (T, error)) error {
	text := c.String(name)
	if text == "" {
		return nil
	}
	n, err := parse(text)
	if err != nil {
		return &usageError{msg: fmt.Sprintf("update: invalid value for %s: %q", name, text)}
	}
	*to = &n
	return nil
}

func parseInt(s string) (int64, error)   { return strconv.ParseInt(s, 10, 64) }
func parseUint(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(s)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
