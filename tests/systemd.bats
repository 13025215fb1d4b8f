#!/usr/bin/env bats
# The systemd cgroup driver, on a host that systemd runs: containers are scopes,
# limits are properties of them, whole operating systems are machines.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

# bats file_tags=short

load helpers
load app

setup_file() {
	# Without it each test is skipped.
	[[ -d /run/systemd/system ]] || return 0
	suite_setup
	vz_setup
	BUNDLE=$VZ_TMP/$ID
	SCOPE=vzrun-$ID.scope
	export VZ_ROOT VZ_TMP ID BUNDLE SCOPE
	debian_bundle "$ID" --ram 512M --cpus 1.5 >/dev/null
	edit_config "$BUNDLE" 'del(.linux.cgroupsPath)'
}

teardown_file() {
	if [[ -d /run/systemd/system ]]; then
		vz_teardown
		suite_teardown
	fi
}

setup() {
	test_begins
	lacks 'systemd as PID 1' test -d /run/systemd/system
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
	[[ -z ${MOVED:-} ]] || there delete --force "$MOVED" || true
	restore_sysctls
}

vz() { "$VZRUN" --root "$VZ_ROOT" --systemd-cgroup "$@"; }

boot() {
	vz delete --force "$ID"
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
}

# property NAME prints what systemd says of the guest's scope.
property() { systemctl show --property "$1" --value "$SCOPE"; }

machine_is_known() { machinectl list --no-legend --no-pager | awk -v id="$ID" '$1 == id { found = 1 } END { exit !found }'; }
machine_is_gone() { ! machine_is_known; }

# is_machine: everything that the host shows of a guest that runs.
is_machine() {
	[[ $(property ActiveState) == active ]]
	[[ $(property Slice) == machine.slice ]]
	[[ $(property Delegate) == yes ]]
	[[ $(property MemoryMax) == $((512 << 20)) ]]
	[[ $(property CPUQuotaPerSecUSec) == 1.5s || $(property CPUQuotaPerSecUSec) == 1.500000s ]]
	grep -q "^0::/machine.slice/$SCOPE/init.scope$" "/proc/$(pid_of "$ID")/cgroup"
	machine_is_known
}

@test "a guest is a scope with its limits, and a machine" {
	is_machine
	run -0 systemctl status --no-pager "$SCOPE"
	[[ $output == *nginx* ]]
	run -0 systemd-cgls --no-pager /machine.slice
	[[ $output == *"$SCOPE"* && $output == *vzcount.service* ]]
	[[ $(machinectl show "$ID" --property Service --value) == vzrun ]]
	[[ $(machinectl show "$ID" --property Leader --value) == $(pid_of "$ID") ]]
}

@test "the guest manages the cgroups below its scope" {
	guest "$ID" systemctl set-property --runtime vzecho.service MemoryMax=64M
	[[ $(cat "/sys/fs/cgroup/machine.slice/$SCOPE/system.slice/vzecho.service/memory.max") == $((64 << 20)) ]]
	run guest "$ID" sh -c 'echo 1G >/sys/fs/cgroup/memory.max'
	[[ $status -ne 0 && $(property MemoryMax) == $((512 << 20)) ]]
}

@test "a restored guest is a scope and a machine again, with its own cgroups" {
	guest "$ID" systemctl set-property --runtime vzecho.service TasksMax=77
	vz checkpoint --image-path "$T/images" "$ID"
	[[ $(property ActiveState) == inactive ]]
	wait_until 10 machine_is_gone
	vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID" </dev/null >"$T/log" 2>&1 3>&-
	wait_guest "$ID"
	is_machine
	[[ $(cat "/sys/fs/cgroup/machine.slice/$SCOPE/system.slice/vzecho.service/pids.max") == 77 ]]
	guest "$ID" systemctl restart nginx
	wait_counter "$BUNDLE/rootfs"
	verify_counter "$BUNDLE/rootfs"
}

@test "a container that is no system is a scope of system.slice, and no machine" {
	local bundle id=app-$RANDOM
	bundle=$(app_bundle "$id" sleep 1000)
	edit_config "$bundle" 'del(.linux.cgroupsPath)'
	app_up "$bundle" "$id"
	[[ $(systemctl show --property Slice --value "vzrun-$id.scope") == system.slice ]]
	run machinectl show "$id"
	[[ $status -ne 0 ]]
	vz delete --force "$id"
	[[ $(systemctl show --property ActiveState --value "vzrun-$id.scope") == inactive ]]
}

@test "what has stopped leaves no unit, failed or not, and no machine" {
	vz stop "$ID"
	vz delete "$ID"
	run -0 systemctl list-units --all --no-legend --no-pager "$SCOPE"
	[[ -z $output ]]
	run -0 systemctl --failed --no-legend --no-pager
	[[ $output != *vzrun* ]]
	wait_until 10 machine_is_gone
	[[ ! -e /sys/fs/cgroup/machine.slice/$SCOPE ]]
}

@test "a guest that is killed leaves no unit" {
	vz kill "$ID" KILL
	wait_status "$ID" stopped
	vz delete "$ID"
	run -0 systemctl list-units --all --no-legend --no-pager "$SCOPE"
	[[ -z $output ]]
}

### The unit

# unit_runs: the guest of the unit is up, and its main process is the vzrun that
# waits for it.
unit_runs() {
	[[ $(systemctl show --property MainPID --value "$UNIT") != 0 ]] && has_status "$ID" running && wait_guest "$ID"
}

@test "vzrun@.service: the console is in the journal, a reboot starts it again, stop ends it in order" {
	local pid units=/run/systemd/system
	vz delete --force "$ID"
	UNIT=vzrun-$VZ_TAG@$ID.service
	sed "s|@BINDIR@/vzrun|$VZRUN --root $VZ_ROOT|; s|^Environment=BUNDLE=.*|Environment=BUNDLE=$BUNDLE|" \
		"$BATS_TEST_DIRNAME/../contrib/systemd/vzrun@.service" >"$units/${UNIT%@*}@.service"
	systemctl daemon-reload
	systemctl start "$UNIT"
	wait_until "$VZ_PATIENCE" unit_runs
	is_machine
	wait_until "$VZ_PATIENCE" eval 'journalctl --unit "$UNIT" --output cat | grep -q "^Welcome to .*Debian"'
	pid=$(pid_of "$ID")
	guest "$ID" systemctl reboot || true
	wait_exit "$pid"
	wait_until "$VZ_PATIENCE" unit_runs
	[[ $(systemctl show --property NRestarts --value "$UNIT") == 1 && $(pid_of "$ID") != "$pid" ]]
	wait_counter "$BUNDLE/rootfs"
	systemctl stop "$UNIT"
	[[ $(systemctl show --property Result --value "$UNIT") == success ]]
	verify_counter "$BUNDLE/rootfs"
	fails 1 'does not exist' vz state "$ID"
	[[ $(systemctl show --property ActiveState --value "$SCOPE") == inactive ]]
	# A poweroff from inside ends the unit, and it stays so.
	systemctl start "$UNIT"
	wait_until "$VZ_PATIENCE" unit_runs
	guest "$ID" systemctl poweroff || true
	wait_until "$VZ_PATIENCE" eval '[[ $(systemctl show --property ActiveState --value "$UNIT") == inactive ]]'
	[[ $(systemctl show --property Result --value "$UNIT") == success ]]
	rm "$units/${UNIT%@*}@.service"
	systemctl daemon-reload
}

### A move: not in the short run

# bats file_tags=

# there ARG... is vzrun where the guest moves to.
there() { "$VZRUN" --root "$T/root" --id-record "$T/ids.json" --systemd-cgroup "$@"; }

@test "a guest that moves is a scope and a machine where it arrives" {
	local scope
	with_lazy_pages
	mkdir -m 0700 "$T/root"
	spawn "$T/receive.log" "$VZRUN" --root "$T/root" --id-record "$T/ids.json" --systemd-cgroup \
		receive --listen "unix://$T/socket" --bundles "$T/bundles" --cgroup-parent machine.slice
	wait_file "$T/socket"
	MOVED=moved-$RANDOM
	scope=vzrun-$MOVED.scope
	vz lazy-migrate --keep-source --new-id "$MOVED" "$ID" "unix://$T/socket" || {
		cat "$T/receive.log"
		return 1
	}
	there ready --timeout "${VZ_PATIENCE}s" "$MOVED"
	[[ $(property ActiveState) == inactive ]]
	VZ_ROOT=$T/root SCOPE=$scope ID=$MOVED is_machine
	there delete --force "$MOVED"
	[[ $(systemctl show --property ActiveState --value "$scope") == inactive ]]
	wait_until 10 eval '! machinectl show "$MOVED"'
}
