#!/usr/bin/env bats
# Checkpoint and restore of a whole Debian with systemd, on a network of its own.
#
# All tests share one guest. setup boots it again if a test has left none, so
# that one failure does not make more. Those with the tag are the short run of the
# VM lab.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

# The guest's side of its link, and the host's.
ADDRESS=10.93.0.2
BRIDGE=vzt-br0
HOST_END=vzt-guest

# Cycles in a row; each takes 1 to 3 s, and 12 s in an emulated machine.
CYCLES=${VZ_CYCLES:-$([[ ${VZ_FULL:-} == 1 ]] && echo 20 || echo 4)}

setup_file() {
	test_may_take 300
	suite_setup
	vz_setup
	NETNS=/run/netns/vzrun-test-$VZ_TAG
	BUNDLE=$VZ_TMP/$ID
	export VZ_ROOT VZ_TMP ID BUNDLE NETNS
	network_up
	debian_bundle "$ID" >/dev/null
	add_units
	boot
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
	mkdir -m 0711 "$T"
	has_status "$ID" running 2>/dev/null || boot
}

teardown() {
	local pid
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	rm -rf --one-file-system -- "$T"
}

### The scene

# Here the runtime's "host" is a network namespace that nobody else uses.
vz() { nsenter --net="$NETNS" -- "$VZRUN" --root "$VZ_ROOT" "$@"; }

host_net() { nsenter --net="$NETNS" -- "$@"; }

network_up() {
	ip netns add "${NETNS##*/}"
	host_net ip link set lo up
	bridge_up
}

bridge_up() {
	host_net ip link add "$BRIDGE" type bridge
	host_net ip address add "${ADDRESS%.*}.1/24" dev "$BRIDGE"
	host_net ip link set "$BRIDGE" up
}

# connect_guest gives the guest an eth0, its host end in a state that is not the
# kernel's own.
connect_guest() {
	local pid
	pid=$(pid_of "$ID")
	host_net ip link add "$HOST_END" mtu 1400 address 02:00:5e:00:00:10 type veth peer name eth0 mtu 1400 netns "$pid"
	host_net ip link set "$HOST_END" master "$BRIDGE" up
	host_net bridge link set dev "$HOST_END" hairpin on isolated on
	nsenter -t "$pid" -n -- sh -c "ip link set lo up && ip address add $ADDRESS/24 dev eth0 && ip link set eth0 up"
}

boot() {
	vz delete --force "$ID"
	rm -f "$VZ_TMP/restored"
	host_net ip link delete "$HOST_END" 2>/dev/null || true
	host_net ip link show "$BRIDGE" >/dev/null 2>&1 || bridge_up
	vz_up "$BUNDLE" "$ID"
	connect_guest
	wait_guest "$ID"
}

# unit NAME [enabled] writes a unit of the guest from stdin.
unit() {
	local dir=$BUNDLE/rootfs/etc/systemd/system
	mkdir -p "$(dirname "$dir/$1")"
	cat >"$dir/$1"
	[[ -z ${2:-} ]] || ln -s "../$1" "$dir/multi-user.target.wants/$1"
}

# add_units gives the guest what is hard to save.
add_units() {
	unit lonely.service enabled <<-'END'
		[Service]
		ExecStart=sleep infinity
		PrivateNetwork=yes
	END
	unit private.service enabled <<-'END'
		[Service]
		ExecStart=sh -c 'echo kept >/tmp/note; exec sleep infinity'
		PrivateTmp=yes
	END
	unit dynamic.service enabled <<-'END'
		[Service]
		Type=exec
		ExecStart=sh -c 'echo kept >$STATE_DIRECTORY/note; exec sleep infinity'
		DynamicUser=yes
		StateDirectory=dynamic
		PrivateTmp=yes
	END
	unit unlinked.service enabled <<-'END'
		[Service]
		ExecStart=sh -c 'exec 3<>/var/tmp/unlinked; rm /var/tmp/unlinked; echo kept >&3; exec sleep infinity'
	END
	unit tick.service <<-'END'
		[Unit]
		StartLimitIntervalSec=0
		[Service]
		Type=oneshot
		ExecStart=sh -c 'echo tick >>/srv/ticks'
	END
	unit tick.timer enabled <<-'END'
		[Timer]
		OnActiveSec=1s
		OnUnitActiveSec=1s
		AccuracySec=10ms
	END
	unit notice.service <<-'END'
		[Service]
		Type=oneshot
		ExecStart=sh -c 'cat /srv/watched >>/srv/noticed'
	END
	unit notice.path enabled <<-'END'
		[Path]
		PathModified=/srv/watched
	END
	# Its clock goes on while it is restored.
	unit watched.service enabled <<-END
		[Service]
		Type=notify
		ExecStart=perl -MSocket -e 'socket(S, AF_UNIX, SOCK_DGRAM, 0); \$to = sockaddr_un(\$ENV{NOTIFY_SOCKET}); send(S, "READY=1", 0, \$to); while (1) { send(S, "WATCHDOG=1", 0, \$to); select(undef, undef, undef, 0.2) }'
		WatchdogSec=$(slow 30)
	END
	# For users' managers, too.
	cp "$BUNDLE/rootfs/etc/systemd/system/watched.service" "$BUNDLE/rootfs/etc/systemd/user/"
	unit beat.service <<-'END'
		[Service]
		ExecStart=sh -c 'while :; do echo beat >>/srv/beats; sleep 0.1; done'
	END
	unit walled.service <<-'END'
		[Service]
		ExecStart=sleep infinity
	END
	unit walled.service.d/own.conf <<-'END'
		[Service]
		PrivateUsers=yes
	END
}

# clone_bundle ID DIR ROOTFS makes a bundle for another container from the
# guest's images. Images hold the ids, so all of them share one range.
clone_bundle() {
	mkdir -m 0700 "$2"
	cp "$BUNDLE/config.json" "$2/"
	edit_config "$2" '.root.path = $ARGS.positional[0] | .linux.cgroupsPath = $ARGS.positional[1]
		| .annotations["org.vzrun.ids"] = "shared"' "$3" "$(cgroup_of "$1")"
}

### Verbs as the tests use them

# save IMAGES [FLAG...] checkpoints the guest; its statistics are in $T/save.
save() {
	local images=$1
	shift
	vz checkpoint --tcp-established --print-stats --image-path "$images" "$@" "$ID" >"$T/save" 2>"$T/save.err" || {
		cat "$T/save.err"
		show_log "$images/dump.log"
		return 1
	}
}

# show_log FILE prints what CRIU found remarkable, watches and errors above all.
show_log() {
	[[ ! -e $1 ]] || grep -E 'Warn|Error|fsnotify: ' "$1" | grep -vE 'RLIMIT_NOFILE|breakpoints' | tail -n 25
}

# load_from IMAGES [FLAG...] restores it; its statistics are in $T/load.
load_from() { load_as "$ID" "$BUNDLE" "$@"; }

# load_as ID BUNDLE IMAGES [FLAG...]
load_as() {
	local id=$1 bundle=$2 images=$3
	shift 3
	vz restore --detach --bundle "$bundle" --image-path "$images" --print-stats "$@" "$id" \
		</dev/null >"$T/load" 2>"$T/load.err" 3>&- || {
		cat "$T/load.err"
		show_log "$images/restore.log"
		return 1
	}
	# Warnings are about what would go wrong later.
	[[ ! -s $T/load.err ]] || {
		cat "$T/load.err"
		return 1
	}
}

# restored makes sure that the guest is one that was restored.
restored() {
	[[ -e $VZ_TMP/restored ]] && return
	save "$T/images"
	load_from "$T/images"
	touch "$VZ_TMP/restored"
}

# refuses CODE REGEX [FLAG...] is a restore into the guest's id that must fail
# with that error and a hint, and leave nothing.
refuses() {
	local code=$1 pattern=$2
	shift 2
	fails "$code" "$pattern" vz restore --detach --bundle "$BUNDLE" "$@" "$ID"
	assert_absent "$ID"
}

# assert_absent ID: no state, no cgroup (hence no process), no mount, no link.
assert_absent() {
	wait_until 5 is_absent "$1" || {
		host_net ip -brief link
		mounts | grep -F -e "$VZ_TMP" -e "$VZ_ROOT" || true
		find /sys/fs/cgroup "$VZ_ROOT" -name "*$1"
		return 1
	}
}

is_absent() {
	[[ -z $(find /sys/fs/cgroup "$VZ_ROOT" -name "*$1" 2>/dev/null) ]] || return
	! mounts | grep -qF -e "$VZ_TMP" -e "$VZ_ROOT" || return
	! host_net ip -brief link | grep -v "^$BRIDGE" | grep -q '^vzt-'
}

# talk opens a connection to the guest's echo service and keeps it busy; hang_up
# ends it, and fails if any answer was lost or wrong.
talk() {
	local fifo=$T/talk.in
	mkfifo "$fifo"
	# No function: $! is to be its pid.
	nsenter --net="$NETNS" -- "$BUNDLE/rootfs/usr/local/bin/vzguest" talk "$ADDRESS:7" <"$fifo" >"$T/talk" 2>&1 3>&- &
	TALKER=$!
	VZ_SPAWNED+=("$TALKER")
	exec {TALK}>"$fifo"
	wait_line "$T/talk" '^connected$'
}

hang_up() {
	kill -0 "$TALKER" || {
		cat "$T/talk"
		return 1
	}
	exec {TALK}>&-
	wait "$TALKER" || {
		cat "$T/talk"
		return 1
	}
	grep -q '^lines=' "$T/talk"
}

# assert_whole: the counter lost nothing and counts, nginx answers from outside.
assert_whole() {
	wait_counter "$BUNDLE/rootfs"
	verify_counter "$BUNDLE/rootfs"
	[[ $(host_net curl -fsS --max-time "$(slow 20)" "http://$ADDRESS/") == *"vzrun test page"* ]]
}

# assert_systemd_works ID: PID 1 answers, has no failed unit and does its work.
assert_systemd_works() {
	[[ $(vz ready --timeout "$(slow 30)s" "$1") == running ]]
	guest "$1" timeout "$(slow 30)" systemctl restart nginx
	[[ $(guest "$1" systemctl is-active nginx) == active ]]
}

# assert_idle PID: it takes no processor time to speak of. One that spins, as an
# init may that lost something in a restore, never does.
assert_idle() { wait_until "$VZ_PATIENCE" is_idle "$1"; }

is_idle() {
	local before after _
	read -r before _ <"/proc/$1/schedstat"
	sleep 0.5
	read -r after _ <"/proc/$1/schedstat"
	((after - before < 50000000))
}

main_pid() { guest "$ID" systemctl show --property MainPID --value "$1"; }

### What is refused, and leaves the guest alone

# bats test_tags=short
@test "a unit with a user namespace of its own is refused by name; the guest goes on" {
	local pid
	guest "$ID" systemctl start walled
	pid=$(main_pid walled)
	wait_until 10 eval '[[ $(guest "$ID" readlink /proc/'"$pid"'/ns/user) != $(guest "$ID" readlink /proc/1/ns/user) ]]'
	fails 1 "refused: unit walled.service \(pid $pid, sleep\) has a user namespace" vz checkpoint --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == *"PrivateUsers=no"*"walled.service"* ]]
	[[ ! -e $T/images ]]
	has_status "$ID" running
	[[ $(main_pid walled) == "$pid" ]]
	guest "$ID" systemctl stop walled
	assert_systemd_works "$ID"
	assert_whole
}

@test "an exec'ed session is refused by name, and not killed" {
	local pid
	vz exec --detach --pid-file "$T/pid" "$ID" sleep 1000 </dev/null >/dev/null 2>&1 3>&-
	pid=$(<"$T/pid")
	VZ_SPAWNED+=("$pid")
	fails 1 'process "sleep" \(pid [0-9]+\) was started from outside' vz checkpoint --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == *"kill $pid"* ]]
	[[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == "sleep 1000 " ]]
	has_status "$ID" running
	kill "$pid"
	wait_exit "$pid"
	assert_whole
}

@test "open connections are refused without --tcp-established, and go on" {
	talk
	fails 1 'open TCP connections' vz checkpoint --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == *--tcp-established* ]]
	assert_whole
	hang_up
	assert_idle "$(pid_of "$ID")"
}

# save_paused IMAGES [FLAG...] pauses the guest and saves it. At some moments that cannot be:
# what is on its way then, as a message with descriptors, is so for good.
save_paused() {
	local tries=5
	vz pause "$ID"
	until save "$@" >"$T/said"; do
		cat "$T/said"
		((--tries > 0)) && grep -q 'hint: resume the container, pause it again' "$T/save.err" || return 1
		vz resume "$ID"
		vz pause "$ID"
	done
}

@test "a paused guest stays paused through a checkpoint, and runs when it is restored" {
	save_paused "$T/images" --leave-running
	has_status "$ID" paused
	vz resume "$ID"
	assert_whole
	save_paused "$T/images.paused"
	load_from "$T/images.paused"
	has_status "$ID" running
	assert_whole
}

### A checkpoint, and what is in it

# bats test_tags=short
@test "--leave-running saves the guest while it and its connections go on" {
	local pid
	pid=$(pid_of "$ID")
	talk
	save "$T/images" --leave-running
	jq -e '.operation == "checkpoint" and .tasks > 5 and .bytes > 1000000 and .frozen > 0 and .dump >= .frozen' "$T/save"
	[[ $(jq .bytes "$T/save") == $(find "$T/images" -name '*.img' -type f -printf '%s\n' | awk '{ n += $1 } END { print n }') ]]
	[[ $(pid_of "$ID") == "$pid" ]]
	assert_whole
	hang_up
	assert_systemd_works "$ID"
	assert_idle "$pid"

	# Images of another container, and of nobody knows whom, are not overwritten.
	sha256sum "$T"/images/* >"$T/sums"
	mv "$T/images/vzrun.json" "$T/manifest"
	fails 1 'holds a checkpoint already' vz checkpoint --tcp-established --image-path "$T/images" "$ID"
	jq '.id = "other"' "$T/manifest" >"$T/images/vzrun.json"
	fails 1 'holds a checkpoint already' vz checkpoint --tcp-established --image-path "$T/images" "$ID"
	mv "$T/manifest" "$T/images/vzrun.json"
	sha256sum --check --quiet "$T/sums"
	# Nor restored over a rootfs that has gone on.
	clone_bundle "$ID-second" "$T/second" "$BUNDLE/rootfs"
	fails 1 'is not as it was at the checkpoint' vz restore --detach --bundle "$T/second" --image-path "$T/images" \
		--veth eth0=vzt-second "$ID-second"
	run ! host_net ip link show vzt-second
	[[ ! -e $VZ_ROOT/$ID-second ]]
	assert_whole
}

@test "images are closed to other users, also to the roots of guests" {
	local base uid
	save "$T/images"
	# Also after a restore, which needs them opened to the guest's root.
	load_from "$T/images"
	[[ $(stat -c '%a %u:%g' "$T/images") == "750 0:0" ]]
	find "$T/images" \( -perm /o=w -o ! -uid 0 -o ! -gid 0 \) -ls >"$T/open"
	[[ ! -s $T/open ]] || {
		cat "$T/open"
		return 1
	}
	base=$(jq .linux.uidMappings[0].hostID "$BUNDLE/config.json")
	for uid in 65534 "$base" $((base + 65536)); do
		run ! setpriv --reuid "$uid" --regid "$uid" --clear-groups ls "$T/images"
		run ! setpriv --reuid "$uid" --regid "$uid" --clear-groups cat "$T/images/inventory.img"
	done
}

# bats test_tags=short
@test "checkpoint ends the guest, restore brings it back" {
	local seen
	save "$T/images" --work-path "$T/work"
	[[ -s $T/work/dump.log && ! -e $T/images/dump.log ]]
	assert_absent "$ID"
	fails 1 'does not exist' vz state "$ID"
	load_from "$T/images" --work-path "$T/work"
	[[ -s $T/work/restore.log && ! -e $T/images/restore.log ]]
	jq -e '.operation == "restore" and .restore > 0 and .restore >= .criu and .tasks > 5 and .init_cpu < 0.2' "$T/load"
	touch "$VZ_TMP/restored"
	has_status "$ID" running
	assert_whole
	# systemd takes a watchdog's ping only from the process that it knows.
	seen=$(last_ping)
	wait_until 20 eval '[[ $(last_ping) != "$seen" ]]'
	assert_systemd_works "$ID"
	assert_idle "$(pid_of "$ID")"
}

# last_ping [--user] prints when the watchdog of watched.service was last heard.
last_ping() { guest "$ID" env XDG_RUNTIME_DIR=/run/user/0 timeout "$(slow 30)" systemctl "$@" show --value --property WatchdogTimestampMonotonic watched; }

### A restored guest

# bats test_tags=short
@test "every verb works on a restored guest" {
	local pid log before
	restored
	pid=$(pid_of "$ID")
	[[ $(vz list --quiet) == "$ID" ]]
	vz ready --format json "$ID" | jq -e '.state == "running" and .failed == []'
	vz ps --format json "$ID" | jq -e --argjson pid "$pid" 'length > 5 and contains([$pid])'
	vz ps "$ID" | grep -q '/usr/local/bin/vzguest count'
	run -7 guest "$ID" sh -c 'exit 7'
	[[ $(guest "$ID" hostname) == "$ID" ]]
	# The same clocks as the processes that were restored.
	[[ $(guest "$ID" readlink /proc/self/ns/time) == "$(guest "$ID" readlink /proc/1/ns/time)" ]]
	[[ $(guest "$ID" cat /proc/self/cgroup) == *:/* ]]
	[[ $(echo 'tty || echo $0' | vz enter "$ID") == "not a tty"*bash ]]

	vz pause "$ID"
	has_status "$ID" paused
	fails 255 'cannot exec in a paused container' guest "$ID" true
	log=$BUNDLE/rootfs/var/lib/vzcount/log
	before=$(wc -l <"$log")
	sleep 0.3
	[[ $(wc -l <"$log") == "$before" ]]
	vz resume "$ID"
	assert_whole
	fails 4 'wrong status: it is running' vz delete "$ID"
	[[ $(pid_of "$ID") == "$pid" ]]
}

# bats test_tags=short
@test "systemd of a restored guest does its work" {
	local before
	restored
	before=$(main_pid vzecho)
	guest "$ID" timeout "$(slow 30)" systemctl restart vzecho
	[[ $(main_pid vzecho) != "$before" ]]
	guest "$ID" timeout "$(slow 30)" systemctl daemon-reload
	guest "$ID" timeout "$(slow 30)" systemctl daemon-reexec
	wait_guest "$ID"
	[[ $(guest "$ID" timeout "$(slow 30)" systemd-run --quiet --wait --pipe echo from a transient unit) == "from a transient unit" ]]
	guest "$ID" systemd-cat echo "logged after the restore"
	wait_until 20 eval 'guest "$ID" journalctl --no-pager --output cat | grep -qx "logged after the restore"'
	# One that is being written cannot be verified: what was written till now is.
	guest "$ID" journalctl --rotate
	guest "$ID" sh -c 'journalctl --verify $(printf -- "--file=%s " /var/log/journal/*/system@*.journal)'
	assert_systemd_works "$ID"
	assert_idle "$(pid_of "$ID")"
}

@test "timers fire and changes of files are noticed after a restore" {
	local rootfs=$BUNDLE/rootfs
	restored
	wait_file "$rootfs/srv/ticks"
	wait_lines "$rootfs/srv/ticks" $(($(wc -l <"$rootfs/srv/ticks") + 2))
	guest "$ID" sh -c 'echo seen >/srv/watched'
	wait_line "$rootfs/srv/noticed" '^seen$'
}

@test "services with private networks, directories and users are restored with them" {
	local pid
	restored
	[[ $(guest "$ID" systemctl is-active lonely private dynamic unlinked) == active$'\n'active$'\n'active$'\n'active ]]
	pid=$(main_pid lonely)
	[[ $(guest "$ID" nsenter -t "$pid" -n ip -brief link | awk '{ print $1 }') == lo ]]
	pid=$(main_pid private)
	[[ $(guest "$ID" nsenter -t "$pid" -m cat /tmp/note) == kept ]]
	guest "$ID" test ! -e /tmp/note
	pid=$(main_pid dynamic)
	(($(guest "$ID" stat -c %u "/proc/$pid") >= 61184))
	[[ $(guest "$ID" nsenter -t "$pid" -m cat /var/lib/dynamic/note) == kept ]]
	# What they had, new ones get too.
	guest "$ID" timeout "$(slow 30)" systemctl restart lonely private dynamic
	[[ $(guest "$ID" systemctl is-active lonely private dynamic) == active$'\n'active$'\n'active ]]
}

@test "what the guest has frozen stays frozen until the guest thaws it" {
	local beats=$BUNDLE/rootfs/srv/beats before
	guest "$ID" systemctl start beat
	wait_lines "$beats" 1
	lacks 'cgroup.freeze (Linux 5.2)' guest "$ID" test -e /sys/fs/cgroup/system.slice/beat.service/cgroup.freeze
	guest "$ID" systemctl freeze beat
	before=$(wc -l <"$beats")
	# Neither a refusal nor an error nor a checkpoint lets it run.
	fails 1 'refused: cgroup "system.slice/beat.service" is frozen' vz checkpoint --pre-dump --image-path "$T/pre" "$ID"
	[[ ${stderr_lines[1]} == *"systemctl thaw"* ]]
	talk
	fails 1 'open TCP connections' vz checkpoint --image-path "$T/images" "$ID"
	hang_up
	is_frozen beat
	save "$T/running" --leave-running
	is_frozen beat
	save "$T/images"
	load_from "$T/images"
	touch "$VZ_TMP/restored"
	is_frozen beat
	[[ $(wc -l <"$beats") == "$before" ]]
	guest "$ID" systemctl thaw beat
	wait_lines "$beats" $((before + 3))
	guest "$ID" systemctl stop beat
	assert_systemd_works "$ID"
	assert_whole
}

# is_frozen UNIT: systemd and the kernel agree.
is_frozen() {
	[[ $(guest "$ID" systemctl show --property FreezerState --value "$1") == frozen ]]
	guest "$ID" grep -qx 'frozen 1' "/sys/fs/cgroup/system.slice/$1.service/cgroup.events"
}

@test "a user's service manager is restored, with its session" {
	local pid seen
	guest "$ID" systemctl start user@0
	guest "$ID" env XDG_RUNTIME_DIR=/run/user/0 timeout "$(slow 30)" systemctl --user start watched
	save "$T/images"
	load_from "$T/images"
	touch "$VZ_TMP/restored"
	seen=$(last_ping --user)
	wait_until 20 eval '[[ $(last_ping --user) != "$seen" ]]'
	[[ $(guest "$ID" env XDG_RUNTIME_DIR=/run/user/0 timeout "$(slow 30)" systemctl --user is-system-running) == running ]]
	for pid in $(vz ps --format json "$ID" | jq '.[]'); do
		[[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) != *"systemd --user"* ]] || break
	done
	[[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"systemd --user"* ]]
	assert_idle "$pid"
	guest "$ID" timeout "$(slow 30)" systemctl stop user@0
	assert_systemd_works "$ID"
}

@test "an open file that was deleted keeps its contents" {
	local pid
	restored
	pid=$(main_pid unlinked)
	[[ $(guest "$ID" readlink "/proc/$pid/fd/3") == *"(deleted)" ]]
	[[ $(guest "$ID" cat "/proc/$pid/fd/3") == kept ]]
	[[ ! -e $BUNDLE/rootfs/var/tmp/unlinked ]]
	# No name that CRIU gave it for the time is left.
	[[ -z $(find "$BUNDLE/rootfs" -xdev -name 'link_remap.*') ]]
}

@test "the host's end of the link returns to its bridge with its state" {
	local before after
	before=$(host_net ip -json -details link show "$HOST_END" | jq -S '.[0] | {ifname, address, mtu, master, txqlen, up: (.flags | contains(["UP"])), port: .linkinfo.info_slave_data | {hairpin, isolated}}')
	jq -e '.mtu == 1400 and .port.hairpin and .port.isolated' <<<"$before"
	save "$T/images"
	run ! host_net ip link show "$HOST_END"
	load_from "$T/images"
	after=$(host_net ip -json -details link show "$HOST_END" | jq -S '.[0] | {ifname, address, mtu, master, txqlen, up: (.flags | contains(["UP"])), port: .linkinfo.info_slave_data | {hairpin, isolated}}')
	[[ $after == "$before" ]]
	# No packet filter rule of the freeze is left on either side.
	[[ -z $(host_net nft list ruleset) ]]
	[[ -z $(nsenter -t "$(pid_of "$ID")" -n nft list ruleset) ]]
	assert_whole
}

@test "many cycles in a row lose nothing, with one connection open all the time" {
	local i init
	talk
	for ((i = 1; i <= CYCLES; i++)); do
		save "$T/images"
		load_from "$T/images"
		jq -e '.init_cpu < 0.2' "$T/load"
		wait_counter "$BUNDLE/rootfs" 3
		verify_counter "$BUNDLE/rootfs"
		kill -0 "$TALKER"
		rm -r "$T/images"
	done
	hang_up
	touch "$VZ_TMP/restored"
	init=$(pid_of "$ID")
	assert_idle "$init"
	assert_systemd_works "$ID"
	assert_whole
	# Nothing grows from cycle to cycle in a process tree that idles.
	(($(find "/proc/$init/fd" -type l | wc -l) < 150))
	[[ -z $(host_net nft list ruleset) ]]
}

### What a restore refuses

@test "a restore that cannot work says why and leaves nothing; the images stay good" {
	local log=$BUNDLE/rootfs/var/lib/vzcount/log config=$BUNDLE/config.json size
	save "$T/images"
	cp "$config" "$T/config.json"

	refuses 1 'no such file' --image-path "$T/nowhere"

	# The name of the link's end is taken.
	host_net ip link add "$HOST_END" type bridge
	fails 1 "name is taken: $HOST_END, wanted for eth0" vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == *--veth* ]]
	host_net ip link delete "$HOST_END"
	assert_absent "$ID"

	# Its bridge is gone.
	host_net ip link delete "$BRIDGE"
	refuses 1 "no such network interface: bridge $BRIDGE" --image-path "$T/images"
	bridge_up

	# A link that the guest does not have.
	refuses 1 'eth7 in the container, which has eth0' --image-path "$T/images" --veth eth7=vzt-seven

	# The bundle of another guest.
	edit_config "$BUNDLE" '.process.env |= map(if startswith("container_uuid=") then "container_uuid=0123456789abcdef0123456789abcdef" else . end)'
	refuses 1 'of another container: container_uuid' --image-path "$T/images"
	cp "$T/config.json" "$config"
	edit_config "$BUNDLE" '(.linux.uidMappings, .linux.gidMappings) |= map(.hostID += 65536)'
	refuses 1 'of another container: the id mapping' --image-path "$T/images"
	cp "$T/config.json" "$config"

	# A file that a process has open is not what it was.
	size=$(stat -c %s "$log")
	echo >>"$log"
	refuses 1 'file /var/lib/vzcount/log is not as it was at the checkpoint' --image-path "$T/images"
	truncate --size "$size" "$log"

	# Images that were damaged.
	cp -p "$T/images/pstree.img" "$T/pstree.img"
	truncate --size -1 "$T/images/pstree.img"
	refuses 1 'image file pstree.img has [0-9]+ bytes' --image-path "$T/images"
	mv "$T/pstree.img" "$T/images/pstree.img"
	mv "$T/images/inventory.img" "$T/inventory.img"
	refuses 1 'image file inventory.img is missing' --image-path "$T/images"
	mv "$T/inventory.img" "$T/images/inventory.img"
	mv "$T/images/vzrun.json" "$T/vzrun.json"
	refuses 1 'no checkpoint of vzrun' --image-path "$T/images"
	mv "$T/vzrun.json" "$T/images/vzrun.json"

	load_from "$T/images"
	assert_whole
}

@test "an id that is taken is refused by restore" {
	local pid
	save "$T/images" --leave-running
	pid=$(pid_of "$ID")
	fails 1 'already exists' vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" --veth eth0=vzt-second "$ID"
	[[ $(pid_of "$ID") == "$pid" ]]
	assert_whole
}

### Clones

@test "two clones of one checkpoint run side by side, each with its own rootfs" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "takes VZ_FULL=1: suite clones has most of it"
	local id bundle clones=("$ID-one" "$ID-two") n
	save "$T/images"
	for id in "${clones[@]}"; do
		clone_bundle "$id" "$T/$id" rootfs
		cp -a --reflink=auto "$BUNDLE/rootfs" "$T/$id/rootfs"
	done
	load_as "${clones[0]}" "$T/${clones[0]}" "$T/images" --veth eth0=vzt-one
	load_as "${clones[1]}" "$T/${clones[1]}" "$T/images" --veth "eth0=vzt-two@$BRIDGE"
	[[ $(vz list --quiet) == "${clones[0]}"$'\n'"${clones[1]}" ]]
	[[ $(host_net ip -json link show vzt-one | jq -r '.[0].master') == null ]]
	[[ $(host_net ip -json link show vzt-two | jq -r '.[0].master') == "$BRIDGE" ]]
	for id in "${clones[@]}"; do
		bundle=$T/$id
		wait_counter "$bundle/rootfs"
		"$bundle/rootfs/usr/local/bin/vzguest" verify "$bundle/rootfs/var/lib/vzcount/log"
		assert_systemd_works "$id"
		assert_idle "$(pid_of "$id")"
		guest "$id" sh -c "echo $id >/srv/who"
	done
	for id in "${clones[@]}"; do
		[[ $(<"$T/$id/rootfs/srv/who") == "$id" ]]
	done
	[[ ! -e $BUNDLE/rootfs/srv/who ]]
	# The end of one is nothing to the other, nor to the one that was saved.
	vz delete --force "${clones[0]}"
	n=$(wc -l <"$T/${clones[1]}/rootfs/var/lib/vzcount/log")
	wait_lines "$T/${clones[1]}/rootfs/var/lib/vzcount/log" $((n + 5))
	vz delete --force "${clones[1]}"
	load_from "$T/images"
	assert_whole
}

### The end

# bats test_tags=short
@test "a restored guest shuts down in order and is deleted" {
	local log=$BUNDLE/rootfs/var/lib/vzcount/log
	restored
	vz stop --timeout "$(slow 60)s" "$ID"
	has_status "$ID" stopped
	"$BUNDLE/rootfs/usr/local/bin/vzguest" verify "$log"
	fails 4 'wrong status: it is stopped' vz checkpoint --image-path "$T/images" "$ID"
	vz delete "$ID"
	assert_absent "$ID"
}
