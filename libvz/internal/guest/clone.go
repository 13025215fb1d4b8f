package guest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// RenewUnit is the unit that makes anew what a clone has in common with its
	// origin; it exists in clones only.
	RenewUnit = "vzrun-clone.service"
	// RenewScript is what it runs, below /run.
	RenewScript = "vzrun/renew"
)

//go:embed renew.sh
var renewScript string

const renewUnit = `# Written by vzrun into a clone; see vzrun's documentation on clones.
[Unit]
Description=Make anew what a clone has in common with its origin
[Service]
Type=oneshot
ExecStart=/bin/sh /run/` + RenewScript + `
`

// CloneInfo is what a clone is told of itself.
type CloneInfo struct {
	ID, Generation, Hostname string
	UUID                     string // the container's; "" = it has none
	Init                     Init
}

// CloneFiles are the files by which a clone learns that it is one, for [Install].
// The last of them is vzrun/clone: who watches it finds the others.
func CloneFiles(c CloneInfo) []File {
	var files []File
	if c.UUID != "" {
		files = append(files, File{Path: "host/container-uuid", Mode: 0o444, Content: c.UUID + "\n"})
	}
	if c.Init == Systemd {
		files = append(files, File{Path: "systemd/system/" + RenewUnit, Mode: 0o644, Content: renewUnit})
	}
	return append(files,
		File{Path: RenewScript, Mode: 0o755, Content: renewScript},
		File{Path: "vzrun/clone", Mode: 0o644, Content: fmt.Sprintf("ID=%s\nGENERATION=%s\nHOSTNAME=%s\n", c.ID, c.Generation, c.Hostname)})
}

// ValidHostname says whether a text is a host name for a guest.
func ValidHostname(s string) bool { return s != "" && validHostname(s) }

// RootIdentity is what is written into the root of a clone.
type RootIdentity struct {
	Hostname    string // "" = stays
	WasHostname string // the origin's, beside what is in /etc/hostname; "" = that alone
	MachineID   string // "" = stays; a root without one gets none
	Etc         []File // more for /etc, as [DNS.Files] has it
}

// IdentifyRoot writes names to the /etc of a root directory that no process has.
// The files belong to the user that calls it. What is a link there is left alone.
func IdentifyRoot(dir string, o RootIdentity) error {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	etc, err := openIn(root, "/etc", unix.O_RDONLY|unix.O_DIRECTORY)
	if absent(err) {
		return nil // nothing reads it
	}
	if err != nil {
		return fmt.Errorf("/etc: %w", err)
	}
	defer etc.Close()
	// A host name that the container was given need not be in its files.
	inFile := Hostname(dir)
	var files []File
	if o.Hostname != "" {
		files = append(files, File{Path: "hostname", Mode: 0o644, Content: o.Hostname + "\n"})
		if hosts, err := readOwnFile(root, "/etc/hosts", maxHosts); err == nil {
			if renamed := renameHosts(renameHosts(hosts, o.WasHostname, o.Hostname), inFile, o.Hostname); renamed != hosts {
				files = append(files, File{Path: "hosts", Mode: 0o644, Content: renamed})
			}
		}
	}
	if o.MachineID != "" && MachineID(dir) != "" {
		files = append(files, File{Path: "machine-id", Mode: 0o444, Content: o.MachineID + "\n"})
	}
	_, err = installAll(etc, append(files, o.Etc...))
	if errors.Is(err, unix.EROFS) {
		return nil // a rootfs that is read-only has its own way to say them
	}
	return err
}

// maxHosts bounds a hosts file that is rewritten.
const maxHosts = 1 << 20

// renameHosts replaces a name in the loopback entries of hosts(5), the short
// form of it too.
func renameHosts(hosts, was, is string) string {
	if was == "" || was == is || was == "localhost" {
		return hosts
	}
	wasShort, _, _ := strings.Cut(was, ".")
	isShort, _, _ := strings.Cut(is, ".")
	var b strings.Builder
	for line := range strings.Lines(hosts) {
		f := strings.Fields(line)
		if len(f) > 1 && !strings.HasPrefix(f[0], "#") {
			a, err := netip.ParseAddr(f[0])
			if err == nil && a.IsLoopback() {
				line = renameFields(line, map[string]string{was: is, wasShort: isShort})
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

func renameFields(line string, names map[string]string) string {
	text, comment, has := strings.Cut(line, "#")
	f := strings.Fields(text)
	changed := false
	for i, name := range f[1:] {
		if is, ok := names[name]; ok && name != "localhost" {
			f[i+1], changed = is, true
		}
	}
	if !changed {
		return line
	}
	out := f[0] + "\t" + strings.Join(f[1:], " ")
	if has {
		return out + " #" + comment
	}
	return out + "\n"
}

// StartUnit asks the systemd that is process pid to start a unit, and does not
// wait for that. Arguments, rights and trust are those of [Ask].
func StartUnit(ctx context.Context, pid int, uid, gid uint32, unit string) error {
	return talk(ctx, pid, uid, gid, func(b *bus) error {
		_, err := b.call(busPath, busIface, "StartUnit", "o", unit, "replace")
		return err
	})
}
