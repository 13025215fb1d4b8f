package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Annotations that say what of the host the guest is told. They are read when a
// guest is created; absent, they mean none, none and auto.
const (
	// AnnotationDNS holds what [ParseDNS] reads.
	AnnotationDNS = "org.vzrun.dns"
	// AnnotationHosts holds what [ParseHosts] reads.
	AnnotationHosts = "org.vzrun.hosts"
	// AnnotationLxcfs is "auto", "no" or the place where lxcfs is mounted.
	AnnotationLxcfs = "org.vzrun.lxcfs"
)

// DNS is how a guest resolves names. The zero value leaves that to the guest.
type DNS struct {
	Host            bool // as the host does, in place of Servers, Search and Options
	Servers         []netip.Addr
	Search, Options []string // resolv.conf(5)
}

// NoDNS leaves names to the guest.
const NoDNS = "none"

// maxWords bounds the lists; resolv.conf(5) takes three servers and six domains,
// systemd-resolved more.
const maxWords = 64

// ParseDNS reads words that are separated by blanks or commas: "none", or "host",
// or addresses of servers with search=DOMAIN and option=OPTION.
func ParseDNS(s string) (DNS, error) {
	var d DNS
	list, err := words(s)
	if err != nil || len(list) == 0 || slices.Equal(list, []string{NoDNS}) {
		return d, err
	}
	if slices.Equal(list, []string{"host"}) {
		return DNS{Host: true}, nil
	}
	for _, w := range list {
		if domain, ok := strings.CutPrefix(w, "search="); ok {
			if !validDomain(domain) {
				return DNS{}, fmt.Errorf("search domain %q: want letters, digits, '.', '-' and '_'", domain)
			}
			d.Search = append(d.Search, domain)
			continue
		}
		if option, ok := strings.CutPrefix(w, "option="); ok {
			if !validOption(option) {
				return DNS{}, fmt.Errorf("option %q: want one of resolv.conf(5)", option)
			}
			d.Options = append(d.Options, option)
			continue
		}
		server, err := parseAddress(w)
		if err != nil {
			return DNS{}, fmt.Errorf("%q is neither an address nor search=DOMAIN nor option=OPTION, and none and host stand alone", w)
		}
		d.Servers = append(d.Servers, server)
	}
	if len(d.Servers) == 0 {
		return DNS{}, errors.New("no address of a server")
	}
	return d, nil
}

// HostDNS reads the host's resolv.conf(5), of which a guest gets what [GivenDNS]
// lets through.
func HostDNS(resolvConf string) DNS {
	var servers, search, options []string
	for line := range strings.Lines(resolvConf) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	return GivenDNS(servers, search, options)
}

// GivenDNS is what a guest can use of somebody else's settings: no servers on the
// loopback interface, as the guest has its own; nothing that is no address, domain
// or option; no more than a resolver takes.
func GivenDNS(servers, search, options []string) DNS {
	var d DNS
	for _, s := range servers {
		if a, err := parseAddress(s); err == nil && !a.IsLoopback() && len(d.Servers) < maxWords {
			d.Servers = append(d.Servers, a)
		}
	}
	keep := func(list []string, valid func(string) bool) (kept []string) {
		for _, s := range list {
			if valid(s) && len(kept) < maxWords {
				kept = append(kept, s)
			}
		}
		return kept
	}
	d.Search, d.Options = keep(search, validDomain), keep(options, validOption)
	return d
}

// Files returns the settings of a resolver: /etc/resolv.conf, for [InstallEtc],
// and a drop-in of systemd-resolved for [Install], which is not read where there
// is no such daemon.
func (d DNS) Files() (etc, run []File) {
	if len(d.Servers) == 0 {
		return nil, nil
	}
	var conf, resolved strings.Builder
	const author = "# Written by vzrun at each start, as the annotations " + AnnotationDNS + " and org.vzrun.net say.\n"
	conf.WriteString(author)
	resolved.WriteString(author + "[Resolve]\nDNS=")
	for i, s := range d.Servers {
		fmt.Fprintf(&conf, "nameserver %s\n", s)
		if i > 0 {
			resolved.WriteString(" ")
		}
		resolved.WriteString(s.String())
	}
	resolved.WriteString("\n")
	if len(d.Search) > 0 {
		list := strings.Join(d.Search, " ")
		conf.WriteString("search " + list + "\n")
		resolved.WriteString("Domains=" + list + "\n")
	}
	if len(d.Options) > 0 {
		conf.WriteString("options " + strings.Join(d.Options, " ") + "\n")
	}
	return []File{{Path: "resolv.conf", Mode: 0o644, Content: conf.String()}},
		[]File{{Path: "systemd/resolved.conf.d/00-vzrun.conf", Mode: 0o644, Content: resolved.String()}}
}

// Hosts is what a guest's /etc/hosts is to hold. The zero value leaves the file
// alone.
type Hosts struct {
	Write bool // at least localhost and the guest's own name
	Host  bool // also the entries of the host that are no loopback addresses
	Extra []HostEntry
}

// HostEntry is a name and its address.
type HostEntry struct {
	Name    string
	Address netip.Addr
}

// ParseHosts reads words that are separated by blanks or commas: "none"; or
// "self", "host" and NAME=ADDRESS in any number. All but none write the guest's
// own name, too.
func ParseHosts(s string) (Hosts, error) {
	list, err := words(s)
	if err != nil || len(list) == 0 || slices.Equal(list, []string{"none"}) {
		return Hosts{}, err
	}
	h := Hosts{Write: true}
	for _, w := range list {
		name, address, isEntry := strings.Cut(w, "=")
		switch {
		case w == "self":
			continue
		case w == "host":
			h.Host = true
			continue
		case !isEntry || !validDomain(name):
			return Hosts{}, fmt.Errorf("%q is neither self nor host nor NAME=ADDRESS, and none stands alone", w)
		}
		a, err := parseAddress(address)
		if err != nil {
			return Hosts{}, fmt.Errorf("%q: %q is no address", w, address)
		}
		h.Extra = append(h.Extra, HostEntry{name, a})
	}
	return h, nil
}

// File returns /etc/hosts for [InstallEtc]. name is the guest's host name, ""
// where it is not known; onHost is the host's own file.
func (h Hosts) File(name, onHost string) []File {
	if !h.Write {
		return nil
	}
	var b strings.Builder
	b.WriteString("# Written by vzrun at each start, as the annotation " + AnnotationHosts + " says.\n127.0.0.1\tlocalhost\n")
	if validHostname(name) && name != "" && name != "localhost" {
		// The address of Debian's installer for a machine without a fixed one.
		short, _, dotted := strings.Cut(name, ".")
		b.WriteString("127.0.1.1\t" + name)
		if dotted {
			b.WriteString(" " + short)
		}
		b.WriteString("\n")
	}
	b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if h.Host {
		b.WriteString(hostEntries(onHost))
	}
	for _, e := range h.Extra {
		fmt.Fprintf(&b, "%s\t%s\n", e.Address, e.Name)
	}
	return []File{{Path: "hosts", Mode: 0o644, Content: b.String()}}
}

// hostEntries are the lines of hosts(5) that hold in the guest, too.
func hostEntries(hosts string) string {
	var b strings.Builder
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
			continue
		}
		b.WriteString(f[0] + "\t" + strings.Join(f[1:], " ") + "\n")
	}
	return b.String()
}

func words(s string) ([]string, error) {
	list := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
	if len(list) > maxWords {
		return nil, fmt.Errorf("more than %d words", maxWords)
	}
	return list, nil
}

// parseAddress takes no zone: an interface of the guest is not known here.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" {
		err = errors.New("has a zone")
	}
	return a, err
}

// validDomain takes names of hosts and domains, RFC 1123, with '_' as resolvers
// do, and "." for the root.
func validDomain(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '-' {
		return false
	}
	return madeOf(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
}

func validOption(s string) bool {
	return s != "" && len(s) <= 32 && madeOf(s, "abcdefghijklmnopqrstuvwxyz0123456789-_:")
}

func madeOf(s, alphabet string) bool { return strings.Trim(s, alphabet) == "" }

// HostFiles are what systemd's container interface has in /run/host
// (https://systemd.io/CONTAINER_INTERFACE), for [Install]: who manages the
// container, its uuid, and the host's os-release(5); what is "" is left out.
// Files of the guest's own tmpfs are saved with it, mounts would not be.
func HostFiles(uuid, osRelease string) []File {
	files := []File{{Path: "host/container-manager", Mode: 0o444, Content: containerName + "\n"}}
	if uuid != "" {
		files = append(files, File{Path: "host/container-uuid", Mode: 0o444, Content: uuid + "\n"})
	}
	if osRelease != "" {
		files = append(files, File{Path: "host/os-release", Mode: 0o444, Content: osRelease})
	}
	return files
}

// InstallEtc writes files to the /etc of a guest that is created but not started,
// on its disk. Arguments are those of [Install]; paths are names in /etc. One
// that is a link is left alone and returned: a program of the guest keeps it.
func InstallEtc(pid, uid, gid int, files []File) (links []string, err error) {
	if len(files) == 0 {
		return nil, nil
	}
	root, err := openRoot(pid)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	etc, err := openIn(root, "/etc", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("/etc of the guest: %w", err)
	}
	defer etc.Close()
	err = asFsUser(uid, gid, func() (err error) {
		links, err = installAll(etc, files)
		return err
	})
	return links, err
}

func installAll(etc *os.File, files []File) (links []string, err error) {
	for _, f := range files {
		var st unix.Stat_t
		err := unix.Fstatat(int(etc.Fd()), f.Path, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			links = append(links, f.Path)
			continue
		}
		if err := install(etc, f); err != nil {
			return links, fmt.Errorf("write /etc/%s of the guest: %w", f.Path, err)
		}
	}
	return links, nil
}

// maxName bounds what is read of /etc/hostname and /etc/machine-id.
const maxName = 4096

// Hostname returns the name in /etc/hostname (hostname(5)) of the root directory
// at dir, "" where there is none that is valid.
func Hostname(dir string) string {
	for line := range strings.Lines(ownText(dir, "/etc/hostname")) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			if validHostname(line) {
				return line
			}
			return ""
		}
	}
	return ""
}

// MachineID returns the machine-id(5) that the root directory at dir holds, 32
// lower-case hex digits, "" where a first boot would make one.
func MachineID(dir string) string {
	id := strings.TrimSpace(ownText(dir, "/etc/machine-id"))
	if !ValidMachineID(id) {
		return ""
	}
	return strings.ToLower(id)
}

// ValidMachineID says whether a text is an id as in machine-id(5).
func ValidMachineID(s string) bool {
	return len(s) == 32 && validUUID(s) && strings.Trim(s, "0") != ""
}

func ownText(dir, name string) string {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return ""
	}
	defer root.Close()
	text, err := readOwnFile(root, name, maxName)
	if err != nil {
		return ""
	}
	return text
}
