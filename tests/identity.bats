#!/usr/bin/env bats
# Who a guest is, what it is told of the host, and what it sees of its limits.
#
# One Debian with an lxcfs of our own, in a mount namespace of our own: mounted
# on the host it would be found by the guests of others.
# suites use what `run` sets; variables in single quotes are jq's or the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	suite_setup
	vz_setup
	BUNDLE=$VZ_TMP/$ID LXCFS=/var/tmp/vzrun-test.$VZ_TAG.lxcfs IMAGES=$VZ_TMP/images
	export VZ_ROOT VZ_TMP ID BUNDLE LXCFS IMAGES
	VZRUN_OUTSIDE=$VZRUN
	export VZRUN_OUTSIDE
	if LXCFS_PROGRAM=$("$BATS_TEST_DIRNAME/engines/lxcfs" | tail -n 1) && [[ -e /dev/fuse ]]; then
		export LXCFS_PROGRAM
		# It keeps the mount namespace, whatever becomes of lxcfs.
		unshare --mount --propagation private sleep infinity </dev/null >/dev/null 2>&1 3>&- &
		KEEPER=$!
		export KEEPER
		wait_until 20 eval '[[ $(readlink "/proc/$KEEPER/ns/mnt") != "$(readlink /proc/self/ns/mnt)" ]]'
		start_lxcfs
		# The runtime, where lxcfs is mounted.
		printf '#!/bin/bash\nexec nsenter --mount=/proc/%d/ns/mnt bash -c '\''cd "$0" && exec "$@"'\'' "$PWD" %q "$@"\n' \
			"$KEEPER" "$VZRUN" >"$VZ_TMP/vzrun"
		chmod 0755 "$VZ_TMP/vzrun"
		export VZRUN=$VZ_TMP/vzrun
	else
		unset LXCFS_PROGRAM
	fi
	debian_bundle "$ID" --ram 256M --cpus 1 --dns '192.0.2.1,search=vz.example' --hosts 'self,db=192.0.2.7' >/dev/null
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
}

teardown_file() {
	local code=0
	vz_teardown || code=1
	if [[ -n ${LXCFS_PROGRAM:-} ]]; then
		stop_lxcfs
		kill -KILL "$KEEPER"
		rmdir "$LXCFS"
	fi
	suite_teardown && return "$code"
}

setup() {
	test_begins
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	mkdir -m 0711 "$T"
}

teardown() {
	local id
	for id in $(vz list --quiet); do
		[[ $id == "$ID" ]] || vz delete --force "$id"
	done
	remove_tree "$T"
}

# start_lxcfs mounts lxcfs at $LXCFS, for $KEEPER alone. All may walk there, as to
# where Debian's is: CRIU does so with the ids of the guest's root.
start_lxcfs() {
	mkdir -p "$LXCFS"
	nsenter --mount="/proc/$KEEPER/ns/mnt" "$LXCFS_PROGRAM" -f -l --enable-cfs \
		-p "$VZ_ROOT.lxcfs-pid" "$LXCFS" </dev/null >"$VZ_ROOT.lxcfs-log" 2>&1 3>&- &
	echo $! >"$VZ_ROOT.lxcfs"
	wait_until 20 grep -qF "$LXCFS fuse.lxcfs" "/proc/$KEEPER/mounts" || {
		cat "$VZ_ROOT.lxcfs-log"
		return 1
	}
}

# stop_lxcfs leaves the mount of one that has ended.
stop_lxcfs() {
	local pid
	pid=$(<"$VZ_ROOT.lxcfs")
	kill -KILL "$pid" 2>/dev/null || true
	wait_exit "$pid"
	rm -f "$VZ_ROOT".lxcfs*
}

need_lxcfs() {
	# It may have been built before.
	[[ -n ${LXCFS_PROGRAM:-} ]] || lacks "a mirror for lxcfs" "$BATS_TEST_DIRNAME/../contrib/debian-mirror"
	require "lxcfs and FUSE" test -n "${LXCFS_PROGRAM:-}"
}

# small_system ID [FLAG...] makes a bundle of a whole system that is busybox's.
small_system() {
	local bundle=$T/$1
	new_bundle "$bundle" "$VZRUN_BUSYBOX"
	(cd "$bundle" && vz spec --system "${@:2}")
	edit_config "$bundle" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$1")"
	echo "$bundle"
}

# create BUNDLE ID prints what it warns of; its own standard output is the guest's.
create() { vz --log "$T/log" create --bundle "$1" "$2" </dev/null >/dev/null 3>&-; }

in_root() { cat "/proc/$(pid_of "$1")/root$2"; }

uuid_of() { jq -r '.process.env[] | select(startswith("container_uuid=")) | sub(".*="; "")' "$1/config.json"; }

### Identity

@test "the machine-id is the container's uuid, and the guest knows what it is in" {
	[[ $(guest "$ID" cat /etc/machine-id) == "$(uuid_of "$BUNDLE")" ]]
	run guest "$ID" systemd-detect-virt --container
	[[ $output == container-other ]]
	[[ $(guest "$ID" cat /run/systemd/container) == vzrun ]]
	guest "$ID" sh -c 'tr "\0" "\n" </proc/1/environ' | grep -x container=vzrun
	[[ $(guest "$ID" hostname) == "$ID" ]]
}

@test "/run/host is as systemd's container interface has it" {
	[[ $(guest "$ID" cat /run/host/container-manager) == vzrun ]]
	[[ $(guest "$ID" cat /run/host/container-uuid) == "$(uuid_of "$BUNDLE")" ]]
	guest "$ID" cat /run/host/os-release | diff - /etc/os-release
	[[ $(guest "$ID" stat -c '%U:%G %a' /run/host/os-release) == 'root:root 444' ]]
	# In the guest's own tmpfs: no mount that a checkpoint would have to find again.
	[[ -z $(guest "$ID" sh -c 'grep " /run/host" /proc/self/mounts') ]]
}

@test "--dns and --hosts write the guest's files, with the guest's owner" {
	local f
	guest "$ID" grep -x 'nameserver 192.0.2.1' /etc/resolv.conf
	guest "$ID" grep -x 'search vz.example' /etc/resolv.conf
	guest "$ID" grep -x 'DNS=192.0.2.1' /run/systemd/resolved.conf.d/00-vzrun.conf
	guest "$ID" grep -P "^127.0.1.1\t$ID" /etc/hosts
	[[ $(guest "$ID" getent hosts db) =~ ^192.0.2.7\ +db$ ]]
	for f in hosts resolv.conf; do
		[[ $(guest "$ID" stat -c '%U:%G %a' "/etc/$f") == 'root:root 644' ]]
		# Not shifted: the rootfs can be copied as it is.
		[[ $(stat -c '%u:%g' "$BUNDLE/rootfs/etc/$f") == 0:0 ]]
	done
}

@test "without them the guest's files stay as they are; host takes the host's" {
	local bundle
	bundle=$(small_system none)
	echo '# mine' >"$bundle/rootfs/etc/resolv.conf"
	create "$bundle" none
	[[ $(in_root none /etc/resolv.conf) == '# mine' ]]
	cmp "$bundle/rootfs/etc/hosts" "$VZRUN_BUSYBOX/etc/hosts"
	[[ $(in_root none /run/host/container-manager) == vzrun ]]

	bundle=$(small_system host --dns host --hosts host)
	create "$bundle" host
	in_root host /etc/hosts | grep -P '^127.0.1.1\tbusybox$'
	if awk '$1 == "nameserver" && $2 !~ /^(127\.|::1)/ { found = 1 } END { exit !found }' /etc/resolv.conf; then
		diff <(awk '$1 == "nameserver" && $2 !~ /^(127\.|::1)/ { print $2 }' /etc/resolv.conf) \
			<(in_root host /etc/resolv.conf | awk '$1 == "nameserver" { print $2 }')
	fi
}

@test "links in /etc are kept, and none leads out of the rootfs" {
	local bundle
	bundle=$(small_system links --dns 192.0.2.1 --hosts self)
	ln -sf ../run/resolver/resolv.conf "$bundle/rootfs/etc/resolv.conf"
	ln -sf "/../../../../../../../..$T/outside" "$bundle/rootfs/etc/hosts"
	create "$bundle" links
	[[ -L $bundle/rootfs/etc/resolv.conf && -L $bundle/rootfs/etc/hosts && ! -e $T/outside ]]
	grep -q '/etc/hosts of the guest is a link' "$T/log"
	grep -q '/etc/resolv.conf of the guest is a link' "$T/log"

	bundle=$(small_system out --dns 192.0.2.1)
	mkdir "$T/etc"
	rm -r "$bundle/rootfs/etc"
	ln -s "/../../../../../../../..$T/etc" "$bundle/rootfs/etc"
	run -1 create "$bundle" out
	[[ $output == *"/etc of the guest"* && -z $(ls -A "$T/etc") ]]
	run -1 vz state out
}

@test "values that are not understood are refused, by spec and by create" {
	local bundle
	mkdir "$T/b"
	fails 1 'name servers: "nowhere" is neither' vz spec --system --bundle "$T/b" --rootfs "$BUNDLE/rootfs" --dns nowhere
	fails 1 'hosts: "db" is neither' vz spec --system --bundle "$T/b" --rootfs "$BUNDLE/rootfs" --hosts db
	fails 1 'lxcfs .*"yes" is none' vz spec --system --bundle "$T/b" --rootfs "$BUNDLE/rootfs" --lxcfs yes
	fails 1 'machine-id: "12" is none' vz spec --system --bundle "$T/b" --rootfs "$BUNDLE/rootfs" --machine-id 12
	fails 2 '--dns is for whole systems' vz spec --bundle "$T/b" --dns host
	[[ ! -e $T/b/config.json ]]
	bundle=$(small_system bad)
	edit_config "$bundle" '.annotations["org.vzrun.dns"] = "10.0.0.1\nnameserver 10.0.0.2"'
	fails 1 'annotations: name servers: ' create "$bundle" bad
	edit_config "$bundle" '.annotations["org.vzrun.dns"] = "none" | .annotations["org.vzrun.lxcfs"] = "maybe"'
	fails 1 'org.vzrun.lxcfs.*"maybe"' create "$bundle" bad
	edit_config "$bundle" '.annotations["org.vzrun.lxcfs"] = "/nowhere"'
	fails 1 'no lxcfs is mounted at /nowhere' create "$bundle" bad
	edit_config "$bundle" '.annotations = {"org.vzrun.dns": "host"}'
	fails 5 'no whole operating system' create "$bundle" bad
	run -1 vz state bad
}

@test "a copy of a bundle is noticed, and gets an identity of its own by a new config.json" {
	local old new
	mkdir -m 0711 "$T/twin"
	cp -a --reflink=auto "$BUNDLE/rootfs" "$BUNDLE/config.json" "$T/twin/"
	edit_config "$T/twin" '.linux.cgroupsPath = $ARGS.positional[0] | .annotations["org.vzrun.ids"] = "shared"' "$(cgroup_of twin)"
	create "$T/twin" twin
	grep -q "container $ID has the same container_uuid" "$T/log"
	vz delete --force twin
	old=$(<"$T/twin/rootfs/etc/machine-id")
	[[ ${#old} -eq 32 ]]

	rm "$T/twin/config.json" "$T/log"
	vz spec --system --bundle "$T/twin" --rootfs rootfs
	edit_config "$T/twin" '.linux.cgroupsPath = $ARGS.positional[0] | .annotations["org.vzrun.ids"] = "shared"' "$(cgroup_of twin)"
	vz_up "$T/twin" twin
	[[ $(<"$T/twin/console.log") != *container_uuid* ]]
	wait_guest twin
	new=$(guest twin cat /etc/machine-id)
	[[ $new == "$(uuid_of "$T/twin")" && $new != "$old" ]]
	[[ $(guest twin cat /run/host/container-uuid) == "$new" ]]

	rm "$T/twin/config.json"
	vz spec --system --bundle "$T/twin" --rootfs rootfs --machine-id keep
	[[ $(uuid_of "$T/twin") == "$new" ]]
	jq -e '.process.args | length == 1' "$T/twin/config.json"
}

### lxcfs

memory_in() { guest "$1" awk '$1 == "MemTotal:" { print $2 * 1024 }' /proc/meminfo; }

shows_limits() {
	local id=$1
	[[ $(memory_in "$id") == $((256 << 20)) ]]
	[[ $(guest "$id" free --bytes | awk '$1 == "Mem:" { print $2 }') == $((256 << 20)) ]]
	[[ $(guest "$id" grep -c ^processor /proc/cpuinfo) == 1 ]]
	[[ $(guest "$id" getconf _NPROCESSORS_ONLN) == 1 ]]
	guest "$id" top -b -n 1 | grep -E 'MiB Mem : +256\.0 total'
	# Of the guest, not of the host, which booted long before.
	[[ $(guest "$id" cut -d . -f 1 /proc/uptime) -le $(($(cut -d . -f 1 /proc/uptime) - 1)) ]]
	guest "$id" uptime
}

@test "free, top, uptime and the number of processors are the container's" {
	need_lxcfs
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.lxcfs"]') == "$LXCFS" ]]
	shows_limits "$ID"
	vz update --memory 300m "$ID"
	[[ $(memory_in "$ID") == $((300 << 20)) ]]
	vz update --memory 256m "$ID"
	[[ $(guest "$ID" systemctl is-system-running) == running ]]
}

@test "nproc follows a set of processors" {
	need_lxcfs
	lacks "two processors" test "$(nproc)" -ge 2
	vz update --cpuset-cpus 1 "$ID"
	[[ $(guest "$ID" nproc) == 1 && $(guest "$ID" grep -c ^processor /proc/cpuinfo) == 1 ]]
	vz update --cpuset-cpus "$(cat /sys/devices/system/cpu/online)" "$ID"
}

@test "units that want a /proc of their own get one" {
	need_lxcfs
	guest "$ID" systemd-run --quiet --wait --property ProtectProc=invisible --property ProcSubset=pid true
	guest "$ID" unshare --mount --pid --fork --mount-proc true
	# Not in a user namespace inside: for the kernel this /proc is not whole.
	run -1 guest "$ID" unshare --user --map-root-user --pid --fork --mount-proc true
}

@test "no and a guest without lxcfs: the host's figures, and the guest runs" {
	local bundle
	bundle=$(small_system without --lxcfs no)
	create "$bundle" without
	[[ $(vz state without | jq -r '.annotations["org.vzrun.lxcfs"]') == no ]]
	run ! grep -q fuse.lxcfs "/proc/$(pid_of without)/mounts"
	# Told once, when the configuration is written.
	mkdir -p "$T/plain"
	run -0 --separate-stderr "$VZRUN_OUTSIDE" spec --system --bundle "$T/plain" --rootfs "$BUNDLE/rootfs" --ram 64M
	grep -qF fuse.lxcfs /proc/mounts || [[ $stderr == *"no lxcfs is mounted"* ]]
	rm "$T/plain/config.json"
	run -0 --separate-stderr "$VZRUN_OUTSIDE" spec --system --bundle "$T/plain" --rootfs "$BUNDLE/rootfs" --ram 64M --lxcfs no
	[[ -z $stderr ]]
}

@test "a checkpoint goes without lxcfs, a restore finds it again" {
	need_lxcfs
	local uuid
	uuid=$(uuid_of "$BUNDLE")
	# Open at the checkpoint, as monitors have it.
	guest "$ID" systemd-run --quiet --unit holder sh -c \
		'exec 5</proc/meminfo 6</proc/stat 7</proc/uptime 8</proc/loadavg 9</sys/devices/system/cpu/online; exec sleep 1000'
	wait_until 10 guest "$ID" sh -c 'readlink /proc/$(systemctl show -P MainPID holder)/fd/9'
	vz checkpoint --image-path "$IMAGES" "$ID"
	run -5 "$VZRUN_OUTSIDE" --root "$VZ_ROOT" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	[[ $output == *"saved with lxcfs over its /proc, and none is mounted here"* && $output == *"start lxcfs"* ]]
	vz --log "$T/log" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID" </dev/null >/dev/null 2>&1 3>&- || {
		cat "$T/log"
		return 1
	}
	shows_limits "$ID"
	[[ $(guest "$ID" cat /etc/machine-id /run/host/container-uuid) == "$uuid"$'\n'"$uuid" ]]
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.lxcfs"]') == "$LXCFS" ]]
	[[ $(guest "$ID" systemctl is-active holder) == active ]]
	guest "$ID" systemctl stop holder
	guest "$ID" systemd-run --quiet --wait --property ProtectProc=invisible --property ProcSubset=pid true
}

@test "when lxcfs dies its files fail, and the guest goes on" {
	need_lxcfs
	stop_lxcfs
	run guest "$ID" cat /proc/meminfo
	[[ $status -ne 0 && $output == *"not connected"* ]]
	[[ $(guest "$ID" cat /etc/hostname) != '' ]]
	guest "$ID" systemctl restart vzcount
	# A new guest is told at once what is wrong.
	fails 1 'lxcfs has ended and its mount is left' create "$(small_system dead)" dead
	nsenter --mount="/proc/$KEEPER/ns/mnt" umount --lazy "$LXCFS"
	start_lxcfs
	# A checkpoint needs none, and its restore takes the new one.
	vz checkpoint --image-path "$IMAGES.2" "$ID"
	vz --log "$T/log" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES.2" "$ID" </dev/null >/dev/null 2>&1 3>&-
	[[ $(memory_in "$ID") == $((256 << 20)) ]]
}
