#!/usr/bin/env bats
# Real services under load through a checkpoint and a restore: no connection breaks,
# no transaction is lost or repeated, no timer is missed.
#
# By default all of the small guest at once, in one cycle. VZ_FULL=1 takes each alone,
# several cycles and --leave-running, in a guest with more services, and is away for
# minutes.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load workload

ADDRESS=10.94.0.2

is_full() { [[ ${VZ_FULL:-} == 1 ]]; }

full() { is_full || skip "takes VZ_FULL=1"; }

# Seconds for which the guest is away.
away() { if is_full; then slow 130; else slow 3; fi; }

setup_file() {
	test_may_take 600
	suite_setup
	vz_setup
	NETNS=/run/netns/vzrun-test-$VZ_TAG
	BUNDLE=$VZ_TMP/$ID
	CLIENTS=$VZ_TMP/clients
	export VZ_ROOT VZ_TMP ID BUNDLE NETNS CLIENTS
	mkdir "$CLIENTS"
	load_build
	ip netns add "${NETNS##*/}"
	client_net ip link set lo up
	client_net ip link add vzw-br0 type bridge
	client_net ip address add "${ADDRESS%.*}.1/24" dev vzw-br0
	client_net ip link set vzw-br0 up
	local kind=services units=(postgresql redis-server memcached nginx ssh cron)
	! is_full || kind=services-full units+=(mariadb apache2 php8.4-fpm)
	services_bundle "$ID" "$kind" "${units[@]}" >/dev/null
	add_workloads "$BUNDLE/rootfs"
	# As in a guest without vzrun's settings: PID 1 watches its memory pressure.
	edit_config "$BUNDLE" '.process.env |= map(select(startswith("MEMORY_PRESSURE_WATCH") | not))'
	boot
}

teardown_file() {
	clients_kill
	vz_teardown
	ip netns delete "${NETNS##*/}"
	suite_teardown
}

setup() {
	test_begins
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	mkdir "$T"
	has_status "$ID" running 2>/dev/null || boot
}

teardown() {
	clients_kill
	rm -rf --one-file-system -- "$T"
}

vz() { nsenter --net="$NETNS" -- "$VZRUN" --root "$VZ_ROOT" "$@"; }

client_net() { nsenter --net="$NETNS" -- "$@"; }

boot() {
	vz delete --force "$ID"
	vz_up "$BUNDLE" "$ID" --net "bridge=vzw-br0,ip=$ADDRESS/24"
	wait_guest "$ID"
}

### A cycle

save() {
	vz checkpoint --tcp-established --image-path "$T/images" "$@" "$ID" >"$T/save" 2>&1 || {
		cat "$T/save"
		grep -E 'Error|Warn' "$T/images/dump.log" | tail -n 20
		return 1
	}
}

load_again() {
	vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID" </dev/null >"$T/load" 2>&1 3>&- || {
		cat "$T/load"
		grep -E 'Error|Warn' "$T/images/restore.log" | tail -n 20
		return 1
	}
	# Nothing to warn of.
	[[ ! -s $T/load ]] || {
		cat "$T/load"
		return 1
	}
	rm -r "$T/images"
}

# cycle NAME...: what these are at work on goes on afterwards.
cycle() {
	save
	load_again
	client_goes_on "$@"
}

# workload NAME: alone, by VZ_FULL=1.
workload() {
	full
	local n
	"$1_begin"
	save --leave-running
	rm -r "$T/images"
	client_goes_on "$1"
	for ((n = 0; n < 3; n++)); do
		cycle "$1"
	done
	"$1_end"
	"$1_check"
	assert_systemd_works
}

assert_systemd_works() {
	[[ $(vz ready --timeout "$(slow 30)s" "$ID") == running ]]
	guest "$ID" timeout "$(slow 30)" systemctl restart cron
	verify_counter "$BUNDLE/rootfs"
}

# assert_idle PID: one that spins takes no break.
assert_idle() { wait_until "$VZ_PATIENCE" is_idle "$1"; }

is_idle() {
	local before after _
	read -r before _ <"/proc/$1/schedstat"
	sleep 0.5
	read -r after _ <"/proc/$1/schedstat"
	((after - before < 50000000))
}

### All at once

@test "services under load, all at once, lose nothing and no connection" {
	local name names=("${WORKLOADS[@]}")
	! is_full || names+=("${MORE_WORKLOADS[@]}")
	for name in "${names[@]}"; do
		echo "begin $name"
		"${name}_begin"
	done
	cycle "${names[@]}"
	for name in "${names[@]}"; do
		echo "end $name"
		"${name}_end"
	done
	for name in "${names[@]}"; do
		echo "check $name"
		"${name}_check"
	done
	assert_systemd_works
	# With a pressure watch that was restored.
	guest "$ID" sh -c 'ls -l /proc/1/fd' | grep -q memory.pressure
	assert_idle "$(pid_of "$ID")"
}

### Clocks and timers

@test "clocks stand still while the guest is away, and timers fire once and in time" {
	local gone back loaded name real mono boot fired at away rootfs=$BUNDLE/rootfs
	away=$(away)
	rm -rf "$rootfs/srv/holder"
	mkdir -p "$rootfs"/srv/holder/timer-{monotonic,boottime,realtime}
	# In the guest's own time these are due after the restore.
	printf 6000 | tee "$rootfs"/srv/holder/timer-{monotonic,boottime}/after
	# This one on the wall, after it too: not later by the time away.
	printf %d $(((away + 8) * 1000)) >"$rootfs/srv/holder/timer-realtime/after"
	guest "$ID" systemctl restart holder
	wait_file "$rootfs/srv/holder/ready"
	timer_unit once "--on-calendar=$(date -u -d "+$((away / 2 + 2)) sec" '+%F %T UTC')"
	timer_unit later "--on-calendar=$(date -u -d "+$((away + 10)) sec" '+%F %T UTC')"
	timer_unit after "--on-active=$((away / 2 + 4))s"
	timer_unit again --on-active=0s --on-unit-active=1s
	wait_file "$rootfs/srv/again"
	save
	gone=$(date +%s%N)
	# The subject of the test.
	sleep "$away"
	back=$(date +%s%N)
	load_again
	loaded=$(date +%s)
	wait_file "$rootfs/srv/once"
	wait_file "$rootfs/srv/later" $((away + $(slow 20)))
	wait_file "$rootfs/srv/after" $((away + $(slow 20)))
	wait_lines "$rootfs/srv/again" $(($(wc -l <"$rootfs/srv/again") + 2))
	for name in monotonic boottime realtime; do
		wait_file "$rootfs/srv/holder/timer-$name/fired"
	done
	guest "$ID" systemctl stop holder
	holder_check
	# Monotonic and boot time have not seen what the wall clock has.
	read -r real mono boot <"$rootfs/srv/holder/clocks/gaps"
	echo "away $((back - gone)), steps: $real $mono $boot"
	((real - mono >= back - gone && real - boot >= back - gone))
	# Late by no more than the machine is busy; it would be by all the time away.
	read -r fired at <"$rootfs/srv/holder/timer-realtime/fired"
	((fired - (at > loaded * 1000000000 ? at : loaded * 1000000000) < away * 1000000000))
	read -r fired at <<<"$(<"$rootfs/srv/later") $(<"$rootfs/srv/later.due")"
	# A slow machine was not back in time.
	((fired >= at && fired - (at > loaded ? at : loaded) < away))
	[[ $(wc -l <"$rootfs/srv/once") == 1 && $(wc -l <"$rootfs/srv/later") == 1 && $(wc -l <"$rootfs/srv/after") == 1 ]]
	guest "$ID" systemctl stop again.timer
}

# timer_unit NAME FLAG...: each time that it fires is a line of /srv/NAME.
timer_unit() {
	local name=$1
	shift
	rm -f "$BUNDLE/rootfs/srv/$name"
	[[ $1 != --on-calendar=* ]] || date -d "${1#*=}" +%s >"$BUNDLE/rootfs/srv/$name.due"
	guest "$ID" systemd-run --quiet --unit "$name" --timer-property AccuracySec=10ms "$@" sh -c "date +%s >>/srv/$name"
}

@test "cron runs each minute once, over minutes away" {
	full
	local minutes=$BUNDLE/rootfs/srv/minutes
	rm -f "$minutes"
	echo '* * * * * root date +\%s >>/srv/minutes' >"$BUNDLE/rootfs/etc/cron.d/test"
	guest "$ID" systemctl restart cron
	wait_lines "$minutes" 1 90
	save
	# It makes up for what it missed in less than five minutes.
	sleep 130
	load_again
	wait_lines "$minutes" 3 200
	rm "$BUNDLE/rootfs/etc/cron.d/test"
	cat "$minutes"
	awk '{ at = int($1 / 60) } NR == 1 { first = at } END { exit NR != at - first + 1 }' "$minutes"
}

### Each alone

@test "postgresql: pgbench over TCP" { workload postgres; }
@test "postgresql: pgbench within the guest, over a unix socket" { workload postgres_inside; }
@test "redis with an append-only file" { workload redis; }
@test "memcached" { workload memcached; }
@test "nginx: one connection that is kept" { workload nginx; }
@test "nginx: a download" { workload download; }
@test "sshd: a session with a terminal" { workload ssh; }
@test "tmux" { workload tmux; }
@test "python" { workload python; }
@test "go: 200 threads" { workload threads; }
@test "what the kernel keeps for a process" { workload holder; }
@test "mariadb: a session over TCP" { workload mariadb; }
@test "apache: one connection that is kept" { workload apache; }
@test "php-fpm through apache" { workload php; }
@test "node" { workload node; }
@test "java" { workload java; }

@test "what is documented as lost is lost, and what is refused is refused" {
	full
	local name rootfs=$BUNDLE/rootfs lost=(eventfd-semaphore udp-queued inotify-unread timer-posix)
	rm -rf "$rootfs/srv/holder" "$rootfs/srv/queue"
	guest "$ID" systemd-run --quiet --unit lost --property KillMode=mixed holder /srv/holder "${lost[@]}"
	wait_file "$rootfs/srv/holder/ready"
	save
	load_again
	guest "$ID" systemctl stop lost
	cat "$rootfs/srv/holder/report"
	for name in "${lost[@]}"; do
		grep "^failed $name:" "$rootfs/srv/holder/report"
	done
	guest "$ID" systemd-run --quiet --unit queue --property KillMode=mixed holder /srv/queue posix-mqueue
	wait_file "$rootfs/srv/queue/ready"
	fails 1 'queue|mount that is not part of the guest' vz checkpoint --tcp-established --image-path "$T/images" "$ID"
	has_status "$ID" running
	guest "$ID" systemctl stop queue
}

@test "pre-dumps under load, where the kernel tracks memory" {
	full
	lacks 'a kernel that tracks changes of memory' "${CRIU:-/usr/local/libexec/vzrun/criu}" check --feature mem_dirty_track
	local name names=(postgres redis nginx threads)
	for name in "${names[@]}"; do
		"${name}_begin"
	done
	vz checkpoint --tcp-established --pre-dump --image-path "$T/1" "$ID"
	client_goes_on "${names[@]}"
	save --parent-path ../1
	load_again
	client_goes_on "${names[@]}"
	for name in "${names[@]}"; do
		"${name}_end"
		"${name}_check"
	done
}
