#!/usr/bin/env bats
# A whole Debian with systemd: its configuration, its start, its life, its end.
#
# Tests share one guest as far as they leave it as it was. setup boots it again
# if a test has left none.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154,SC2153

load helpers
load app

setup_file() {
	shared_guest --ram 512M --swap 64M --cpus 1.5
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

# unit NAME [enabled] writes a unit of the guest from stdin; drop_unit removes it.
unit() {
	local dir=$BUNDLE/rootfs/etc/systemd/system
	cat >"$dir/$1"
	[[ -z ${2:-} ]] || ln -s "../$1" "$dir/multi-user.target.wants/$1"
}

drop_unit() {
	local dir=$BUNDLE/rootfs/etc/systemd/system
	rm -f "$dir/$1" "$dir/multi-user.target.wants/$1"
}

# spec_at DIR [FLAG...] writes a configuration for the guest's rootfs to DIR.
spec_at() {
	local dir=$1
	shift
	mkdir -p "$dir"
	[[ -e $dir/rootfs ]] || ln -s "$BUNDLE/rootfs" "$dir/rootfs"
	vz spec --system --bundle "$dir" "$@"
}

id_base() { jq '.linux.uidMappings[0].hostID' "$1/config.json"; }

# cgroup_file V1_CONTROLLER/FILE V2_FILE prints a limit of the guest's cgroup.
cgroup_file() {
	local cgroup
	cgroup=$(cgroup_of "$ID")
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		cat "/sys/fs/cgroup$cgroup/$2"
	else
		cat "/sys/fs/cgroup/${1%/*}$cgroup/${1##*/}"
	fi
}

# own_cgroup prints the directory of the guest's cgroup2 subtree.
own_cgroup() {
	local dir
	for dir in /sys/fs/cgroup /sys/fs/cgroup/unified; do
		[[ $(stat -fc %T "$dir" 2>/dev/null) != cgroup2fs ]] || echo "$dir$(cgroup_of "$ID")"
	done
}

### spec --system

@test "spec --system describes what a whole operating system needs" {
	local config=$T/b/config.json base
	spec_at "$T/b" --hostname web.example
	jq -e '[.linux.namespaces[] | select(has("path") | not).type] | sort
		== ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"]' "$config"
	base=$(id_base "$T/b")
	((base >= 65536 && base % 65536 == 0))
	jq -e --argjson base "$base" '[.linux.uidMappings, .linux.gidMappings] | unique
		== [[{containerID: 0, hostID: $base, size: 65536}]]' "$config"
	jq -e '.annotations["org.vzrun.rootfs"] == "idmap" and .annotations["org.vzrun.guest"] == "systemd"' "$config"
	jq -e '.hostname == "web.example" and .root.path == "rootfs" and (.root.readonly | not)' "$config"
	jq -e '.process.args[0] == "/sbin/init" and (.process.env | contains(["container=vzrun"]))' "$config"
	jq -e '.mounts[] | select(.destination == "/sys/fs/cgroup") | .type == "cgroup2" and (.options | contains(["rw"]))' "$config"
	jq -e '.linux.resources | has("memory") or has("cpu") | not' "$config"
	jq -e '.linux.seccomp.syscalls | length > 0' "$config"
}

@test "two configurations get different ranges of ids, also beside a running guest's" {
	spec_at "$T/one"
	spec_at "$T/two"
	[[ $(printf '%s\n' "$(id_base "$BUNDLE")" "$(id_base "$T/one")" "$(id_base "$T/two")" | sort -u | wc -l) == 3 ]]
}

@test "spec --system refuses what cannot work, and never replaces a file" {
	spec_at "$T/b"
	cp "$T/b/config.json" "$T/before"
	fails 1 'config.json: file exists' spec_at "$T/b"
	cmp "$T/b/config.json" "$T/before"
	mkdir -p "$T/empty/rootfs"
	fails 1 'no init in the rootfs' vz spec --system --bundle "$T/empty"
	fails 1 'no such file|does not exist' vz spec --system --bundle "$T/empty" --rootfs nowhere
	fails 2 '"lots" is no size' spec_at "$T/c" --ram lots
	run -1 spec_at "$T/c" --ram 512
	[[ $output == *"ram 512 bytes"* ]]
	run -1 spec_at "$T/c" --swap 64M
	[[ $output == *"needs a ram limit"* ]]
	run -1 spec_at "$T/c" --hostname 'no spaces'
	[[ $output == *'hostname "no spaces"'* ]]
	run -2 spec_at "$T/c" --cpus 0
	[[ $output == *"--cpus must be more than 0"* ]]
	[[ ! -e $T/c/config.json && ! -e $T/empty/config.json ]]
}

@test "--ram, --swap and --cpus limit the guest" {
	[[ $(cgroup_file memory/memory.limit_in_bytes memory.max) == $((512 << 20)) ]]
	case $(cgroup_file cpu/cpu.cfs_quota_us cpu.max) in
	150000 | "150000 100000") ;;
	*) false ;;
	esac
	(($(cgroup_file pids/pids.max pids.max) > 1000))
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		[[ $(cgroup_file - memory.swap.max) == $((64 << 20)) ]]
	else
		lacks "swap accounting" test -e "/sys/fs/cgroup/memory$(cgroup_of "$ID")/memory.memsw.limit_in_bytes"
		[[ $(cgroup_file memory/memory.memsw.limit_in_bytes -) == $((576 << 20)) ]]
	fi
}

### A guest that is up

@test "ready says running, as text and as JSON, and no unit has failed" {
	run -0 --separate-stderr vz ready "$ID"
	[[ $output == running && -z $stderr ]]
	vz ready --format json "$ID" >"$T/ready"
	jq -e '.state == "running" and .failed == [] and (.took | type) == "number"' "$T/ready"
	[[ -z $(guest "$ID" systemctl --failed --no-legend) ]]
	[[ $(guest "$ID" systemctl is-active nginx vzcount dbus systemd-journald systemd-logind | sort -u) == active ]]
}

@test "the guest knows that it is a container, and its name" {
	[[ $(guest "$ID" systemd-detect-virt --container) == container-* ]]
	[[ $(guest "$ID" systemctl show --property Virtualization --value) == container-* ]]
	[[ $(guest "$ID" sh -c 'tr "\0" "\n" </proc/1/environ') == *container=vzrun* ]]
	[[ $(guest "$ID" cat /run/host/container-manager 2>/dev/null || guest "$ID" cat /run/systemd/container) == vzrun ]]
	[[ $(guest "$ID" hostname) == "$ID" ]]
	# Its machine id is that of its configuration.
	[[ container_uuid=$(guest "$ID" cat /etc/machine-id) == "$(jq -r '.process.env[] | select(startswith("container_uuid="))' "$BUNDLE/config.json")" ]]
}

@test "what vzrun gives a guest is in its /run; its disk is untouched" {
	local id=$ID-created bundle=$T/b before
	mkdir -m 0711 "$bundle"
	cp -a --reflink=auto "$VZRUN_DEBIAN" "$bundle/rootfs"
	vz spec --system --bundle "$bundle"
	edit_config "$bundle" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	before=$(tree_sum "$bundle/rootfs" usr)
	app_create "$bundle" "$id"
	# All that the runtime does to a disk it has done by now.
	nsenter -t "$(pid_of "$id")" -m -- find /run/systemd -name '00-vzrun.conf' -printf '%P %U\n' | sort >"$T/dropins"
	grep -qx 'system/service.d/00-vzrun.conf 0' <(sed "s/ $(id_base "$bundle")\$/ 0/" "$T/dropins")
	vz delete "$id"
	[[ $(tree_sum "$bundle/rootfs" usr) == "$before" ]]
	# And where it counts: a unit that asks for a namespace of its own has none.
	[[ $(guest "$ID" systemctl show --property ProtectHostname --value systemd-logind) == no ]]
	[[ $(guest "$ID" systemctl show --property FragmentPath --property DropInPaths --value systemd-logind) == */run/systemd/system/service.d/00-vzrun.conf* ]]
}

@test "owners on disk are the guest's own; its root is nobody on the host" {
	local base pid
	base=$(id_base "$BUNDLE")
	pid=$(pid_of "$ID")
	[[ $(stat -c %u "/proc/$pid") == "$base" ]]
	[[ $(awk '/^[UG]id:/ { print $2, $3, $4, $5 }' "/proc/$pid/status" | sort -u) == "$base $base $base $base" ]]
	guest "$ID" sh -c 'echo root >/srv/root && echo daemon >/srv/daemon && chown 1:1 /srv/daemon'
	[[ $(stat -c %u:%g "$BUNDLE/rootfs/srv/root") == 0:0 ]]
	[[ $(stat -c %u:%g "$BUNDLE/rootfs/srv/daemon") == 1:1 ]]
	[[ $(guest "$ID" stat -c %u:%g /srv/root) == 0:0 ]]
	# No process of the guest has an id outside of its range.
	local uid
	for pid in $(vz ps --format json "$ID" | jq '.[]'); do
		uid=$(stat -c %u "/proc/$pid" 2>/dev/null) || continue
		((uid >= base && uid < base + 65536))
	done
}

@test "the guest manages its own cgroups, and reaches no others" {
	local dir
	dir=$(own_cgroup)
	[[ -d $dir/system.slice/nginx.service ]]
	[[ $(guest "$ID" cat /proc/1/cgroup | grep '^0:') == 0::/init.scope ]]
	# A transient unit gets a cgroup of its own, with the properties asked for.
	guest "$ID" systemd-run --quiet --unit held --property TasksMax=50 sleep 1000
	wait_file "$dir/system.slice/held.service"
	[[ $(guest "$ID" systemctl show --property TasksMax --value held) == 50 ]]
	guest "$ID" systemctl set-property --runtime held TasksMax=60
	[[ $(guest "$ID" systemctl show --property TasksMax --value held) == 60 ]]
	if grep -qw pids "$dir/cgroup.controllers"; then
		[[ $(<"$dir/system.slice/held.service/pids.max") == 60 ]]
	fi
	guest "$ID" systemctl stop held
	wait_until 10 test ! -e "$dir/system.slice/held.service"
	guest "$ID" sh -c 'mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own'
	# Its own limits are the host's to set.
	[[ -z $(guest "$ID" find /sys/fs/cgroup -maxdepth 1 -writable -type f ! -name cgroup.procs ! -name cgroup.threads \
		! -name cgroup.subtree_control ! -name memory.oom.group ! -name memory.reclaim ! -name '*.pressure') ]]
	guest "$ID" unshare --mount sh -c 'mount -t cgroup -o memory none /mnt || exit 0
		! echo 1 >/mnt/cgroup.procs && ! echo -1 >/mnt/memory.limit_in_bytes && ! mkdir /mnt/own && [ ! -e /mnt/system.slice ]'
	# A fresh mount shows the same subtree, not the host's.
	guest "$ID" unshare --mount sh -c 'mount -t cgroup2 none /mnt && [ -d /mnt/system.slice ] && [ ! -e /mnt/../mnt/vzrun ]'
	[[ -z $(guest "$ID" find /sys/fs/cgroup -name 'vzrun-test*') ]]
}

@test "services keep their own sandboxing, but for what cannot be saved" {
	# A unit's setting that does not work fails the unit, or shows nothing below.
	guest "$ID" systemd-run --quiet --wait --pipe -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes -p PrivateDevices=yes \
		-p PrivateNetwork=yes -p ProtectKernelTunables=yes -p ProtectControlGroups=yes -p ProtectProc=invisible -p RestrictNamespaces=yes \
		-p SystemCallFilter=~@reboot -p User=www-data -p NoNewPrivileges=yes -p ProtectHostname=yes -p PrivateUsers=yes sh -c '
		for kind in mnt net uts ipc user; do readlink /proc/self/ns/$kind; done
		for dir in /usr /root /proc/sys /sys/fs/cgroup; do test -w $dir || echo "no $dir"; done
		test -r /home || echo "no /home"; ls -A /tmp; ls /dev | grep -c -x -e null -e zero -e tty; ls -d /proc/1 2>/dev/null
		unshare --user true 2>/dev/null || echo "no unshare"; grep -e NoNewPrivs -e ^Seccomp: /proc/self/status' >"$T/inside"
	cat "$T/inside"
	for kind in mnt net uts ipc user; do
		guest "$ID" readlink "/proc/1/ns/$kind"
	done >"$T/outside"
	# Its own mounts and network; names, IPC and users are the whole guest's.
	diff <(head -n 5 "$T/inside") "$T/outside" >"$T/diff" || true
	[[ $(grep -c '^<' "$T/diff") == 2 && $(grep -o '^< [a-z]*' "$T/diff" | xargs) == '< mnt < net' ]]
	diff <(tail -n +6 "$T/inside") - <<-'END'
		no /usr
		no /root
		no /proc/sys
		no /sys/fs/cgroup
		no /home
		3
		no unshare
		NoNewPrivs:	1
		Seccomp:	2
	END
}

@test "a unit that fails makes the guest degraded, and ready names it" {
	guest "$ID" systemd-run --quiet --unit broken sh -c 'exit 3'
	wait_until 10 eval '[[ $(guest "$ID" systemctl is-failed broken) == failed ]]'
	run -1 --separate-stderr vz ready "$ID"
	[[ ${lines[0]} == degraded && ${lines[1]} == broken.service*exit-code* ]]
	[[ ${stderr_lines[0]} == "vzrun: ready $ID: "*"units failed: broken.service" && ${stderr_lines[1]} == "hint: "* ]]
	run -1 --separate-stderr vz ready --format json "$ID"
	jq -e '.state == "degraded" and [.failed[] | {name, result}] == [{name: "broken.service", result: "exit-code"}]' <<<"$output"
	guest "$ID" systemctl reset-failed
	[[ $(vz ready "$ID") == running ]]
}

### Commands in it

@test "exec runs as other users, with their groups, and passes on codes" {
	[[ $(vz exec --user 1:1 "$ID" id -u </dev/null) == 1 ]]
	[[ $(vz exec --user 65534:65534 --additional-gids 4 "$ID" id -G </dev/null) == "65534 4" ]]
	run ! vz exec --user 65534:65534 "$ID" cat /etc/shadow </dev/null
	run -42 guest "$ID" sh -c 'exit 42'
	run -143 guest "$ID" sh -c 'kill -TERM $$'
	[[ $(vz exec --env A=b --cwd /srv "$ID" sh -c 'echo $A $PWD' </dev/null) == "b /srv" ]]
	[[ $(vz exec --env "A= b " --env "B=	" "$ID" sh -c 'echo "<$A$B>"' </dev/null) == "< b 	>" ]]
	run -255 guest "$ID" no-such-command
	# The guest's clock is the host's.
	local seconds
	seconds=$(($(guest "$ID" date +%s) - $(date +%s)))
	((seconds >= -2 && seconds <= 2))
}

@test "enter opens a login shell with a terminal, and passes on its code" {
	local enter code=0
	enter=$(printf '%q ' "$VZRUN" --root "$VZ_ROOT" enter "$ID")
	printf '%s\n' 'tty; echo "user $(id -un) home $HOME pwd $PWD"; shopt login_shell; stty size; exit 7' >"$T/commands"
	script --quiet --return --command "stty rows 33 cols 99; exec $enter" /dev/null <"$T/commands" >"$T/session" 3>&- || code=$?
	[[ $code == 7 ]]
	# Without carriage returns and what bash tells the terminal before a command.
	tr -d '\r' <"$T/session" | sed 's/\x1b\[?2004[hl]//g' >"$T/plain"
	grep -qE '^/dev/pts/[0-9]+$' "$T/plain"
	grep -qx 'user root home /root pwd /root' "$T/plain"
	grep -qE '^login_shell[[:space:]]+on$' "$T/plain"
	grep -qx '33 99' "$T/plain"
}

@test "enter reads commands from a file, too" {
	printf '%s\n' 'echo "$HOME"' 'tty' 'exit 5' >"$T/commands"
	run -5 --separate-stderr vz enter "$ID" <"$T/commands"
	[[ $output == /root$'\n'"not a tty" ]]
}

### Pause, and what is refused

@test "pause stops a whole guest, resume lets it go on" {
	local log=$BUNDLE/rootfs/var/lib/vzcount/log before
	vz pause "$ID"
	has_status "$ID" paused
	before=$(wc -l <"$log")
	fails 4 'wrong status: it is paused' vz delete "$ID"
	sleep 0.3
	[[ $(wc -l <"$log") == "$before" ]]
	vz resume "$ID"
	has_status "$ID" running
	wait_counter "$BUNDLE/rootfs"
	verify_counter "$BUNDLE/rootfs"
	[[ $(vz ready "$ID") == running ]]
}

@test "a running guest is not deleted" {
	fails 4 'wrong status: it is running' vz delete "$ID"
	has_status "$ID" running
	[[ $(vz ready "$ID") == running ]]
}

### The end, from inside and from outside

@test "stop lets services end in order; stopped is not an error; it boots again" {
	local rootfs=$BUNDLE/rootfs first
	unit farewell.service enabled <<-'END'
		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=true
		ExecStop=sh -c 'echo farewell >/srv/farewell'
	END
	guest "$ID" systemctl daemon-reload
	guest "$ID" systemctl start farewell
	first=$(guest "$ID" cat /proc/sys/kernel/random/boot_id /etc/machine-id)
	run -0 --separate-stderr vz stop --timeout "$(slow 60)s" "$ID"
	[[ -z $output$stderr ]]
	has_status "$ID" stopped
	[[ $(<"$rootfs/srv/farewell") == farewell ]]
	verify_counter "$rootfs"
	[[ -z $(vz ps --format json "$ID" 2>/dev/null | jq '.[]') ]]
	run -0 --separate-stderr vz stop "$ID"
	[[ -z $output$stderr ]]
	fails 4 'wrong status: it is stopped' vz ready "$ID"
	vz delete "$ID"
	drop_unit farewell.service
	boot
	[[ $(guest "$ID" cat /proc/sys/kernel/random/boot_id /etc/machine-id | tail -n 1) == "${first##*$'\n'}" ]]
}

@test "a paused guest can be stopped" {
	vz pause "$ID"
	run -0 vz stop --timeout "$(slow 60)s" "$ID"
	[[ -z $output ]]
	has_status "$ID" stopped
	verify_counter "$BUNDLE/rootfs"
}

@test "poweroff from inside ends the container" {
	guest "$ID" systemctl poweroff
	wait_status "$ID" stopped
	verify_counter "$BUNDLE/rootfs"
	vz delete "$ID"
	[[ ! -e $VZ_ROOT/$ID ]]
}

@test "reboot from inside ends the container, which can be run again" {
	guest "$ID" systemctl reboot
	wait_status "$ID" stopped
	vz delete "$ID"
	boot
	[[ $(vz ready "$ID") == running ]]
}

@test "a guest that hangs in its boot: ready gives up and says so, or waits; stop kills" {
	local start
	unit gate.service enabled <<-'END'
		[Service]
		Type=oneshot
		TimeoutStartSec=infinity
		ExecStart=sh -c 'read -r line </srv/gate'
	END
	# It will not stop by itself, either.
	unit stubborn.service enabled <<-'END'
		[Service]
		TimeoutStopSec=infinity
		ExecStart=sleep infinity
		ExecStop=sleep infinity
	END
	mkfifo "$BUNDLE/rootfs/srv/gate"
	vz stop --timeout "$(slow 60)s" "$ID"
	vz delete "$ID"
	vz_up "$BUNDLE" "$ID"
	start=$SECONDS
	fails 1 'the guest is not up yet' vz ready --timeout 1s "$ID"
	[[ ${stderr_lines[1]} == *--timeout* ]]
	((SECONDS - start < 20))
	has_status "$ID" running
	spawn "$T/ready" "$VZRUN" --root "$VZ_ROOT" ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_until "$VZ_PATIENCE" eval '[[ $(guest "$ID" systemctl is-active stubborn) == active ]]'
	kill -0 "$SPAWNED"
	echo open >"$BUNDLE/rootfs/srv/gate"
	wait "$SPAWNED"
	[[ $(<"$T/ready") == running ]]

	drop_unit gate.service
	drop_unit stubborn.service
	rm "$BUNDLE/rootfs/srv/gate"
	run -0 --separate-stderr vz stop --timeout 1s "$ID"
	[[ -z $output && $stderr == *"did not stop within 1s: killed"* ]]
	has_status "$ID" stopped
	[[ -z $(vz ps --format json "$ID" 2>/dev/null | jq '.[]') ]]
	verify_counter "$BUNDLE/rootfs"
	vz delete "$ID"
	assert_nothing_left
}

@test "ready says so when the guest ends while it waits" {
	local code=0
	unit gate.service enabled <<-'END'
		[Service]
		Type=oneshot
		TimeoutStartSec=infinity
		ExecStart=sleep infinity
	END
	vz delete --force "$ID"
	vz_up "$BUNDLE" "$ID"
	spawn "$T/ready" "$VZRUN" --root "$VZ_ROOT" ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_until "$VZ_PATIENCE" eval '[[ $(guest "$ID" systemctl is-active gate) == activating ]]'
	vz stop --timeout 0 "$ID"
	wait "$SPAWNED" || code=$?
	[[ $code == 4 ]]
	grep -q '^vzrun: ready .*wrong status' "$T/ready"
	drop_unit gate.service
	vz delete "$ID"
}
