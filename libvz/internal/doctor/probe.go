package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Host is what the caller has found out by itself, and where to look.
type Host struct {
	// UserNamespace is one with a mapping, nil if there can be none, and then why.
	UserNamespace    *os.File
	UserNamespaceErr error
	// Dirs are directories in which root file systems are to lie.
	Dirs []string
	// Cgroup2 is where the cgroup2 hierarchy is mounted; Unified says that there is
	// no other.
	Cgroup2 string
	Unified bool
}

// Probe tries everything out that is not in the caller's results already.
func Probe(h Host, results map[string]Result) {
	for name, probe := range map[string]func() Result{
		"user":             user,
		"capabilities":     capabilities,
		"CAP_SYS_RESOURCE": resource,
		"kernel":           kernel,
		"namespaces":       namespaces,
		"user namespaces": func() Result {
			return Result{Err: h.UserNamespaceErr, Found: sysctl("user/max_user_namespaces", "at most %s")}
		},
		"time namespaces":  func() Result { return Result{Err: apart(unix.CLONE_NEWTIME, func() error { return nil })} },
		"id-mapped mounts": func() Result { return idMapped(h) },
		"overlay":          overlay,
		"loop devices":     loopDevices,
		"cgroups":          func() Result { return cgroups(h) },
		"pressure (PSI)":   pressure,
		"seccomp":          seccomp,
		"AppArmor":         appArmor,
		"veth and bridges": links,
		"nftables":         nftables,
		"soft-dirty":       softDirty,
		"userfaultfd":      userfaultfd,
		"pipe size":        pipeSize,
		"/run":             runtimeDir,
		"systemd":          systemd,
		"machined":         machined,
		"newuidmap":        newuidmap,
	} {
		if _, known := results[name]; !known {
			results[name] = probe()
		}
	}
}

func user() Result {
	if os.Geteuid() != 0 {
		return Result{Err: fmt.Errorf("user id %d", os.Geteuid())}
	}
	return Result{Found: "root"}
}

// held are the effective capabilities, proc_pid_status(5).
func held() (uint64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(status), "\nCapEff:")
	if !ok {
		return 0, errors.New("no CapEff in /proc/self/status")
	}
	line, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseUint(strings.TrimSpace(line), 16, 64)
}

func capabilities() Result {
	have, err := held()
	if err != nil {
		return Result{Err: err}
	}
	return judgeCapabilities(have)
}

// judgeCapabilities tells what is needed and missing, capabilities(7).
func judgeCapabilities(have uint64) Result {
	var lacking []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_CHOWN, "CHOWN"},
		{unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE"},
		{unix.CAP_FOWNER, "FOWNER"},
		{unix.CAP_KILL, "KILL"},
		{unix.CAP_SETGID, "SETGID"},
		{unix.CAP_SETUID, "SETUID"},
		{unix.CAP_NET_ADMIN, "NET_ADMIN"},
		{unix.CAP_SYS_CHROOT, "SYS_CHROOT"},
		{unix.CAP_SYS_PTRACE, "SYS_PTRACE"},
		{unix.CAP_SYS_ADMIN, "SYS_ADMIN"},
		{unix.CAP_MKNOD, "MKNOD"},
		{unix.CAP_DAC_READ_SEARCH, "DAC_READ_SEARCH"},
	} {
		if have&(1<<c.bit) == 0 {
			lacking = append(lacking, "CAP_"+c.name)
		}
	}
	if len(lacking) > 0 {
		return Result{Err: fmt.Errorf("without %s", strings.Join(lacking, ", "))}
	}
	return Result{Found: "all that are needed"}
}

func resource() Result {
	have, err := held()
	if err == nil && have&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		err = errors.New("not held")
	}
	return Result{Err: err}
}

// kernel calls what vzrun needs, wrongly: a call that is there says so.
func kernel() Result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Result{Err: err}
	}
	var lacking []string
	for _, c := range []struct {
		name   string
		number uintptr
	}{
		{"pidfd_open", unix.SYS_PIDFD_OPEN},
		{"pidfd_send_signal", unix.SYS_PIDFD_SEND_SIGNAL},
		{"openat2", unix.SYS_OPENAT2},
		{"open_tree", unix.SYS_OPEN_TREE},
		{"move_mount", unix.SYS_MOVE_MOUNT},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR},
		{"fsopen", unix.SYS_FSOPEN},
		{"clone3", unix.SYS_CLONE3},
		{"close_range", unix.SYS_CLOSE_RANGE},
	} {
		bad := ^uintptr(0)
		if _, _, errno := unix.Syscall6(c.number, bad, 0, bad, bad, 0, 0); errno == unix.ENOSYS {
			lacking = append(lacking, c.name)
		}
	}
	found := unix.ByteSliceToString(u.Release[:]) + ", " + runtime.GOARCH
	if len(lacking) > 0 {
		return Result{Found: found, Err: fmt.Errorf("without %s", strings.Join(lacking, ", "))}
	}
	return Result{Found: found}
}

// apart runs do on a thread with namespaces of its own, that ends with it.
func apart(flags int, do func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends, and with it the namespaces.
		runtime.LockOSThread()
		if err := unix.Unshare(flags); err != nil {
			done <- os.NewSyscallError("unshare", err)
			return
		}
		done <- do()
	}()
	return <-done
}

func namespaces() Result {
	return Result{Err: apart(unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWCGROUP, func() error { return nil })}
}

func sysctl(name, format string) string {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(format, strings.TrimSpace(string(data)))
}

// idMapped maps a clone of each directory's mount that is attached nowhere.
func idMapped(h Host) Result {
	if h.UserNamespace == nil {
		return Result{Err: errors.New("not tried without user namespaces")}
	}
	var works, fails []string
	for _, dir := range h.Dirs {
		what := fmt.Sprintf("%s (%s)", dir, fileSystem(dir))
		if err := mapOne(dir, int(h.UserNamespace.Fd())); err != nil {
			fails = append(fails, fmt.Sprintf("%s: %v", what, err))
		} else {
			works = append(works, what)
		}
	}
	r := Result{Found: strings.Join(works, ", ")}
	switch {
	case len(fails) > 0 && len(works) > 0:
		r.Partly = errors.New("not " + strings.Join(fails, ", "))
	case len(fails) > 0:
		r.Err = errors.New("not " + strings.Join(fails, ", "))
	}
	return r
}

func mapOne(dir string, userns int) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr))
}

// fileSystem names the file system of a directory by its number, statfs(2).
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs", unix.F2FS_SUPER_MAGIC: "f2fs",
	}
	if name := names[int64(st.Type)]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x", st.Type)
}

// overlay mounts one with what CRIU needs to save watches, in a tmpfs that nobody
// else sees.
func overlay() Result {
	return Result{Err: apart(unix.CLONE_NEWNS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		const at = "/tmp"
		if err := unix.Mount("none", at, "tmpfs", 0, "size=1m"); err != nil {
			return os.NewSyscallError("mount tmpfs", err)
		}
		for _, dir := range []string{"lower", "upper", "work", "whole"} {
			if err := os.Mkdir(filepath.Join(at, dir), 0o700); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,index=on,nfs_export=on", at)
		return os.NewSyscallError("mount overlay", unix.Mount("none", at+"/whole", "overlay", 0, options))
	}), Found: "with index and nfs_export"}
}

func loopDevices() Result {
	fd, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{Err: &fs.PathError{Op: "open", Path: "/dev/loop-control", Err: err}}
	}
	unix.Close(fd)
	return Result{}
}

func cgroups(h Host) Result {
	if h.Cgroup2 == "" {
		return Result{Err: errors.New("no cgroup2 hierarchy is mounted")}
	}
	var r Result
	controllers := ""
	if data, err := os.ReadFile(filepath.Join(h.Cgroup2, "cgroup.controllers")); err == nil {
		controllers = strings.TrimSpace(string(data))
	}
	r.Found = "cgroup2 at " + h.Cgroup2 + " with " + controllers
	if !h.Unified {
		data, err := os.ReadFile("/proc/cgroups")
		if err != nil {
			return Result{Found: r.Found, Err: err}
		}
		first := firstVersion(string(data))
		r.Found = fmt.Sprintf("cgroup v1 (%s), and cgroup2 at %s", first, h.Cgroup2)
		controllers += " " + first
	}
	if err := unix.Access(h.Cgroup2, unix.W_OK); err != nil {
		r.Err = fmt.Errorf("no cgroup can be made in %s: %w", h.Cgroup2, err)
		return r
	}
	r.Partly = judgeControllers(controllers)
	return r
}

// firstVersion lists the controllers of /proc/cgroups that are in use by cgroup v1.
func firstVersion(text string) string {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 4 && f[1] != "0" && f[3] == "1" {
			names = append(names, f[0])
		}
	}
	return strings.Join(names, " ")
}

// judgeControllers tells which of those that limits need are missing.
func judgeControllers(controllers string) error {
	have := map[string]bool{}
	for _, c := range strings.Fields(controllers) {
		have[c] = true
	}
	var lacking []string
	for _, c := range [][]string{{"memory"}, {"pids"}, {"cpu"}, {"cpuset"}, {"io", "blkio"}} {
		if !have[c[0]] && !have[c[len(c)-1]] {
			lacking = append(lacking, c[0])
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	return fmt.Errorf("without the controllers %s", strings.Join(lacking, ", "))
}

func pressure() Result {
	_, err := os.ReadFile("/proc/pressure/memory")
	return Result{Err: err}
}

// seccomp asks whether filters can answer with an error, seccomp(2).
func seccomp() Result {
	const getActionAvail = 2
	action := uint32(0x00050000) // SECCOMP_RET_ERRNO
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return Result{Err: os.NewSyscallError("seccomp", errno)}
	}
	return Result{Found: "with filters"}
}

func appArmor() Result {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err == nil && strings.TrimSpace(string(data)) != "Y" {
		err = errors.New("is off")
	}
	return Result{Err: err}
}

// softDirty writes to a page and looks whether the kernel has noticed, which
// is kernel's admin-guide/mm/soft-dirty.rst.
func softDirty() Result {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return Result{Err: os.NewSyscallError("mmap", err)}
	}
	defer unix.Munmap(page) //nolint:errcheck // it goes with the process
	page[0] = 1
	if err := os.WriteFile("/proc/self/clear_refs", []byte("4"), 0); err != nil {
		return Result{Err: err}
	}
	page[0] = 2
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return Result{Err: err}
	}
	defer pagemap.Close()
	var entry [8]byte
	at := int64(uintptr(unsafe.Pointer(&page[0]))) / int64(os.Getpagesize()) * int64(len(entry))
	if _, err := pagemap.ReadAt(entry[:], at); err != nil {
		return Result{Err: err}
	}
	const dirty = 1 << 55
	if binary.NativeEndian.Uint64(entry[:])&dirty == 0 {
		return Result{Err: errors.New("this kernel does not track changes of memory")}
	}
	return Result{}
}

// userfaultfd is needed by tasks in a user namespace, which have no privilege
// outside.
func userfaultfd() Result {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return Result{Err: os.NewSyscallError("userfaultfd", errno)}
	}
	unix.Close(int(fd))
	if sysctl("vm/unprivileged_userfaultfd", "%s") == "1" {
		return Result{Found: "for all"}
	}
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{Partly: errors.New("not in user namespaces")}
	}
	unix.Close(dev)
	return Result{Found: "by /dev/userfaultfd"}
}

// wantedPipe is more than CRIU was seen to ask for.
const wantedPipe = 4 << 20

func pipeSize() Result {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return Result{Err: os.NewSyscallError("pipe", err)}
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	found := sysctl("fs/pipe-max-size", "fs.pipe-max-size is %s")
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, wantedPipe); err != nil {
		return Result{Found: found, Partly: fmt.Errorf("a pipe cannot hold %d bytes", wantedPipe)}
	}
	return Result{Found: found}
}

func runtimeDir() Result {
	if name := fileSystem("/run"); name != "tmpfs" {
		return Result{Partly: fmt.Errorf("it is %s, not a tmpfs", name)}
	}
	return Result{Found: "a tmpfs"}
}

func systemd() Result {
	_, err := os.Stat("/run/systemd/system")
	if err != nil {
		return Result{Err: errors.New("does not manage this host")}
	}
	return Result{Found: "manages this host"}
}

func machined() Result {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return Result{Err: errors.New("not without systemd")}
	}
	_, err := os.Stat("/usr/share/dbus-1/system-services/org.freedesktop.machine1.service")
	return Result{Err: err}
}

func newuidmap() Result {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return Result{Err: err}
		}
		st, err := os.Stat(path)
		if err != nil {
			return Result{Err: err}
		}
		if _, err := unix.Getxattr(path, "security.capability", make([]byte, 64)); err != nil && st.Mode()&os.ModeSetuid == 0 {
			return Result{Err: fmt.Errorf("%s has neither the set-user-id bit nor a capability", path)}
		}
	}
	return Result{}
}
