#!/usr/bin/env bats
# What prevents a checkpoint is found and named before any task is stopped, and
# gone with its remedy. Each obstacle is a real one, held by tests/cmd/hoarder.
#
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	suite_setup
	HOARDER=$(build_command hoarder)
	export HOARDER
}
teardown_file() { suite_teardown; }

setup() { vz_setup; }
teardown() { vz_teardown; }

# hold_up ID starts a guest whose init starts "hoarder THING" for each line that is
# written to /srv/todo. It may do what programs of a guest may, and more.
hold_up() {
	BUNDLE=$(app_bundle "$1" sh -c 'while read -r thing; do hoarder $thing </dev/null >>/srv/held 2>&1 & done <>/srv/todo')
	mkdir -p "$BUNDLE/rootfs/srv"
	mkfifo "$BUNDLE/rootfs/srv/todo"
	cp "$HOARDER" "$BUNDLE/rootfs/bin/hoarder"
	edit_config "$BUNDLE" 'del(.linux.seccomp) | .process.capabilities |= map_values(["CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_NET_ADMIN",
		"CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_MKNOD"])
		| .linux.devices = [{path: "/dev/fuse", type: "c", major: 10, minor: 229, fileMode: 438}]
		| .linux.resources.devices = [{allow: true, access: "rwm"}]'
	app_up "$BUNDLE" "$1"
}

# hold THING [ARG] has the guest hold it.
hold() {
	echo "$*" >"$BUNDLE/rootfs/srv/todo"
	wait_line "$BUNDLE/rootfs/srv/held" "^(holds $1|hoarder: $1: .*)$"
	grep -qx "holds $1" "$BUNDLE/rootfs/srv/held"
}

# let_go ends all that is held, and waits for it.
let_go() {
	local pid
	for pid in $(hoarders); do
		kill -KILL "$pid"
	done
	wait_until 10 eval '[[ -z $(hoarders) ]]'
	: >"$BUNDLE/rootfs/srv/held"
}

# hoarders are the host's pids of what holds.
hoarders() {
	local pid
	for pid in $(vz ps --format json "$ID" | jq '.[]'); do
		[[ $(readlink "/proc/$pid/exe") != */bin/hoarder ]] || has_ended "$pid" || echo "$pid"
	done
}

check() { vz checkpoint --check --format json "$@" "$ID"; }

# in_the_way JQ [FLAG...] checks, which must refuse, and find what the filter says.
in_the_way() {
	local filter=$1
	shift
	run -1 --separate-stderr check "$@"
	jq -e "$filter" <<<"$output" >/dev/null || {
		printf '%s\nnot %s\n%s\n' "$output" "$filter" "$stderr"
		return 1
	}
}

nothing_in_the_way() {
	run -0 --separate-stderr check "$@"
	[[ $output == "[]" && -z $stderr ]] || {
		printf '%s\n%s\n' "$output" "$stderr"
		return 1
	}
}

@test "everything that is in the way is listed in one pass, with pids, command and remedy" {
	local pid kind
	hold_up "$ID"
	nothing_in_the_way
	pid=$(pid_of "$ID")
	for kind in io_uring bpf-map bpf-prog perf landlock seccomp ufd secret fscontext tree vsock mptcp mqueue-open ptrace timens cgroupns utsns "ns-fd uts" \
		"open /dev/fuse" "mount ramfs:/mnt"; do
		# shellcheck disable=SC2086
		hold $kind
	done
	in_the_way '[.[] | .kind] | (map(select(. == "descriptor")) | length) == 10 and
		contains(["memory", "outside-file", "socket", "queue", "traced", "namespace", "mount"])'
	# Each with a remedy, and each process with both of its pids and its name.
	jq -e 'all(.remedy != "" and .what != "" and .count >= 1) and
		(map(select(.pid)) | length > 14 and all(.host_pid > .pid and (.command == "hoarder" or .command == "exe")))' <<<"$output"
	for kind in io_uring 'BPF object' 'performance counter' Landlock 'seccomp notifier' userfaultfd memfd_secret 'about to mount' 'outside the guest' \
		AF_VSOCK MPTCP 'POSIX message queue' 'is traced' 'time namespace' 'cgroup namespace' 'uts namespace' 'holds a uts namespace' '/dev/fuse' 'file system ramfs at \\"/mnt\\"'; do
		jq -e --arg what "$kind" 'any(.what | contains($what | gsub("\\\\"; "")))' <<<"$output" || {
			echo "not found: $kind"
			return 1
		}
	done

	# For people, and from the checkpoint itself, which leaves everything as it was.
	run -1 --separate-stderr vz checkpoint --check "$ID"
	[[ ${lines[0]} == PID*HOSTPID*UNIT*COMMAND*OBSTACLE ]]
	grep -qE '^[0-9]+ +[0-9]+ +- +hoarder +uses io_uring' <<<"$output"
	grep -q 'remedy: ' <<<"$output"
	[[ ${stderr_lines[0]} =~ refused:\ [0-9]+\ in\ the\ way ]]
	fails 1 'refused: .*hoarder.*and [0-9]+ more' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	has_status "$ID" running
	[[ $(pid_of "$ID") == "$pid" && $(hoarders | wc -l) -gt 15 ]]

	# The remedies: what holds is ended, the queue removed, the mount taken away.
	let_go
	in_the_way 'map(.kind) == ["mount", "queue"]'
	nsenter -t "$pid" -m -i -- sh -c 'umount /mnt; rm /dev/mqueue/held'
	nothing_in_the_way
	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	app_restore "$BUNDLE" "$ID" "$VZ_TMP/images"
	has_status "$ID" running
}

@test "what a flag allows is in the way without it only" {
	hold_up "$ID"
	hold tcp
	in_the_way 'map(.kind) == ["connection"] and (.[0].remedy | contains("--tcp-established"))'
	nothing_in_the_way --tcp-established
	hold ofd-lock /srv/locked
	hold flock /srv/locked-too
	in_the_way 'map(.kind) == ["lock", "lock"] and all(.remedy | contains("--file-locks"))' --tcp-established
	hold linked /srv/linked
	in_the_way 'map(.kind) == ["deleted-file"] and (.[0].what | contains("/srv/linked"))' --tcp-established --file-locks
	nothing_in_the_way --tcp-established --file-locks --link-remap
	vz checkpoint --tcp-established --file-locks --link-remap --image-path "$VZ_TMP/images" "$ID"
	app_restore "$BUNDLE" "$ID" "$VZ_TMP/images" --file-locks
	[[ $(hoarders | wc -l) == 4 ]]
}

@test "what CRIU saves is not in the way, such as deleted files of some size" {
	local thing things=(fanotify pidfd memfd udp raw packet "netlink 15" unix mntns netns listener
		"opath /bin/busybox" "open /dev/null" "deleted /srv/20") processes=16
	hold_up "$ID"
	# Linux 7.2 knows it no more.
	if grep -q '^UDP-Lite ' /proc/net/protocols; then
		things+=(udplite)
		processes=17
	fi
	for thing in "${things[@]}"; do
		# shellcheck disable=SC2086
		hold $thing
	done
	nothing_in_the_way
	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	app_restore "$BUNDLE" "$ID" "$VZ_TMP/images"
	# Some have a process more.
	[[ $(hoarders | wc -l) == "$processes" ]]
}

@test "files of the host, and ends of veth pairs in a third namespace, are in the way" {
	local pid
	BUNDLE=$(app_bundle "$ID" sh -c 'read -r _ <>/run/never')
	mkfifo "$BUNDLE/rootfs/run/never"
	# Its output is a file of the host's.
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	in_the_way 'map(.kind) | unique == ["outside-file"]'
	[[ $output == *"/dev/null or a pipe"* ]]
	vz delete --force "$ID"
	app_up "$BUNDLE" "$ID"
	pid=$(pid_of "$ID")
	nothing_in_the_way
	spawn "$VZ_TMP/third" unshare --net sleep 1000
	wait_until 10 eval '! netns_exists_only_here "$SPAWNED"'
	ip link add "vzt-far" netns "$SPAWNED" type veth peer name far netns "$pid"
	in_the_way 'map(.kind) == ["network"] and (.[0].what | contains("interface far"))'
	fails 1 'interface far is in a network namespace' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	nsenter -t "$pid" -n ip link delete far
	nothing_in_the_way
}

# netns_exists_only_here PID tells whether a process is in our own namespace still.
netns_exists_only_here() { [[ $(netns_of "$1") == "$(netns_of self)" ]]; }

@test "sessions from outside are ended on request, those inside the guest go on" {
	local pid child daemon
	hold_up "$ID"
	hold nothing
	vz exec --detach --pid-file "$VZ_TMP/pid" "$ID" sh -c 'trap "" HUP; sleep 1000 & setsid sleep 2000 </dev/null >/dev/null 2>&1 & wait' </dev/null >/dev/null 2>&1 3>&-
	pid=$(<"$VZ_TMP/pid")
	wait_until 10 eval '[[ $(pgrep -P '"$pid"' | wc -l) == 2 ]]'
	child=$(pgrep -P "$pid" -f 'sleep 1000')
	daemon=$(pgrep -P "$pid" -f 'sleep 2000')
	in_the_way "map(.kind) == [\"session\"] and .[0].host_pid == $pid and (.[0].remedy | contains(\"--end-sessions\"))"
	# Never silently, and never without being asked.
	fails 1 'was started from outside' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ -e /proc/$pid && -e /proc/$child ]]
	run -0 --separate-stderr vz checkpoint --end-sessions --leave-running --image-path "$VZ_TMP/images" "$ID"
	[[ $stderr == *'ended by --end-sessions: process "sh"'*'process "sleep"'* ]]
	has_ended "$pid"
	has_ended "$child"
	# What it had made a daemon, and what was there before it, goes on and is saved.
	[[ -e /proc/$daemon ]]
	[[ $(hoarders | wc -l) == 1 ]]
	vz checkpoint --image-path "$VZ_TMP/images2" "$ID"
	app_restore "$BUNDLE" "$ID" "$VZ_TMP/images2"
	[[ $(vz ps "$ID" | grep -c 'sleep 2000') == 1 && $(hoarders | wc -l) == 1 ]]
}

@test "a guest can neither stall the check nor write into it" {
	local name=$'\e]0;x\a\x01evil' begun
	hold_up "$ID"
	# A file system whose program never answers: who asks it waits for ever.
	hold fuse /mnt
	hold linked "/srv/$name"
	hold many 900
	cp "$HOARDER" "$BUNDLE/rootfs/bin/$name"
	vz exec --detach "$ID" "/bin/$name" io_uring </dev/null >/dev/null 2>&1 3>&-
	begun=$SECONDS
	in_the_way 'map(.kind) | unique == ["deleted-file", "mount", "session"]'
	((SECONDS - begun < 30))
	jq -e '[.. | strings | test("[[:cntrl:]]") | not] | all' <<<"$output"
	jq -e 'any(.command == "?]0;x??evil") and any(.what | contains("/srv/?]0;x??evil"))' <<<"$output"
	run -1 vz checkpoint --check "$ID"
	run ! grep -q '[^[:print:][:space:]]' <<<"$output"
	run -1 vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	run ! grep -q '[^[:print:][:space:]]' <<<"$output"
	vz delete --force "$ID"
}

@test "without a CRIU that will do, the check says so, and what to install" {
	local old=$VZ_TMP/criu
	printf '#!/bin/sh\necho "Version: 3.17.1"\n' >"$old"
	chmod 0755 "$old"
	hold_up "$ID"
	run -1 --separate-stderr "$VZRUN" --root "$VZ_ROOT" --criu "$old" checkpoint --check --format json "$ID"
	jq -e 'map(.kind) == ["host"] and (.[0].what | contains("3.17.1")) and (.[0].remedy | contains("CRIU 4.2"))' <<<"$output"
	run -1 --separate-stderr "$VZRUN" --root "$VZ_ROOT" --criu "$VZ_TMP/none" checkpoint --check --format json "$ID"
	jq -e 'map(.kind) == ["host"]' <<<"$output"
	fails 4 'wrong status|stopped' eval 'vz kill "$ID" KILL && wait_status "$ID" stopped && vz checkpoint --check "$ID"'
}

@test "a whole Debian: a unit is named; logins inside are saved, and go on" {
	local unit=/etc/systemd/system
	BUNDLE=$(debian_bundle "$ID")
	cat >"$BUNDLE/rootfs$unit/dynamic.service" <<-'END'
		[Service]
		ExecStart=sleep infinity
		DynamicUser=yes
	END
	cat >"$BUNDLE/rootfs$unit/login.service" <<-'END'
		[Service]
		ExecStart=su - guest -c 'while :; do date +%%s.%%N >/tmp/ticks; sleep 0.2; done'
	END
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
	guest "$ID" useradd --create-home guest
	guest "$ID" systemctl start login
	wait_until 30 guest "$ID" test -s /tmp/ticks
	guest "$ID" pgrep -f 'sd-pam'
	nothing_in_the_way --tcp-established
	guest "$ID" systemctl start dynamic
	in_the_way 'map(select(.kind == "mount")) | length > 0 and all(.unit == "dynamic.service" and (.remedy | contains("PrivateTmp=yes")))'
	fails 1 'unit dynamic.service' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	mkdir -p "$BUNDLE/rootfs$unit/dynamic.service.d"
	printf '[Service]\nPrivateTmp=yes\n' >"$BUNDLE/rootfs$unit/dynamic.service.d/tmp.conf"
	guest "$ID" systemctl daemon-reload
	guest "$ID" systemctl restart dynamic
	nothing_in_the_way --tcp-established
	vz exec --detach "$ID" sleep 1000 </dev/null >/dev/null 2>&1 3>&-
	vz checkpoint --end-sessions --tcp-established --image-path "$VZ_TMP/images" "$ID"
	app_restore "$BUNDLE" "$ID" "$VZ_TMP/images"
	guest "$ID" rm -f /tmp/ticks
	wait_until 30 guest "$ID" test -s /tmp/ticks
	[[ $(guest "$ID" systemctl is-active login dynamic) == active$'\n'active ]]
	guest "$ID" pgrep -f 'sd-pam'
}

### Of the host

doctor() { "$VZRUN" --root "$VZ_ROOT" "$@" doctor --format json; }

# finds JQ says what must be found; . is an object of the findings by name.
finds() {
	jq -e "(map({key: .name, value: .}) | from_entries) | $1" <<<"$output" >/dev/null || {
		printf '%s\nnot %s\n' "$output" "$1"
		return 1
	}
}

@test "doctor: what there is, what it means and what to do; nothing of the host changes" {
	snapshot_host "$VZ_TMP/before"
	run -0 --separate-stderr doctor
	[[ -z $stderr ]]
	finds 'length > 20 and ([.[] | select(.required) | .state] | all(. == "ok"))'
	finds '[.[] | (.state == "ok") == (.means == null and .remedy == null)] | all'
	finds '.criu.found | test("^[0-9]+\\.[0-9]+\\.[0-9]+ at /")'
	finds ".kernel.found | startswith(\"$(uname -r)\")"
	finds "(.[\"soft-dirty\"].state == \"ok\") == (.[\"criu check\"].found | contains(\"tracks memory: yes\"))"
	assert_host_clean "$VZ_TMP/before"
	run -0 "$VZRUN" --root "$VZ_ROOT" doctor /proc "$VZ_TMP"
	[[ ${lines[0]} == WHAT*STATE*NEEDED*FOUND ]]
	grep -qE "^id-mapped mounts +degraded +no +$VZ_TMP \(.*\); not /proc" <<<"$output"
	grep -A2 '^id-mapped mounts' <<<"$output" | grep -q 'remedy: '
	run -2 vz doctor --format xml
}

@test "doctor: things that were taken away are missing, with a remedy; exit code 1 if they are needed" {
	local old=$VZ_TMP/criu
	printf '#!/bin/sh\necho "Version: 3.17.1"\n' >"$old"
	chmod 0755 "$old"
	run -1 --separate-stderr doctor --criu "$old"
	finds '.criu.state == "missing" and (.criu.found | contains("3.17.1")) and (.criu.remedy | contains("4.2"))'
	[[ ${stderr_lines[0]} == "vzrun: doctor: what is needed is missing: criu, criu check" ]]
	# One that is new enough, and does nothing.
	printf '#!/bin/sh\necho "Version: 4.2.1"\n' >"$old"
	run -1 --separate-stderr doctor --criu "$old"
	finds '.criu.state == "ok" and .["criu check"].state == "missing"'

	# Without privileges, devices, /proc/pressure or a cgroup2 that may be written.
	run -1 --separate-stderr setpriv --bounding-set -sys_admin,-net_admin --inh-caps -sys_admin,-net_admin "$VZRUN" --root "$VZ_ROOT" doctor --format json
	finds '.capabilities.found == "without CAP_NET_ADMIN, CAP_SYS_ADMIN" and .capabilities.state == "missing" and .namespaces.state == "missing"'
	run -1 --separate-stderr setpriv --reuid 65534 --regid 65534 --clear-groups "$VZRUN" --root /nonexistent doctor --format json
	finds '.user.found == "user id 65534" and .user.required'
	run -0 --separate-stderr unshare --mount sh -c 'mount -t tmpfs none /proc/pressure 2>/dev/null || exit 7
		mount --bind /dev/null /dev/loop-control; mount -t tmpfs none /run; exec "$@"' sh "$VZRUN" --root "$VZ_ROOT" doctor --format json
	finds '.["pressure (PSI)"].state == "missing" and .["loop devices"].state != "" and .["/run"].state == "ok"'
	run -1 --separate-stderr unshare --mount sh -c 'umount -l -R /sys/fs/cgroup; exec "$@"' sh "$VZRUN" --root "$VZ_ROOT" doctor --format json
	finds '.cgroups.state == "missing"'
}
