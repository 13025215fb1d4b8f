// Command inmate is a guest's root that wants out, in tests/isolation.bats. It
// runs in a whole system and prints, line by line, what it got.
//
//	inmate attempts MAJ:MIN   name, tab, result of everything that must not
//	                          work: "allowed", or the error. MAJ:MIN is a block
//	                          device of the host
//	inmate writable           files of /proc and /sys, freshly mounted with
//	                          write access, that can be opened to be written
//	inmate inotify            hold as many inotify instances as there are
//	inmate hold KIND          hold many mounts, namespaces (of the network) or files
//	inmate fill DIR           files in DIR until there is no room for more, 70000 at
//	                          the most, then the bytes and files that went in;
//	                          removes them
//	inmate push TEXT          put TEXT into the terminal's input (TIOCSTI)
//
// "inotify" and "hold" print "holds N" and stay until their standard input ends. Nothing
// but the standard library is used, so that it builds without the module's
// dependencies and runs in any root file system.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	runtime.LockOSThread() // namespaces are a thread's
	var err error
	args := os.Args[1:]
	switch {
	case len(args) == 2 && args[0] == "attempts":
		err = attempts(args[1])
	case len(args) == 1 && args[0] == "writable":
		err = writable()
	case len(args) == 1 && args[0] == "inotify":
		err = inotify()
	case len(args) == 2 && args[0] == "hold":
		err = hold(args[1])
	case len(args) == 2 && args[0] == "fill":
		err = fill(args[1])
	case len(args) == 2 && args[0] == "push":
		err = push(args[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: inmate attempts MAJ:MIN | writable | inotify | hold KIND | fill DIR | push TEXT")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inmate:", err)
		os.Exit(1)
	}
}

// attempts are made in a mount namespace of its own.
func attempts(device string) error {
	major, minor, ok := strings.Cut(device, ":")
	maj, err1 := strconv.Atoi(major)
	min, err2 := strconv.Atoi(minor)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%q is no device", device)
	}
	dir, err := ownMounts()
	if err != nil {
		return err
	}
	for _, list := range [][]attempt{devices(maj<<8|min, dir), mounts(dir), hierarchies(dir), files(), calls()} {
		for _, a := range list {
			result := "allowed"
			if err := a.try(); err != nil {
				result = err.Error()
			}
			fmt.Printf("%s\t%s\n", a.name, result)
		}
	}
	return nil
}

type attempt struct {
	name string
	try  func() error
}

// ownMounts returns an empty directory to mount on, in a private namespace.
func ownMounts() (string, error) {
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return "", fmt.Errorf("unshare: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	dir := "/run/inmate"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, syscall.Mount("inmate", dir, "tmpfs", 0, "")
}

// devices tries to get at nodes by making them, on the disk and on a tmpfs.
func devices(disk int, dir string) []attempt {
	var list []attempt
	for name, dev := range map[string]struct {
		mode uint32
		dev  int
	}{
		"host's disk": {syscall.S_IFBLK, disk}, "mem": {syscall.S_IFCHR, 1<<8 | 1}, "port": {syscall.S_IFCHR, 1<<8 | 4},
		"kmsg": {syscall.S_IFCHR, 1<<8 | 11}, "loop-control": {syscall.S_IFCHR, 10<<8 | 237}, "sda": {syscall.S_IFBLK, 8 << 8},
		"console": {syscall.S_IFCHR, 5<<8 | 1}, "tty1": {syscall.S_IFCHR, 4<<8 | 1}, "vda": {syscall.S_IFBLK, 254 << 8},
	} {
		for _, where := range []string{"/srv", dir} {
			list = append(list, attempt{"mknod " + name + " in " + where, func() error {
				path := filepath.Join(where, "node")
				defer os.Remove(path)
				return syscall.Mknod(path, dev.mode|0o600, dev.dev)
			}})
		}
	}
	return list
}

// mounts tries file systems that show or change the host, and those of disks.
func mounts(dir string) []attempt {
	var list []attempt
	for _, kind := range []string{
		"debugfs", "tracefs", "securityfs", "configfs", "pstore", "efivarfs", "bpf", "hugetlbfs", "selinuxfs",
		"smackfs", "fusectl", "nfsd", "rpc_pipefs", "autofs", "devtmpfs", "resctrl", "functionfs", "ocfs2_dlmfs", "xenfs",
	} {
		list = append(list, attempt{"mount " + kind, func() error { return mount("none", dir, kind, "") }})
	}
	for _, kind := range []string{"ext4", "xfs", "btrfs", "vfat", "iso9660", "squashfs", "erofs"} {
		for _, source := range []string{"/dev/vda", "/dev/sda1", "/dev/loop0", "/dev/root"} {
			list = append(list, attempt{"mount " + kind + " " + source, func() error { return mount(source, dir, kind, "") }})
		}
	}
	return list
}

func mount(source, dir, kind, data string) error {
	place := filepath.Join(dir, "place")
	if err := os.MkdirAll(place, 0o700); err != nil {
		return err
	}
	err := syscall.Mount(source, place, kind, 0, data)
	if err == nil {
		// Read only what is the host's: an empty instance of its own is none.
		if names, _ := os.ReadDir(place); len(names) == 0 && kind == "bpf" {
			err = errors.New("its own, empty")
		}
		_ = syscall.Unmount(place, syscall.MNT_DETACH)
	}
	return err
}

// hierarchies mounts cgroup v1, where the host has it, and tries what leads out
// of it: a release agent, limits, other cgroups.
func hierarchies(dir string) []attempt {
	list := []attempt{
		{"new v1 hierarchy", func() error { return mount("none", dir, "cgroup", "none,name=inmate") }},
		{"v1 hierarchy with a release agent", func() error { return mount("none", dir, "cgroup", "memory,release_agent=/x") }},
	}
	table, _ := os.ReadFile("/proc/cgroups")
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) != 4 || strings.HasPrefix(f[0], "#") || f[1] == "0" {
			continue
		}
		place := filepath.Join(dir, "v1-"+f[0])
		mounted := os.MkdirAll(place, 0o700) == nil && syscall.Mount("none", place, "cgroup", 0, f[0]) == nil
		if !mounted {
			continue
		}
		for _, name := range []string{
			"release_agent", "notify_on_release", "tasks", "cgroup.procs", "devices.allow", "memory.limit_in_bytes",
			"pids.max", "cpu.cfs_quota_us", "freezer.state", "cpuset.cpus",
		} {
			list = append(list, attempt{"write v1 " + f[0] + " " + name, opens(filepath.Join(place, name), os.O_WRONLY)})
		}
		list = append(list, attempt{"v1 cgroup in " + f[0], func() error { return os.Mkdir(filepath.Join(place, "x"), 0o755) }})
	}
	return list
}

func opens(path string, flags int) func() error {
	return func() error {
		f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0)
		if err == nil {
			f.Close()
		}
		return err
	}
}

// reads fails where nothing is to be read.
func reads(path string, secret func(string) bool) func() error {
	return func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, 1<<20))
		if err == nil && !secret(string(data)) {
			err = errors.New("nothing in it")
		}
		return err
	}
}

// files are those that change the host as a whole, or show its memory.
func files() []attempt {
	var list []attempt
	for _, path := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/kernel/sysrq",
		"/proc/sys/kernel/poweroff_cmd", "/proc/sys/kernel/panic", "/proc/sys/kernel/modules_disabled", "/proc/sys/kernel/kptr_restrict",
		"/proc/sys/kernel/usermodehelper/bset", "/proc/sys/fs/suid_dumpable", "/proc/sys/fs/file-max", "/proc/sys/fs/nr_open",
		"/proc/sys/fs/inotify/max_user_instances", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/drop_caches", "/proc/sys/vm/swappiness",
		"/proc/sysrq-trigger", "/proc/mtrr", "/proc/irq/default_smp_affinity", "/proc/sys/kernel/random/uuid",
		"/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/module/kernel/parameters/panic",
		"/sys/kernel/rcu_expedited", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max",
	} {
		list = append(list, attempt{"write " + path, opens(path, os.O_WRONLY)})
	}
	for _, path := range []string{
		"/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/vmallocinfo", "/proc/slabinfo",
		"/proc/timer_list", "/proc/sched_debug", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg",
		"/sys/firmware/acpi/tables/DSDT", "/sys/firmware/dmi/tables/DMI", "/sys/kernel/debug/sleep_time", "/sys/kernel/tracing/trace",
		"/sys/kernel/security/lsm",
	} {
		list = append(list, attempt{"read " + path, opens(path, os.O_RDONLY)})
	}
	address := func(text string) bool {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 0 && strings.Trim(strings.TrimPrefix(f[0], "0x"), "0") != "" {
				return true
			}
		}
		return false
	}
	lastField := func(text string) bool {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			for _, w := range f {
				if strings.HasPrefix(w, "0xf") {
					return true
				}
			}
		}
		return false
	}
	return append(list,
		attempt{"addresses in /proc/kallsyms", reads("/proc/kallsyms", address)},
		attempt{"addresses in /proc/modules", reads("/proc/modules", lastField)},
	)
}

// calls are system calls on the host as a whole (numbers: amd64).
func calls() []attempt {
	empty, _ := syscall.BytePtrFromString("")
	path, _ := syscall.BytePtrFromString("/proc/self/exe")
	keyring, _ := syscall.BytePtrFromString("user")
	now := syscall.Timespec{Sec: 1}
	buf := make([]byte, 256)
	copy(buf, "\x01\x00\x00\x00\x80\x00\x00\x00")
	handle := make([]byte, 64)
	handle[0], handle[4] = 8, 1
	call := func(name string, number uintptr, a ...uintptr) attempt {
		a = append(a, make([]uintptr, 6-len(a))...)
		return attempt{name, func() error {
			fd, _, errno := syscall.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
			if errno != 0 {
				return errno
			}
			_ = fd
			return nil
		}}
	}
	p := func(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }
	return []attempt{
		call("init_module", 175, p(empty), 1, p(empty)), call("finit_module", 313, 0, p(empty), 0), call("delete_module", 176, p(keyring), 0),
		call("kexec_load", 246), call("kexec_file_load", 320, 0, 0, 1, p(empty), 0),
		call("iopl", 172, 3), call("ioperm", 173, 0x80, 1, 1), call("acct", 163, p(path)), call("swapon", 167, p(path)), call("swapoff", 168, p(path)),
		call("syslog read", 103, 3, p(&buf[0]), 200), call("syslog clear", 103, 5),
		call("settimeofday", 164, uintptr(unsafe.Pointer(&now))), call("clock_settime", 227, 0, uintptr(unsafe.Pointer(&now))),
		call("bpf", 321, 0, p(&buf[0]), 32), call("perf_event_open", 298, p(&buf[0]), 0, ^uintptr(0), ^uintptr(0), 0),
		call("userfaultfd", 323, 0), call("io_uring_setup", 425, 1, p(&buf[128])), call("memfd_secret", 447, 0),
		call("add_key", 248, p(keyring), p(keyring), p(keyring), 4, ^uintptr(2)), call("keyctl", 250, 0, ^uintptr(4), 1), call("request_key", 249, p(keyring), p(keyring)),
		call("open_by_handle_at", 304, ^uintptr(99), p(&handle[0]), 0),
		call("fanotify_init for permissions", 300, 0x4, 0),
		call("quotactl", 179, 0x800002<<8, p(path), 0, p(&buf[0])),
		call("reboot without ctrl-alt-del", 169, 0xfee1dead, 672274793, 0),
	}
}

// writable mounts /proc and /sys of its own, with all rights that it can get.
func writable() error {
	dir, err := ownMounts()
	if err != nil {
		return err
	}
	for _, kind := range []string{"proc", "sysfs"} {
		// The runtime's own, where no fresh one can be had.
		place := map[string]string{"proc": "/proc", "sysfs": "/sys"}[kind]
		fresh := filepath.Join(dir, kind)
		if err := os.Mkdir(fresh, 0o700); err != nil {
			return err
		}
		if err := syscall.Mount("none", fresh, kind, 0, ""); err == nil {
			place = fresh
		} else if err := syscall.Mount("", place, "", syscall.MS_REMOUNT|syscall.MS_BIND, ""); err != nil {
			fmt.Fprintln(os.Stderr, "inmate: not fresh, and not made writable:", place, err)
		}
		if err := walk(place, "/"+strings.TrimSuffix(kind, "fs")); err != nil {
			return err
		}
	}
	return nil
}

// walk prints what can be opened to be written below place, as names below name.
func walk(place, name string) error {
	return filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
		rest := strings.TrimPrefix(path, place)
		if err != nil {
			return nil // what cannot be listed cannot be written
		}
		if d.IsDir() {
			first, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
			if _, err := strconv.Atoi(first); (err == nil && name == "/proc") || strings.HasPrefix(rest, "/fs/cgroup") {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() && opens(path, os.O_WRONLY)() == nil {
			fmt.Println(name + rest)
		}
		return nil
	})
}

func inotify() error {
	n := 0
	for ; n < 1<<20; n++ {
		if _, err := syscall.InotifyInit1(syscall.IN_CLOEXEC); err != nil {
			fmt.Printf("holds %d: %v\n", n, err)
			break
		}
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// hold takes what there is no room for, or no more of than the test has time for.
func hold(kind string) error {
	var n int
	var err error
	switch kind {
	case "mounts":
		n, err = holdMounts()
	case "namespaces":
		for err == nil && n < 40 {
			if err = syscall.Unshare(syscall.CLONE_NEWNET); err == nil {
				_, err = syscall.Open("/proc/thread-self/ns/net", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
				n++
			}
		}
	case "files":
		var limit syscall.Rlimit
		err = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
		limit.Cur = limit.Max
		err = errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
		for err == nil && n < 100000 {
			if _, err = syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
				n++
			}
		}
	default:
		return fmt.Errorf("%q is nothing to hold", kind)
	}
	fmt.Printf("holds %d: %v\n", n, err)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// holdMounts doubles the mounts of one directory until it cannot.
func holdMounts() (int, error) {
	dir, err := ownMounts()
	if err != nil {
		return 0, err
	}
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o700); err != nil {
		return 0, err
	}
	for n := 1; ; n *= 2 {
		if err := syscall.Mount(dir, inner, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return n, err
		}
	}
}

func fill(dir string) error {
	dir = filepath.Join(dir, "inmate-fill")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var bytes, count int64
	big, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return err
	}
	block := make([]byte, 1<<16)
	for {
		n, err := big.Write(block)
		bytes += int64(n)
		if err != nil {
			break
		}
	}
	if err := errors.Join(big.Truncate(0), big.Close()); err != nil {
		return err
	}
	for ; count < 70000; count++ {
		f, err := os.Create(filepath.Join(dir, strconv.FormatInt(count, 10)))
		if err != nil {
			break
		}
		f.Close()
	}
	fmt.Println(bytes, count)
	return nil
}

func push(text string) error {
	for _, c := range []byte(text) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, 0x5412 /* TIOCSTI */, uintptr(unsafe.Pointer(&c))); errno != 0 {
			return fmt.Errorf("TIOCSTI: %w", errno)
		}
	}
	return nil
}
