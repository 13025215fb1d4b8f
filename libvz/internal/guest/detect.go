package guest

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Init is a kind of init. The zero value is treated as [Unknown].
type Init string

// The kinds of init that are told apart. Unknown is an init that starts but
// whose habits are not known; it gets the most widely understood treatment.
const (
	Systemd  Init = "systemd"
	SysVInit Init = "sysvinit"
	OpenRC   Init = "openrc"
	Runit    Init = "runit"
	Busybox  Init = "busybox"
	Unknown  Init = "unknown"
)

// ErrNoInit says that a rootfs holds no init: it is no operating system, or not
// one that is meant to be booted (many OCI images are not).
var ErrNoInit = errors.New("no init in the rootfs")

// ErrForeign says that the init is for another processor.
var ErrForeign = errors.New("wrong architecture")

// candidates are the places of an init in the order in which they are tried:
// first those that the kernel itself tries (init/main.c), then those of inits
// that an image installs without the /sbin/init link.
func candidates() []string {
	return []string{
		"/sbin/init",
		"/etc/init",
		"/bin/init",
		"/init",
		"/lib/systemd/systemd",
		"/usr/lib/systemd/systemd",
		"/sbin/openrc-init",
		"/sbin/runit-init",
		"/usr/bin/runit-init",
	}
}

// Detect looks for the init of a rootfs that nobody runs yet. It returns its kind
// and the path by which to start it, as seen inside the guest (for example
// "/sbin/init", symlinks not resolved, because several inits look at the name
// they are called by).
//
// rootfs is an un-shifted directory on the host. Nothing in it is executed, and
// every look goes through openat2(2) with RESOLVE_IN_ROOT and
// RESOLVE_NO_MAGICLINKS, so that no symlink in it leads out.
//
// Errors: [ErrNoInit], wrapped, when there is none; [ErrOldSystemd], wrapped;
// [ErrForeign], wrapped, when the init is for another processor; else what the
// file system answered.
func Detect(rootfs string) (Init, string, error) {
	root, err := os.Open(rootfs)
	if err != nil {
		return Unknown, "", err
	}
	defer root.Close()
	var firstErr error
	for _, name := range candidates() {
		kind, err := detectAt(root, name)
		if err == nil {
			return kind, name, nil
		}
		if !absent(err) && firstErr == nil {
			firstErr = fmt.Errorf("init %s in %s: %w", name, rootfs, err)
		}
	}
	if firstErr != nil {
		return Unknown, "", firstErr
	}
	return Unknown, "", fmt.Errorf("%w %s (looked for %s)", ErrNoInit, rootfs, strings.Join(candidates(), ", "))
}

// absent tells "not there" (also: a dangling link, or a file where a directory
// should be) from a real failure.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR)
}

func detectAt(root *os.File, name string) (Init, error) {
	f, err := openRegular(root, name, inRoot)
	if err != nil {
		return Unknown, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Unknown, err
	}
	if fi.Mode()&0o111 == 0 {
		return Unknown, errors.New("not executable")
	}
	if err := checkExecutable(f, runtime.GOARCH); err != nil {
		return Unknown, err
	}
	target, err := targetOf(root, f)
	if err != nil {
		return Unknown, err
	}
	kind := classify(target, marks{
		runit:   existsIn(root, "/etc/runit/1"),
		inittab: existsIn(root, "/etc/inittab"),
		busybox: sameIn(root, "/bin/busybox", fi),
	})
	if kind == Systemd {
		err = checkSystemd(f)
	}
	return kind, err
}

// marks are what tells inits apart that are installed as a plain /sbin/init.
type marks struct {
	runit   bool // has /etc/runit/1, runit's first stage
	inittab bool // has /etc/inittab
	busybox bool // the init is a hard link to /bin/busybox
}

// classify names the init from the path that the init resolves to and from the
// marks of the rootfs.
func classify(target string, has marks) Init {
	base := path.Base(target)
	switch {
	case base == "systemd":
		return Systemd
	case base == "openrc-init":
		return OpenRC
	case base == "runit" || base == "runit-init":
		return Runit
	case strings.HasPrefix(base, "busybox") || has.busybox:
		return Busybox
	case has.runit:
		// Void Linux and Devuan install runit as /sbin/init, as a file.
		return Runit
	case base == "init" && has.inittab:
		// With OpenRC's scripts or not: what counts for start and stop is PID 1.
		return SysVInit
	}
	return Unknown
}

// checkExecutable reads the ELF header, or lets a script pass: its interpreter is
// then the guest's affair.
func checkExecutable(r io.ReaderAt, goarch string) error {
	var h [20]byte
	if _, err := r.ReadAt(h[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if h[0] == '#' && h[1] == '!' {
		return nil
	}
	if string(h[:4]) != elf.ELFMAG {
		return errors.New("neither an ELF file nor a script")
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if elf.Data(h[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	got := elf.Machine(order.Uint16(h[18:]))
	want, known := machines(goarch)
	if !known {
		return nil
	}
	for _, m := range want {
		if got == m {
			return nil
		}
	}
	return fmt.Errorf("%w: built for %s, but this host is %s", ErrForeign, strings.TrimPrefix(got.String(), "EM_"), goarch)
}

// machines are the ELF machines that a processor executes, its 32-bit sibling
// included: the kernel runs such a guest.
func machines(goarch string) ([]elf.Machine, bool) {
	switch goarch {
	case "amd64":
		return []elf.Machine{elf.EM_X86_64, elf.EM_386}, true
	case "arm64":
		return []elf.Machine{elf.EM_AARCH64, elf.EM_ARM}, true
	case "ppc64le":
		return []elf.Machine{elf.EM_PPC64}, true
	case "s390x":
		return []elf.Machine{elf.EM_S390}, true
	case "riscv64":
		return []elf.Machine{elf.EM_RISCV}, true
	}
	return nil, false
}

// targetOf returns the path, relative to root, that an opened file was found at
// when all links had been followed.
func targetOf(root, f *os.File) (string, error) {
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		return "", err
	}
	full, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	return "/" + strings.TrimPrefix(strings.TrimPrefix(full, dir), "/"), nil
}

func existsIn(root *os.File, name string) bool {
	f, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// sameIn says whether name is the very file that fi describes.
func sameIn(root *os.File, name string, fi os.FileInfo) bool {
	f, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return false
	}
	defer f.Close()
	other, err := f.Stat()
	return err == nil && os.SameFile(fi, other)
}
