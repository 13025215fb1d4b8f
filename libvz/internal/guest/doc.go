// Package guest knows what the init of a whole-OS guest expects of its
// container, and what the guest must do without so that it can be checkpointed.
//
// It finds the init of a rootfs ([Detect]), writes the OCI configuration that
// such an init boots in ([Spec]), puts settings into the guest's /run before the
// init starts ([DropIns], [Install]), waits until the system is up ([WaitReady])
// or asks the init how it is ([Ask]), tells the guest who it is and how to resolve
// names ([HostFiles], [InstallEtc]), makes the init shut down ([BeginStop]) and
// knows what its end means ([ExitCode]). It is a leaf: it speaks runtime-spec
// types and imports no other package of vzrun.
//
// # What a guest loses
//
// Everything here is taken from the guest so that CRIU can save it; nothing
// else is. All of it lives in the guest's memory or its config.json, never on
// its disk.
//
//	what                               how                          why CRIU needs it
//	ProtectHostname= of services       service.d drop-in            nested UTS namespaces are not dumped
//	PrivateIPC= of services            service.d drop-in            nested IPC namespaces are not dumped
//	PrivateUsers= of services          service.d drop-in            nested user namespaces are not dumped
//	PSI triggers of PID 1              {MEMORY,CPU,IO}_PRESSURE_    reopened without the trigger: PID 1 spins
//	                                     WATCH in its environment
//	PSI triggers of services           {system,user}.conf.d         the same, and memory.pressure bind mounts
//	PSI triggers of user managers      user@.service.d drop-in      the same; the stock unit asks for them itself
//	PrivateTmp=disconnected of         drop-in: PrivateTmp=yes     a tmpfs whose root is mounted nowhere
//	  systemd-resolved
//	ImportCredential= of journald,     drop-ins                     a ramfs of systemd 262, empty or not
//	  networkd and gettys
//	PHP's choice of memory             system.conf.d and an ini     before its program, where CRIU cannot
//	  for opcache                                                     put its code
//	io_uring, bpf, userfaultfd,        seccomp: ENOSYS              descriptors without an image
//	  memfd_secret, perf_event_open
//	kernel keyrings                    seccomp: ENOSYS              not in the image: lost by a restore
//	MPTCP sockets                      seccomp: EPROTONOSUPPORT     not dumped; programs fall back to TCP
//	masks of /proc and /sys            not set in config.json       not for CRIU's sake alone, see linux()
//
// A unit's own drop-in wins over ours (ours sorts first): an operator who
// insists on PrivateUsers=yes has it, and an explained refusal at the checkpoint.
// PrivatePIDs= is not turned off, because systemd before 257 would warn of an
// unknown key once for each service, and no stock unit uses it. Services with
// DynamicUser= and without PrivateTmp=yes have the same private tmpfs as
// systemd-resolved since systemd 257; which ones a guest has is not known here,
// so they need the same drop-in from its operator.
//
// No mount unit is masked: those that cannot work in a user namespace
// (dev-hugepages, sys-fs-fuse-connections, sys-kernel-config, -debug, -tracing)
// are skipped by their own conditions, given the capabilities of [Spec].
package guest
