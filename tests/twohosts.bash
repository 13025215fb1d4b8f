# shellcheck shell=bash
# Suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2154
# Two hosts on one machine, beside helpers.bash and app.bash: two network namespaces with
# a bridge each, joined by a third one in which a client is, each with a state directory
# of its own.
#
#   setup_file() { two_hosts; }
#   teardown_file() { two_hosts_end; }
#   setup() { two_hosts_test; }
#   teardown() { two_hosts_test_ends; }

ADDRESS=10.94.0.2
HOST_B=10.94.0.4

two_hosts() {
	test_may_take 300
	suite_setup
	vz_setup
	FILE_ID=$ID
	NET=${VZ_TAG//[^0-9]/}
	NET=${NET: -6}
	CUTTER=$(build_command cutter)
	MEMORY=$(build_command memory)
	export VZ_ROOT VZ_TMP FILE_ID NET CUTTER MEMORY
	with_lazy_pages
	scene_up
}

two_hosts_end() {
	local host id
	restore_sysctls
	for host in a b; do
		for id in $(on "$host" list --quiet); do
			on "$host" delete --force "$id" || true
		done
	done
	find /sys/fs/cgroup -depth -type d -name "vzrun-test-$VZ_TAG-[ab]" -exec rmdir {} + 2>/dev/null || true
	for host in a b lan; do
		ip netns delete "vzrun-test-$VZ_TAG-$host"
	done
	remove_tree "$VZ_ROOT" "$VZ_TMP"
	suite_teardown
}

two_hosts_test() {
	test_begins
	VZ_SPAWNED=()
	ID=$(new_id)
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	mkdir -m 0700 "$T"
}

two_hosts_test_ends() {
	local pid host id
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	[[ -z ${CLIENTS:-} ]] || clients_kill
	for host in a b; do
		for id in $(on "$host" list --quiet 2>/dev/null); do
			on "$host" lazy-migrate --resolve --decide here "$id" 2>/dev/null || true
			on "$host" delete --force "$id" || true
		done
	done
	rm -rf --one-file-system -- "$T"
}

### The scene

scene_up() {
	local host
	for host in lan a b; do
		ip netns add "vzrun-test-$VZ_TAG-$host"
		in_net "$host" ip link set lo up
		in_net "$host" ip link add br0 type bridge
		in_net "$host" ip link set br0 up
		mkdir -m 0700 "$VZ_ROOT/$host"
	done
	in_net lan ip address add "${ADDRESS%.*}.1/24" dev br0
	in_net a ip address add "${ADDRESS%.*}.3/24" dev br0
	in_net b ip address add "$HOST_B/24" dev br0
	for host in a b; do
		in_net lan ip link add "to-$host" type veth peer name up0 netns "vzrun-test-$VZ_TAG-$host"
		in_net lan ip link set "to-$host" master br0 up
		in_net "$host" ip link set up0 master br0 up
	done
}

in_net() { ip netns exec "vzrun-test-$VZ_TAG-$1" "${@:2}"; }

# on HOST ARG... is vzrun there. ip netns exec would hide the host's cgroups.
on() { nsenter --net="/run/netns/vzrun-test-$VZ_TAG-$1" -- "$VZRUN" --root "$VZ_ROOT/$1" --id-record "$VZ_TMP/ids-$1.json" "${@:2}"; }

# spawn_on HOST LOG ARG... is vzrun there, as a helper of the test; $SPAWNED is its own pid.
spawn_on() {
	spawn "$2" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-$1" -- "$VZRUN" --root "$VZ_ROOT/$1" --id-record "$VZ_TMP/ids-$1.json" "${@:3}"
}

# What the helpers do, they do at the source, or where HOST says.
vz() { on "${HOST:-a}" "$@"; }

# client_net CMD... is for those of workload.bash.
client_net() { in_net lan "$@"; }

bundles() { echo "$T/bundles-b"; }

# in_b CMD... runs in the destination's network, as the same process.
in_b() { exec nsenter --net="/run/netns/vzrun-test-$VZ_TAG-b" -- "$@"; }

# listen_b lets the destination listen at $T/b.
listen_b() {
	spawn_on b "$T/receive.log" receive --listen "unix://$T/b" --bundles "$(bundles)" --cgroup-parent "vzrun-test-$VZ_TAG-b"
	wait_file "$T/b"
}

# listen_a does so at the source, for the way back.
listen_a() {
	spawn_on a "$T/receive-a.log" receive --listen "unix://$T/a" --bundles "$T/bundles-a" --cgroup-parent "vzrun-test-$VZ_TAG-a"
	wait_file "$T/a"
}

# cut_at MODE KIND puts a cutter before it, at $T/cut.
cut_at() {
	rm -f "$T/cut"
	spawn "$T/cutter.log" "$CUTTER" "$T/cut" "$T/b" "$@"
	wait_line "$T/cutter.log" '^listening$'
}

# small_guest runs a guest that counts into a file and is quick to move.
small_guest() {
	if [[ ${MODE:-cold} != cold ]]; then
		# It looks after its memory.
		BUNDLE=$(app_bundle "$ID" /memory 48 /count ${CHANGED:+"$CHANGED"})
		cp "$MEMORY" "$BUNDLE/rootfs/memory"
	else
		BUNDLE=$(app_bundle "$ID" sh -c 'n=0; while :; do n=$((n+1)); echo $n >>/count; sleep 0.05; done')
	fi
	app_up "$BUNDLE" "$ID"
	wait_lines "$BUNDLE/rootfs/count" 3
}

# counts FILE fails unless the guest goes on to count there and has left out and
# repeated nothing.
counts() {
	wait_lines "$1" $(($(wc -l <"$1") + 3))
	awk '$1 != NR { print "line " NR " is " $1; exit 1 }' "$1"
}

# runs_at HOST: exactly there, and it counts.
runs_at() {
	local other=b root=$BUNDLE/rootfs
	if [[ $1 == b ]]; then
		other=a root=$(bundles)/$ID/rootfs
	fi
	[[ $(on "$1" state "$ID" | jq -r .status) == running ]]
	run ! on "$other" state "$ID"
	counts "$root/count"
}

nothing_at_b() { [[ -z $(on b list --quiet) && ! -e $(bundles)/$ID ]]; }

migrate() { on a lazy-migrate --mode "${MODE:-cold}" "$@"; }

# with_client boots a Debian with an address and an open connection, as guest=BUNDLE.
with_client() {
	local fifo=$T/talk.in
	guest=$(debian_bundle "$ID" --net "bridge=br0,ip=$ADDRESS/24")
	cp "$guest/rootfs/usr/local/bin/vzguest" "$T/vzguest"
	vz_up "$guest" "$ID"
	wait_guest "$ID"
	listen_b
	listen_a
	mkfifo "$fifo"
	nsenter --net="/run/netns/vzrun-test-$VZ_TAG-lan" -- "$T/vzguest" talk "$ADDRESS:7" <"$fifo" >"$T/talk" 2>&1 3>&- &
	TALKER=$!
	VZ_SPAWNED+=("$TALKER")
	exec {TALK}>"$fifo"
	wait_line "$T/talk" '^connected$'
	wait_counter "$guest/rootfs"
}

# client_ends: its connection was open all the while.
client_ends() {
	exec {TALK}>&-
	wait "$TALKER"
	cat "$T/talk"
	grep -q '^lines=' "$T/talk"
	[[ $(in_net lan curl -fsS --max-time "$(slow 20)" "http://$ADDRESS/") == *"vzrun test page"* ]]
}

### Moves that are disturbed

# held_move KIND starts a migration of the small guest over a cutter that
# holds KIND; $MOVER is the source's vzrun.
held_move() {
	cut_at hold "$1"
	spawn_on a "$T/migrate.log" lazy-migrate --mode "${MODE:-cold}" --link-timeout 1s "$ID" "unix://$T/cut"
	MOVER=$SPAWNED
	wait_line "$T/cutter.log" '^holding$' || {
		cat "$T/migrate.log" "$T/receive.log"
		return 1
	}
}

# end_link ends the connection that a cutter holds; it may have ended with a side.
end_link() { kill -KILL "${VZ_SPAWNED[@]: -2:1}" 2>/dev/null || true; }

# kill_receivers kills what serves a connection at the destination; one that has
# answered may be about to end.
kill_receivers() { pgrep -P "$LISTENER" | xargs kill -KILL; }

# stands_still: at the source, and only resolve may touch it.
stands_still() {
	local counted
	has_status "$ID" paused
	counted=$(wc -l <"$BUNDLE/rootfs/count")
	fails 6 'outcome unconfirmed' vz resume "$ID"
	fails 6 'outcome unconfirmed' migrate "$ID" "unix://$T/b"
	fails 6 'outcome unconfirmed' vz delete --force "$ID"
	[[ $(wc -l <"$BUNDLE/rootfs/count") == "$counted" ]]
}

# resolves WHERE: the question is answered, the guest is at a, or b, or any of [ab].
# shellcheck disable=SC2053 # a pattern
resolves() {
	local where=a
	run -0 on a lazy-migrate --resolve "$ID" "unix://$T/b"
	[[ $output != "$ID has moved"* ]] || where=b
	echo "$output"
	[[ $where == $1 ]]
	runs_at "$where"
	[[ $where == b ]] || wait_until 10 nothing_at_b
	fails 4 'no migration to resolve' migrate --resolve "$ID"
}

# start_over removes the guest, wherever it is.
start_over() {
	run ! grep -E 'panic|goroutine' "$T/receive.log"
	on a delete --force "$ID"
	on b delete --force "$ID"
	rm -rf --one-file-system -- "$BUNDLE" "$(bundles)"
}

# settled: a move in mode lazy that was cut off is at one side, or has to be decided
# upon, since it has run there and its memory is lost.
settled() {
	run --separate-stderr on a lazy-migrate --resolve "$ID" "unix://$T/b"
	echo "$output$stderr"
	if ((status == 0)) && [[ $output == "$ID has moved"* ]]; then
		runs_at b
		return
	fi
	if ((status != 0)); then
		((status == 6))
		[[ $stderr == *"did not arrive"*"--decide here"* ]]
		[[ -z $(on b list --quiet) ]]
		on a lazy-migrate --resolve --decide here "$ID"
	fi
	runs_at a
	wait_until 10 nothing_at_b
}
