package main

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// configuration returns the config.json of a container as engines write it: the
// usual namespaces, mounts and masked paths, limits, and no terminal.
func configuration(rootfs string, args []string) map[string]any {
	mount := func(target, kind, source string, options ...string) map[string]any {
		return map[string]any{"destination": target, "type": kind, "source": source, "options": options}
	}
	capabilities := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"}
	namespaces := []map[string]any{}
	for _, kind := range []string{"pid", "network", "ipc", "uts", "mount"} {
		namespaces = append(namespaces, map[string]any{"type": kind})
	}
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0}, "args": args, "cwd": "/", "noNewPrivileges": true,
			"env":          []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			"capabilities": map[string]any{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"root":     map[string]any{"path": rootfs, "readonly": true},
		"hostname": "bench",
		"mounts": []map[string]any{
			mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": map[string]any{
			"namespaces":    namespaces,
			"resources":     map[string]any{"memory": map[string]any{"limit": 256 << 20}, "pids": map[string]any{"limit": 100}},
			"maskedPaths":   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// privileged are system calls that an ordinary program does not need.
var privileged = strings.Fields(`acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module
	fsconfig fsmount fsopen fspick get_kernel_syms init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl
	lookup_dcookie mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree
	perf_event_open pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl reboot request_key
	setns settimeofday swapoff swapon sysfs umount2 unshare uselib userfaultfd ustat vm86 vm86old`)

// seccompProfile returns a profile of the size that engines use: it allows all
// of the machine's system calls but the privileged ones, and looks at arguments
// of a few.
func seccompProfile() (map[string]any, error) {
	calls, err := systemCalls()
	if err != nil {
		return nil, err
	}
	calls = slices.DeleteFunc(calls, func(name string) bool {
		return slices.Contains(privileged, name) || name == "clone" || name == "personality"
	})
	rules := []map[string]any{
		{"names": calls, "action": "SCMP_ACT_ALLOW"},
		// No new namespaces.
		{"names": []string{"clone"}, "action": "SCMP_ACT_ALLOW", "args": []map[string]any{
			{"index": 0, "value": 0x7e020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
		}},
	}
	for _, persona := range []int{0, 8, 0x20000, 0x20008, 0xffffffff} {
		rules = append(rules, map[string]any{"names": []string{"personality"}, "action": "SCMP_ACT_ALLOW", "args": []map[string]any{
			{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"},
		}})
	}
	return map[string]any{
		"defaultAction": "SCMP_ACT_ERRNO",
		"architectures": []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"},
		"syscalls":      rules,
	}, nil
}

// systemCalls reads the names from the C library's headers.
func systemCalls() ([]string, error) {
	headers, err := filepath.Glob("/usr/include/*-linux-gnu/asm/unistd_64.h")
	if err != nil || len(headers) == 0 {
		return nil, errors.Join(err, errors.New("no asm/unistd_64.h: run contrib/bootstrap"))
	}
	f, err := os.Open(headers[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var calls []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "#define" && strings.HasPrefix(fields[1], "__NR_") {
			calls = append(calls, strings.TrimPrefix(fields[1], "__NR_"))
		}
	}
	return calls, lines.Err()
}
