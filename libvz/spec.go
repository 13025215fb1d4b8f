package libvz

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// SpecOptions of SystemSpec. Only Rootfs is required.
type SpecOptions struct {
	// Rootfs is the directory of the guest's root as config.json is to
	// name it: absolute, or relative to the bundle, which is the working
	// directory.
	Rootfs, Hostname string
	// RAM and Swap are limits in bytes, Swap beyond RAM; 0 = no limit.
	RAM, Swap int64
	CPUs      float64 // CPU time per wall time; 0 = no limit
	// IDBase is the host's uid and gid of the guest's root, the first of
	// 65536; 0 chooses a range that nobody has.
	IDBase uint32
	// Net are the network interfaces, as in CreateOptions.
	Net []string
}

// SystemSpec returns the configuration of a whole operating system for the
// rootfs: what its init needs to boot and CRIU to save it.
func (h *Host) SystemSpec(o SpecOptions) (*specs.Spec, error) {
	s, err := h.systemSpec(o)
	return s, fail("spec", "", err)
}

func (h *Host) systemSpec(o SpecOptions) (*specs.Spec, error) {
	dir, err := filepath.Abs(o.Rootfs)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, withHint("name the guest's root directory with --rootfs", "rootfs: %w", err)
	}
	net, err := JoinNets(o.Net)
	if err != nil {
		return nil, err
	}
	init, path, err := guest.Detect(dir)
	if errors.Is(err, guest.ErrNoInit) {
		return nil, withHint("without --system the configuration is for a single program", "%w", err)
	}
	if err != nil {
		return nil, err
	}
	if o.IDBase == 0 {
		if o.IDBase, err = h.chooseIDs(dir); err != nil {
			return nil, err
		}
	}
	uuid := make([]byte, 16)
	if _, err := rand.Read(uuid); err != nil {
		return nil, err
	}
	s, err := guest.Spec(guest.SpecOptions{
		Rootfs: o.Rootfs, Hostname: o.Hostname, Init: init, InitPath: path,
		RAM: o.RAM, Swap: o.Swap, CPUs: o.CPUs, IDBase: o.IDBase, IDSize: idRange,
		UUID: hex.EncodeToString(uuid),
	})
	if err == nil && net != "" {
		s.Annotations[annotationNet] = net
	}
	return s, err
}

const (
	idRange = 65536
	// Ranges start at multiples of idRange from firstID to lastID, far
	// from users (below 60000) and from systemd's own pools for
	// DynamicUser and nspawn, systemd.io/UIDS-GIDS.
	firstID = 0x10_0000
	lastID  = 0x6fff_0000 - 0x10_0000
)

// idSpan is a range of host ids that is somebody's.
type idSpan struct{ first, size uint64 }

// chooseIDs finds a range that neither a container of this host nor a user's
// subordinate ids overlap. Two configurations written before either container
// is created get the same one only by chance: the search starts at a place
// that the rootfs's path decides.
func (h *Host) chooseIDs(rootfs string) (uint32, error) {
	taken, err := h.takenIDs()
	if err != nil {
		return 0, err
	}
	sum := fnv.New32a()
	io.WriteString(sum, rootfs) //nolint:errcheck // a hash takes everything
	return freeIDs(taken, sum.Sum32())
}

// freeIDs decides: the first free range from a place that start chooses.
func freeIDs(taken []idSpan, start uint32) (uint32, error) {
	const slots = (lastID-firstID)/idRange + 1
	for i := range uint64(slots) {
		base := firstID + (uint64(start)+i)%slots*idRange
		clash := slices.ContainsFunc(taken, func(s idSpan) bool {
			return s.first < base+idRange && base < s.first+s.size
		})
		if !clash {
			return uint32(base), nil
		}
	}
	return 0, errors.New("no free range of 65536 ids is left")
}

func (h *Host) takenIDs() ([]idSpan, error) {
	var taken []idSpan
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		taken = append(taken, subordinateIDs(f)...)
		f.Close()
	}
	entries, err := os.ReadDir(h.opts.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		lc, err := libcontainer.Load(h.opts.Root, e.Name())
		if err != nil {
			continue // not a container
		}
		config := lc.Config()
		for _, m := range append(slices.Clone(config.UIDMappings), config.GIDMappings...) {
			taken = append(taken, idSpan{uint64(m.HostID), uint64(m.Size)})
		}
	}
	return taken, nil
}

// subordinateIDs reads lines of NAME:FIRST:COUNT, subuid(5).
func subordinateIDs(r io.Reader) []idSpan {
	var out []idSpan
	for sc := bufio.NewScanner(r); sc.Scan(); {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		size, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			out = append(out, idSpan{first, size})
		}
	}
	return out
}

// LoginProcess returns root's login shell in the guest, with a terminal, for
// Exec.
func (c *Container) LoginProcess() (specs.Process, error) {
	p, err := c.loginProcess()
	return p, fail("enter", c.id, err)
}

func (c *Container) loginProcess() (specs.Process, error) {
	spec, _, err := loadSpec(c.bundle())
	if err != nil {
		return specs.Process{}, err
	}
	p := *spec.Process
	p.Terminal = true
	p.Cwd = "/"
	p.User = specs.User{}
	// The shell is chosen inside the guest: reading its files from here
	// would be reading what guest root wrote, with the host's rights.
	p.Args = []string{"/bin/sh", "-c", loginScript}
	p.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "TERM=" + terminalType(), "container=vzrun",
	}
	return p, nil
}

// loginScript starts the shell that /etc/passwd names for uid 0 as a login
// shell. It needs nothing but a POSIX sh, which every init system needs too.
const loginScript = `cd "$HOME" 2>/dev/null || cd /
while IFS=: read -r _ _ uid _ _ _ shell; do
	[ "$uid" = 0 ] && break
done </etc/passwd
[ -x "$shell" ] || shell=/bin/sh
export SHELL="$shell"
exec "$shell" -l`

func terminalType() string {
	if t := os.Getenv("TERM"); t != "" && !strings.ContainsAny(t, "/ \n") {
		return t
	}
	return "linux"
}
