#!/usr/bin/env bats
# What a guest is allowed beyond the default, by name (org.vzrun.features), and
# that it has none of it without. Engines inside are in nesting.bats.
#
# The tests share one guest, a Debian; setup boots it again if a test has left
# none.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154,SC2153

load helpers
load app

setup_file() {
	shared_guest --ram 512M --features nesting,fuse,tun,keyctl
	copy_vzrun "$BUNDLE/rootfs/usr/local/bin/vzrun"
	new_bundle "$BUNDLE/rootfs/root/inner" "$VZRUN_BUSYBOX"
	boot
}

teardown_file() { shared_guest_ends; }

setup() {
	shared_test
	has_status "$ID" running 2>/dev/null || boot
}

teardown() { shared_test_ends; }

boot() {
	vz delete --force "$ID"
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
}


# inside FILTER [ARG...] runs a container in the guest, with vzrun there, after a
# change of its configuration.
inside() {
	rm -f "$BUNDLE/rootfs/root/inner/config.json"
	guest "$ID" vzrun spec --bundle /root/inner
	edit_config "$BUNDLE/rootfs/root/inner" '.process.terminal = false | .root.readonly = false'
	edit_config "$BUNDLE/rootfs/root/inner" "$@"
	guest "$ID" systemd-run --quiet --pipe --wait --collect --property Delegate=yes --unit inner \
		vzrun run --bundle /root/inner inner
}

# plain_guest makes a small guest in $T, with no features but those that are
# named, and prints its id.
plain_guest() {
	local id=$ID-plain-$BATS_TEST_NUMBER
	new_bundle "$T/$id" "$VZRUN_BUSYBOX"
	(cd "$T/$id" && vz spec --system ${1:+--features "$1"})
	edit_config "$T/$id" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	vz_up "$T/$id" "$id"
	echo "$id"
}

# What containers begin with.
SYSFS='unshare --net --mount sh -c "mount -t sysfs sysfs /mnt && mount | grep -q \"on /mnt type sysfs (rw\""'
PROC='unshare --pid --fork --mount sh -c "mount -t proc proc /mnt && test -d /mnt/self"'

### The names

@test "spec --system --features writes an annotation, and refuses what is no feature" {
	local list
	new_bundle "$T/b" "$VZRUN_BUSYBOX"
	(cd "$T/b" && vz spec --system --features tun,nesting,tun)
	jq -e '.annotations["org.vzrun.features"] == "nesting,tun"' "$T/b/config.json"
	rm "$T/b/config.json"
	fails 1 'feature "warp": not known' vz spec --system --bundle "$T/b" --features nesting,warp
	[[ ${stderr_lines[1]} == "hint: one of: fuse, io_uring, keyctl, kvm, nesting, ppp, tun" ]]
	fails 1 "only the host's root mount NFS" vz spec --system --bundle "$T/b" --features nfs
	fails 1 'every guest may do that already' vz spec --system --bundle "$T/b" --features bridge
	fails 2 'is for whole systems' vz spec --bundle "$T/b" --features fuse
	[[ ! -e $T/b/config.json ]]
	list=$(vz features | jq -r '.annotations["org.vzrun.features"]')
	[[ $list == fuse,io_uring,keyctl,kvm,nesting,ppp,tun ]]
}

@test "an annotation that names no feature, or one that cannot work, is refused by create" {
	local bundle
	bundle=$(busybox_bundle "$ID-bad" true)
	edit_config "$bundle" '.annotations["org.vzrun.features"] = "fuse,warp"'
	fails 1 'annotation org.vzrun.features: feature "warp": not known' vz create --bundle "$bundle" "$ID-bad"
	edit_config "$bundle" '.annotations["org.vzrun.features"] = "nesting"'
	fails 1 'feature "nesting": needs a user namespace' vz create --bundle "$bundle" "$ID-bad"
	[[ ! -e /dev/ppp ]] || skip "this machine has all devices"
	edit_config "$bundle" '.annotations["org.vzrun.features"] = "ppp"'
	fails 5 'feature "ppp": this host lacks its device' vz create --bundle "$bundle" "$ID-bad"
	[[ ${stderr_lines[1]} == *"modprobe ppp_generic"* ]]
	remove_tree "$bundle"
}

### Without features

@test "a guest without features has none of it" {
	local id
	id=$(plain_guest)
	run ! guest "$id" sh -c "$SYSFS"
	run ! guest "$id" sh -c 'ls -d /dev/fuse /dev/net /dev/kvm /dev/.lxc 2>/dev/null'
	# Nor can it make a device: as its root, on any file system of its own.
	run ! guest "$id" sh -c 'mknod /dev/fuse c 10 229 || mknod /tmp/fuse c 10 229 || mknod /tun c 10 200'
	[[ $(grep -c 'Operation not permitted' <<<"$output") == 3 ]]
	vz delete --force "$id"
}

@test "a feature opens what it names, not more" {
	local id
	id=$(plain_guest tun)
	guest "$id" test -c /dev/net/tun
	run ! guest "$id" sh -c 'ls -d /dev/fuse /dev/.lxc 2>/dev/null'
	run ! guest "$id" sh -c "$SYSFS"
	# The node is the guest's own, and not the host's: what is done to it stays there.
	[[ $(guest "$id" stat -c '%u %t:%T %a' /dev/net/tun) == "0 a:c8 666" ]]
	guest "$id" chmod 0600 /dev/net/tun
	[[ $(stat -c %u /dev/net/tun) == 0 ]]
	guest "$id" sh -c 'chown 33 /dev/net/tun; ls -ln /dev/net/tun' | grep -q ' 33 '
	if [[ -e /sys/fs/cgroup/devices ]]; then
		grep -q 'c 10:200 rw' "/sys/fs/cgroup/devices$(cgroup_of "$id")/devices.list"
		run ! grep '10:229' "/sys/fs/cgroup/devices$(cgroup_of "$id")/devices.list"
	fi
	vz delete --force "$id"
}

### Devices and calls

# mount_fuse ID mounts a FUSE file system whose program never answers.
mount_fuse() {
	guest "$1" perl -e 'use Fcntl; $^F = 9; sysopen(F, "/dev/fuse", O_RDWR) or die "open: $!\n";
		$o = sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fileno F);
		syscall(165, my $s = "vzfuse", my $t = "/mnt", my $f = "fuse", 0, $o) == 0 or die "mount: $!\n";
		open(M, "/proc/mounts"); print grep /vzfuse/, <M>; syscall(166, $t, 2)'
}

@test "fuse: the guest mounts a file system that is a program" {
	lacks "numbers of system calls for this processor" test "$(uname -m)" = x86_64
	run -0 mount_fuse "$ID"
	[[ $output == "vzfuse /mnt fuse "* ]]
}

@test "tun: the guest makes a tunnel, a user of it too" {
	guest "$ID" sh -ec 'ip tuntap add dev tun7 mode tun user daemon; ip addr add 10.78.0.1/30 dev tun7; ip link set tun7 up
		ip -d link show tun7 | grep -q "tun type tun"; ip tuntap del dev tun7 mode tun'
}

# errno_of NUMBER,ARG... makes a system call in the guest and prints its errno, 0
# if it did not fail.
errno_of() { guest "$ID" perl -e "\$r = syscall($1); print \$r == -1 ? \$! + 0 : 0"; }

@test "keyctl: the guest has keyrings; io_uring stays refused" {
	lacks "numbers of system calls for this processor" test "$(uname -m)" = x86_64
	# KEYCTL_JOIN_SESSION_KEYRING; io_uring_setup.
	[[ $(errno_of 250,1,0) == 0 ]]
	[[ $(errno_of 425,1,0) == 38 ]]
}

@test "nesting: what containers begin with can be mounted, and /sys stays read-only" {
	guest "$ID" sh -c "$SYSFS"
	guest "$ID" sh -c "$PROC"
	guest "$ID" grep -qE ' /sys sysfs ro,' /proc/mounts
	[[ $(guest "$ID" systemctl is-system-running) == running ]]
}

### Containers inside, with vzrun itself

@test "nesting: vzrun runs a container in the guest, one that is privileged there too" {
	run -3 inside '.process.args = ["sh", "-c", "id -u; hostname; exit 3"] | .hostname = "deep"'
	[[ $output == $'0\ndeep' ]]
	# All that `docker run --privileged` asks for.
	run -0 inside '.process.args = ["sh", "-ec", "mount -t tmpfs none /mnt; echo 1 >/proc/sys/net/ipv4/ip_forward; mount | grep -o \"on /sys type sysfs (rw\""]
		| .linux.maskedPaths = [] | .linux.readonlyPaths = []
		| .process.capabilities |= map_values(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD"])
		| (.mounts[] | select(.destination == "/sys") | .options) = ["nosuid", "noexec", "nodev"]'
	[[ $output == "on /sys type sysfs (rw" ]]
}

@test "limits of containers inside hold where the guest has controllers" {
	lacks "controllers in the guest's cgroups" guest "$ID" grep -qw memory /sys/fs/cgroup/cgroup.controllers
	run -0 inside '.process.args = ["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/pids.max"]
		| .linux.resources |= . + {memory: {limit: 33554432}, cpu: {quota: 20000, period: 100000}, pids: {limit: 40}}'
	[[ $output == $'33554432\n20000 100000\n40' ]]
	# The guest's own limit is above all of them.
	run -137 inside '.process.args = ["tail", "-c", "200000000", "/dev/zero"] | .linux.resources |= . + {memory: {limit: 33554432}}'
}

### Checkpoints

@test "features are there after a restore, and must be the same" {
	guest "$ID" ip tuntap add dev tun8 mode tun
	guest "$ID" chmod 0640 /dev/net/tun
	vz checkpoint --image-path "$T/images" "$ID"
	cp "$BUNDLE/config.json" "$T/config.json"
	edit_config "$BUNDLE" '.annotations["org.vzrun.features"] = "fuse,nesting,tun"'
	fails 1 'org.vzrun.features is fuse,nesting,tun in the bundle and fuse,keyctl,nesting,tun in the images' \
		vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID"
	cp "$T/config.json" "$BUNDLE/config.json"
	vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID" </dev/null >"$T/restore.log" 2>&1 3>&- || {
		cat "$T/restore.log"
		return 1
	}
	wait_guest "$ID"
	guest "$ID" sh -c "$SYSFS"
	guest "$ID" sh -c "$PROC"
	guest "$ID" grep -qE ' /sys sysfs ro,' /proc/mounts
	guest "$ID" ip tuntap del dev tun8 mode tun
	guest "$ID" sh -ec 'ip tuntap add dev tun9 mode tun; ip tuntap del dev tun9 mode tun; : 3<>/dev/fuse'
	run -3 inside '.process.args = ["sh", "-c", "exit 3"]'
}

@test "after stop and delete nothing is left, and the host's devices are as they were" {
	vz stop "$ID"
	[[ $(status_of "$ID") == stopped ]]
	vz delete "$ID"
	[[ $(stat -c '%u %t:%T' /dev/fuse /dev/net/tun) == $'0 a:e5\n0 a:c8' ]]
	run ! grep -F /dev/fuse <<<"$(list_mounts)"
	run ! grep -F "$(cgroup_of "$ID")" <<<"$(list_cgroups)"
	run ! grep -F "$VZ_TMP" <<<"$(list_mounts)"
	[[ ! -e $VZ_ROOT/$ID ]]
}
