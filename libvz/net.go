package libvz

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/cninet"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// annotationNet lists the network interfaces that vzrun makes for a container,
// separated by semicolons. Without it the network is somebody else's affair.
const annotationNet = "org.vzrun.net"

const netHint = "write bridge=NAME,ip=ADDRESS/LENGTH,gw=ADDRESS, or routed,ip=ADDRESS, or cni=NAME; several are separated by semicolons in config.json"

// noNet in place of interfaces takes away those of config.json.
const noNet = "none"

// JoinNets makes the value of the annotation of what --net gives, once for
// each interface. It returns an error that says what is wrong with one.
func JoinNets(nets []string) (string, error) {
	if slices.Equal(nets, []string{noNet}) {
		return "", nil
	}
	text := strings.Join(nets, ";")
	_, err := parseNets(text)
	return text, err
}

func parseNets(text string) ([]vnet.Net, error) {
	nets, err := vnet.ParseNets(text)
	if err != nil {
		return nil, withHint(netHint, "%w", err)
	}
	return nets, nil
}

// planNetwork completes the annotation, so that from here on it says what the
// container has: flags win over config.json.
func (h *Host) planNetwork(id string, spec *specs.Spec, flags []string) error {
	text := spec.Annotations[annotationNet]
	if len(flags) > 0 {
		var err error
		if text, err = JoinNets(flags); err != nil {
			return err
		}
	}
	nets, err := parseNets(text)
	if err != nil {
		return err
	}
	if len(nets) == 0 {
		delete(spec.Annotations, annotationNet)
		return nil
	}
	if err := needRoot(); err != nil {
		return err
	}
	own := slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace && ns.Path == ""
	})
	if !own {
		return withHint("leave the interfaces to whoever made the namespace, or have one of type network without a path in config.json",
			"annotation %s: the container has no network namespace of its own", annotationNet)
	}
	if err := checkDNS(spec, nets); err != nil {
		return err
	}
	nets, err = vnet.Complete(nets, id, h.macSeed(spec))
	if err != nil {
		return withHint(netHint, "%w", err)
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[annotationNet] = vnet.FormatNets(nets)
	return nil
}

// macSeed is what MACs are made from, beside the id.
func (h *Host) macSeed(spec *specs.Spec) string {
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		machine = nil // the state directory and the id still differ
	}
	return string(machine) + h.opts.Root + containerUUID(spec)
}

// setUpNetwork makes the interfaces of a container whose init waits to be
// started.
func (n *nascent) setUpNetwork(ctx context.Context) error {
	nets, err := parseNets(n.spec.Annotations[annotationNet])
	if err != nil || len(nets) == 0 {
		return err
	}
	st, err := n.lc.State()
	if err != nil {
		return err
	}
	pid := st.InitProcessPid
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	if err := buildLinks(ctx, nets, ns); err != nil {
		return fmt.Errorf("network: %w", explainNet(err))
	}
	if err := n.asked.Answer(ctx); errors.Is(err, vnet.ErrAddressInUse) {
		return withHint("choose another ip=, or give that machine another address", "network: %w", err)
	} else if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := n.host.guardNetwork(n.id, nets); err != nil {
		return err
	}
	for _, a := range n.host.attachments(n.id, nets) {
		if err := a.Add(ctx, fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return fmt.Errorf("network: %w", explainNet(err))
		}
	}
	err = inNetworkOf(pid, func() error {
		if err := vnet.ConfigureInside(nets); err != nil {
			return err
		}
		return vnet.Announce(nets)
	})
	if err != nil {
		return fmt.Errorf("network: %w", explainNet(err))
	}
	return nil
}

// askNeighbours begins to ask them for the container's addresses, so that the
// time that they have for an answer is that in which the container is made. A
// restored container is not asked for: where it came from may still answer.
func (n *nascent) askNeighbours() {
	nets, err := parseNets(n.spec.Annotations[annotationNet])
	if err != nil || len(nets) == 0 {
		return
	}
	if n.asked, err = vnet.Ask(nets); err != nil {
		n.host.warn(n.id, "the neighbours are not asked whether they use the container's addresses: %v", err)
		n.asked.Close()
	}
}

// dyingLinks is how long a link of a container that has just ended may still
// have its name.
const dyingLinks = 3 * time.Second

func buildLinks(ctx context.Context, nets []vnet.Net, ns *os.File) error {
	if links := hostEnds(nets); vnet.Conflicts(links) != nil {
		ctx, cancel := context.WithTimeout(ctx, dyingLinks)
		defer cancel()
		// If it stays, Build says so.
		vnet.Gone(ctx, links) //nolint:errcheck // see above
	}
	return vnet.Build(nets, ns)
}

func hostEnds(nets []vnet.Net) []vnet.Link {
	var links []vnet.Link
	for _, n := range nets {
		if n.Kind != vnet.KindCNI {
			links = append(links, vnet.Link{Inner: n.Name, Host: n.Host})
		}
	}
	return links
}

func explainNet(err error) error {
	for _, known := range []struct {
		err  error
		hint string
	}{
		{vnet.ErrNoLink, "ip link add NAME type bridge && ip link set NAME up makes a bridge"},
		{vnet.ErrNotBridge, "name a bridge of the kernel; ip link show type bridge lists them"},
		{vnet.ErrNameTaken, "choose another name with host= (the host's end) or name= (the container's)"},
		{vnet.ErrAddressInUse, "choose another ip=; ip addr and ip route show who has it"},
		{cninet.ErrNoNetwork, "put its description there, or name another folder in NETCONFPATH"},
		{cninet.ErrPlugin, "see what its plugins and their description want; CNI_PATH names the folders of plugins"},
		{cninet.ErrNotGiven, "choose what is free there, or leave it to the network: without ip= and mac="},
		{vnet.ErrNoFilter, "take a kernel with CONFIG_NF_TABLES_NETDEV, or trust the guest: filter=off"},
	} {
		if errors.Is(err, known.err) {
			return withHint(known.hint, "%w", err)
		}
	}
	return err
}

// guardNetwork installs what keeps the guest to its own addresses, and tells
// where the host does not forward what a routed guest sends.
func (h *Host) guardNetwork(id string, nets []vnet.Net) error {
	if err := vnet.Guard(h.netTable(id), nets); err != nil {
		return fmt.Errorf("network: %w", explainNet(err))
	}
	for _, sysctl := range vnet.MissingForwarding(nets) {
		h.warn(id, "the host does not forward for the container: sysctl -w %s=1", sysctl)
	}
	return nil
}

// netTable names the packet filter tables of a container. Ids are unique in
// one state directory only.
func (h *Host) netTable(id string) string {
	sum := sha256.Sum256([]byte(h.opts.Root + "\x00" + id))
	return "vzrun-" + id + "-" + hex.EncodeToString(sum[:4])
}

// takeDownNetwork removes what does not end with the container's network
// namespace. It is idempotent.
func (h *Host) takeDownNetwork(ctx context.Context, id, text string) error {
	nets, err := vnet.ParseNets(text)
	if err != nil {
		return fmt.Errorf("take down network: %w", err)
	}
	if len(nets) == 0 {
		return nil
	}
	if err := vnet.Unguard(h.netTable(id)); err != nil {
		return fmt.Errorf("take down network: %w", err)
	}
	attachments := h.attachments(id, nets)
	slices.Reverse(attachments)
	for _, a := range attachments {
		err := a.Del(ctx)
		if errors.Is(err, cninet.ErrNeverAdded) {
			h.warn(id, "%v", err)
		} else if err != nil {
			return withHint("once its plugins are there (CNI_PATH) and work, the next vzrun that meets the container tries again", "%w", err)
		}
	}
	return nil
}

// attachments are the CNI networks of a container. What plugins are to know of
// them later lies with the container's state.
func (h *Host) attachments(id string, nets []vnet.Net) []cninet.Attachment {
	var out []cninet.Attachment
	for _, n := range nets {
		if n.Kind == vnet.KindCNI {
			out = append(out, cninet.Attachment{
				// CNI's ids have no plus and begin with a letter or digit.
				Network: n.Master, ContainerID: strings.ReplaceAll(h.netTable(id), "+", "_"),
				IfName: n.Name, IPs: n.IPs, MAC: n.MAC.String(), CacheDir: filepath.Join(h.opts.Root, id, "cni"),
			})
		}
	}
	return out
}

// netsOf returns the completed annotation of a container.
func netsOf(lc *libcontainer.Container) string {
	_, all := utils.Annotations(lc.Config().Labels)
	return all[annotationNet]
}

// refuseAddresses looks for the addresses of a container that is being made
// among those of the host's others. Its own are in its journal by now, so of
// two that are made at a time at least one finds the other.
func (h *Host) refuseAddresses(id, text string) error {
	mine, err := parseNets(text)
	if err != nil || len(mine) == 0 {
		return err
	}
	used, err := h.usedNets(id)
	if err != nil {
		return err
	}
	for other, text := range used {
		theirs, err := vnet.ParseNets(text)
		if err != nil {
			continue // written by another version
		}
		if ip, clash := vnet.Clash(mine, theirs); clash {
			return withHint("choose another ip=, or stop that container", "network: %w: %s, by container %s", vnet.ErrAddressInUse, ip, other)
		}
	}
	return nil
}

// usedNets returns the annotations of the containers that are alive or being
// made, but for one.
func (h *Host) usedNets(id string) (map[string]string, error) {
	used := make(map[string]string)
	begun, err := h.store.Begun()
	if err != nil {
		return nil, err
	}
	for _, r := range begun {
		making := r.Operation.Name == "create" || r.Operation.Name == "restore" || r.Operation.Name == opReceive
		if r.ID == id || !making || r.Operation.Net == "" {
			continue
		}
		// One whose process died on the way is nothing any more.
		if err := h.heal(r.ID); err != nil {
			used[r.ID] = r.Operation.Net
		}
	}
	entries, err := os.ReadDir(h.opts.Root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == id || CheckID(e.Name()) != nil {
			continue
		}
		lc, err := libcontainer.Load(h.opts.Root, e.Name())
		if err != nil {
			continue // not one, or gone meanwhile
		}
		if text := netsOf(lc); text != "" {
			if st, err := lc.Status(); err == nil && st != libcontainer.Stopped {
				used[e.Name()] = text
			}
		}
	}
	return used, nil
}
