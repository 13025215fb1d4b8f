package libvz

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// recordNetwork puts the network that a container really has, "" for none, into
// a configuration.
func recordNetwork(spec *specs.Spec, text string) {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	if delete(spec.Annotations, annotationNet); text != "" {
		spec.Annotations[annotationNet] = text
	}
}

// savedNetwork is the network of a container for its images: a CNI network with
// the addresses that it gave.
func (h *Host) savedNetwork(id, text string) (string, error) {
	nets, err := parseNets(text)
	if err != nil {
		return "", err
	}
	attachments := h.attachments(id, nets)
	for i := range nets {
		if nets[i].Kind != vnet.KindCNI {
			continue
		}
		if nets[i].IPs, err = attachments[0].Addresses(); err != nil {
			return "", fmt.Errorf("CNI network %s: %w", nets[i].Master, err)
		}
		attachments = attachments[1:]
	}
	return vnet.FormatNets(nets), nil
}

// placeNetwork decides what of the network that vzrun made for a container
// comes back in a restore: what the images hold counts, not config.json.
func placeNetwork(spec, saved *specs.Spec, were, placed []vnet.Link) error {
	nets, err := parseNets(saved.Annotations[annotationNet])
	if err != nil {
		return err
	}
	text := vnet.FormatNets(vnet.Follow(nets, were, placed))
	recordNetwork(spec, text)
	return nil
}

// announceNetwork tells the neighbours of the addresses that vzrun made. The guest
// does not run yet.
func (r *revival) announceNetwork(pid int) error {
	if r.consent != nil {
		return nil // it may have to stay where it was, see reception.consent
	}
	nets, err := parseNets(r.spec.Annotations[annotationNet])
	if err != nil || len(nets) == 0 {
		return err
	}
	// Neighbours learn it sooner or later in any case.
	if err := inNetworkOf(pid, func() error { return vnet.Announce(nets) }); err != nil {
		r.host.warn(r.id, "%v", err)
	}
	return nil
}

// reserveNetwork asks CNI networks for the addresses that are in the images,
// and for all else that their plugins do on the host. The links come from the
// images, so what plugins make goes into a namespace that ends at once.
func (r *revival) reserveNetwork(ctx context.Context) error {
	nets, err := parseNets(r.spec.Annotations[annotationNet])
	if err != nil {
		return err
	}
	attachments := r.host.attachments(r.id, nets)
	if len(attachments) == 0 {
		return nil
	}
	ns, err := scratchNetwork()
	if err != nil {
		return err
	}
	defer ns.Close()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	return onHost(func() error {
		for _, a := range attachments {
			if err := a.Add(ctx, path); err != nil {
				return fmt.Errorf("network: %w", explainNet(err))
			}
		}
		return nil
	})
}

// scratchNetwork returns a new network namespace, which ends with the file.
func scratchNetwork() (*os.File, error) {
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends here.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("unshare network namespace: %w", err)}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		made <- result{ns, err}
	}()
	r := <-made
	return r.ns, r.err
}
