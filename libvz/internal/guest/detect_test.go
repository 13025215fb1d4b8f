package guest

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// elfFor returns the start of an executable for machine m.
func elfFor(m elf.Machine) string {
	h := make([]byte, 64)
	copy(h, elf.ELFMAG)
	h[elf.EI_CLASS], h[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	if m == elf.EM_S390 {
		h[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
		binary.BigEndian.PutUint16(h[18:], uint16(m))
	} else {
		binary.LittleEndian.PutUint16(h[18:], uint16(m))
	}
	return string(h)
}

func native(t *testing.T) string {
	m, ok := machines(runtime.GOARCH)
	if !ok {
		t.Skipf("no ELF machine known for %s", runtime.GOARCH)
	}
	return elfFor(m[0])
}

// tree makes a rootfs. "-> x" makes a symlink, "= x" a hard link, the rest is
// the content of an executable.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var hard [][2]string
	for name, what := range files {
		at := filepath.Join(root, name)
		must(os.MkdirAll(filepath.Dir(at), 0o755))
		if target, ok := strings.CutPrefix(what, "-> "); ok {
			must(os.Symlink(target, at))
		} else if target, ok := strings.CutPrefix(what, "= "); ok {
			hard = append(hard, [2]string{filepath.Join(root, target), at})
		} else {
			must(os.WriteFile(at, []byte(what), 0o755))
		}
	}
	for _, h := range hard {
		must(os.Link(h[0], h[1]))
	}
	return root
}

func TestDetect(t *testing.T) {
	bin := native(t)
	for name, c := range map[string]struct {
		files map[string]string
		init  Init
		path  string
	}{
		"debian":                 {map[string]string{"usr/lib/systemd/systemd": bin, "usr/sbin/init": "-> ../lib/systemd/systemd", "sbin": "-> usr/sbin", "lib": "-> usr/lib"}, Systemd, "/sbin/init"},
		"absolute links":         {map[string]string{"lib/systemd/systemd": bin, "sbin/init": "-> /lib/systemd/systemd"}, Systemd, "/sbin/init"},
		"systemd without a link": {map[string]string{"usr/lib/systemd/systemd": bin}, Systemd, "/usr/lib/systemd/systemd"},
		"sysvinit":               {map[string]string{"sbin/init": bin, "etc/inittab": ""}, SysVInit, "/sbin/init"},
		"alpine":                 {map[string]string{"bin/busybox": bin, "sbin/init": "-> /bin/busybox", "etc/inittab": ""}, Busybox, "/sbin/init"},
		"busybox hard link":      {map[string]string{"bin/busybox": bin, "bin/init": "= bin/busybox"}, Busybox, "/bin/init"},
		"openrc-init":            {map[string]string{"sbin/openrc-init": bin, "sbin/init": "-> openrc-init"}, OpenRC, "/sbin/init"},
		"void":                   {map[string]string{"usr/bin/runit-init": bin, "usr/bin/init": "-> runit-init", "sbin": "-> usr/bin"}, Runit, "/sbin/init"},
		"runit as a file":        {map[string]string{"sbin/init": bin, "etc/runit/1": ""}, Runit, "/sbin/init"},
		"script":                 {map[string]string{"sbin/init": "#!/bin/sh\n"}, Unknown, "/sbin/init"},
		"dangling link first":    {map[string]string{"sbin/init": "-> /nowhere", "init": bin}, Unknown, "/init"},
		// ".." at the guest's root stays there, as it would for the guest.
		"link that climbs": {map[string]string{"sbin/init": "-> ../../../../../lib/systemd/systemd", "lib/systemd/systemd": bin}, Systemd, "/sbin/init"},
	} {
		t.Run(name, func(t *testing.T) {
			init, path, err := Detect(tree(t, c.files))
			if err != nil || init != c.init || path != c.path {
				t.Errorf("got %s %s %v, want %s %s", init, path, err, c.init, c.path)
			}
		})
	}
}

func TestDetectRefuses(t *testing.T) {
	outside := tree(t, map[string]string{"systemd": native(t)})
	foreign := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		foreign = elf.EM_X86_64
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"empty":              {map[string]string{"etc/os-release": ""}, "no init in the rootfs"},
		"link out":           {map[string]string{"sbin/init": "-> " + outside + "/systemd"}, "no init in the rootfs"},
		"directory link out": {map[string]string{"sbin": "-> " + outside, "lib/x": ""}, "no init in the rootfs"},
		"link climbs out":    {map[string]string{"sbin/init": "-> ../../../../../../../../.." + outside + "/systemd"}, "no init in the rootfs"},
		"magic link":         {map[string]string{"sbin/init": "-> /proc/self/exe"}, "no init in the rootfs"},
		"other processor":    {map[string]string{"sbin/init": elfFor(foreign)}, "but this host is " + runtime.GOARCH},
		"garbage":            {map[string]string{"sbin/init": "hello"}, "neither an ELF file nor a script"},
		"empty file":         {map[string]string{"sbin/init": ""}, "neither an ELF file nor a script"},
	} {
		t.Run(name, func(t *testing.T) {
			init, path, err := Detect(tree(t, c.files))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %s %s %v, want an error with %q", init, path, err, c.want)
			}
			if strings.HasPrefix(c.want, "no init") != errors.Is(err, ErrNoInit) {
				t.Errorf("%v: is ErrNoInit: %v", err, errors.Is(err, ErrNoInit))
			}
		})
	}
	if _, _, err := Detect("/nonexistent/rootfs"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing rootfs: %v", err)
	}
	t.Run("loop", func(t *testing.T) {
		if _, _, err := Detect(tree(t, map[string]string{"sbin/init": "-> init"})); err == nil {
			t.Error("no error")
		}
	})
}

func TestCheckExecutable(t *testing.T) {
	for _, c := range []struct {
		machine elf.Machine
		goarch  string
		ok      bool
	}{
		{elf.EM_X86_64, "amd64", true},
		{elf.EM_386, "amd64", true},
		{elf.EM_AARCH64, "amd64", false},
		{elf.EM_ARM, "arm64", true},
		{elf.EM_S390, "s390x", true},
		{elf.EM_RISCV, "mips", true}, // nothing is known about it, so nothing is refused
	} {
		err := checkExecutable(strings.NewReader(elfFor(c.machine)), c.goarch)
		if (err == nil) != c.ok {
			t.Errorf("%s on %s: %v", c.machine, c.goarch, err)
		}
	}
}
