#!/usr/bin/env bats
# Checkpoints in steps: memory first while the guest runs, then what has changed
# since. It takes a kernel that tracks changes of memory (CONFIG_MEM_SOFT_DIRTY).
# Suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

# bats file_tags=short

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }

setup() { vz_setup; }
teardown() { vz_teardown; }

tracks_memory() { "${CRIU:-/usr/local/libexec/vzrun/criu}" check --feature mem_dirty_track; }

lacks_tracking() { ! tracks_memory >/dev/null 2>&1 || skip 'this kernel tracks changes of memory'; }

# pages FILE prints how many pages the statistics in FILE count.
pages() { jq .pages "$1"; }

@test "two pre-dumps, a final checkpoint, a restore; each writes what has changed" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	local bundle
	bundle=$(debian_bundle "$ID")
	vz_up "$bundle" "$ID"
	wait_guest "$ID"
	mkdir "$VZ_TMP/chain"
	vz checkpoint --pre-dump --image-path "$VZ_TMP/chain/1" --print-stats "$ID" >"$VZ_TMP/1"
	[[ $(status_of "$ID") == running ]]
	vz checkpoint --pre-dump --image-path "$VZ_TMP/chain/2" --parent-path ../1 --print-stats "$ID" >"$VZ_TMP/2"
	vz checkpoint --image-path "$VZ_TMP/chain/3" --parent-path ../2 --print-stats "$ID" >"$VZ_TMP/3"
	head "$VZ_TMP"/[123]
	(($(pages "$VZ_TMP/2") * 2 < $(pages "$VZ_TMP/1")))
	(($(pages "$VZ_TMP/3") * 2 < $(pages "$VZ_TMP/1")))
	vz restore --detach --bundle "$bundle" --image-path "$VZ_TMP/chain/3" "$ID" </dev/null >"$VZ_TMP/log" 2>&1 3>&-
	wait_guest "$ID"
	wait_counter "$bundle/rootfs"
	verify_counter "$bundle/rootfs"
	vz stop "$ID"
}

@test "a pre-dump cannot be restored" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	vz checkpoint --pre-dump --image-path "$VZ_TMP/1" "$ID"
	[[ $(status_of "$ID") == running ]]
	fails 1 'pre-dump' vz restore --detach --bundle "$bundle" --image-path "$VZ_TMP/1" other
}

@test "without tracking, a pre-dump says so and the container goes on" {
	lacks_tracking
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	fails 5 'tracks? (no )?changes of memory|memory' vz checkpoint --pre-dump --image-path "$VZ_TMP/1" "$ID"
	[[ $(status_of "$ID") == running ]]
	[[ ! -e $VZ_TMP/1/vzrun.json ]]
}
