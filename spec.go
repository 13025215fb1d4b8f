package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func specCommand() *cli.Command {
	return &cli.Command{
		Name:  "spec",
		Usage: "write a config.json to begin with",
		Flags: []cli.Flag{
			bundleFlag(),
			&cli.BoolFlag{Name: "rootless", Usage: "for an application, to be run without privileges"},
			&cli.BoolFlag{Name: "system", Usage: "for a whole operating system"},
			&cli.StringFlag{Name: "hostname", Usage: "with --system: the guest's `NAME`"},
			&cli.StringFlag{Name: "rootfs", Value: "rootfs", Usage: "with --system: root file system at `PATH`, relative to the bundle"},
			&cli.StringFlag{Name: "template", Usage: "with --system: share the root file system in `DIR`, and write beside it; several with ':', the uppermost first"},
			&cli.StringFlag{Name: "image", Usage: "with --system: the root file system in `FILE`, a file or block device with ext4, xfs or btrfs"},
			&cli.StringFlag{Name: "ram", Usage: "with --system: limit of memory, a `SIZE` such as 512M"},
			&cli.StringFlag{Name: "swap", Usage: "with --system: limit of swap, a `SIZE` such as 2G"},
			&cli.StringFlag{Name: "ids", Usage: "with --system: the host's ids, `FIRST[:SIZE]` (default: a range that nobody has)"},
			&cli.Float64Flag{Name: "cpus", Usage: "with --system: processor time, a `NUMBER` such as 1.5"},
			&cli.StringFlag{Name: "features", Usage: "with --system: allow the guest what stands in `LIST`: " + strings.Join(libvz.GuestFeatures(), ",")},
			&cli.StringFlag{Name: "machine-id", Usage: "with --system: the guest's `ID`: new, keep (the rootfs's own) or 32 hex digits (default: new)"},
			&cli.StringFlag{Name: "dns", Usage: "with --system: name `SERVERS` of the guest: none, host, or addresses and search=DOMAIN (default: none)"},
			&cli.StringFlag{Name: "hosts", Usage: "with --system: `ENTRIES` of /etc/hosts: none, or self, host and NAME=ADDRESS (default: none)"},
			&cli.StringFlag{Name: "lxcfs", Usage: "with --system: show the guest its limits: auto, no or the `PATH` of lxcfs (default: auto)"},
			&cli.StringSliceFlag{Name: "net", Usage: "with --system: a network interface, `SPEC` as for run; may be repeated"},
		},
		Action: writeSpec,
	}
}

func writeSpec(c *cli.Context) error {
	if err := checkArgs(c, 0, 0); err != nil {
		return err
	}
	// libvz takes the working directory for the bundle.
	if err := enterBundle(c.String("bundle")); err != nil {
		return err
	}
	spec, err := newSpec(c)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return err
	}
	return writeNewFile("config.json", append(data, '\n'))
}

func enterBundle(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.Chdir(dir); err != nil {
		return &libvz.Error{Op: "spec", Err: err, Hint: "the bundle must be an existing directory"}
	}
	return nil
}

func newSpec(c *cli.Context) (*specs.Spec, error) {
	if !c.Bool("system") {
		for _, name := range []string{
			"hostname", "rootfs", "template", "image", "ram", "swap", "ids", "cpus", "features",
			"machine-id", "dns", "hosts", "lxcfs", "net",
		} {
			if c.IsSet(name) {
				return nil, &usageError{msg: "spec: --" + name + " is for whole systems", hint: "add --system"}
			}
		}
		spec := appSpec(hasCgroup2())
		if c.Bool("rootless") {
			makeRootless(spec, os.Geteuid(), os.Getegid())
		}
		return spec, nil
	}
	if c.Bool("rootless") {
		return nil, &usageError{msg: "spec: --system and --rootless exclude each other"}
	}
	o, err := systemOptions(c)
	if err != nil {
		return nil, err
	}
	host, err := openHost(c)
	if err != nil {
		return nil, err
	}
	return host.SystemSpec(o)
}

func systemOptions(c *cli.Context) (libvz.SpecOptions, error) {
	o := libvz.SpecOptions{
		Hostname: c.String("hostname"), Rootfs: c.String("rootfs"), CPUs: c.Float64("cpus"),
		Template: c.String("template"), Image: c.String("image"), Features: c.String("features"),
		MachineID: c.String("machine-id"), DNS: c.String("dns"), Hosts: c.String("hosts"), Lxcfs: c.String("lxcfs"),
		Net: c.StringSlice("net"),
	}
	if o.Template != "" && o.Image != "" {
		return o, &usageError{msg: "spec: --template and --image exclude each other"}
	}
	for _, name := range []string{"template", "image"} {
		if c.IsSet(name) && c.String(name) == "" {
			return o, &usageError{msg: "spec: --" + name + " is empty"}
		}
	}
	var err error
	if o.RAM, err = parseSize("ram", c.String("ram")); err != nil {
		return o, err
	}
	if o.Swap, err = parseSize("swap", c.String("swap")); err != nil {
		return o, err
	}
	if o.IDBase, o.IDSize, err = parseIDs(c.String("ids")); err != nil {
		return o, err
	}
	if c.IsSet("cpus") && !(o.CPUs > 0) { // also no number at all
		return o, &usageError{msg: "spec: --cpus must be more than 0"}
	}
	return o, nil
}

// parseIDs understands FIRST and FIRST:SIZE.
func parseIDs(s string) (first, size uint32, err error) {
	if s == "" {
		return 0, 0, nil
	}
	head, tail, sized := strings.Cut(s, ":")
	n, err := strconv.ParseUint(head, 10, 32)
	var m uint64
	if err == nil && sized {
		m, err = strconv.ParseUint(tail, 10, 32)
	}
	if err != nil || n == 0 || sized && m == 0 {
		return 0, 0, &usageError{
			msg:  fmt.Sprintf("spec: --ids %q is no range", s),
			hint: "write the first id, or FIRST:SIZE such as 1048576:65536",
		}
	}
	return uint32(n), uint32(m), nil
}

// parseSize understands bytes and 512k, 512M, 2G, 1T, all of them powers of 1024.
func parseSize(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, &usageError{
			msg:  fmt.Sprintf("spec: --%s %q is no size", flag, s),
			hint: "write a number of bytes, or 512M or 2G",
		}
	}
	return n, nil
}

// writeNewFile never replaces a file: a config.json is somebody's work.
func writeNewFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return &libvz.Error{Op: "spec", Err: err, Hint: "remove it first, or name another --bundle"}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}
