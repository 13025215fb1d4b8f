package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// setNetSysctls writes the net.* sysctls of a configuration in the network
// namespace of pid. /proc/sys/net shows the namespace of the thread that
// reads it (proc_sys_net(5)), so no file of the guest is involved.
func setNetSysctls(pid int, sysctls map[string]string) error {
	wanted := map[string]string{}
	for key, value := range sysctls {
		if strings.HasPrefix(key, "net.") {
			wanted[key] = value
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	return inNetworkOf(pid, func() error { return writeSysctls(wanted) })
}

// inNetworkOf runs fn, and what it starts, in the network namespace of pid.
func inNetworkOf(pid int, fn func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return inNetwork(ns, fn)
}

// inNetwork is inNetworkOf for a namespace that is open.
func inNetwork(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends in that namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// criuTable begins the name of the nftables table by which CRIU keeps packets
// from a guest that is being dumped.
const criuTable = "table inet CRIU-"

// unlockNetwork removes what a criu that was killed in the middle left in the
// network namespace of pid, so that the guest can be reached again. One that
// ended by itself has left nothing. Without nft there was no lock.
func unlockNetwork(pid int) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil
	}
	return inNetworkOf(pid, func() error {
		out, err := exec.Command(nft, "list", "tables").Output()
		if err != nil {
			return fmt.Errorf("list packet filter tables: %w", err)
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			// nft parses its arguments as one text and the guest's root
			// may name its tables as it likes: only what CRIU writes.
			id, found := strings.CutPrefix(line, criuTable)
			if !found || strings.Trim(id, "0123456789abcdef-") != "" {
				continue
			}
			args := append([]string{"delete"}, strings.Fields(line)...)
			if out, err := exec.Command(nft, args...).CombinedOutput(); err != nil {
				return fmt.Errorf("unlock network: nft %s: %w: %s", strings.Join(args, " "), err, out)
			}
		}
		return nil
	})
}

func writeSysctls(sysctls map[string]string) error {
	for key, value := range sysctls {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
		if !strings.HasPrefix(path, "/proc/sys/net/") {
			return fmt.Errorf("sysctl %q is not below net", key)
		}
		err := os.WriteFile(path, []byte(value), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return withHint("this kernel has it not: take it out of config.json", "sysctl %s: %w", key, ErrUnsupported)
		}
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	return nil
}

// isolateNetwork gives the calling thread, and so CRIU, an empty network
// namespace to make the host ends of the guest's links in; see vnet.Move.
func (r *revival) isolateNetwork() error {
	if len(r.links) == 0 {
		return nil
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		host.Close()
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	r.hostNet = host
	if err := vnet.LoopbackUp(); err != nil {
		return err
	}
	return vnet.SkipIndexes(r.links)
}

// linksComing is the way of the host ends of the guest's links to the host.
type linksComing struct {
	done chan struct{}
	err  error
}

// bringLinks begins to bring them, and to guard them, while CRIU, which has made
// them, goes on with the tasks: the kernel takes some 30 ms for that. They are down
// until attachLinks.
func (r *revival) bringLinks() error {
	if r.hostNet == nil || r.coming != nil {
		return nil
	}
	theirs, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	coming := &linksComing{done: make(chan struct{})}
	r.coming = coming
	go func() {
		defer close(coming.done)
		defer theirs.Close()
		coming.err = inNetwork(theirs, func() error { return vnet.Move(r.links, r.hostNet) })
		if coming.err == nil {
			coming.err = r.guardLinks()
		}
	}()
	return nil
}

// awaitLinks returns when they are there. Nobody needs to have sent for them.
func (r *revival) awaitLinks() error {
	if r.coming == nil {
		return nil
	}
	<-r.coming.done
	return r.coming.err
}

// linksGone returns when those that were brought are gone, after a restore that has failed
// and was undone: they end with the guest's namespace, some time after its last task.
func (r *revival) linksGone() {
	if r.coming == nil || r.coming.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := vnet.Gone(ctx, r.links); err != nil {
		r.host.warn(r.id, "%v", err)
	}
}

// attachLinks brings the host ends into the state they had.
func (r *revival) attachLinks() error {
	if r.hostNet == nil {
		return onHost(r.guardLinks)
	}
	if err := errors.Join(r.bringLinks(), r.awaitLinks()); err != nil {
		return err
	}
	return onHost(func() error {
		if err := vnet.Attach(r.links); err != nil {
			return withHint("make what is missing, or connect it elsewhere: --veth INNER=HOST[@BRIDGE]", "attach network links: %w", err)
		}
		return nil
	})
}

// guardLinks does again what is not in the images: filters and settings of the host's ends.
func (r *revival) guardLinks() error {
	nets, err := parseNets(r.spec.Annotations[annotationNet])
	if err != nil || len(nets) == 0 {
		return err
	}
	return r.host.guardNetwork(r.id, nets)
}

// onHost runs fn outside of the namespaces of the calling thread: a goroutine
// that is locked to its thread never shares it, nor lends it to new ones.
func onHost(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return <-done
}
