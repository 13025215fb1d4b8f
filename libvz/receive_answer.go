//go:build !lean

package libvz

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// answer looks at everything that could be in the way, tells the source, and,
// unless it only asked or something is, begins: then r.entry holds the id.
func (r *reception) answer(ctx context.Context) error {
	o := r.offer
	var err error
	if r.record, err = recordOf(r.o.Bundles, o.Token); err != nil {
		return err
	}
	if err := CheckID(o.NewID); err != nil {
		return err
	}
	if o.NewID == recordsFolder {
		return fmt.Errorf("%w: %q", ErrInvalidID, o.NewID)
	}
	if o.Mode != ModeCold && !isLazy(o.Mode) && !hasRounds(o.Mode) {
		return withHint(sameVersion, "mode %.32q: %w", o.Mode, ErrUnsupported)
	}
	if o.LinkTimeout < 0 || o.LinkTimeout > maxLinkTimeout.Seconds() {
		return fmt.Errorf("%w: link timeout", wire.ErrProtocol)
	}
	r.bundle = filepath.Join(r.o.Bundles, o.NewID)
	if o.Shared {
		if !filepath.IsAbs(o.Bundle) {
			return fmt.Errorf("%w: bundle %.200q", ErrRefused, o.Bundle)
		}
		r.bundle = filepath.Clean(o.Bundle)
	}
	config, spec, err := r.configHere()
	if err != nil {
		return err
	}
	checks, err := r.inspect(ctx, spec)
	if err != nil {
		return err
	}
	good := !slices.ContainsFunc(checks, func(c Check) bool { return !c.OK })
	if good && !o.DryRun {
		if err := r.begin(config); err != nil {
			return err
		}
	}
	a := answer{Checks: checks, Missing: r.missing}
	if good {
		a.Compress = o.Compress
		if err := r.session.SetShape(wire.Shape{Compression: o.Compress}); err != nil {
			return err
		}
	}
	if err := r.control.Send(wire.Answer, a); err != nil {
		if r.entry != nil {
			return r.fail(err)
		}
		return err
	}
	return nil
}

// configHere returns the configuration as it is here.
func (r *reception) configHere() ([]byte, *specs.Spec, error) {
	o := r.offer
	spec, err := decodeSpec(o.Config)
	if err == nil {
		err = checkSpec(spec)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	r.cgroup = receivedCgroup(spec.Linux.CgroupsPath, r.o.CgroupParent, o.NewID, r.host.opts.SystemdCgroup)
	layers, err := r.placeLayers(spec)
	if err != nil {
		return nil, nil, err
	}
	config, err := rewriteConfig(o.Config, o.Shared, r.cgroup, layers)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: config.json: %w", wire.ErrProtocol, err)
	}
	spec, err = decodeSpec(config)
	return config, spec, err
}

// receivedCgroup decides where a container goes that was at was on another host; ""
// is the same place. With the driver of systemd places are written SLICE:PREFIX:NAME
// (config-linux.md of the runtime specification), and the source may have the other
// driver.
func receivedCgroup(was, parent, id string, systemd bool) string {
	const parts = 2 // colons
	unit := strings.Count(was, ":") == parts
	switch {
	case parent != "" && systemd:
		return parent + ":vzrun:" + id
	case parent != "":
		return path.Join("/", parent, id)
	case was != "" && systemd && !unit:
		return "machine.slice:vzrun:" + id
	case unit && !systemd:
		return "/" + id
	}
	return ""
}

// begin takes the id and makes the bundle.
func (r *reception) begin(config []byte) (err error) {
	if r.entry, err = r.host.claim(r.offer.NewID); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if r.entry.Operation != nil {
			err = errors.Join(err, r.host.undo(r.entry), r.record.remove())
		}
		r.entry.Close()
		r.entry = nil
	}()
	if err := os.MkdirAll(r.o.Bundles, 0o700); err != nil {
		return err
	}
	if err := r.record.write(&migrationRecord{Token: r.offer.Token, ID: r.offer.NewID, State: recordOpen}); err != nil {
		return err
	}
	// With its network from here on: nobody else is to take its addresses as it comes.
	if err := r.entry.Begin(store.Operation{Name: opReceive, Net: r.offer.Net, Migration: &store.Migration{
		Token: r.offer.Token, Bundle: r.bundle, Record: string(r.record), Shared: r.offer.Shared,
	}}); err != nil {
		return err
	}
	if !r.offer.Shared {
		if err := r.makeBundle(config); err != nil {
			return err
		}
	}
	return newImageDir(filepath.Join(r.bundle, arrivalFolder))
}

// inspect compares what the container needs with what is here.
func (r *reception) inspect(ctx context.Context, spec *specs.Spec) ([]Check, error) {
	o, h := r.offer, r.host
	checks := []Check{{What: "architecture", Here: o.Arch, There: runtime.GOARCH, OK: o.Arch == runtime.GOARCH}}
	add := func(what, here, there string, ok bool, hint string) {
		if ok {
			hint = ""
		}
		checks = append(checks, Check{What: what, Here: here, There: there, OK: ok, Hint: hint})
	}
	add("kernel", o.Kernel, kernelRelease(), true, "")
	known, err := h.findCriu(ctx)
	if err != nil {
		add("CRIU", criu.FormatVersion(o.Criu), oneLine(err.Error()), false, "install CRIU 4.2 or newer there (contrib/bootstrap --runtime does)")
	} else {
		add("CRIU", criu.FormatVersion(o.Criu), criu.FormatVersion(known.Version), known.Version >= o.Criu, "install the same CRIU there, or a newer one")
		err = criu.CheckCPU(ctx, known.Path, o.CPU)
		if err != nil && !errors.Is(err, criu.ErrOtherCPU) {
			return nil, err
		}
		add("processor", "its features", map[bool]string{true: "all of them", false: "not all of them"}[err == nil], err == nil,
			"move it to a host with the same processor or a newer one of its kind")
	}
	if isLazy(o.Mode) {
		err := unsupported(criu.CheckLazyRestore(len(spec.Linux.UIDMappings) > 0))
		there := "supported"
		if err != nil {
			there = oneLine(err.Error())
		}
		add("lazy pages", "needed", there, err == nil, orCold(err))
	}
	if o.Compress != "" {
		knows := wire.Compresses(o.Compress)
		add("compression", o.Compress, map[bool]string{true: "known", false: "not known"}[knows], knows, "leave out --compress, or "+sameVersion)
	}
	if !o.Shared {
		_, err = exec.LookPath("rsync")
		add("rsync", "needed", map[bool]string{true: "found", false: "missing"}[err == nil], err == nil, "install rsync there, or use --shared-storage")
	}
	if err := r.inspectSpace(add); err != nil {
		return nil, err
	}
	r.inspectLayers(add)
	r.inspectNames(spec, add)
	return checks, r.inspectIDs(spec, add)
}

type adder func(what, here, there string, ok bool, hint string)

// inspectSpace compares memory and disk.
func (r *reception) inspectSpace(add adder) error {
	memory, err := availableMemory()
	if err != nil {
		return err
	}
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	add("memory", size(r.offer.Memory), size(memory)+" available", memory >= r.offer.Memory, "free memory there, or move it elsewhere")
	disk, err := freeDisk(r.bundle)
	if err != nil {
		return err
	}
	// The images are on the disk for a moment, with all of the memory.
	need := r.offer.Disk + r.offer.Memory
	if hasRounds(r.offer.Mode) {
		need = r.offer.Disk + roundsRoom*r.offer.Memory
	}
	for _, n := range r.missing {
		need += r.offer.Layers[n].Disk
	}
	add("disk", size(need), size(disk)+" free", disk >= need, "free space below "+r.o.Bundles+" there, or name another directory with receive --bundles")
	return nil
}

// availableMemory reads MemAvailable of /proc/meminfo, proc(5).
func availableMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		fields := strings.Fields(in.Text())
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.Join(in.Err(), fmt.Errorf("no MemAvailable in /proc/meminfo"))
}

// inspectNames looks for what has the container's names here already, and for
// what it names and is not here.
func (r *reception) inspectNames(spec *specs.Spec, add adder) {
	h, o := r.host, r.offer
	said := func(err error, good string) string {
		if err == nil {
			return good
		}
		return oneLine(err.Error())
	}
	err := h.free(o.NewID)
	add("name", o.NewID, said(err, "free"), err == nil, "choose another with --new-id, or delete that container there")
	if _, lstat := os.Lstat(r.bundle); !o.Shared {
		free := errors.Is(lstat, fs.ErrNotExist)
		add("bundle", "new", map[bool]string{true: r.bundle, false: r.bundle + " exists"}[free], free, "choose another name with --new-id, or remove that bundle there")
	} else {
		_, err := os.Stat(filepath.Join(r.bundle, "config.json"))
		add("bundle", r.bundle, said(err, "found"), err == nil, "mount the storage at the same path there, or leave out --shared-storage")
	}
	links, err := placeLinks(o.Links, o.Veth)
	if err == nil {
		err = missingMasters(links)
	}
	add("interfaces", linkNames(o.Links), said(err, hostNames(links)), err == nil, "make the bridge there, or connect it elsewhere: --net INNER=HOST[@BRIDGE]")
	if o.Net != "" {
		err := h.refuseAddresses(o.NewID, o.Net)
		add("addresses", o.Net, said(err, "free"), err == nil, "stop the container that has the address there")
	}
	for _, m := range spec.Mounts {
		bind := slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if !bind || within(m.Source, o.Bundle) || m.Destination == notifyPlace {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			add("mount "+m.Destination, m.Source, said(err, ""), false, "make it there: the container has it mounted")
		}
	}
}

func hostNames(links []vnet.Link) string {
	var names []string
	for _, l := range links {
		if l.Elsewhere {
			continue
		}
		name := l.Host
		if l.Master != "" {
			name += "@" + l.Master
		}
		names = append(names, name)
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}

// missingMasters names a bridge that a host end is to be attached to and that is
// not here.
func missingMasters(links []vnet.Link) error {
	for _, l := range links {
		if l.Elsewhere || l.Master == "" {
			continue
		}
		if _, err := net.InterfaceByName(l.Master); err != nil {
			return fmt.Errorf("%w: %s, for %s", vnet.ErrNoLink, l.Master, l.Inner)
		}
	}
	return nil
}

// free looks whether an id is nobody's, and leaves nothing.
func (h *Host) free(id string) error {
	e, err := h.claim(id)
	if err != nil {
		return err
	}
	defer e.Close()
	return e.Forget()
}

// inspectIDs looks who else has the container's ids here.
func (r *reception) inspectIDs(spec *specs.Spec, add adder) error {
	spans := mappedSpans(spec.Linux.UIDMappings, spec.Linux.GIDMappings)
	spans = slices.DeleteFunc(spans, func(s idSpan) bool { return s.first == 0 })
	if len(spans) == 0 {
		return nil
	}
	shared, err := wantsSharedIDs(spec.Annotations)
	if err != nil {
		return err
	}
	record, err := r.host.lockIDs()
	if err != nil {
		return err
	}
	defer record.Close()
	other, err := r.host.otherHolder(record.Claims, realPath(r.bundle), r.offer.NewID, spans)
	if err != nil {
		return err
	}
	there := "free"
	if other != "" {
		there = "those of container " + other + ", too"
	}
	add("ids", spans[0].String(), there, other == "" || shared, "stop that container there, or allow it with the annotation "+annotationIDs+"=shared")
	return nil
}
