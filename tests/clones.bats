#!/usr/bin/env bats
# Clones of one checkpoint of a Debian with sshd: each with a root, ids, names and
# a network of its own, beside each other and their origin.
#
# VZ_FULL=1 makes 100 of them one after the other, and kills vzrun at more
# moments.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

ADDRESS=10.94.0.2
BRIDGE=vzc-br0

setup_file() {
	test_may_take 300
	suite_setup
	vz_setup
	NETNS=/run/netns/vzrun-test-$VZ_TAG
	BUNDLE=$VZ_TMP/origin
	IMAGES=$VZ_TMP/images
	CLONES=$VZ_TMP/clones
	export VZ_ROOT VZ_TMP NETNS BUNDLE IMAGES CLONES
	ip netns add "${NETNS##*/}"
	host_net ip link set lo up
	host_net ip link add "$BRIDGE" type bridge
	host_net ip address add "${ADDRESS%.*}.1/24" dev "$BRIDGE"
	host_net ip link set "$BRIDGE" up
	new_origin
}

teardown_file() {
	vz_teardown
	ip netns delete "${NETNS##*/}"
	suite_teardown
}

setup() {
	test_begins
	VZ_SPAWNED=()
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	ID=$(new_id)
	mkdir -m 0711 "$T"
}

teardown() {
	local pid id
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	for id in $(vz list --quiet); do
		vz delete --force "$id" || true
	done
	rm -rf --one-file-system -- "$T"
}

### The scene

# Here the runtime's "host" is a network namespace that nobody else uses, and
# clones lie beside the record of ids.
vz() { nsenter --net="$NETNS" -- "$VZRUN" --root "$VZ_ROOT" --id-record "$VZ_TMP/ids.json" "$@"; }

host_net() { nsenter --net="$NETNS" -- "$@"; }

is_full() { [[ ${VZ_FULL:-} == 1 ]]; }

# new_origin boots the guest, lets it become somebody, and saves it with a
# connection open.
new_origin() {
	local root
	root=$("$BATS_TEST_DIRNAME/../contrib/rootfs" services | tail -n 1)
	new_bundle "$BUNDLE" "$root"
	ln -s /usr/lib/systemd/system/ssh.service "$BUNDLE/rootfs/etc/systemd/system/multi-user.target.wants/"
	mkdir -p "$BUNDLE/rootfs/etc/vzrun/clone.d"
	cat >"$BUNDLE/rootfs/etc/vzrun/clone.d/50-own" <<-'END'
		#!/bin/sh
		echo "$ID $GENERATION $HOSTNAME" >/srv/own
	END
	chmod 0755 "$BUNDLE/rootfs/etc/vzrun/clone.d/50-own"
	echo 'web' >"$BUNDLE/rootfs/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 web\n' >"$BUNDLE/rootfs/etc/hosts"
	# A program that waits to be told that it is a clone.
	cat >"$BUNDLE/rootfs/etc/systemd/system/told.path" <<-'END'
		[Path]
		PathChanged=/run/vzrun/clone
	END
	cat >"$BUNDLE/rootfs/etc/systemd/system/told.service" <<-'END'
		[Service]
		Type=oneshot
		ExecStart=cp /run/vzrun/clone /srv/told
	END
	ln -s ../told.path "$BUNDLE/rootfs/etc/systemd/system/multi-user.target.wants/"
	# One that systemd hears of only as long as it knows its main process. Its clock goes
	# on while it is restored.
	cat >"$BUNDLE/rootfs/etc/systemd/system/watched.service" <<-END
		[Service]
		Type=notify
		ExecStart=perl -MSocket -e 'socket(S, AF_UNIX, SOCK_DGRAM, 0); \$to = sockaddr_un(\$ENV{NOTIFY_SOCKET}); send(S, "READY=1", 0, \$to); while (1) { send(S, "WATCHDOG=1", 0, \$to); select(undef, undef, undef, 0.2) }'
		WatchdogSec=$(slow 30)
	END
	cp "$BUNDLE/rootfs/etc/systemd/system/watched.service" "$BUNDLE/rootfs/etc/systemd/user/"
	ln -s ../watched.service "$BUNDLE/rootfs/etc/systemd/system/multi-user.target.wants/"
	(cd "$BUNDLE" && vz spec --system --hostname web --net "bridge=$BRIDGE,ip=$ADDRESS/24,gw=${ADDRESS%.*}.1,dns=192.0.2.1")
	edit_config "$BUNDLE" '.process.terminal = false | .linux.cgroupsPath = $ARGS.positional[0]' "/vzrun-test-$VZ_TAG-web"
	vz run --detach --bundle "$BUNDLE" web </dev/null >"$VZ_TMP/web.log" 2>&1 3>&- || {
		cat "$VZ_TMP/web.log"
		return 1
	}
	wait_guest web
	mkfifo "$VZ_TMP/talk.in"
	nsenter --net="$NETNS" -- "$BUNDLE/rootfs/usr/local/bin/vzguest" talk "$ADDRESS:7" <"$VZ_TMP/talk.in" >"$VZ_TMP/talk" 2>&1 3>&- &
	VZ_SPAWNED=("$!")
	exec {talk}>"$VZ_TMP/talk.in"
	wait_line "$VZ_TMP/talk" '^connected$'
	vz checkpoint --tcp-established --image-path "$IMAGES" web
	kill -KILL "${VZ_SPAWNED[0]}"
	exec {talk}>&-
	tree_sum "$BUNDLE/rootfs" >"$VZ_TMP/frozen.sum"
	(cd "$IMAGES" && sha256sum ./*.img) >"$VZ_TMP/images.sum"
}

# clone ID [FLAG...] must succeed and warn of nothing.
clone() {
	local id=$1
	shift
	vz restore --detach --clone-of "$IMAGES" --print-stats "$@" "$id" </dev/null >"$T/$id.out" 2>"$T/$id.err" 3>&- || {
		cat "$T/$id.err"
		return 1
	}
	[[ ! -s $T/$id.err ]] || {
		cat "$T/$id.err"
		return 1
	}
}

refuses() { fails "$1" "$2" vz restore --detach --clone-of "$IMAGES" "${@:3}" "$ID"; }

# origin_untouched: neither the images nor the root that clones are above.
origin_untouched() {
	(cd "$IMAGES" && sha256sum --quiet --check "$VZ_TMP/images.sum")
	[[ $(tree_sum "$BUNDLE/rootfs") == "$(<"$VZ_TMP/frozen.sum")" ]]
}

# nothing_of ID: no state, cgroup, link, bundle, nor entry of ids.
nothing_of() {
	wait_until 10 is_gone "$1" || {
		host_net ip -br link
		find "$CLONES" -maxdepth 2
		find /sys/fs/cgroup "$VZ_ROOT" -name "*$1*"
		return 1
	}
}

is_gone() {
	[[ -z $(find /sys/fs/cgroup "$VZ_ROOT" -name "*$1*" 2>/dev/null) && ! -e $CLONES/$1 ]] || return
	! mounts | grep -qF "$VZ_TMP" || return
	! host_net ip -br link | grep -q "^vz-"
}

# renewed ID waits until the guest has made anew what must be unique.
renewed() {
	wait_until "$VZ_PATIENCE" has_renewed "$1"
	[[ $(guest "$1" systemctl show --property Result --value vzrun-clone.service) == success ]]
}

has_renewed() { [[ $(guest "$1" cat /run/vzrun/renewed) == "$(guest "$1" sh -c '. /run/vzrun/clone; echo "$GENERATION"')" ]]; }

# works ID: systemd is well, services count and answer, and a unit can be restarted.
works() {
	wait_guest "$1"
	guest "$1" /usr/local/bin/vzguest verify /var/lib/vzcount/log
	guest "$1" systemctl restart vzcount.service
	wait_until "$VZ_PATIENCE" echoes "$1"
}

# heard ID [--user] waits until systemd hears of watched.service.
heard() {
	local seen
	seen=$(last_ping "$@")
	wait_until "$VZ_PATIENCE" hears_more "$seen" "$@"
}

hears_more() { [[ $(last_ping "${@:2}") != "$1" ]]; }

last_ping() { guest "$1" env XDG_RUNTIME_DIR=/run/user/0 timeout "$(slow 30)" systemctl "${@:2}" show --value --property WatchdogTimestampMonotonic watched; }

echoes() { [[ $(guest "$1" /usr/local/bin/vzguest talk 127.0.0.1:7) == *lines=* ]]; }

reached() { [[ $(host_net "$BUNDLE/rootfs/usr/local/bin/vzguest" talk "$1:7" </dev/null) == *lines=* ]]; }

# who ID prints all by which others tell guests from each other, a line for each.
who() {
	guest "$1" sh -c '
		hostname
		cat /etc/hostname /etc/machine-id /run/host/container-uuid
		tr "\0" "\n" </proc/1/environ | grep ^container_uuid=
		. /run/vzrun/clone; echo "$GENERATION"
		cat /sys/class/net/eth0/address
		cat /etc/ssh/ssh_host_*_key.pub | cut -d " " -f 2
		ls -1 /etc/ssh/ssh_host_*_key | wc -l | sed s/^/keys=/'
	awk '{ print "ids=" $2 }' "/proc/$(pid_of "$1")/uid_map"
}

### Tests

# has_key ADDRESS KEY: the sshd there, which may have just begun, says that key.
# ssh-keyscan of OpenSSH 10 has a line with the banner before it, among the keys.
has_key() { [[ $(host_net ssh-keyscan -T "$(slow 10)" -t ed25519 "$1" 2>/dev/null | awk '$2 == "ssh-ed25519" { print $3 }') == "$2" ]]; }

@test "three clones in parallel are three machines, none is the origin" {
	local n id pids=() before dns=('' '' '' ',dns=192.0.2.3')
	before=$(cat "$BUNDLE"/rootfs/etc/ssh/ssh_host_*_key.pub | cut -d ' ' -f 2 && cat "$BUNDLE/rootfs/etc/machine-id")
	for n in 1 2 3; do
		clone "$ID-$n" --net "bridge=$BRIDGE,ip=${ADDRESS%.*}.1$n/24,gw=${ADDRESS%.*}.1${dns[n]}" &
		pids+=("$!")
	done
	for n in "${pids[@]}"; do wait "$n"; done
	for n in 1 2 3; do
		id=$ID-$n
		works "$id"
		renewed "$id"
		who "$id" >"$T/who-$n"
		[[ $(head -n 1 "$T/who-$n") == "$id" && $(sed -n 2p "$T/who-$n") == "$id" ]]
		# Machine-id, its two copies, host keys: one identity inside.
		[[ $(sed -n 3p "$T/who-$n") == "$(sed -n 4p "$T/who-$n")" ]]
		[[ $(sed -n 5p "$T/who-$n") == "container_uuid=$(sed -n 3p "$T/who-$n")" ]]
		grep -qx 'keys=[1-9]' "$T/who-$n"
		run ! grep -Fx "$before" "$T/who-$n"
		grep -q "127.0.1.1[[:space:]]$id" <(guest "$id" cat /etc/hosts)
		[[ $(guest "$id" cat /srv/own) == "$id "*" $id" ]]
		wait_until "$VZ_PATIENCE" guest "$id" grep -qx "ID=$id" /srv/told
		# On the network it is itself, and the origin's connection is none of its own.
		wait_until "$VZ_PATIENCE" reached "${ADDRESS%.*}.1$n"
		wait_until "$VZ_PATIENCE" has_key "${ADDRESS%.*}.1$n" "$(guest "$id" cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub)"
		[[ -z $(guest "$id" ss -Htn state established) ]]
		[[ $(guest "$id" ip -br address) != *"$ADDRESS/"* ]]
		guest "$id" sh -c "echo $id >/srv/who"
	done
	# Name servers are the origin's unless a clone is given others.
	for n in 1 2; do
		[[ $(guest "$ID-$n" grep '^nameserver' /etc/resolv.conf) == 'nameserver 192.0.2.1' ]]
		[[ $(vz state "$ID-$n" | jq -r '.annotations["org.vzrun.net"]') == *,dns=192.0.2.1,* ]]
	done
	[[ $(guest "$ID-3" grep '^nameserver' /etc/resolv.conf) == 'nameserver 192.0.2.3' ]]
	[[ $(guest "$ID-3" grep '^DNS=' /run/systemd/resolved.conf.d/00-vzrun.conf) == 'DNS=192.0.2.3' ]]
	[[ $(vz state "$ID-3" | jq -r '.annotations["org.vzrun.net"]') == *,dns=192.0.2.3,* ]]
	# Nothing that tells one from another is the same in two of them.
	[[ -z $(for n in 1 2 3; do grep -v '^keys=' "$T/who-$n" | sort -u; done | sort | uniq -d) ]]
	[[ $(host_net ip -br link | grep -c '^vz-') == 3 ]]
	[[ ! -e $BUNDLE/rootfs/srv/who ]]
	origin_untouched
	for n in 1 2 3; do
		[[ $(guest "$ID-$n" cat /srv/who) == "$ID-$n" ]]
		vz delete --force "$ID-$n"
	done
	nothing_of "$ID"
}

@test "a clone without --net has no address, and meets nobody who has the origin's" {
	host_net ip address add "$ADDRESS/24" dev "$BRIDGE"
	clone "$ID"
	[[ $(guest "$ID" ip -br address) != *"$ADDRESS/"* ]]
	[[ $(guest "$ID" cat /sys/class/net/eth0/operstate) == up ]]
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.net"]') == bridge=$BRIDGE,dns=192.0.2.1,mac=*,filter=mac ]]
	host_net ip address del "$ADDRESS/24" dev "$BRIDGE"
	works "$ID"
}

@test "a clone is checkpointed, restored, and cloned in turn" {
	local save=$T/save
	clone "$ID" --bundle "$T/mine" --net "bridge=$BRIDGE,ip=${ADDRESS%.*}.20/24"
	renewed "$ID"
	guest "$ID" sh -c 'echo first >/srv/chain'
	vz checkpoint --image-path "$save" "$ID"
	vz restore --detach --bundle "$T/mine" --image-path "$save" "$ID" </dev/null >"$T/load" 2>&1 3>&- || { cat "$T/load"; return 1; }
	works "$ID"
	guest "$ID" systemctl start user@0
	guest "$ID" env XDG_RUNTIME_DIR=/run/user/0 timeout "$(slow 30)" systemctl --user start watched
	vz checkpoint --image-path "$save-2" "$ID"
	vz restore --detach --clone-of "$save-2" "$ID-b" </dev/null >"$T/load" 2>&1 3>&- || { cat "$T/load"; return 1; }
	works "$ID-b"
	renewed "$ID-b"
	heard "$ID-b"
	heard "$ID-b" --user
	[[ $(guest "$ID-b" cat /srv/chain) == first && $(guest "$ID-b" hostname) == "$ID-b" ]]
	# The first one's root is frozen now.
	fails 1 'clones are made above .*/mine/rootfs' vz restore --detach --bundle "$T/mine" --image-path "$save-2" "$ID"
	vz delete --force "$ID-b"
	vz restore --detach --bundle "$T/mine" --image-path "$save-2" "$ID" </dev/null >"$T/load" 2>&1 3>&- || { cat "$T/load"; return 1; }
	works "$ID"
	vz delete --force "$ID"
	[[ -e $T/mine/config.json ]] # not vzrun's to remove
	refuses 1 'bundle .*/mine of the clone: file already exists' --bundle "$T/mine"
	[[ -e $T/mine/rootfs/upper/srv/chain ]]
	origin_untouched
}

@test "what runs on the root of clones is refused, and clones of a root that ran" {
	local copy=$T/copy
	clone "$ID-1"
	fails 1 'clones are made above .*/origin/rootfs' vz restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" web
	fails 1 'clones are made above .*/origin/rootfs' vz create --bundle "$BUNDLE" web
	vz delete --force "$ID-1"
	# A checkpoint whose guest went on.
	cp -a --reflink=auto "$BUNDLE" "$copy"
	edit_config "$copy" '.linux.cgroupsPath = $ARGS.positional[0] | .annotations["org.vzrun.ids"] = "shared"' "/vzrun-test-$VZ_TAG-$ID"
	vz run --detach --bundle "$copy" --net none "$ID" </dev/null >"$T/log" 2>&1 3>&- || { cat "$T/log"; return 1; }
	wait_guest "$ID"
	vz checkpoint --leave-running --image-path "$T/save" "$ID"
	fails 1 "container $ID runs on the root" vz restore --detach --clone-of "$T/save" "$ID-2"
	guest "$ID" sh -c 'echo later >/srv/later; sync'
	vz delete --force "$ID"
	fails 1 'has changed since: ' vz restore --detach --clone-of "$T/save" "$ID-2"
	nothing_of "$ID-2"
	origin_untouched
}

@test "what cannot be is refused and leaves nothing" {
	refuses 1 'no such network interface: eth7' --net "bridge=$BRIDGE,name=eth7"
	refuses 1 'hostname: "-x" is none' --hostname -x
	refuses 1 'machine-id: "1" is neither' --machine-id 1
	mkdir -p "$T/full/x"
	refuses 1 'bundle .*/full of the clone: file already exists' --bundle "$T/full"
	[[ -d $T/full/x ]]
	refuses 1 'no such network interface: bridge none' --net 'bridge=none,name=eth0' --bundle "$T/new"
	[[ ! -e $T/new ]]
	fails 2 '--hostname goes with --clone-of' vz restore --hostname x "$ID"
	fails 2 'exclude each other' vz restore --clone-of "$IMAGES" --image-path "$IMAGES" "$ID"
	fails 2 'exclude each other' vz restore --clone-of "$IMAGES" --lazy-pages "$ID"
	fails 1 'is no checkpoint' vz restore --clone-of "$T" "$ID"
	# CRIU's log went with the bundle, and is not named.
	cp -a "$IMAGES" "$T/damaged"
	dd if=/dev/zero of="$T/damaged/fdinfo-2.img" bs=8 count=1 conv=notrunc status=none
	fails 1 'criu restore failed: [^(]*$' vz restore --detach --clone-of "$T/damaged" "$ID"
	nothing_of "$ID"
	clone "$ID"
	fails 1 'already exists' vz restore --detach --clone-of "$IMAGES" "$ID"
	works "$ID"
	origin_untouched
}

@test "vzrun that is killed on the way leaves a clone or nothing" {
	local after moments=(0.05 0.15 0.25 0.35 0.5) id code
	! is_full || mapfile -t moments < <(seq 0.02 0.02 1.2)
	for after in "${moments[@]}"; do
		id=$ID-${after#0.}
		id=${id//./_}
		code=0
		timeout --foreground --signal=KILL "$after" nsenter --net="$NETNS" -- "$VZRUN" --root "$VZ_ROOT" --id-record "$VZ_TMP/ids.json" \
			restore --detach --clone-of "$IMAGES" "$id" </dev/null >"$T/log" 2>&1 3>&- || code=$?
		[[ $code -eq 0 || $code -eq 124 || $code -eq 137 ]] || { cat "$T/log"; return 1; }
		if has_status "$id" running 2>/dev/null; then
			works "$id"
			vz delete --force "$id"
		fi
		nothing_of "$id"
	done
	origin_untouched
}

@test "memory of clones is shared where that is asked for" {
	lacks "KSM by process" grep -q ksm_merge_any /proc/self/ksm_stat
	vz restore --detach --clone-of "$IMAGES" --share-memory "$ID" </dev/null >"$T/out" 2>"$T/err" 3>&- || {
		cat "$T/err"
		return 1
	}
	# All that it may say is that the kernel does nothing.
	run ! grep -v 'merges no memory as long as /sys/kernel/mm/ksm/run is not 1' "$T/err"
	grep -qE '^ksm_merge_any: yes$' "/proc/$(pid_of "$ID")/ksm_stat"
	works "$ID"
	clone "$ID-2"
	grep -qE '^ksm_merge_any: no$' "/proc/$(pid_of "$ID-2")/ksm_stat"
}

@test "a container of one program is cloned, too" {
	local bundle images=$T/save
	bundle=$(VZ_TMP=$T app_bundle app /usr/local/bin/vzguest count /log)
	vz run --detach --bundle "$bundle" app </dev/null >/dev/null 2>&1 3>&-
	wait_lines "$bundle/rootfs/log" 5
	vz checkpoint --image-path "$images" app
	vz restore --detach --clone-of "$images" --bundle "$T/b" "$ID" </dev/null >/dev/null 2>"$T/err" 3>&- || { cat "$T/err"; return 1; }
	wait_lines "$T/b/rootfs/upper/log" 10
	vz delete --force "$ID"
	"$bundle/rootfs/usr/local/bin/vzguest" verify "$T/b/rootfs/upper/log"
	# What CRIU complains of is said, though its log goes with the clone.
	printf '\0\0\0\0' | dd of="$images/fs-1.img" bs=1 conv=notrunc status=none
	fails 1 'the images are damaged' vz restore --detach --clone-of "$images" "$ID"
	fails 1 'the images are damaged' vz restore --detach --clone-of "$images" --work-path "$T/work" "$ID"
	grep -q 'Restoring' "$T/work/restore.log"
	nothing_of "$ID"
}

@test "a hundred clones, one after the other, leave nothing" {
	local n count=4
	! is_full || count=100
	for n in $(seq "$count"); do
		clone "$ID-$n"
		((n % 10 != 1)) || works "$ID-$n"
		vz delete --force "$ID-$n"
	done
	nothing_of "$ID"
	[[ -z $(find "$CLONES" -mindepth 1) ]]
	origin_untouched
	# And the origin itself goes on, where it stopped.
	vz restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" web </dev/null >"$T/load" 2>&1 3>&- || { cat "$T/load"; return 1; }
	works web
	[[ $(guest web hostname) == web ]]
}
