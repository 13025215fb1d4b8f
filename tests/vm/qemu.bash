# shellcheck shell=bash
# QEMU's own lists have commas.
# shellcheck disable=SC2054
# QEMU in a private root, and how a VM of the lab is put together. Needs lib.bash.

qemu_suite=trixie
qemu_packages=(qemu-system-x86 qemu-system-data qemu-utils seabios libc-bin)
machine_type=pc,vmport=off
processor=max

# processor_of ACCELERATOR prints the processor of its machines. Emulated, copying by
# `rep movsb` goes byte by byte: a system that does not know it to be fast copies four
# times as fast.
processor_of() {
	case $1 in
	tcg*) echo "$processor,-erms,-fsrm,-fzrm,-fsrs,-fsrc" ;;
	*) echo "$processor" ;;
	esac
}

# require_qemu: Debian 12's QEMU makes guests oops under TCG, so one suite's is
# used everywhere, started by its own loader. Sets ${qemu[@]} and ${qemu_img[@]}.
require_qemu() {
	local loader libraries start
	built "qemu-$(echo "$qemu_suite ${qemu_packages[*]}" | hash_of)" build_qemu
	loader=$(find "$built" -name 'ld-linux*.so.*' | head -n 1)
	[[ -n $loader ]] || die "no QEMU in $built" "remove that directory and try again"
	libraries=$(find "$built" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd :)
	start=(env QEMU_MODULE_DIR="$built/usr/lib/x86_64-linux-gnu/qemu" "$loader" --library-path "$libraries")
	qemu_img=("${start[@]}" "$built/usr/bin/qemu-img")
	qemu=("${start[@]}" "$built/usr/bin/qemu-system-x86_64" -L "$built/usr/share/qemu" -L "$built/usr/share/seabios")
	accelerator=$(find_accelerator)
}

build_qemu() {
	debian extract "$qemu_suite" "$1/root" "${qemu_packages[@]}"
	mv "$1/root/usr" "$1/usr"
	rm -rf --one-file-system -- "$1/root" "$1"/usr/share/{doc,man,locale,info}
}

# find_accelerator prints KVM where it works.
find_accelerator() {
	local said
	if [[ -n ${VZRUN_VM_ACCEL:-} ]]; then
		said=$(accelerates "$VZRUN_VM_ACCEL") || die \
			"no accelerator '$VZRUN_VM_ACCEL' here: $(head -n 1 <<<"$said" | sed 's/^[^ ]*: //')" \
			"unset VZRUN_VM_ACCEL: what is best here is then used"
		echo "$VZRUN_VM_ACCEL"
	elif [[ -w /dev/kvm ]] && accelerates kvm >/dev/null; then
		echo kvm
	else
		echo tcg,thread=multi
	fi
}

# accelerates NAME fails if QEMU cannot use it, and prints why. It makes a machine
# with the processor that a VM will have, and stops before its first instruction:
# a KVM that is there may still not be able to give its guests that one.
accelerates() {
	{
		echo quit | timeout 20 "${qemu[@]}" -machine "$machine_type" -accel "$1" -cpu "$(processor_of "$1")" -m 64 -S \
			-nodefaults -display none -monitor stdio >/dev/null
	} 2>&1
}

# machine IMAGE DISK JOB sets ${machine[@]}, QEMU's arguments for what all VMs of
# an image have, as a state can only be loaded into an equal machine. Disks and
# ports are told apart by name; what is behind the ports job and results, and the
# links user0 and link0, is the caller's.
machine() {
	local image=$1 disk=$2 job=$3
	machine=(
		-name vzrun-vm -nodefaults -no-user-config -display none -no-reboot
		-machine "$machine_type" -accel "$accelerator" -cpu "$(processor_of "$accelerator")" -smp "$cpus" -m "$memory"
		-kernel "$image/vmlinuz" -initrd "$image/initrd"
		-append "console=ttyS0 net.ifnames=0 panic=-1 no_timer_check loglevel=5 mitigations=off audit=0 random.trust_cpu=on systemd.show_status=0"
		-drive "if=none,id=root,format=qcow2,cache=unsafe,$disk"
		-device virtio-blk-pci,drive=root,serial=vzroot
		-drive "if=none,id=job,format=raw,readonly=on,file=$job"
		-device virtio-blk-pci,drive=job,serial=vzjob
		-device virtio-serial-pci
		-device virtserialport,chardev=job,name=vzrun.job
		-device virtserialport,chardev=results,name=vzrun.results
		-device virtio-net-pci,netdev=user0,mac=52:54:00:00:00:01,romfile=
		-device virtio-net-pci,netdev=link0,mac=52:54:00:00:00:02,romfile=
		-device virtio-rng-pci
	)
}

# qmp_open DIR lets QEMU be told things through DIR/qmp, and its answers be read in
# DIR/qmp.log: sets ${qmp[@]}, its arguments, and $qmp_in.
qmp_open() {
	mkfifo "$1/qmp"
	# Never at its end, whoever else has it open.
	exec {qmp_in}<>"$1/qmp"
	qmp=(-chardev "file,id=qmp,path=$1/qmp.log,input-path=$1/qmp" -mon chardev=qmp,mode=control)
	qmp_say qmp_capabilities
	# Memory that is all zeroes is neither written nor, when loaded, touched: that
	# would cost seconds on a machine that gets its own memory only when it uses it.
	qmp_say migrate-set-capabilities '{"capabilities": [
		{"capability": "mapped-ram", "state": true}, {"capability": "events", "state": true}]}'
}

# qmp_say COMMAND [ARGUMENTS] is read when QEMU comes to it.
qmp_say() { echo "{\"execute\": \"$1\", \"arguments\": ${2:-{\}}}" >&"$qmp_in"; }

# disk_was_full DIR tells whether a VM was paused for that.
disk_was_full() { grep -qs '"nospace": true' "$1/qmp.log"; }

# The job's disk must have one size, since the guest has read it. Sparse.
job_size=2048M

# pad FILE gives a job's disk its size.
pad() {
	local size
	size=$(stat -c %s "$1")
	((size <= ${job_size%M} * 1048576)) || die "the job has $size bytes, over $job_size" "give the VM less"
	truncate -s "$job_size" "$1"
}

# show_console LOG shows the end of what a VM said last.
show_console() {
	say "end of its console ($1):"
	tail -n "${2:-40}" "$1" 2>/dev/null | tr -d '\r\033' | sed 's/^/    /' >&2 || true
}
