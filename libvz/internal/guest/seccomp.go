package guest

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deny is one refusal: the calls, the errno, and optionally the argument that
// makes a call refused.
type deny struct {
	calls []string
	errno uint
	arg   *specs.LinuxSeccompArg
}

// seccomp returns the profile of a system container: allow, with a short list
// of refusals.
//
// Allow is the default because the guest is an operating system, whose next
// release will use the next kernel's calls; a list of permitted calls breaks
// exactly there, and an errno it did not expect (EPERM for clone3, openat2,
// fsopen) breaks it worst. The boundary of a system container is its user
// namespace; this profile closes what that leaves open, and what would make the
// guest impossible to checkpoint. It also is quick: about 20 calls for three
// architectures compile in 1 ms, against 11 to 13 ms for a list of permitted ones.
//
// goarch is as in runtime.GOARCH. On one that the table lacks, the filter covers
// the native architecture only, and other ones are killed by the kernel.
func seccomp(goarch string) *specs.LinuxSeccomp {
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: architectures(goarch),
	}
	for _, d := range denials() {
		errno := d.errno
		rule := specs.LinuxSyscall{Names: d.calls, Action: specs.ActErrno, ErrnoRet: &errno}
		if d.arg != nil {
			rule.Args = []specs.LinuxSeccompArg{*d.arg}
		}
		profile.Syscalls = append(profile.Syscalls, rule)
	}
	return profile
}

// architectures lists all that one processor executes: the calls of one left
// out would not be filtered but kill the caller.
func architectures(goarch string) []specs.Arch {
	switch goarch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	case "ppc64le":
		return []specs.Arch{specs.ArchPPC64LE}
	case "s390x":
		return []specs.Arch{specs.ArchS390X, specs.ArchS390}
	case "riscv64":
		return []specs.Arch{specs.ArchRISCV64}
	}
	return nil
}

func denials() []deny {
	return []deny{
		// CRIU has no image for these. ENOSYS is what an older kernel answers,
		// so programs (MariaDB, Node.js, systemd) fall back by themselves.
		{errno: uint(unix.ENOSYS), calls: []string{
			"io_uring_setup", "io_uring_enter", "io_uring_register",
			"bpf",             // program and map descriptors; also the largest attack surface of the kernel
			"userfaultfd",     // CRIU needs the mechanism for itself in a lazy restore
			"memfd_secret",    // pages that even CRIU may not read
			"perf_event_open", // descriptors; and measures the host
		}},
		// Keys are not in the image either and would be gone after a restore. Their
		// quota is shared by guests whose ids overlap. Container engines inside
		// the guest accept ENOSYS here, and only that.
		{errno: uint(unix.ENOSYS), calls: []string{"add_key", "keyctl", "request_key"}},
		// MPTCP sockets, which every Go program listens on by default, cannot be
		// dumped ("Unsupported proto 262"). Here, and not by net.mptcp.enabled,
		// the refusal holds also in network namespaces that the guest makes and
		// in the one that a restore makes. It is what a kernel without MPTCP answers.
		{errno: uint(unix.EPROTONOSUPPORT), calls: []string{"socket"}, arg: low32(2, unix.IPPROTO_MPTCP)},
		// The host's kernel log: with kernel.dmesg_restrict=0 anyone may read it.
		{errno: uint(unix.EPERM), calls: []string{"syslog"}},
		// These act on the host as a whole. The kernel refuses them to a user
		// namespace already; this holds too if one of its checks is wrong.
		{errno: uint(unix.EPERM), calls: []string{
			"kexec_load", "kexec_file_load",
			"init_module", "finit_module", "delete_module",
			"swapon", "swapoff",
			"acct",           // accounts for the whole host
			"iopl", "ioperm", // I/O ports
			"open_by_handle_at", // opens by inode number, past every path and mount
		}},
	}
}

// low32 matches an int argument. The kernel ignores the upper half of its
// register, so a comparison of all 64 bits could be evaded.
func low32(index uint, value uint64) *specs.LinuxSeccompArg {
	return &specs.LinuxSeccompArg{Index: index, Op: specs.OpMaskedEqual, Value: 0xffffffff, ValueTwo: value}
}
