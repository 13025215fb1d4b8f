#!/usr/bin/env bats
# Migrations of which memory goes ahead in rounds while the guest runs, by the kernel's
# account of what it writes.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load twohosts

setup_file() { two_hosts; }
teardown_file() { two_hosts_end; }
setup() { two_hosts_test; }
teardown() { two_hosts_test_ends; }

tracks_memory() { "$VZRUN" doctor --format json | jq -e '.[] | select(.name == "soft-dirty").state == "ok"'; }

# no_round_at_a: nothing of rounds is left at the source, whose bundle is there.
no_round_at_a() { [[ -z $(find "$BUNDLE/migration" -name 'round-*' -o -name '*.img' -o -name parent 2>/dev/null) ]]; }

@test "without a kernel that tracks memory nothing is touched" {
	! tracks_memory >/dev/null || skip 'this kernel tracks changes of memory'
	small_guest
	listen_b
	local mode
	for mode in pre-copy hybrid; do
		fails 5 'does not track changes of memory' migrate --mode "$mode" "$ID" "unix://$T/b"
		[[ $stderr == *"--mode lazy or cold"* ]]
		fails 5 'does not track changes of memory' migrate --mode "$mode" --dry-run "$ID" "unix://$T/b"
	done
	fails 2 '--frozen-budget' migrate --mode pre-copy --frozen-budget 0s "$ID" "unix://$T/b"
	fails 2 '--frozen-budget' migrate --mode cold --frozen-budget 1s "$ID" "unix://$T/b"
	runs_at a
	nothing_at_b
	[[ ! -e $BUNDLE/migration ]]
}

# moves_in_rounds: a guest of 12288 pages, 1024 of which it writes again and again.
moves_in_rounds() {
	listen_b
	CHANGED=4 small_guest
	run -0 migrate --progress json --stats "$T/stats" "$ID" "unix://$T/b"
	jq 'del(.checks)' "$T/stats"
	[[ $output == *'"step":"copying memory"'*'"round":1,"pages":'* ]]
	runs_at b
	jq -e '(.rounds | length) > 1 and .rounds[0].pages > 12288 and .rounds[0].bytes > 48000000
		and .rounds[-1].pages * 5 < .rounds[0].pages and .images_bytes < 10000000
		and all(.rounds[]; .frozen > 0 and .took > .frozen)' "$T/stats"
	[[ ! -e $BUNDLE/migration && ! -e $(bundles)/$ID/arrival ]]
}

@test "most of the memory goes while the guest runs here" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	MODE=pre-copy moves_in_rounds
	jq -e '.memory_bytes == 0' "$T/stats"
}

# bats test_tags=short
@test "most of the memory goes while the guest runs here, the rest when it runs there" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	MODE=hybrid moves_in_rounds
	jq -e '.memory_bytes > 0' "$T/stats"
}

@test "the budget decides, before the guest is stopped" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	listen_b
	MODE=pre-copy
	small_guest
	fails 1 'would stand still for' migrate --frozen-budget 1ms "$ID" "unix://$T/b"
	runs_at a
	wait_until 10 nothing_at_b
	no_round_at_a
	# The same guest later, with another mode: nothing leads to rounds that are gone.
	run -0 migrate --mode hybrid --frozen-budget 1ms --stats "$T/stats" "$ID" "unix://$T/b"
	[[ $output == *"may stand still for longer"* && $output == *ROUND*stopped* ]]
	runs_at b
	start_over
	small_guest
	run -0 migrate --compress zstd --frozen-budget 1h --stats "$T/stats" "$ID" "unix://$T/b"
	jq -e '(.rounds | length) == 1 and .sent_bytes < .rounds[0].bytes' "$T/stats"
	runs_at b
	# To a host whose kernel tracks memory or not, as the one here.
	run -0 on b lazy-migrate --mode lazy --dry-run --new-id back "$ID" "unix://$T/b"
}

@test "whatever ends them, the guest runs on and nothing is left" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	local w
	MODE=pre-copy
	listen_b
	LISTENER=$SPAWNED
	for w in a b; do
		echo "$w is killed in a round"
		small_guest
		spawn_on a "$T/migrate.log" lazy-migrate --mode hybrid --bandwidth 2M "$ID" "unix://$T/b"
		MOVER=$SPAWNED
		wait_file "$(bundles)/$ID/arrival/round-1"
		if [[ $w == a ]]; then
			kill -KILL "$MOVER"
		else
			kill -KILL "$(pgrep -P "$LISTENER")"
		fi
		wait_exit "$MOVER"
		runs_at a
		no_round_at_a
		wait_until 10 nothing_at_b
		# What the killed one left is seen to by the next.
		run -0 migrate --mode hybrid "$ID" "unix://$T/b"
		runs_at b
		start_over
	done
	for w in "before ready" "before commit"; do
		echo "cut $w"
		small_guest
		# shellcheck disable=SC2086 # two words
		cut_at $w
		run migrate "$ID" "unix://$T/cut"
		((status == 1)) || settled
		runs_at a
		no_round_at_a
		wait_until 10 nothing_at_b
		start_over
	done
}

@test "a Debian moves with an open connection, there and back" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	local guest
	with_client
	guest "$ID" systemctl freeze nginx.service
	fails 1 'has frozen "system.slice/nginx.service"' migrate --mode pre-copy "$ID" "unix://$T/b"
	guest "$ID" systemctl thaw nginx.service
	run -0 migrate --mode pre-copy --stats "$T/stats" "$ID" "unix://$T/b"
	echo "$output"
	jq 'del(.checks)' "$T/stats"
	on b ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_counter "$(bundles)/$ID/rootfs"
	verify_counter "$(bundles)/$ID/rootfs"
	# The rounds had most of it.
	jq -e '.rounds[0].pages > 2 * .pages' "$T/stats"
	run -0 on b lazy-migrate --mode hybrid --stats "$T/back" "$ID" "unix://$T/a"
	echo "$output"
	jq 'del(.checks)' "$T/back"
	vz ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_counter "$T/bundles-a/$ID/rootfs"
	verify_counter "$T/bundles-a/$ID/rootfs"
	client_ends
	[[ ! -e $(bundles)/$ID/rootfs && ! -e $T/bundles-a/$ID/arrival ]]
	[[ -z $(on b list --quiet) ]]
}
