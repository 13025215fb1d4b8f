package libvz

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// Files of the host that a guest is told of.
const (
	hostResolvConf = "/etc/resolv.conf"
	// hostUplinks is where systemd-resolved lists the servers behind its own.
	hostUplinks = "/run/systemd/resolve/resolv.conf"
	hostHosts   = "/etc/hosts"
	// maxHostFile bounds them; a hosts file that blocks advertisers has some
	// megabytes.
	maxHostFile = 16 << 20
)

// checkNames refuses values that config.json is not to hold.
func checkNames(dns, hosts string) error {
	if _, err := guest.ParseDNS(dns); err != nil {
		return withHint("write none, host, or addresses with search=DOMAIN and option=OPTION", "name servers: %w", err)
	}
	if _, err := guest.ParseHosts(hosts); err != nil {
		return withHint("write none, or self, host and NAME=ADDRESS", "hosts: %w", err)
	}
	return nil
}

// checkIdentity refuses annotations that would fail half-way.
func checkIdentity(spec *specs.Spec) error {
	if err := checkNames(spec.Annotations[guest.AnnotationDNS], spec.Annotations[guest.AnnotationHosts]); err != nil {
		return fmt.Errorf("annotations: %w", err)
	}
	if spec.Annotations[annotationGuest] != "" {
		return nil
	}
	for _, a := range []string{guest.AnnotationDNS, guest.AnnotationHosts} {
		if v := spec.Annotations[a]; v != "" && v != "none" {
			return withHint("mount a file over it in config.json", "annotation %s: %w for a container that is no whole operating system", a, ErrUnsupported)
		}
	}
	return nil
}

// checkDNS refuses name servers for a container in whose files vzrun writes nothing.
func checkDNS(spec *specs.Spec, nets []vnet.Net) error {
	if len(vnet.DNS(nets)) == 0 || spec.Annotations[annotationGuest] != "" {
		return nil
	}
	return withHint("mount a file over /etc/resolv.conf in config.json", "annotation %s: dns=: %w for a container that is no whole operating system", annotationNet, ErrUnsupported)
}

// identify writes what the guest is told of itself and of the host, before its
// init runs. The files in /run are in its memory; those in /etc, which it gets
// only if somebody asked for them, on its disk.
func (n *nascent) identify(pid, uid, gid int) error {
	dns, err := n.resolver()
	if err != nil {
		return err
	}
	etc, run := dns.Files()
	hosts, err := n.hostsFile(pid)
	if err != nil {
		return err
	}
	links, err := guest.InstallEtc(pid, uid, gid, append(etc, hosts...))
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EBUSY):
		return withHint("remove the annotations "+guest.AnnotationDNS+" and "+guest.AnnotationHosts+", or what is mounted there", "%w", err)
	case err != nil:
		return err
	}
	for _, name := range links {
		// systemd-resolved reads the drop-in, and keeps the file of this name.
		if name != "resolv.conf" || guest.Init(n.spec.Annotations[annotationGuest]) != guest.Systemd {
			n.host.warn(n.id, "/etc/%s of the guest is a link: left as it is", name)
		}
	}
	if hasTmpfs(n.spec, "/run") {
		run = append(run, guest.HostFiles(containerUUID(n.spec), hostRelease())...)
	}
	if err := guest.Install(pid, uid, gid, run); err != nil {
		return fmt.Errorf("prepare the guest's /run: %w", err)
	}
	return nil
}

func (n *nascent) hostsFile(pid int) ([]guest.File, error) {
	hosts, err := guest.ParseHosts(n.spec.Annotations[guest.AnnotationHosts])
	if err != nil || !hosts.Write {
		return nil, err
	}
	name := n.spec.Hostname
	if name == "" {
		name = guest.Hostname(procPath(pid, "root"))
	}
	onHost := ""
	if hosts.Host {
		if onHost, err = hostFile(hostHosts); err != nil {
			return nil, err
		}
	}
	return hosts.File(name, onHost), nil
}

// resolver is how the guest resolves names: as its annotations say, and the networks
// that it is in by now.
func (n *nascent) resolver() (guest.DNS, error) {
	nets, err := parseNets(n.spec.Annotations[annotationNet])
	if err != nil {
		return guest.DNS{}, err
	}
	networks, err := n.networksDNS(nets)
	if err != nil {
		return guest.DNS{}, err
	}
	dns, err := n.host.dnsOf(n.id, n.spec, nets)
	if err == nil && len(dns.Search) == 0 && len(dns.Options) == 0 {
		dns.Search, dns.Options = networks.Search, networks.Options
	}
	return dns, err
}

// networksDNS returns what CNI networks have said of names, and gives the servers to
// their interfaces. One with servers of its own has no need of it, and a guest that
// is to have none is left alone.
func (n *nascent) networksDNS(nets []vnet.Net) (guest.DNS, error) {
	var all guest.DNS
	if n.spec.Annotations[guest.AnnotationDNS] == guest.NoDNS {
		return all, nil
	}
	for _, a := range n.host.attachments(n.id, nets) {
		of := slices.IndexFunc(nets, func(net vnet.Net) bool { return net.Name == a.IfName })
		if len(nets[of].DNS) > 0 {
			continue
		}
		servers, search, options, err := a.DNS()
		if err != nil {
			return all, fmt.Errorf("name servers of network %s: %w", a.Network, err)
		}
		given := guest.GivenDNS(servers, search, options)
		nets[of].DNS = given.Servers
		all.Servers = append(all.Servers, given.Servers...)
		all.Search = append(all.Search, given.Search...)
		all.Options = append(all.Options, given.Options...)
	}
	return all, nil
}

// dnsOf is how a guest with these interfaces resolves names: their servers come first.
func (h *Host) dnsOf(id string, spec *specs.Spec, nets []vnet.Net) (guest.DNS, error) {
	dns, err := guest.ParseDNS(spec.Annotations[guest.AnnotationDNS])
	if err != nil {
		return dns, err
	}
	servers := vnet.DNS(nets)
	if dns.Host {
		if dns, err = hostDNS(); err != nil {
			return dns, err
		}
		if len(dns.Servers)+len(servers) == 0 {
			h.warn(id, "the host has no name servers but on its own loopback interface: the guest's settings stay as they are")
		}
	}
	for _, s := range dns.Servers {
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	dns.Servers = servers
	return dns, nil
}

// hostDNS is how the host resolves names, as far as a guest can do the same.
func hostDNS() (guest.DNS, error) {
	for _, path := range []string{hostResolvConf, hostUplinks} {
		text, err := hostFile(path)
		if err != nil {
			return guest.DNS{}, err
		}
		if dns := guest.HostDNS(text); len(dns.Servers) > 0 {
			return dns, nil
		}
	}
	return guest.DNS{}, nil
}

// hostFile reads a file of the host that need not be there.
func hostFile(path string) (string, error) {
	data, err := readRegular(path, maxHostFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// hostRelease is the host's os-release(5). A host without one has nothing to
// tell.
func hostRelease() string {
	const most = 64 << 10
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if data, err := readRegular(path, most); err == nil {
			return string(data)
		}
	}
	return ""
}

func hasTmpfs(spec *specs.Spec, place string) bool {
	return slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == place && m.Type == "tmpfs" })
}

// warnOfTwins warns where a container that has not ended has the same uuid: a
// copy of its bundle. Guests with one machine-id are one machine to DHCP
// servers, to journals that are gathered, and to all that is derived from it.
func (h *Host) warnOfTwins(id, uuid string) {
	if uuid == "" {
		return
	}
	records, err := h.store.All()
	if err != nil {
		return // a warning is not worth an error
	}
	for _, r := range records {
		if r.ID == id || !sameUUID(r.UUID, uuid) {
			continue
		}
		lc, err := libcontainer.Load(h.opts.Root, r.ID)
		if err != nil {
			continue
		}
		if is, err := lc.Status(); err != nil || is == libcontainer.Stopped {
			continue
		}
		h.warn(id, "container %s has the same container_uuid, hence the same machine-id: "+
			"replace the config.json of one of them with a new one of `vzrun spec --system`", r.ID)
	}
}

func sameUUID(a, b string) bool {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
	return plain(a) == plain(b)
}
