package libvz

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// nameHost sets the host name in the UTS namespace of pid; "" leaves it.
func nameHost(pid int, name string) error {
	if name == "" {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/uts", pid))
	if err != nil {
		return fmt.Errorf("open UTS namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends in the guest's namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWUTS); err != nil {
			done <- fmt.Errorf("enter UTS namespace: %w", err)
			return
		}
		done <- os.NewSyscallError("sethostname", unix.Sethostname([]byte(name)))
	}()
	return <-done
}

// maxScan bounds what is read of a stopped task's stack and heap.
const maxScan = 64 << 20

// replaceInMemory writes one text over another that is as long, wherever it is
// on the stack, where a task has its environment and arguments, and the heap of
// a task, which must not run.
func replaceInMemory(pid int, was, is string) error {
	if len(was) != len(is) || was == "" {
		return fmt.Errorf("%q is not as long as %q", is, was)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	defer maps.Close()
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	for sc := bufio.NewScanner(maps); sc.Scan(); {
		line := sc.Text()
		if !strings.HasSuffix(line, "[stack]") && !strings.HasSuffix(line, "[heap]") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("maps of %d: %w", pid, err)
		}
		if to-from > maxScan {
			from = to - maxScan
		}
		data := make([]byte, to-from)
		if _, err := mem.ReadAt(data, from); err != nil {
			return fmt.Errorf("memory of %d: %w", pid, err)
		}
		for at := 0; ; {
			i := bytes.Index(data[at:], []byte(was))
			if i < 0 {
				break
			}
			at += i
			if _, err := mem.WriteAt([]byte(is), from+int64(at)); err != nil {
				return fmt.Errorf("memory of %d: %w", pid, err)
			}
			at += len(was)
		}
	}
	return nil
}

// identifyRoot writes the clone's names into its root, which stands at its place
// with un-mapped owners: above the frozen layers, so that these stay as they are.
func (r *revival) identifyRoot() error {
	cl := r.clone
	o := guest.RootIdentity{Hostname: r.spec.Hostname, WasHostname: cl.oldName, MachineID: cl.machineID}
	o.Etc, _ = cl.dns.Files()
	if err := guest.IdentifyRoot(r.root.place, o); err != nil {
		return fmt.Errorf("names in the clone's root: %w", err)
	}
	return nil
}

// cloneImages are the images that are the clone's own, by name: the ids of its
// user namespace.
func (r *revival) cloneImages() (map[string][]byte, error) {
	uids, gids := r.spec.Linux.UIDMappings, r.spec.Linux.GIDMappings
	if len(uids) == 0 {
		return nil, nil
	}
	return criu.MapIDs(r.images, idMaps(uids), idMaps(gids))
}

func idMaps(mappings []specs.LinuxIDMapping) []criu.IDMap {
	out := make([]criu.IDMap, 0, len(mappings))
	for _, m := range mappings {
		out = append(out, criu.IDMap{Inner: m.ContainerID, Outer: m.HostID, Size: m.Size})
	}
	return out
}

// renewTime bounds how long a guest's init takes to be asked.
const renewTime = 10 * time.Second

// renew has the guest make anew what must be unique, by its own init where that
// can be asked, and tells whether it was. It does not wait for the result, which the
// guest finds in /run/vzrun. A clone that is not asked runs all the same: it is worth
// a warning.
func (cl *cloning) renew(ctx context.Context, c *Container, pid int) bool {
	err := renewGuest(ctx, c, pid)
	if err != nil {
		c.host.warn(c.id, "what must be unique was not made anew in the guest, `sh /run/%s` there does it: %v", guest.RenewScript, err)
	}
	return err == nil
}

// renewInterrupted does that for a clone whose vzrun died after the commit.
func (h *Host) renewInterrupted(ctx context.Context, id string) {
	lc, err := libcontainer.Load(h.opts.Root, id)
	if err != nil {
		return // it has ended
	}
	c := &Container{host: h, id: id, lc: lc}
	if pid, err := c.initPid(); err == nil {
		(&cloning{}).renew(ctx, c, pid)
	}
}

// renewGuest gives up after renewTime, however little the guest lets it do.
func renewGuest(ctx context.Context, c *Container, pid int) error {
	init := guest.Init(c.guestInit())
	if init == "" {
		return nil
	}
	config := c.lc.Config()
	uid, gid, err := rootIDs(&config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	if init != guest.Systemd {
		return renewByShell(ctx, c)
	}
	// Files of the guest can hold up whoever opens them.
	return errorWithin(ctx, func() error { return guest.StartUnit(ctx, pid, uint32(uid), uint32(gid), guest.RenewUnit) })
}

func renewByShell(ctx context.Context, c *Container) error {
	p, err := c.loginProcess()
	if err != nil {
		return err
	}
	// It goes on by itself; nobody is to wait for keys to be made.
	p.Terminal, p.Args = false, []string{"/bin/sh", "-c", "sh /run/" + guest.RenewScript + " </dev/null >/run/vzrun/renew.log 2>&1 &"}
	hook, err := c.execWithin(ctx, ExecOptions{Process: p})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { hook.Signal(unix.SIGKILL) }) //nolint:errcheck // it may have ended
	return errorWithin(ctx, func() error {
		defer stop()
		code, err := hook.Wait()
		if err == nil && code != 0 {
			err = fmt.Errorf("sh: exit code %d", code)
		}
		return err
	})
}

// checkMerging refuses what the kernel cannot do, and says where it does nothing.
func (h *Host) checkMerging(id string) error {
	run, err := os.ReadFile("/sys/kernel/mm/ksm/run")
	if err != nil {
		return withHint("use a kernel with CONFIG_KSM, 6.7 or newer, or leave out --share-memory", "%w: memory of containers is not merged by this kernel: %w", ErrUnsupported, err)
	}
	if strings.TrimSpace(string(run)) != "1" {
		h.warn(id, "the kernel merges no memory as long as /sys/kernel/mm/ksm/run is not 1")
	}
	return nil
}

// ownsNamespace tells whether a container has a namespace that is not somebody
// else's.
func ownsNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind && ns.Path == "" })
}
