#!/usr/bin/env bats
# Limits of containers: update and events, on cgroup v1, hybrid and v2.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() { vz_teardown; }

# up ARG... runs a container in the background; $BUNDLE is its bundle.
up() {
	BUNDLE=$(busybox_bundle "$ID" "$@")
	app_up "$BUNDLE" "$ID"
}

pure_cgroup2() { [[ -e /sys/fs/cgroup/cgroup.controllers ]]; }

# limit V1 V2 prints a control file of the container.
limit() { control_file "$(cgroup_of "$ID")" "$@"; }

memory() { limit memory.limit_in_bytes memory.max; }
pids() { limit pids.max pids.max; }

# quota prints quota and period in microseconds.
quota() {
	if pure_cgroup2; then
		limit - cpu.max
	else
		echo "$(limit cpu.cfs_quota_us -) $(limit cpu.cfs_period_us -)"
	fi
}

# is_unlimited BYTES: cgroup v1 says so with the largest number of whole pages.
is_unlimited() { [[ $1 == max || $1 -gt $((1 << 60)) ]]; }

@test "update changes what its flags name and nothing else" {
	up sleep 1000
	vz update --memory 64m "$ID"
	[[ $(memory) == 67108864 ]]
	vz update --pids-limit 20 "$ID"
	[[ $(pids) == 20 && $(memory) == 67108864 ]]
	vz update --cpu-period 50000 --cpu-quota 20000 "$ID"
	[[ $(quota) == "20000 50000" ]]
	# One of the two leaves the other as it was.
	vz update --cpu-quota 30000 "$ID"
	[[ $(quota) == "30000 50000" ]]
	vz update --cpu-share 512 "$ID"
	if pure_cgroup2; then
		(($(limit - cpu.weight) < 100))
	else
		[[ $(limit cpu.shares -) == 512 ]]
	fi
	vz update --memory -1 --pids-limit -1 --cpu-quota -1 "$ID"
	is_unlimited "$(memory)"
	[[ $(pids) == max && $(quota) =~ ^(-1|max)\  ]]
}

@test "update reads resources from a file and from stdin" {
	up sleep 1000
	echo '{"memory":{"limit":67108864},"pids":{"limit":21},"cpu":{"shares":300}}' >"$VZ_TMP/resources"
	vz update --resources "$VZ_TMP/resources" "$ID"
	[[ $(memory) == 67108864 && $(pids) == 21 ]]
	vz update -r - "$ID" <<<'{"pids":{"limit":22}}'
	[[ $(memory) == 67108864 && $(pids) == 22 ]]
	# Flags beside resources are ignored, as runc does.
	vz update --pids-limit 5 -r - "$ID" <<<'{"pids":{"limit":23}}'
	[[ $(pids) == 23 ]]
}

@test "an update holds for as long as the container, paused or not" {
	up sleep 1000
	vz update --pids-limit 24 "$ID"
	vz pause "$ID"
	vz update --memory 128m "$ID"
	[[ $(status_of "$ID") == paused ]]
	vz resume "$ID"
	[[ $(pids) == 24 && $(memory) == $((128 << 20)) ]]
}

@test "updates that make no sense change nothing" {
	up sleep 1000
	vz update --pids-limit 25 "$ID"
	run -2 vz update --memory lots "$ID"
	[[ $output == *"invalid value for memory"* ]]
	run -2 vz update --cpu-period=-5 "$ID"
	run -2 vz update --blkio-weight 5 "$ID"
	run -1 vz update -r - "$ID" <<<'{"memory":{"limit":"much"}}'
	[[ $output == *"resources:"* ]]
	run -1 vz update -r - "$ID" </dev/null
	run -1 vz update -r "$VZ_TMP/nowhere" "$ID"
	run -1 vz update --cpuset-cpus 9999 "$ID"
	run -1 vz update --pids-limit 30 --cpuset-cpus 9999 "$ID"
	[[ $(pids) == 25 ]]
	run -5 vz update --l3-cache-schema "L3:0=f" "$ID"
	[[ $output == *"not enabled"* ]]
	vz kill "$ID" KILL
	wait_status "$ID" stopped
	run -4 vz update --pids-limit 5 "$ID"
}

@test "events --stats prints the usage once, with runc's keys" {
	up sleep 1000
	vz update --memory 64m --pids-limit 20 "$ID"
	vz events --stats "$ID" >"$VZ_TMP/stats"
	[[ $(wc -l <"$VZ_TMP/stats") == 1 ]]
	jq -e --arg id "$ID" '.type == "stats" and .id == $id' "$VZ_TMP/stats"
	jq -e '.data | .pids.current == 1 and .pids.limit == 20 and .memory.usage.limit == 67108864' "$VZ_TMP/stats"
	jq -e '.data | .cpu.usage.total > 0 and (.memory.usage.usage > 0) and has("blkio") and has("hugetlb")' "$VZ_TMP/stats"
}

@test "events prints the usage at intervals, and ends with the container" {
	up sleep 1000
	spawn "$VZ_TMP/events" "$VZRUN" --root "$VZ_ROOT" events --interval 100ms "$ID"
	wait_lines "$VZ_TMP/events" 3
	jq -es 'all(.[:3][]; .type == "stats")' <(head -n 3 "$VZ_TMP/events")
	vz kill "$ID" KILL
	wait_exit "$SPAWNED"
	run -2 vz events --interval 0s "$ID"
	run -4 vz events --stats "$ID"
	[[ $output == *"is not running"* ]]
}

@test "events tells when the kernel kills for want of memory" {
	up sh -c 'while true; do sleep 1000; done'
	vz update --memory 32m --memory-swap 32m "$ID" || vz update --memory 32m "$ID"
	spawn "$VZ_TMP/events" "$VZRUN" --root "$VZ_ROOT" events --interval 1h "$ID"
	# Watched before there is anything to see.
	wait_until 10 watches_memory "$SPAWNED"
	run -137 vz exec "$ID" sh -c 'x=x; while true; do x=$x$x; done'
	wait_line "$VZ_TMP/events" '"type":"oom"'
	jq -e --arg id "$ID" '.type == "oom" and .id == $id' <(head -n 1 "$VZ_TMP/events")
}

# watches_memory PID: an eventfd on v1, an inotify descriptor on v2.
watches_memory() {
	find "/proc/$1/fd" -lname 'anon_inode:inotify' -o -lname '*/memory.oom_control' | grep -q .
}
