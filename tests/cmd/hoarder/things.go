package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func allThings() map[string]func(arg string) error {
	return map[string]func(string) error{
		// Descriptors.
		"io_uring":  func(string) error { return ioUring() },
		"bpf-map":   func(string) error { return bpfMap() },
		"bpf-prog":  func(string) error { return bpfProg() },
		"perf":      func(string) error { return perf() },
		"landlock":  func(string) error { return landlock() },
		"seccomp":   func(string) error { return seccompNotifier() },
		"fanotify":  fanotify,
		"pidfd":     func(string) error { return pidfd(os.Getpid()) },
		"pidfd-end": func(string) error { return pidfdOfEnded() },
		"ufd": func(string) error {
			return descriptor(syscall.Syscall(call().userfaultfd, syscall.O_CLOEXEC|1, 0, 0)) // UFFD_USER_MODE_ONLY
		},
		"secret": func(string) error { return secret() },
		"memfd":  func(string) error { return memfd() },
		"tree": func(string) error { // a mount that is nowhere: OPEN_TREE_CLONE
			return withPath("/", func(p uintptr) error {
				return descriptor(syscall.Syscall(sysOpenTree, ^uintptr(99), p, 1))
			})
		},
		"fscontext": func(string) error {
			return withPath("tmpfs", func(p uintptr) error { return descriptor(syscall.Syscall(sysFsopen, p, 0, 0)) })
		},
		"open":     func(path string) error { return open(path, syscall.O_RDWR) },
		"opath":    func(path string) error { return open(path, 0x200000) },
		"many":     many,
		"deleted":  deleted,
		"sparse":   sparse,
		"timens":   func(string) error { return apart(syscall.CLONE_NEWTIME) },
		"cgroupns": func(string) error { return apart(syscall.CLONE_NEWCGROUP) },
		"mntns":    func(string) error { return apart(syscall.CLONE_NEWNS) },
		"netns":    func(string) error { return apart(syscall.CLONE_NEWNET) },
		"utsns":    func(string) error { return apart(syscall.CLONE_NEWUTS) },
		"fuse":     fuse,
		"mount":    mount,
		"ns-fd":    func(kind string) error { return nsFd(kind) },
		"linked":   linked,
		// Sockets.
		"vsock":    func(string) error { return socket(40, syscall.SOCK_STREAM, 0) },
		"alg":      func(string) error { return socket(38, syscall.SOCK_SEQPACKET, 0) },
		"mptcp":    func(string) error { return socket(syscall.AF_INET, syscall.SOCK_STREAM, 262) },
		"ping":     func(string) error { return socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP) },
		"raw":      func(string) error { return socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP) },
		"udplite":  func(string) error { return socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_UDPLITE) },
		"sctp":     func(string) error { return socket(syscall.AF_INET, syscall.SOCK_STREAM, syscall.IPPROTO_SCTP) },
		"packet":   func(string) error { return socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0x300) },
		"key":      func(string) error { return socket(15, syscall.SOCK_RAW, 2) },
		"xdp":      func(string) error { return socket(44, syscall.SOCK_RAW, 0) },
		"tipc":     func(string) error { return socket(30, syscall.SOCK_DGRAM, 0) },
		"smc":      func(string) error { return socket(43, syscall.SOCK_STREAM, 0) },
		"can":      func(string) error { return socket(29, syscall.SOCK_RAW, 1) },
		"qipcrtr":  func(string) error { return socket(42, syscall.SOCK_DGRAM, 0) },
		"rxrpc":    func(string) error { return socket(33, syscall.SOCK_DGRAM, syscall.AF_INET) },
		"udp":      func(string) error { return socket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0) },
		"netlink":  func(p string) error { n, _ := strconv.Atoi(p); return socket(syscall.AF_NETLINK, syscall.SOCK_RAW, n) },
		"tcp":      func(string) error { return tcpPair() },
		"unix":     func(string) error { return unixPair() },
		"unix-to":  func(path string) error { return unixTo(path, syscall.SOCK_STREAM) },
		"dgram-to": func(path string) error { return unixTo(path, syscall.SOCK_DGRAM) },
		"backlog":  func(string) error { return backlog() },
		"listener": func(string) error { return socket(syscall.AF_INET, syscall.SOCK_STREAM, 0) },
		// Others.
		"mqueue":      func(string) error { return mqueue(false, false) },
		"mqueue-msg":  func(string) error { return mqueue(true, false) },
		"mqueue-open": func(string) error { return mqueue(false, true) },
		"ptrace":      trace,
		"flock": func(path string) error {
			return lockWith(path, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX) })
		},
		"posix-lock": func(path string) error {
			return lockWith(path, func(fd int) error {
				return syscall.FcntlFlock(uintptr(fd), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK})
			})
		},
		"ofd-lock": func(path string) error {
			return lockWith(path, func(fd int) error {
				return syscall.FcntlFlock(uintptr(fd), 37, &syscall.Flock_t{Type: syscall.F_WRLCK})
			})
		},
		"lease": func(path string) error {
			return lockWith(path, func(fd int) error {
				return descriptor(syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), 1024, syscall.F_WRLCK))
			})
		},
		"hugepage": func(string) error { return hugepage() },
		"nsfs":     func(place string) error { return bindNamespace(place) },
		"nothing":  func(string) error { return nil },
	}
}

func withPath(path string, do func(uintptr) error) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	return do(uintptr(unsafe.Pointer(p)))
}

func open(path string, flags int) error {
	_, err := syscall.Open(path, flags|syscall.O_NONBLOCK, 0)
	return err
}

func socket(family, kind, protocol int) error {
	_, err := syscall.Socket(family, kind, protocol)
	return err
}

func ioUring() error {
	var params [120]byte
	return descriptor(syscall.Syscall(sysIoUringSetup, 4, uintptr(unsafe.Pointer(&params)), 0))
}

func bpfMap() error {
	attr := [32]uint32{2, 4, 4, 1} // BPF_MAP_TYPE_ARRAY of one
	return descriptor(syscall.Syscall(call().bpf, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
}

func bpfProg() error {
	// r0 = 0; exit
	code := [16]byte{0xb7, 8: 0x95}
	license := []byte("GPL\x00")
	var attr struct {
		kind, count   uint32
		code, license uint64
		_, _          uint32
		_             uint64
		_, _          uint32
		_             [64]byte
	}
	attr.kind, attr.count = 1, 2 // BPF_PROG_TYPE_SOCKET_FILTER
	attr.code, attr.license = uint64(uintptr(unsafe.Pointer(&code))), uint64(uintptr(unsafe.Pointer(&license[0])))
	return descriptor(syscall.Syscall(call().bpf, 5, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
}

func perf() error {
	var attr [128]byte
	attr[0], attr[4], attr[8] = 1, 128, 0 // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
	attr[40] = 1<<5 | 1<<6                // not the kernel, no hypervisor
	return descriptor(syscall.Syscall6(call().perfEventOpen, uintptr(unsafe.Pointer(&attr)), 0, ^uintptr(0), ^uintptr(0), 0, 0))
}

func landlock() error {
	attr := uint64(1) // LANDLOCK_ACCESS_FS_EXECUTE
	return descriptor(syscall.Syscall(sysLandlockRuleset, uintptr(unsafe.Pointer(&attr)), 8, 0))
}

// seccompNotifier watches its own uname(2).
func seccompNotifier() error {
	const noNewPrivs = 38
	if err := descriptor(syscall.Syscall6(syscall.SYS_PRCTL, noNewPrivs, 1, 0, 0, 0, 0)); err != nil {
		return err
	}
	type instruction struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	code := []instruction{
		{0x20, 0, 0, 0},                         // the number of the call
		{0x15, 0, 1, uint32(syscall.SYS_UNAME)}, // is it uname?
		{0x06, 0, 0, 0x7fc00000},                // SECCOMP_RET_USER_NOTIF
		{0x06, 0, 0, 0x7fff0000},                // SECCOMP_RET_ALLOW
	}
	program := struct {
		count uint16
		code  *instruction
	}{uint16(len(code)), &code[0]}
	return descriptor(syscall.Syscall(call().seccomp, 1, 8, uintptr(unsafe.Pointer(&program)))) // NEW_LISTENER
}

func fanotify(arg string) error {
	flags := uintptr(0x200) // FAN_REPORT_FID, as without privileges
	if arg == "root" {
		flags = 0
	}
	return descriptor(syscall.Syscall(call().fanotifyInit, flags, 0, 0))
}

func pidfd(pid int) error { return descriptor(syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)) }

func pidfdOfEnded() error {
	cmd := exec.Command("/proc/self/exe", "list")
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := pidfd(cmd.Process.Pid); err != nil {
		return err
	}
	return cmd.Wait()
}

func secret() error {
	fd, _, errno := syscall.Syscall(sysMemfdSecret, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if err := syscall.Ftruncate(int(fd), 4096); err != nil {
		return err
	}
	_, err := syscall.Mmap(int(fd), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	return err
}

func memfd() error {
	return withPath("held", func(p uintptr) error { return descriptor(syscall.Syscall(call().memfdCreate, p, 0, 0)) })
}

func hugepage() error {
	const hugetlb = 0x40000
	_, err := syscall.Mmap(-1, 0, 2<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|hugetlb)
	return err
}

// many holds the same file some thousand times.
func many(arg string) error {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	fd, err := syscall.Open("/proc/self/exe", syscall.O_RDONLY, 0)
	for range n {
		if err == nil {
			_, err = syscall.Dup(fd)
		}
	}
	return err
}

// deleted holds a file of so many MiB that has no name any more.
func deleted(arg string) error {
	path, size, err := pathAndSize(arg)
	if err != nil {
		return err
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Fallocate(fd, 0, 0, int64(size)<<20); err != nil {
		return err
	}
	return os.Remove(path)
}

func pathAndSize(arg string) (string, int, error) {
	dir, name := filepath.Split(arg)
	n, err := strconv.Atoi(name)
	return dir + "deleted", n, err
}

// linked holds a file by a name that is gone, and leaves it another.
func linked(path string) error {
	if err := open(path, syscall.O_RDWR|syscall.O_CREAT); err != nil {
		return err
	}
	return errors.Join(os.Link(path, path+".other"), os.Remove(path))
}

func tcpPair() error {
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	l, err := listen.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	held := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		keep(c)
		held <- err
	}()
	keep(l)
	c, err := net.Dial("tcp4", l.Addr().String())
	keep(c)
	return errors.Join(err, <-held)
}

// backlog is a connection that is not accepted.
func backlog() error {
	l, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Bind(l, &syscall.SockaddrInet4{Port: 4711, Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(l, 5)); err != nil {
		return err
	}
	c, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return syscall.Connect(c, &syscall.SockaddrInet4{Port: 4711, Addr: [4]byte{127, 0, 0, 1}})
}

// keep holds what would be closed if it were garbage.
func keep(v any) { go func() { select {} }(); kept = append(kept, v) }

var kept []any

func unixPair() error {
	_, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	return err
}

func unixTo(path string, kind int) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, kind, 0)
	if err != nil {
		return err
	}
	return syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
}

func mqueue(message, unlink bool) error {
	return withPath("held", func(name uintptr) error {
		fd, _, errno := syscall.Syscall6(call().mqOpen, name, syscall.O_RDWR|syscall.O_CREAT, 0o600, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if message {
			text := []byte("held")
			if err := descriptor(syscall.Syscall6(call().mqSend, fd, uintptr(unsafe.Pointer(&text[0])), 4, 0, 0, 0)); err != nil {
				return err
			}
		}
		if !unlink {
			return syscall.Close(int(fd))
		}
		return nil
	})
}

// trace traces another process, which is stopped.
func trace(string) error {
	cmd := exec.Command("/proc/self/exe", "nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, 0, nil); err != nil {
		return err
	}
	if !status.Stopped() {
		return fmt.Errorf("the other process is not stopped: %v", status)
	}
	return syscall.PtraceCont(cmd.Process.Pid, 0)
}

func lockWith(path string, lock func(fd int) error) error {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT, 0o600)
	if err != nil {
		return err
	}
	return lock(fd)
}

// sparse is deleted, with nothing in the file.
func sparse(arg string) error {
	path, size, err := pathAndSize(arg)
	if err != nil {
		return err
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Ftruncate(fd, int64(size)<<20); err != nil {
		return err
	}
	return os.Remove(path)
}

// apart starts this program again in a namespace of its own.
func apart(flag uintptr) error {
	cmd := exec.Command("/proc/self/exe", "nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
	if flag == syscall.CLONE_NEWTIME { // takes effect for children only
		if err := descriptor(syscall.Syscall(syscall.SYS_UNSHARE, flag, 0, 0)); err != nil {
			return err
		}
		cmd.SysProcAttr = nil
	}
	return cmd.Start()
}

// mount mounts TYPE:PLACE.
func mount(arg string) error {
	kind, place, _ := strings.Cut(arg, ":")
	if err := os.MkdirAll(place, 0o755); err != nil {
		return err
	}
	return syscall.Mount("none", place, kind, 0, "")
}

// nsFd holds a namespace in which nobody is.
func nsFd(kind string) error {
	flag := map[string]int{"uts": syscall.CLONE_NEWUTS, "net": syscall.CLONE_NEWNET, "ipc": syscall.CLONE_NEWIPC}[kind]
	path := "/proc/thread-self/ns/" + kind
	if err := syscall.Unshare(flag); err != nil {
		return err
	}
	if err := open(path, syscall.O_RDONLY); err != nil {
		return err
	}
	old, err := syscall.Open("/proc/1/ns/"+kind, syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	number := uintptr(308) // setns
	if runtime.GOARCH == "arm64" {
		number = 268
	}
	if err := descriptor(syscall.Syscall(number, uintptr(old), uintptr(flag), 0)); err != nil {
		return err
	}
	return syscall.Close(old)
}

// fuse mounts a file system whose program, this one, never answers.
func fuse(place string) error {
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(place, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	return syscall.Mount("held", place, "fuse", 0, options)
}

// bindNamespace keeps a network namespace as ip-netns(8) does.
func bindNamespace(place string) error {
	if place == "" {
		place = "/srv/netns"
	}
	if err := os.WriteFile(place, nil, 0o600); err != nil {
		return err
	}
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return err
	}
	return syscall.Mount("/proc/thread-self/ns/net", place, "", syscall.MS_BIND, "")
}
