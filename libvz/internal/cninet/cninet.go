// Package cninet connects containers to networks that the host's administrator
// has described for CNI plugins (cni.dev, SPEC.md): where the descriptions and
// plugins are, what is asked of them, and what is kept between ADD and DEL.
package cninet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

var (
	// ErrNoNetwork says that no description has the network's name.
	ErrNoNetwork = errors.New("no such CNI network")
	// ErrPlugin says that a plugin could not be run, or refused.
	ErrPlugin = errors.New("CNI plugin failed")
	// ErrNeverAdded says that a network could not be left that Add has not
	// reported as joined. There may be nothing to take away, and nobody knows.
	ErrNeverAdded = errors.New("cannot take back what CNI plugins may have begun")
	// ErrNotGiven says that the network gave other addresses than those asked
	// for: its IPAM plugin takes no wishes.
	ErrNotGiven = errors.New("the CNI network does not give what is asked for")
)

// Attachment is one interface of a container on one network.
type Attachment struct {
	// Network is its name, ContainerID what plugins call the container; it
	// must be the only one of the host.
	Network, ContainerID string
	// IfName is the interface in the container.
	IfName string
	// IPs and MAC are wishes; IPs of full length are addresses in whatever
	// network they are given.
	IPs []netip.Prefix
	MAC string
	// CacheDir keeps what Del has to know. Add makes it.
	CacheDir string
}

const confDir = "/etc/cni/net.d"

// pluginDirs are where distributions and upstream put plugins.
func pluginDirs() []string { return []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"} }

// folders follow the variables of cnitool, CNI's own program.
func folders() (conf string, plugins []string) {
	conf, plugins = os.Getenv("NETCONFPATH"), filepath.SplitList(os.Getenv("CNI_PATH"))
	if conf == "" {
		conf = confDir
	}
	if len(plugins) == 0 {
		plugins = pluginDirs()
	}
	return conf, plugins
}

// Add attaches the container, whose network namespace is at the path netns. On
// an error nothing is left. It returns ErrNoNetwork, ErrNotGiven, or ErrPlugin
// with what the plugin said.
func (a Attachment) Add(ctx context.Context, netns string) error {
	conf, plugins := folders()
	list, err := loadNetwork(conf, a.Network)
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir(plugins, a.CacheDir, nil)
	result, err := cni.AddNetworkList(ctx, list, a.runtime(netns))
	if err != nil {
		err = fmt.Errorf("%w: network %s: %w", ErrPlugin, a.Network, err)
	} else {
		err = a.check(result)
	}
	if err != nil {
		// What an earlier plugin of the list did is to be undone by all of
		// it (SPEC.md, "Error handling" of ADD).
		if delErr := cni.DelNetworkList(context.WithoutCancel(ctx), list, a.runtime(netns)); delErr != nil {
			err = errors.Join(err, delErr)
		}
		return err
	}
	return nil
}

func loadNetwork(dir, name string) (*libcni.NetworkConfigList, error) {
	list, err := libcni.LoadNetworkConf(dir, name)
	var noName libcni.NotFoundError
	var noFile libcni.NoConfigsFoundError
	if errors.As(err, &noName) || errors.As(err, &noFile) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNoNetwork, name, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("CNI network %s: %w", name, err)
	}
	return list, nil
}

func (a Attachment) runtime(netns string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, CapabilityArgs: map[string]any{}}
	// Two ways to say the same, the older one for plugins without the
	// capability; a plugin that knows neither gives something else.
	args := [][2]string{{"IgnoreUnknown", "1"}}
	if len(a.IPs) > 0 {
		var plain, long []string
		for _, ip := range a.IPs {
			plain = append(plain, ip.Addr().String())
			if ip.IsSingleIP() {
				long = append(long, ip.Addr().String())
			} else {
				long = append(long, ip.String())
			}
		}
		rt.CapabilityArgs["ips"] = long
		args = append(args, [2]string{"IP", strings.Join(plain, ",")})
	}
	if a.MAC != "" {
		rt.CapabilityArgs["mac"] = a.MAC
		args = append(args, [2]string{"MAC", a.MAC})
	}
	rt.Args = args
	return rt
}

// check holds what was given against what was asked for.
func (a Attachment) check(given types.Result) error {
	result, err := types100.GetResult(given)
	if err != nil {
		return err
	}
	has := addresses(result)
	for _, want := range a.IPs {
		ok := slices.ContainsFunc(has, func(p netip.Prefix) bool {
			return p.Addr() == want.Addr() && (want.IsSingleIP() || p.Bits() == want.Bits())
		})
		if !ok {
			return fmt.Errorf("%w: ip %s, %s gave %v", ErrNotGiven, want, a.Network, has)
		}
	}
	if a.MAC == "" {
		return nil
	}
	for _, i := range result.Interfaces {
		if i.Sandbox != "" && strings.EqualFold(i.Mac, a.MAC) {
			return nil
		}
	}
	return fmt.Errorf("%w: mac %s from %s", ErrNotGiven, a.MAC, a.Network)
}

func addresses(result *types100.Result) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if ok {
			out = append(out, netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	return out
}

// Addresses returns what the network gave when it was added.
func (a Attachment) Addresses() ([]netip.Prefix, error) {
	result, err := a.given()
	if err != nil || result == nil {
		return nil, err
	}
	return addresses(result), nil
}

// DNS returns how names are to be resolved, as the network said when it was added:
// as plugins wrote it (SPEC.md, "ADD Success"), unchecked.
func (a Attachment) DNS() (servers, search, options []string, err error) {
	result, err := a.given()
	if err != nil || result == nil {
		return nil, nil, nil, err
	}
	d := result.DNS
	search = d.Search
	if len(search) == 0 && d.Domain != "" {
		search = []string{d.Domain} // resolv.conf(5) knows one or the other
	}
	return d.Nameservers, search, d.Options, nil
}

// given is what Add was answered; nil where it was not.
func (a Attachment) given() (*types100.Result, error) {
	_, plugins := folders()
	cni := libcni.NewCNIConfigWithCacheDir(plugins, a.CacheDir, nil)
	list := &libcni.NetworkConfigList{Name: a.Network, CNIVersion: types100.ImplementedSpecVersion}
	given, err := cni.GetNetworkListCachedResult(list, a.runtime(""))
	if err != nil || given == nil {
		return nil, err
	}
	return types100.GetResult(given)
}

// Del takes away what Add, perhaps one that was interrupted, did on the host.
// The container's network namespace is gone by now. It is idempotent, and does
// nothing where the network was never added and is not there any more. It returns
// ErrPlugin, or ErrNeverAdded.
func (a Attachment) Del(ctx context.Context) error {
	conf, plugins := folders()
	cni := libcni.NewCNIConfigWithCacheDir(plugins, a.CacheDir, nil)
	rt := a.runtime("")
	// As it was at Add: it may have been edited or removed.
	var list *libcni.NetworkConfigList
	saved, _, err := cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: a.Network}, rt)
	added := err == nil && len(saved) > 0
	if added {
		list, err = libcni.NetworkConfFromBytes(saved)
	} else {
		list, err = loadNetwork(conf, a.Network)
		if errors.Is(err, ErrNoNetwork) {
			return nil
		}
	}
	if err == nil {
		err = cni.DelNetworkList(ctx, list, rt)
	}
	if err != nil && !added {
		return fmt.Errorf("%w: %s: %w", ErrNeverAdded, a.Network, err)
	}
	if err != nil {
		return fmt.Errorf("leave network %s: %w: %w", a.Network, ErrPlugin, err)
	}
	return nil
}
