#!/usr/bin/env bats
# Guests with other inits: each is found, boots, says when it is up, runs services,
# can be entered, stopped, powered off and rebooted from inside, and saved.
#
# By default busybox, sysvinit with OpenRC's scripts, and what systemd needs beside
# suite system. VZ_FULL=1 takes all guests that contrib/rootfs builds.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	test_may_take 300
	suite_setup
}

teardown_file() { suite_teardown; }

setup() {
	vz_setup
	T=$VZ_TMP
}

teardown() { vz_teardown; }

### The table

# init_of GUEST prints what Detect must find.
init_of() {
	case $1 in
	debian | debian11 | debian12 | sid) echo systemd ;;
	sysvinit | openrc) echo sysvinit ;;
	openrc-init) echo openrc ;;
	runit) echo runit ;;
	busybox-init) echo busybox ;;
	esac
}

# end_by GUEST poweroff|reboot prints the command that an administrator gives.
end_by() {
	case $1/$2 in
	openrc-init/poweroff) echo openrc-shutdown --poweroff now ;;
	openrc-init/reboot) echo openrc-shutdown --reboot now ;;
	*) echo "$2" ;;
	esac
}

is_full() { [[ ${VZ_FULL:-} == 1 ]]; }

full() { is_full || skip "takes VZ_FULL=1"; }

### Parts of a life

# guest_bundle GUEST makes a bundle at $BUNDLE.
guest_bundle() {
	BUNDLE=$VZ_TMP/$ID
	new_bundle "$BUNDLE" "$("$BATS_TEST_DIRNAME/../contrib/rootfs" "$1" | tail -n 1)"
	rewrite_config
}

rewrite_config() {
	rm -f "$BUNDLE/config.json"
	vz spec --system --hostname web --bundle "$BUNDLE"
	edit_config "$BUNDLE" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID")"
}

# run_wait [FLAG...] boots it and waits. The guest inherits what vzrun writes to,
# so that is files: `run` would wait for the guest to close a pipe.
run_wait() {
	local code=0
	vz run --detach --wait "$@" --bundle "$BUNDLE" "$ID" </dev/null >"$T/wait" 2>"$T/wait.err" 3>&- || code=$?
	cat "$T/wait"
	cat "$T/wait.err" >&2
	return "$code"
}

# up boots it, and vzrun says that it is up. Some inits write there as well.
up() {
	run_wait --timeout "${VZ_PATIENCE}s" && grep -qx running "$T/wait" && ! grep '^vzrun:' "$T/wait.err"
}

# attended boots it with a vzrun that stays, whose pid is $SPAWNED.
attended() {
	spawn "$T/console" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	wait_until "$VZ_PATIENCE" has_status "$ID" running
	[[ $(vz ready --timeout "${VZ_PATIENCE}s" "$ID") == running ]]
}

# services_answer: the counter counts and has lost nothing, the echo server talks.
services_answer() {
	nsenter -t "$(pid_of "$ID")" -n -- ip link set lo up
	wait_counter "$BUNDLE/rootfs"
	verify_counter "$BUNDLE/rootfs"
	wait_until "$VZ_PATIENCE" echo_answers
}

echo_answers() { [[ $(guest "$ID" /usr/local/bin/vzguest talk 127.0.0.1:7) == *lines=* ]]; }

# stops: it ends by itself, well within its time.
stops() {
	run -0 --separate-stderr vz stop --timeout "$(slow 60)s" "$ID"
	[[ -z $output$stderr ]] || {
		echo "$output$stderr"
		return 1
	}
	has_status "$ID" stopped
	verify_counter "$BUNDLE/rootfs"
	vz delete "$ID"
	assert_nothing_left
}

# ends_with CODE COMMAND...: vzrun ends so after that command inside.
ends_with() {
	local want=$1 code=0
	shift
	attended
	# It may be killed with the rest of the guest.
	guest "$ID" "$@" || true
	wait_exit "$SPAWNED"
	wait "$SPAWNED" || code=$?
	[[ $code == "$want" ]] || {
		echo "exit code $code after $*"
		cat "$T/console"
		return 1
	}
	verify_counter "$BUNDLE/rootfs"
	assert_nothing_left
}

# lives GUEST
lives() {
	local kind=$1
	guest_bundle "$kind"
	jq -e --arg init "$(init_of "$kind")" '.annotations["org.vzrun.guest"] == $init' "$BUNDLE/config.json"
	up
	services_answer
	vz ready --format json "$ID" | jq -e '.state == "running" and .failed == []'
	run -7 --separate-stderr vz enter "$ID" <<<'echo "$(id -un) $HOME $(hostname)"; exit 7'
	[[ $output == "root /root web" ]]
	stops
	# By default one init does these; suite system has them of systemd.
	is_full || [[ $kind == busybox-init ]] || return 0
	# shellcheck disable=SC2046 # words of a command
	ends_with 0 $(end_by "$kind" poweroff)
	# shellcheck disable=SC2046
	ends_with 133 $(end_by "$kind" reboot)
}

# cgroups_of_all prints in which cgroups the guest's processes are.
cgroups_of_all() {
	vz ps --format json "$ID" | jq '.[]' | while read -r pid; do cat "/proc/$pid/cgroup"; done | sort -u
}

# is_saved GUEST: checkpoint and restore, and it goes on as it was.
is_saved() {
	local cgroups
	guest_bundle "$1"
	app_up "$BUNDLE" "$ID"
	[[ $(vz ready --timeout "${VZ_PATIENCE}s" "$ID") == running ]]
	services_answer
	cgroups=$(cgroups_of_all)
	vz checkpoint --image-path "$T/images" "$ID" || {
		grep Error "$T/images/dump.log"
		return 1
	}
	app_restore "$BUNDLE" "$ID" "$T/images" || {
		grep Error "$T/images/restore.log"
		return 1
	}
	# Each is where it was: below the container's limits.
	diff - <(cgroups_of_all) <<<"$cgroups"
	services_answer
	[[ $(vz ready --timeout "${VZ_PATIENCE}s" "$ID") == running ]]
	is_full || return 0
	stops
}

### Each guest

@test "busybox's init: from boot to reboot" { lives busybox-init; }

@test "sysvinit with OpenRC's scripts: from boot to reboot" { lives openrc; }

@test "systemd of Debian 13: from boot to reboot" {
	full
	lives debian
}

@test "sysvinit with its own scripts: from boot to reboot" {
	full
	lives sysvinit
}

@test "openrc-init: from boot to reboot" {
	full
	lives openrc-init
}

@test "runit: from boot to reboot" {
	full
	lives runit
}

@test "systemd of Debian 12: from boot to reboot" {
	full
	lives debian12
}

@test "systemd of Debian 11: from boot to reboot" {
	full
	lives debian11
}

@test "systemd of Debian unstable: from boot to reboot" {
	full
	lives sid
}

@test "busybox's init is saved and restored" { is_saved busybox-init; }

@test "sysvinit with OpenRC's scripts is saved and restored" {
	full
	is_saved openrc
}

@test "sysvinit with its own scripts is saved and restored" {
	full
	is_saved sysvinit
}

@test "openrc-init is saved and restored" {
	full
	is_saved openrc-init
}

@test "runit is saved and restored" {
	full
	is_saved runit
}

@test "systemd of Debian 12 is saved and restored" {
	full
	is_saved debian12
}

@test "systemd of Debian 11 is saved and restored" {
	full
	is_saved debian11
}

@test "systemd of Debian unstable is saved and restored" {
	full
	is_saved sid
}

### Clones

@test "a clone is not waited for where its shell stands still" {
	guest_bundle busybox-init
	app_up "$BUNDLE" "$ID"
	[[ $(vz ready --timeout "${VZ_PATIENCE}s" "$ID") == running ]]
	rm "$BUNDLE/rootfs/bin/sh"
	printf '%s\n' '#!/bin/busybox sh' 'kill -STOP $$' >"$BUNDLE/rootfs/bin/sh"
	chmod 0755 "$BUNDLE/rootfs/bin/sh"
	vz checkpoint --image-path "$T/images" "$ID"
	timeout --foreground "$(slow 60)" "$VZRUN" --root "$VZ_ROOT" --id-record "$VZ_TMP/ids.json" restore --detach --clone-of "$T/images" "$ID-2" \
		</dev/null >/dev/null 2>"$T/err" 3>&- || {
		cat "$T/err"
		return 1
	}
	grep -q 'what must be unique was not made anew in the guest' "$T/err"
	has_status "$ID-2" running
	vz delete --force "$ID-2"
}

### Failed services

@test "a service of OpenRC that fails is named" {
	guest_bundle openrc
	printf '%s\n' '#!/sbin/openrc-run' 'start() { return 1; }' >"$BUNDLE/rootfs/etc/init.d/broken"
	chmod 0755 "$BUNDLE/rootfs/etc/init.d/broken"
	ln -s /etc/init.d/broken "$BUNDLE/rootfs/etc/runlevels/default/broken"
	run -1 --separate-stderr run_wait
	[[ ${lines[0]} == degraded && ${lines[1]} == broken*"not started"* ]]
	[[ ${stderr_lines[0]} == *"units failed: broken" && ${stderr_lines[1]} == *"rc-service broken status" ]]
	has_status "$ID" running
	run -1 vz ready "$ID"
}

@test "a service of runit that fails is named" {
	full
	guest_bundle runit
	mkdir "$BUNDLE/rootfs/etc/sv/broken"
	printf '%s\n' '#!/bin/sh' 'exit 1' >"$BUNDLE/rootfs/etc/sv/broken/run"
	chmod 0755 "$BUNDLE/rootfs/etc/sv/broken/run"
	ln -s /etc/sv/broken "$BUNDLE/rootfs/etc/runit/runsvdir/default/broken"
	run -1 --separate-stderr run_wait
	# The guest writes there as well.
	grep -A 1 -x degraded "$T/wait" | grep '^broken .*exited'
	grep -x 'hint: .* sv status broken' "$T/wait.err"
}

### Waiting in vain

@test "an init that ends at once: run --wait says so, and nothing is left" {
	guest_bundle busybox-init
	rm "$BUNDLE/rootfs/sbin/init"
	printf '%s\n' '#!/bin/sh' 'exit 3' >"$BUNDLE/rootfs/sbin/init"
	chmod 0755 "$BUNDLE/rootfs/sbin/init"
	edit_config "$BUNDLE" '.annotations["org.vzrun.guest"] = "busybox"'
	fails 4 "the guest's init ended with exit code 3 before the system was up" \
		run_wait
	assert_nothing_left
	vz_up "$BUNDLE" "$ID"
	wait_status "$ID" stopped
	fails 4 'wrong status: it is stopped' vz ready "$ID"
	vz delete "$ID"
}

@test "an init that nobody knows: run --wait refuses before it starts" {
	guest_bundle busybox-init
	rm "$BUNDLE/rootfs/sbin/init" "$BUNDLE/rootfs/etc/inittab"
	printf '%s\n' '#!/bin/sh' 'echo started >/root/started' 'exec sleep 1000' >"$BUNDLE/rootfs/sbin/init"
	chmod 0755 "$BUNDLE/rootfs/sbin/init"
	rewrite_config
	fails 5 'init "unknown" does not say when it is ready' run_wait
	[[ ! -e $BUNDLE/rootfs/root/started ]]
	assert_nothing_left
	vz_up "$BUNDLE" "$ID"
	fails 5 'init "unknown" does not say when it is ready' vz ready "$ID"
}

@test "a boot that hangs: run --wait gives up, the guest goes on and ready still waits" {
	guest_bundle busybox-init
	mkfifo "$BUNDLE/rootfs/root/gate"
	echo 'read -r line </root/gate' >>"$BUNDLE/rootfs/etc/init.d/rcS"
	fails 1 'the guest is not up yet' run_wait --timeout 1s
	has_status "$ID" running
	spawn "$T/ready" "$VZRUN" --root "$VZ_ROOT" ready --timeout "${VZ_PATIENCE}s" "$ID"
	echo open >"$BUNDLE/rootfs/root/gate"
	wait "$SPAWNED"
	[[ $(<"$T/ready") == running ]]
}

@test "run: --wait needs --detach, --timeout needs --wait" {
	fails 2 'run: --wait is for a container that nobody stays with' vz run --wait "$ID"
	fails 2 'run: --timeout is for --wait' vz run --detach --timeout 1s "$ID"
	fails 2 'is no span of time' vz run --detach --wait --timeout soon "$ID"
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	fails 5 'not supported here' run_wait
	assert_nothing_left
}

### Root file systems that cannot be booted

@test "spec --system refuses a rootfs that cannot be booted, and says what would help" {
	local b=$T/b elf
	mkdir -p "$b/rootfs/sbin" "$b/rootfs/usr/lib/systemd"
	fails 1 'no init in the rootfs' vz spec --system --bundle "$b"
	# The link is the guest's: it leads nowhere, whatever the host has there.
	cp "$VZRUN_BUSYBOX/bin/busybox" "$T/outside"
	ln -s "$T/outside" "$b/rootfs/sbin/init"
	fails 1 'no init in the rootfs' vz spec --system --bundle "$b"
	ln -sfn "../../../../../../../..$T/outside" "$b/rootfs/sbin/init"
	fails 1 'no init in the rootfs' vz spec --system --bundle "$b"
	rm "$b/rootfs/sbin/init"
	# e_machine (bytes 18 and 19) is of a SPARC.
	elf=$b/rootfs/sbin/init
	{ head -c 18 "$T/outside" && printf '\002\000' && tail -c +21 "$T/outside"; } >"$elf"
	chmod 0755 "$elf"
	fails 1 'wrong architecture: built for SPARC' vz spec --system --bundle "$b"
	# A systemd from before cgroup2.
	{ cat "$T/outside" && printf '\0systemd 219\0'; } >"$b/rootfs/usr/lib/systemd/systemd"
	chmod 0755 "$b/rootfs/usr/lib/systemd/systemd"
	ln -sfn /usr/lib/systemd/systemd "$elf"
	fails 1 'systemd 219: it cannot use cgroup2' vz spec --system --bundle "$b"
	[[ ! -e $b/config.json ]]
}

@test "a systemd is refused where no cgroup2 is mounted, and leaves nothing" {
	lacks 'a cgroup2 beside cgroup v1' mountpoint -q /sys/fs/cgroup/unified
	guest_bundle debian
	fails 5 "the guest's systemd needs cgroup2, which is mounted nowhere" \
		unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified && exec "$@"' sh \
		"$VZRUN" --root "$VZ_ROOT" run --detach --bundle "$BUNDLE" "$ID"
	[[ ${stderr_lines[1]} == 'hint: mount -t cgroup2 '* ]]
	assert_nothing_left
}

### Under systemd

@test "vzrun@.service starts a guest again after its reboot, and stops it in order" {
	# A systemd of its own is PID 1 here, and vzrun a script that notes its calls.
	ID=$(new_id)
	BUNDLE=$(debian_bundle "$ID")
	local root=$BUNDLE/rootfs unit
	sed 's|@BINDIR@|/usr/local/sbin|' "$BATS_TEST_DIRNAME/../contrib/systemd/vzrun@.service" \
		>"$root/etc/systemd/system/vzrun@.service"
	cat >"$root/usr/local/sbin/vzrun" <<-'END'
		#!/bin/bash
		echo "$*" >>/srv/calls
		case " $* " in
		*" run "*)
			[[ -e /srv/rebooted ]] || { touch /srv/rebooted; exit 133; }
			trap 'exit 0' USR1
			echo $$ >/srv/pid
			sleep infinity & wait
			;;
		*" stop "*) kill -USR1 "$(</srv/pid)" ;;
		esac
	END
	chmod 0755 "$root/usr/local/sbin/vzrun"
	up
	guest "$ID" systemd-analyze verify --man=no /etc/systemd/system/vzrun@.service
	guest "$ID" systemctl start vzrun@web
	wait_file "$root/srv/pid"
	unit=$(guest "$ID" systemctl show --property NRestarts --property ActiveState --value vzrun@web)
	[[ $(sort <<<"$unit" | paste -sd ' ') == "1 active" ]]
	guest "$ID" systemctl stop vzrun@web
	[[ $(guest "$ID" systemctl show --property ActiveState --value vzrun@web) == inactive ]]
	[[ $(grep -c 'run --console --bundle /var/lib/vzrun/web web' "$root/srv/calls") == 2 ]]
	grep -q '^stop --timeout' "$root/srv/calls"
	[[ $(tail -n 1 "$root/srv/calls") == "delete --force web" ]]
}
