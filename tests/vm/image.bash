# shellcheck shell=bash
# Kernels, systems, disks and booted states of the lanes. Needs lib.bash, qemu.bash.

# All that suites, the demo and a curious person need in a VM.
system_packages=(
	systemd systemd-sysv dbus libpam-systemd systemd-container udev kmod login passwd bash procps psmisc
	util-linux bsdutils mount uidmap iproute2 iputils-ping nftables iptables apparmor bats jq inotify-tools curl
	rsync openssh-server openssh-client openssl ca-certificates busybox-static e2fsprogs xfsprogs btrfs-progs
	libcap2-bin containernetworking-plugins strace zstd age attr
)
# Not needed by a running system.
unneeded=(usr/share/{man,info,locale,lintian,bug,i18n,doc} usr/lib/udev/hwdb.d var/lib/apt/lists var/cache/{apt,debconf})

# lane NAME sets $lane, $suite, $kernel_suite and $kernel_package.
lane() {
	local line
	line=$(awk -v lane="$1" '$1 == lane && !/^#/' "$vm/lanes")
	read -r lane suite kernel_suite kernel_package <<<"$line"
	[[ -n $kernel_package ]] || die "no lane '$1'" "one of: $(awk '!/^#/ && NF { printf "%s ", $1 }' "$vm/lanes")(tests/vm/lanes)"
}

### Packages

require_kernel() {
	built "kernel-$lane-$(echo "$kernel_suite $kernel_package" | hash_of)" build_kernel
	kernel=$built
}

# build_kernel unpacks only, so that no initramfs is made.
build_kernel() {
	local new=$1 vmlinuz modules
	debian extract "$kernel_suite" "$new/root" "$kernel_package"
	vmlinuz=$(find "$new/root" -name 'vmlinuz*' -type f | head -n 1)
	[[ -n $vmlinuz ]] || die "no kernel in $kernel_package of $kernel_suite" "see tests/vm/lanes"
	cp "$vmlinuz" "$new/vmlinuz"
	# Packages before Debian 13 have them in /lib.
	for modules in "$new"/root/{usr/,}lib/modules; do
		[[ ! -d $modules ]] || break
	done
	[[ -d $modules ]] || die "no modules in $kernel_package of $kernel_suite" "see tests/vm/lanes"
	mv "$modules" "$new/modules"
	rm -rf --one-file-system -- "$new/root"
}

require_system() {
	# Of a suite, since lanes may differ in their kernels alone.
	built "system-$suite-$(echo "$suite ${system_packages[*]} ${unneeded[*]}" | hash_of)" build_system
	system=$built
}

# build_system works in memory, since dpkg syncs its state after every step; in a
# mount namespace of its own: if this is killed, the mount is gone too.
build_system() {
	mkdir "$1.stage"
	unshare --mount --propagation private -- "$vm/image" system-in-memory "$lane" "$1.stage" "$1"
}

system_in_memory() {
	local stage=$1 path
	mount -t tmpfs -o mode=0755 system "$stage"
	debian essential "$suite" "$stage/root" "${system_packages[@]}"
	for path in "${unneeded[@]}"; do
		rm -rf -- "${stage:?}/root/$path"/*
	done
	cp -a "$stage/root/." "$2"
}

### Disk

# Of contrib/rootfs: what the suites take, but for those that only VZ_FULL=1 takes.
guests=(busybox debian busybox-init openrc services)

# require_image sets $image: vmlinuz, initrd and root.img.
require_image() {
	local trees key kind lxcfs
	need busybox mkfs.ext4 ssh-keygen xz zstd
	criu=$prefix/lib/vzrun/criu-root
	[[ -d $criu ]] || die "no CRIU below $criu" "run contrib/bootstrap"
	require_kernel
	require_system
	trees=()
	for kind in "${guests[@]}"; do
		trees+=("$("$tree/contrib/rootfs" "$kind" | tail -n 1)")
		[[ -d ${trees[-1]} ]] || die "no root file system of $kind" "see the lines above"
	done
	lxcfs=$("$tree/tests/engines/lxcfs" | tail -n 1)
	[[ -x $lxcfs ]] || die "no lxcfs" "see the lines above"
	key=$({
		echo "${kernel##*/} ${system##*/} ${trees[*]##*/} $(basename "${lxcfs%/*}")" "$(cd "$criu" && echo *)" "$(disk_key)"
		cat "$vm/image.bash" "$vm"/guest/{agent,init,vzagent.service} "$(command -v busybox)"
	} | hash_of)
	built "image-$lane-$key" build_image "${lxcfs%/*}" "${trees[@]}"
	image=$built
}

disk_key() { echo "$disk_size $disk_options"; }

# Sparse. Tests copy whole guests.
disk_size=16G
disk_options=lazy_itable_init=1,lazy_journal_init=1

# build_image NEW LXCFS TREE...
build_image() {
	local new=$1 root=$1.root
	shift
	cp -a --reflink=auto "$system" "$root"
	add_kernel "$root"
	add_runtime "$root" "$@"
	configure "$root"
	make_initrd "$root" "$new.initrd" "$new/initrd"
	cp "$kernel/vmlinuz" "$new/vmlinuz"
	truncate -s "$disk_size" "$new/root.img"
	mkfs.ext4 -q -F -m 0 -E "$disk_options" -L vzroot -d "$root" "$new/root.img"
	rm -rf --one-file-system -- "$root" "$new.initrd"
}

add_kernel() {
	local root=$1
	mkdir -p "$root/usr/lib/modules"
	cp -a "$kernel/modules/." "$root/usr/lib/modules/"
	chroot "$root" depmod "$(kernel_release)"
}

kernel_release() { basename "$kernel"/modules/*; }

# add_runtime ROOT LXCFS TREE... adds what comes from this machine: CRIU at the
# place it is made to run at, lxcfs and the root file systems of the tests' guests
# where the tests look for what they have built, and the busybox by which
# contrib/rootfs names some of them.
add_runtime() {
	local root=$1 lxcfs=$2
	shift 2
	mkdir -p "$root$criu" "$root$prefix/libexec/vzrun" "$root/usr/local/bin" "$root"/var/cache/vzrun/{rootfs,engines}
	cp -a "$criu/." "$root$criu/"
	cp -a "$prefix/libexec/vzrun/criu" "$root$prefix/libexec/vzrun/criu"
	cp -L "$(command -v busybox)" "$root/usr/local/bin/busybox"
	cp -a "$@" "$root/var/cache/vzrun/rootfs/"
	cp -a "$lxcfs" "$root/var/cache/vzrun/engines/"
}

configure() {
	local root=$1 unit
	echo vm >"$root/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 vm\n::1 localhost\n' >"$root/etc/hosts"
	rm -f "$root/etc/resolv.conf" "$root/etc/fstab"
	: >"$root/etc/resolv.conf"
	head -c 16 /dev/urandom | od -An -tx1 | tr -dc 0-9a-f >"$root/etc/machine-id"
	echo >>"$root/etc/machine-id"
	install -m 0755 "$vm/guest/agent" "$root/usr/local/sbin/vzagent"
	install -m 0644 "$vm/guest/vzagent.service" "$root/etc/systemd/system/vzagent.service"
	# Loading AppArmor's profiles takes 12 s here; a test loads what it needs.
	# Timers would all fire when a state wakes up days after it was saved.
	for unit in apparmor.service getty@tty1.service serial-getty@ttyS0.service systemd-resolved.service \
		$(cd "$root" && find usr/lib/systemd/system etc/systemd/system -name '*.timer' -printf '%f\n' | sort -u); do
		rm -f "$root/etc/systemd/system/$unit"
		ln -s /dev/null "$root/etc/systemd/system/$unit"
	done
	mkdir -p "$root"/etc/systemd/system/{multi-user.target.wants,journald.conf.d}
	ln -sf ../vzagent.service "$root/etc/systemd/system/multi-user.target.wants/"
	ln -sf /usr/lib/systemd/system/ssh.service "$root/etc/systemd/system/multi-user.target.wants/"
	rm -f "$root"/etc/ssh/ssh_host_*
	ssh-keygen -q -t ed25519 -N '' -f "$root/etc/ssh/ssh_host_ed25519_key"
	# The cheapest way in: cryptography and sessions take seconds when emulated.
	printf '%s\n' 'HostKey /etc/ssh/ssh_host_ed25519_key' 'KexAlgorithms curve25519-sha256' 'UsePAM no' \
		'PermitRootLogin prohibit-password' >"$root/etc/ssh/sshd_config.d/vm.conf"
	# Not in releases before Debian 13, where a boot takes a little longer for it.
	[[ ! -x $root/usr/lib/systemd/systemd-update-done ]] || chroot "$root" /usr/lib/systemd/systemd-update-done
}

# make_initrd ROOT WORK OUT packs busybox and the modules of the root disk.
make_initrd() {
	local root=$1 work=$2 out=$3 module
	mkdir -p "$work"/{bin,dev,proc,sys,root,modules}
	cp -L "$(command -v busybox)" "$work/bin/busybox"
	install -m 0755 "$vm/guest/init" "$work/init"
	disk_modules "$root" | while read -r module; do
		unpack_module "$root/usr/lib/modules/$(kernel_release)/$module" "$work/modules"
		echo "${module##*/}" | sed -E 's/\.(xz|zst|gz)$//' >>"$work/modules/order"
	done
	(cd "$work" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$out"
}

# disk_modules ROOT prints the modules of a disk's driver and file system, each
# after those it needs; what is built into the kernel has none.
disk_modules() {
	local name
	for name in virtio_pci virtio_blk ext4; do
		awk -F '[: ]+' -v file="/$name.ko" 'index($1, file) { for (i = NF; i > 0; i--) if ($i != "") print $i }' \
			"$1/usr/lib/modules/$(kernel_release)/modules.dep"
	done | awk '!seen[$0]++'
}

unpack_module() {
	case $1 in
	*.xz) xz -dc "$1" >"$2/$(basename "$1" .xz)" ;;
	*.zst) zstd -qdc "$1" >"$2/$(basename "$1" .zst)" ;;
	*) cp "$1" "$2/" ;;
	esac
}

### State

# require_accelerator takes KVM only where it has run this image's kernel: one that
# is there, and can make a machine, may still emulate some of its instructions, or
# none. Looked at once in the life of this machine's kernel.
require_accelerator() {
	[[ $accelerator == kvm && -z ${VZRUN_VM_ACCEL:-} ]] || return 0
	built "kvm-$lane-$({
		echo "${image##*/}"
		cat /proc/sys/kernel/random/boot_id
	} | hash_of)" probe_kvm
	[[ $(<"$built/said") == *'init: the kernel runs'* ]] || accelerator=tcg,thread=multi
}

# probe_kvm NEW keeps what the image's first process says. QEMU stops at what KVM
# cannot do, and stays.
probe_kvm() {
	local new=$1 pid deadline=$((SECONDS + 20))
	touch "$new/said"
	setpriv --pdeathsig KILL "${qemu[@]}" -nodefaults -no-user-config -display none -no-reboot -machine "$machine_type" \
		-accel kvm -cpu "$processor" -m 512 -kernel "$image/vmlinuz" -initrd "$image/initrd" \
		-append 'console=ttyS0 panic=-1 vzprobe' -serial "file:$new/said" </dev/null >"$new/qemu.log" 2>&1 &
	pid=$!
	until grep -q 'init: the kernel runs' "$new/said" || grep -q 'KVM internal error' "$new/qemu.log" ||
		! kill -0 "$pid" 2>/dev/null || ((SECONDS >= deadline)); do
		sleep 0.1
	done
	kill "$pid" 2>/dev/null || true
	wait "$pid" || true
	grep -q 'init: the kernel runs' "$new/said" || say "KVM is there, but does not run a kernel: emulated"
}

# require_state sets $state, the directory of a disk with a booted state.
require_state() {
	require_qemu
	require_image
	require_accelerator
	built "state-$lane-$({
		echo "$image $accelerator $memory $cpus"
		cat "$vm/qemu.bash" "$vm/image.bash"
	} | hash_of)" build_state
	state=$built
}

# build_state boots until the agent waits for a job, and saves that: the disk as
# it is then, and the machine's memory.
build_state() {
	local new=$1 work=$1.work pid
	mkdir "$work"
	"${qemu_img[@]}" create -q -f qcow2 -F raw -b "$image/root.img" "$new/root.qcow2"
	: >"$work/job"
	pad "$work/job"
	machine "$image" "file=$new/root.qcow2" "$work/job"
	qmp_open "$work"
	setpriv --pdeathsig TERM timeout --kill-after=5 "$boot_limit" setpriv --pdeathsig KILL "${qemu[@]}" "${machine[@]}" "${qmp[@]}" \
		-chardev "file,id=job,path=$work/ready" -chardev null,id=results \
		-netdev user,id=user0,restrict=on -netdev hubport,hubid=0,id=link0 \
		-serial "file:$new/console.log" </dev/null >"$work/said" 2>&1 &
	pid=$!
	if wait_line "$work" ready ready "$pid"; then
		qmp_say migrate "{\"uri\": \"file:$new/memory\"}"
		if wait_line "$work" qmp.log '"status": "completed"' "$pid"; then
			qmp_say quit
			wait "$pid" || true
			return
		fi
	fi
	grep -E '"error"|"status": "failed"' "$work/qmp.log" >&2 || true
	kill "$pid" 2>/dev/null || true
	cat "$work/said" >&2
	show_console "$new/console.log"
	if disk_was_full "$work"; then
		die "the disk became full while lane $lane booted" "make room, or set VZRUN_CACHE to a larger disk"
	fi
	die "the VM of lane $lane did not come up (limit: $boot_limit s)" "see its console above; VZRUN_VM_BOOT_TIMEOUT is the limit"
}

boot_limit=${VZRUN_VM_BOOT_TIMEOUT:-600}

# wait_line WORK FILE TEXT PID waits for a text in WORK/FILE as long as the VM of
# WORK lives and does. It is over, too, when QEMU stops the VM for an error.
wait_line() {
	local stopped='"status": "failed"|"error"|"nospace": true'
	# Saving stops it as well.
	[[ $2 == qmp.log ]] || stopped+='|"event": "STOP"'
	until grep -qsF "$3" "$1/$2"; do
		if ! kill -0 "$4" 2>/dev/null || grep -qsE "$stopped" "$1/qmp.log"; then
			return 1
		fi
		sleep 0.1
	done
}
