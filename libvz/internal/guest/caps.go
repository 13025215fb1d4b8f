package guest

// capabilities are those of the guest's root. All are relative to the guest's
// user namespace (user_namespaces(7)), so none reaches the host by itself. Left
// out are those that the kernel only honours in the initial user namespace
// (capable() instead of ns_capable()): holding them changes nothing except that
// a unit's ConditionCapability= holds and the unit then fails instead of being
// skipped.
//
//	CAP_SYS_MODULE                   loads code into the host's kernel; kmod-static-nodes, modules-load
//	CAP_SYS_RAWIO                    I/O ports, /dev/mem; sys-kernel-{debug,tracing,config}.mount
//	CAP_SYS_TIME                     the host's clock; chronyd, ntpd, timesyncd
//	CAP_WAKE_ALARM                   wakes the host from suspend; CRIU cannot re-arm such timers in a guest
//	CAP_BLOCK_SUSPEND                keeps the host awake
//	CAP_SYSLOG                       the host's kernel log and kernel addresses
//	CAP_AUDIT_CONTROL, CAP_AUDIT_READ  the host's audit subsystem; journald's audit socket, auditd
//	CAP_MAC_ADMIN, CAP_MAC_OVERRIDE  the host's security module
//	CAP_SYS_PACCT                    process accounting of the host
//	CAP_BPF, CAP_PERFMON             bpf and perf_event_open are refused by the seccomp profile
//
// CAP_AUDIT_WRITE stays, because login, sshd and cron give up on EPERM, while in
// a user namespace the kernel answers ECONNREFUSED, which they take for "no
// audit". CAP_SYS_BOOT stays: reboot(2) in a PID namespace becomes the death of
// its init by SIGHUP or SIGINT (pid_namespaces(7)), which is how a guest says
// that it has powered off.
func capabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE",
		"CAP_CHECKPOINT_RESTORE",
		"CAP_CHOWN",
		"CAP_DAC_OVERRIDE",
		"CAP_DAC_READ_SEARCH",
		"CAP_FOWNER",
		"CAP_FSETID",
		"CAP_IPC_LOCK",
		"CAP_IPC_OWNER",
		"CAP_KILL",
		"CAP_LEASE",
		"CAP_LINUX_IMMUTABLE",
		"CAP_MKNOD",
		"CAP_NET_ADMIN",
		"CAP_NET_BIND_SERVICE",
		"CAP_NET_BROADCAST",
		"CAP_NET_RAW",
		"CAP_SETFCAP",
		"CAP_SETGID",
		"CAP_SETPCAP",
		"CAP_SETUID",
		"CAP_SYS_ADMIN",
		"CAP_SYS_BOOT",
		"CAP_SYS_CHROOT",
		"CAP_SYS_NICE",
		"CAP_SYS_PTRACE",
		"CAP_SYS_RESOURCE",
		"CAP_SYS_TTY_CONFIG",
	}
}
