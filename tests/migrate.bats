#!/usr/bin/env bats
# Migration between two hosts: two network namespaces with a bridge each, joined
# by a third one in which a client is, each with a state directory of its own.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load workload

ADDRESS=10.94.0.2
HOST_B=10.94.0.4

setup_file() {
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

teardown_file() {
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
	remove_tree "$VZ_ROOT"
	remove_tree "$VZ_TMP"
	suite_teardown
}

setup() {
	test_begins
	VZ_SPAWNED=()
	ID=$(new_id)
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	mkdir -m 0700 "$T"
}

teardown() {
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

# What the helpers do, they do at the source, or where HOST says.
vz() { on "${HOST:-a}" "$@"; }

# client_net CMD... is for those of workload.bash.
client_net() { in_net lan "$@"; }

bundles() { echo "$T/bundles-b"; }

# in_b CMD... runs in the destination's network, as the same process.
in_b() { exec nsenter --net="/run/netns/vzrun-test-$VZ_TAG-b" -- "$@"; }

# listen_b lets the destination listen at $T/b.
listen_b() {
	spawn "$T/receive.log" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-b" -- "$VZRUN" --root "$VZ_ROOT/b" --id-record "$VZ_TMP/ids-b.json" \
		receive --listen "unix://$T/b" --bundles "$(bundles)" --cgroup-parent "vzrun-test-$VZ_TAG-b"
	wait_file "$T/b"
}

# listen_a does so at the source, for the way back.
listen_a() {
	spawn "$T/receive-a.log" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
		receive --listen "unix://$T/a" --bundles "$T/bundles-a" --cgroup-parent "vzrun-test-$VZ_TAG-a"
	wait_file "$T/a"
}

# cut MODE KIND puts a cutter before it, at $T/cut.
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

### The proof

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

@test "a Debian moves with its address and an open TCP connection" {
	local guest
	with_client
	run -0 migrate --dry-run "$ID" "unix://$T/b"
	[[ $output == *processor* && $output == *addresses* ]]
	has_status "$ID" running
	nothing_at_b

	run -0 on a lazy-migrate --stats "$T/stats" --keep-source "$ID" "unix://$T/b"
	cat "$T/stats"
	[[ $output == "$ID runs at unix://$T/b as $ID: frozen "* ]]
	run ! vz state "$ID"
	on b ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_counter "$(bundles)/$ID/rootfs"
	verify_counter "$(bundles)/$ID/rootfs"
	jq -e '.mode == "lazy" and .memory_bytes > 1000000' "$T/stats"

	# And back, in the other way.
	run -0 on b lazy-migrate --mode cold --stats "$T/back" "$ID" "unix://$T/a"
	cat "$T/back"
	run ! on b state "$ID"
	vz ready --timeout "${VZ_PATIENCE}s" "$ID"
	wait_counter "$T/bundles-a/$ID/rootfs"
	verify_counter "$T/bundles-a/$ID/rootfs"
	client_ends
	jq -e '.frozen > 0 and .run >= .frozen and .total >= .run and .images_bytes > 100000 and .rootfs_bytes > 1000000' "$T/stats"
	# Neither side keeps anything of the moves but a source that was to.
	[[ ! -e $guest/migration && -e $guest/rootfs && ! -e $(bundles)/$ID/rootfs && ! -e $T/bundles-a/$ID/arrival ]]
	[[ -z $(find "$(bundles)/.migrations" "$T/bundles-a/.migrations" -type f) ]]
	[[ -z $(on b list --quiet) ]]
}

# small_move CUT KIND starts a migration of the small guest over a cutter that
# holds KIND; $MOVER is the source's vzrun.
held_move() {
	cut_at hold "$1"
	spawn "$T/migrate.log" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
		lazy-migrate --mode "${MODE:-cold}" --link-timeout 1s "$ID" "unix://$T/cut"
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

# after_cut MODE KIND: what must be so when the connection ended there.
after_cut() {
	small_guest
	cut_at "$1" "$2"
	echo "cut $1 $2"
	case "$1 $2" in
	"after ready")
		# The source has said the word, or notices before that the connection is gone.
		run migrate "$ID" "unix://$T/cut"
		if ((status == 6)); then
			stands_still
			resolves a
		else
			((status == 1))
			runs_at a
			wait_until 10 nothing_at_b
		fi
		;;
	"before commit")
		fails 6 'outcome unconfirmed' migrate "$ID" "unix://$T/cut"
		stands_still
		resolves a
		;;
	"before committed")
		fails 6 'outcome unconfirmed' migrate "$ID" "unix://$T/cut"
		stands_still
		resolves b
		;;
	"after commit" | "after committed")
		# What has arrived need not have been read when the connection ends.
		run migrate "$ID" "unix://$T/cut"
		if ((status == 6)); then
			stands_still
			resolves '[ab]'
		else
			((status == 0))
			runs_at b
		fi
		;;
	*done)
		run -0 migrate "$ID" "unix://$T/cut"
		runs_at b
		;;
	*)
		fails 1 '' migrate "$ID" "unix://$T/cut"
		runs_at a
		wait_until 10 nothing_at_b
		;;
	esac
	start_over
}

@test "wherever the connection ends, one side has the guest or it can be found out" {
	local cuts=("after answer" "before ready" "before commit" "before committed") c
	[[ ${VZ_FULL:-} != 1 ]] || cuts=({before,after}" "{offer,answer,restore,ready,commit,committed,done})
	listen_b
	for c in "${cuts[@]}"; do
		# shellcheck disable=SC2086 # two words
		after_cut $c
	done
}

# killed SIDE KIND WHERE: the vzrun of SIDE is killed when KIND is on its way, and
# afterwards the guest is at WHERE.
killed() {
	echo "$1 is killed at $2"
	small_guest
	held_move "$2"
	if [[ $1 == a ]]; then
		kill -KILL "$MOVER"
		end_link
	else
		kill_receivers
		end_link
		wait_exit "$MOVER"
	fi
	case $2 in
	commit | committed)
		stands_still
		resolves "$3"
		;;
	*)
		vz list
		runs_at a
		wait_until 10 nothing_at_b
		;;
	esac
	start_over
}

@test "whoever is killed, one side has the guest or it can be found out" {
	local k kills=("a commit a" "b committed b" "a ready a")
	[[ ${VZ_FULL:-} != 1 ]] || kills=({a,b}" "{answer,restore,ready,commit}" a" {a,b}" committed b")
	listen_b
	LISTENER=$SPAWNED
	for k in "${kills[@]}"; do
		# shellcheck disable=SC2086 # three words
		killed $k
	done
}

@test "what is in the way is told in one line, and nothing is touched" {
	small_guest
	listen_b
	mkdir -p "$(bundles)/$ID"
	fails 1 'refused by the other side: bundle' migrate "$ID" "unix://$T/b"
	rmdir "$(bundles)/$ID"
	mkdir "$VZ_ROOT/b/$ID"
	fails 1 'refused by the other side: name' migrate "$ID" "unix://$T/b"
	rmdir "$VZ_ROOT/b/$ID"
	fails 1 'refused by the other side: interfaces' migrate --net eth7=x "$ID" "unix://$T/b"
	fails 1 'invalid container id' migrate --new-id .. "$ID" "unix://$T/b"
	fails 2 '--mode' migrate --mode fast "$ID" "unix://$T/b"
	fails 2 '--compress' migrate --compress lz4 "$ID" "unix://$T/b"
	fails 2 '--bandwidth' migrate --bandwidth 100 "$ID" "unix://$T/b"
	fails 2 '--bandwidth' migrate --bandwidth fast "$ID" "unix://$T/b"
	fails 1 'not a destination' migrate "$ID" "host"
	fails 1 'connect to' migrate "$ID" "unix://$T/nobody"
	runs_at a
	nothing_at_b
}

@test "garbage, a foreigner and a full disk are told in one line, and nothing is touched" {
	small_guest
	listen_b
	cut_at garbage offer
	fails 1 '' migrate "$ID" "unix://$T/cut"
	spawn "$T/foreigner" "$CUTTER" "$T/foreign" - foreign -
	wait_line "$T/foreigner" '^listening$'
	fails 1 'does not speak' migrate "$ID" "unix://$T/foreign"
	"$CUTTER" - "$T/b" noise -
	runs_at a
	nothing_at_b

	# No inodes are left, which nobody can tell beforehand.
	mkdir -p "$(bundles)"
	mount -t tmpfs -o nr_inodes=20 tmpfs "$(bundles)"
	run -1 --separate-stderr migrate "$ID" "unix://$T/b"
	umount "$(bundles)"
	[[ $stderr == *"No space left on device"* || $stderr == *"no space left on device"* ]]
	runs_at a
	nothing_at_b
	migrate "$ID" "unix://$T/b"
	runs_at b
}

@test "what is sent can be compressed and bounded" {
	local rate=$((1 << 20))
	small_guest
	listen_b
	run -0 migrate --dry-run --compress zstd "$ID" "unix://$T/b"
	[[ $output =~ compression\ +zstd\ +known ]]
	run -0 migrate --compress zstd --bandwidth 1M --stats "$T/stats" "$ID" "unix://$T/b"
	cat "$T/stats"
	runs_at b
	# What went over the connection is less than what was sent, and no faster than
	# it may; a burst of a twentieth of a second is free.
	jq -e --argjson rate "$rate" '.sent_bytes > 100000 and .sent_bytes < .images_bytes + .rootfs_bytes
		and .total >= .sent_bytes / $rate - 0.1' "$T/stats"
}

@test "what changes in a long pass over the files is sent before the guest is stopped" {
	local sum
	small_guest
	head -c 4M /dev/urandom >"$BUNDLE/rootfs/big"
	sum=$(sha256sum <"$BUNDLE/rootfs/big")
	listen_b
	run -0 migrate --bandwidth 1M --stats "$T/stats" "$ID" "unix://$T/b"
	cat "$T/stats"
	runs_at b
	jq -e '.file_passes >= 2' "$T/stats"
	[[ $(sha256sum <"$(bundles)/$ID/rootfs/big") == "$sum" ]]
}

@test "files that have lost their names come with those that CRIU gives them" {
	BUNDLE=$(app_bundle "$ID" sh -c 'mkdir /d; echo kept >/d/a; ln /d/a /d/b; exec 3</d/a; rm /d/a
		n=0; while :; do n=$((n+1)); echo $n >>/count; [ ! -e /look ] || cat <&3 >>/seen; sleep 0.05; done')
	app_up "$BUNDLE" "$ID"
	wait_lines "$BUNDLE/rootfs/count" 3
	listen_b
	run -0 migrate "$ID" "unix://$T/b"
	runs_at b
	touch "$(bundles)/$ID/rootfs/look"
	wait_lines "$(bundles)/$ID/rootfs/seen" 1
	[[ $(<"$(bundles)/$ID/rootfs/seen") == kept ]]
	[[ $(ls "$(bundles)/$ID/rootfs/d") == b ]]
}

# move_while CMD... moves a guest with the files d/a and d/z to b, and calls CMD when rsync
# has listed both and opens the first.
move_while() {
	local dir watcher
	small_guest
	listen_b
	dir=$BUNDLE/rootfs/d
	mkdir "$dir"
	head -c 64M /dev/urandom >"$T/a"
	cp "$T/a" "$dir/a"
	echo z >"$dir/z"
	spawn "$T/watch" inotifywait -e open "$dir/a"
	watcher=$SPAWNED
	wait_line "$T/watch" 'Watches established'
	spawn "$T/migrate.log" on a lazy-migrate --mode cold "$ID" "unix://$T/b"
	wait "$watcher"
	(cd "$dir" && "$@")
	wait "$SPAWNED" || { cat "$T/migrate.log" && false; }
	runs_at b
	cmp "$T/a" "$(bundles)/$ID/rootfs/d/a"
}

pipe_in_its_place() { mkfifo pipe && mv pipe z; }

@test "files: a guest that puts a pipe in a file's place does not hold up its move" {
	move_while pipe_in_its_place
	grep -q 'a pipe had taken the place of a file: what is missing is sent when the guest is stopped' "$T/migrate.log"
	[[ -p $(bundles)/$ID/rootfs/d/z ]]
}

@test "files: one that vanishes on the way is worth no word" {
	move_while rm z
	[[ ! -e $(bundles)/$ID/rootfs/d/z ]]
	run ! grep warning "$T/migrate.log" "$T/receive.log"
}

# certificate NAME SAN makes $T/NAME.pem and its key, signed by $T/ca.pem.
certificate() {
	openssl req -newkey ed25519 -nodes -keyout "$T/$1.key" -out "$T/$1.csr" -subj "/CN=$1" 2>/dev/null
	openssl x509 -req -in "$T/$1.csr" -CA "$T/ca.pem" -CAkey "$T/ca.key" -CAcreateserial -days 2 -out "$T/$1.pem" \
		-extfile <(echo "subjectAltName=$2") 2>/dev/null
}

@test "tls: mutual, by name" {
	small_guest
	openssl req -x509 -newkey ed25519 -nodes -keyout "$T/ca.key" -out "$T/ca.pem" -days 2 -subj /CN=ca 2>/dev/null
	certificate a DNS:a.example
	certificate b "IP:$HOST_B"
	spawn "$T/receive.log" in_b "$VZRUN" --root "$VZ_ROOT/b" --id-record "$VZ_TMP/ids-b.json" receive --listen "tls://$HOST_B:7878" \
		--bundles "$(bundles)" --cgroup-parent "vzrun-test-$VZ_TAG-b" \
		--tls-cert "$T/b.pem" --tls-key "$T/b.key" --tls-ca "$T/ca.pem" --allow a.example
	wait_until 10 nsenter --net="/run/netns/vzrun-test-$VZ_TAG-b" -- bash -c "exec 3<>/dev/tcp/$HOST_B/7878"
	# Its own certificate is no client's that is allowed.
	fails 1 '' migrate --tls-cert "$T/b.pem" --tls-key "$T/b.key" --tls-ca "$T/ca.pem" "$ID" "tls://$HOST_B:7878"
	runs_at a
	nothing_at_b
	migrate --tls-cert "$T/a.pem" --tls-key "$T/a.key" --tls-ca "$T/ca.pem" "$ID" "tls://$HOST_B:7878"
	runs_at b
}

@test "ssh: the user's own, with a command at the other end" {
	require sshd test -x /usr/sbin/sshd
	small_guest
	ssh-keygen -q -t ed25519 -N '' -f "$T/host"
	ssh-keygen -q -t ed25519 -N '' -f "$T/user"
	mkdir -p /run/sshd
	cat >"$T/sshd.conf" <<-END
		ListenAddress $HOST_B:2222
		HostKey $T/host
		AuthorizedKeysFile $T/user.pub
		StrictModes no
		UsePAM no
		PermitRootLogin prohibit-password
		PidFile none
	END
	spawn "$T/sshd.log" in_b /usr/sbin/sshd -D -e -f "$T/sshd.conf"
	wait_line "$T/sshd.log" 'Server listening'
	echo "[$HOST_B]:2222 $(cut -d ' ' -f 1,2 "$T/host.pub")" >"$T/known"
	local ssh="ssh -F none -i $T/user -o BatchMode=yes -o UserKnownHostsFile=$T/known"
	local there="$VZRUN --root $VZ_ROOT/b --id-record $VZ_TMP/ids-b.json receive --bundles $T/bundles-b --cgroup-parent vzrun-test-$VZ_TAG-b"
	# A key that nobody has seen.
	ssh-keygen -q -t ed25519 -N '' -f "$T/other"
	run -1 --separate-stderr migrate --ssh "ssh -F none -i $T/user -o BatchMode=yes -o UserKnownHostsFile=/dev/null" "$ID" "ssh://root@$HOST_B:2222"
	[[ $stderr == *"Host key verification failed"*"hint: "* ]]
	run -1 --separate-stderr migrate --ssh "$ssh" --remote-command /nonexistent "$ID" "ssh://root@$HOST_B:2222"
	[[ $stderr == *"before it began"* ]]
	runs_at a
	migrate --ssh "$ssh" --remote-command "$there" "$ID" "ssh://root@$HOST_B:2222"
	runs_at b
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

@test "lazy: memory comes when it runs there, and whatever happens one side has the guest" {
	local w whens=("before ready" "before commit" "before committed")
	[[ ${VZ_FULL:-} != 1 ]] || whens=({before,after}" "{restore,ready,commit,committed})
	MODE=lazy
	listen_b
	LISTENER=$SPAWNED
	small_guest
	run -0 migrate --compress zstd --stats "$T/stats" "$ID" "unix://$T/b"
	jq -e '.memory_bytes > 40000000 and .images_bytes < 10000000 and .sent_bytes < .memory_bytes' "$T/stats"
	runs_at b
	start_over
	for w in "${whens[@]}"; do
		echo "cut $w"
		small_guest
		# shellcheck disable=SC2086 # two words
		cut_at $w
		run migrate --link-timeout 1s "$ID" "unix://$T/cut"
		case $status in
		0) runs_at b ;;
		1)
			runs_at a
			wait_until 10 nothing_at_b
			;;
		6) settled ;;
		*) return 1 ;;
		esac
		start_over
	done
	# Killed while the guest runs there and its memory is on the way.
	for w in a b; do
		echo "$w is killed"
		small_guest
		held_move committed
		if [[ $w == a ]]; then
			kill -KILL "$MOVER"
		else
			kill_receivers
		fi
		end_link
		wait_exit "$MOVER"
		has_status "$ID" paused
		settled
		start_over
	done
}

@test "lazy: the guest outlives a connection that is lost" {
	MODE=lazy
	listen_b
	small_guest
	cut_at flaky commit:3:8000000:1
	run -0 migrate --stats "$T/stats" "$ID" "unix://$T/cut"
	echo "$output"
	cat "$T/receive.log"
	# No page is sent twice but those of answers that were under way.
	jq -e '.links_lost == 3 and .link_down > 2 and .memory_bytes > 48000000 and .memory_bytes < 70000000' "$T/stats"
	jq -e '.faults | .count > 0 and .p50 > 0 and .p99 >= .p95 and .max >= .p99' "$T/stats"
	[[ $(grep -c '^cut' "$T/cutter.log") == 3 ]]
	runs_at b
	[[ -z $(find "$(bundles)/.migrations" -type f) && ! -e $VZ_ROOT/b/$ID/link.sock ]]
	start_over

	# Lost between the word and its answer: it can be asked.
	small_guest
	cut_at flaky -committed:1:0:1
	run -0 migrate --stats "$T/stats" "$ID" "unix://$T/cut"
	jq -e '.links_lost == 1' "$T/stats"
	runs_at b
	start_over

	# It does not come back.
	small_guest
	cut_at after committed
	run -6 --separate-stderr migrate --link-timeout 1s "$ID" "unix://$T/cut"
	[[ ${stderr_lines[1]} == *"migrate $ID: outcome unconfirmed: "*"no other within 1s"* && ${stderr_lines[2]} == "hint: vzrun lazy-migrate --resolve "* ]]
	has_status "$ID" paused
	settled
	start_over

	# Nobody else can take the memory.
	small_guest
	cut_at flaky commit:1:8000000:3
	spawn "$T/migrate.log" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
		lazy-migrate "$ID" "unix://$T/cut"
	wait_line "$T/cutter.log" '^cut$'
	fails 3 'busy' on b delete --force "$ID"
	"$CUTTER" - "$T/b" noise -
	wait_exit "$SPAWNED"
	grep -q "runs at" "$T/migrate.log"
	runs_at b
}

@test "events --follow tells both hosts' watchers what happens" {
	local host
	MODE=lazy
	listen_b
	small_guest
	for host in a b; do
		spawn "$T/events-$host" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-$host" -- "$VZRUN" --root "$VZ_ROOT/$host" events --follow
		wait_until 10 followed "$host"
	done
	fails 1 'refused by the other side: interfaces' migrate --net eth7=x "$ID" "unix://$T/b"
	migrate "$ID" "unix://$T/b"
	wait_line "$T/events-a" '"event":"end"'
	wait_line "$T/events-b" '"event":"end"'
	cat "$T"/events-?
	# What failed comes first; it never began there.
	jq -es '.[0].event == "begin" and any(.[]; .event == "failure" and (.error | test("refused")))' "$T/events-a"
	for host in a b; do
		# Of the one that did not fail.
		jq -s 'group_by(.migration) | map(select(any(.[]; .event == "end")))[0] | sort_by(.time)' "$T/events-$host" >"$T/one-$host"
		jq -e --arg id "$ID" 'all(.[]; .type == "migration" and .id == $id) and .[0].event == "begin" and .[-1].event == "end"
			and any(.[]; .event == "committed") and any(.[]; .event == "step")' "$T/one-$host"
	done
	[[ $(jq -r '.[0].migration' "$T/one-a") == "$(jq -r '.[0].migration' "$T/one-b")" ]]
	jq -e '.[0].role == "source" and .[0].mode == "lazy" and .[-1].stats.frozen > 0' "$T/one-a"
	jq -e '.[0].role == "destination"' "$T/one-b"

	# Whoever follows leaves nothing, and one that is killed does not for long.
	kill -INT "${VZ_SPAWNED[@]: -2:1}"
	wait_exit "${VZ_SPAWNED[@]: -2:1}"
	kill -KILL "$SPAWNED"
	start_over
	small_guest
	migrate "$ID" "unix://$T/b"
	[[ ! -e $VZ_ROOT/a/@/followers && -z $(ls "$VZ_ROOT/b/@/followers") ]]
}

followed() { [[ -n $(ls "$VZ_ROOT/$1/@/followers" 2>/dev/null) ]]; }

@test "an overlay moves: its changes, and the templates that are not there" {
	local template=$T/template
	busybox_bundle "$ID" sh -c 'n=0; while :; do n=$((n+1)); echo $n >>/count; sleep 0.05; done' >/dev/null
	BUNDLE=$VZ_TMP/$ID
	mv "$BUNDLE/rootfs" "$template"
	mkdir -m 0700 "$BUNDLE/rootfs"
	mkdir -p "$template/old/deep"
	echo gone >"$template/gone"
	echo old >"$template/old/deep/file"
	edit_config "$BUNDLE" '.mounts |= map(select(.type != "cgroup")) | .annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$template"
	app_up "$BUNDLE" "$ID"
	guest "$ID" sh -c 'rm /gone && rm -r /old && mkdir /old && echo new >/old/new && ln /count /other'
	wait_lines "$BUNDLE/rootfs/upper/count" 3
	listen_b
	run -0 migrate --dry-run "$ID" "unix://$T/b"
	[[ $output == *"template 0"*"the same"* ]]
	run -0 migrate --stats "$T/stats" "$ID" "unix://$T/b"
	overlay_moved "$(bundles)/$ID"
	[[ ! -e $(bundles)/$ID/templates && ! -e $BUNDLE ]]
	jq -e '.rootfs_bytes < 200000' "$T/stats"

	# On the way back the other side has another one under that name.
	spawn "$T/receive-a.log" unshare --mount --propagation private -- sh -c 'mount -t tmpfs none "$1" && shift && exec "$@"' sh "$template" \
		nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
		receive --listen "unix://$T/a" --bundles "$T/bundles-a" --cgroup-parent "vzrun-test-$VZ_TAG-a"
	wait_file "$T/a"
	run -0 on b lazy-migrate --dry-run "$ID" "unix://$T/a"
	[[ $output == *"template 0"*"is sent"* ]]
	on b lazy-migrate --mode cold "$ID" "unix://$T/a"
	[[ $(tree_sum "$template") == "$(tree_sum "$T/bundles-a/$ID/templates/0")" && ! -e $(bundles)/$ID ]]
	[[ $(jq -r '.annotations["org.vzrun.rootfs.overlay"]' "$T/bundles-a/$ID/config.json") == templates/0 ]]
	counts "$T/bundles-a/$ID/rootfs/upper/count"
	[[ $(guest "$ID" sh -c 'cat /old/new; ls /gone 2>/dev/null' || true) == new ]]
	# And once more, with the template that it brought.
	on a lazy-migrate --mode cold "$ID" "unix://$T/b"
	overlay_moved "$(bundles)/$ID"
	[[ -e $(bundles)/$ID/templates/0/bin && ! -e $T/bundles-a/$ID ]]
}

# overlay_moved BUNDLE: it runs at b, with what it had changed.
overlay_moved() {
	[[ $(on b state "$ID" | jq -r .status) == running ]]
	run ! on a state "$ID"
	counts "$1/rootfs/upper/count"
	[[ -c $1/rootfs/upper/gone && $(on b exec "$ID" sh -c 'ls /old; cat /old/new; ls /gone 2>/dev/null' </dev/null) == $'new\nnew' ]]
	on b exec "$ID" sh -c '[ /count -ef /other ]' </dev/null
}

@test "a root on btrfs moves with its nested subvolumes" {
	require btrfs command -v mkfs.btrfs
	truncate -s 512M "$T/pool.img"
	mkfs.btrfs -q "$T/pool.img"
	mkdir "$T/pool"
	mount -o loop "$T/pool.img" "$T/pool"
	small_guest_on_btrfs
	listen_b
	run -0 migrate --dry-run "$ID" "unix://$T/b"
	migrate "$ID" "unix://$T/b"
	BUNDLE=$T/pool/bundle
	runs_at b
	[[ $(<"$(bundles)/$ID/rootfs/srv/nested/file") == kept ]]
	wait_until 10 umount "$T/pool"
}

# small_guest_on_btrfs has its root in a subvolume, with another one in it.
small_guest_on_btrfs() {
	BUNDLE=$T/pool/bundle
	mkdir "$BUNDLE"
	btrfs -q subvolume create "$BUNDLE/rootfs"
	cp -a "$VZRUN_BUSYBOX/." "$BUNDLE/rootfs/"
	mkdir -p "$BUNDLE/rootfs/srv"
	btrfs -q subvolume create "$BUNDLE/rootfs/srv/nested"
	echo kept >"$BUNDLE/rootfs/srv/nested/file"
	vz spec --bundle "$BUNDLE"
	edit_config "$BUNDLE" '.process.terminal = false | .process.args = ["sh", "-c", $ARGS.positional[0]] | .root.readonly = false
		| .linux.cgroupsPath = $ARGS.positional[1] | .mounts |= map(select(.type != "cgroup"))' \
		'n=0; while :; do n=$((n+1)); echo $n >>/count; sleep 0.05; done' "$(cgroup_of "$ID")"
	app_up "$BUNDLE" "$ID"
	wait_lines "$BUNDLE/rootfs/count" 3
}

@test "shared storage: no file is sent, and none removed" {
	MODE=lazy
	small_guest
	listen_b
	run -0 migrate --shared-storage --stats "$T/stats" "$ID" "unix://$T/b"
	jq -e '.rootfs_bytes == 0 and .memory_bytes > 40000000' "$T/stats"
	[[ $(on b state "$ID" | jq -r '.status, .bundle' | tr '\n' ' ') == "running $BUNDLE " ]]
	run ! on a state "$ID"
	counts "$BUNDLE/rootfs/count"
	[[ -e $BUNDLE/config.json && ! -e $BUNDLE/migration && ! -e $BUNDLE/arrival && ! -e $(bundles)/$ID ]]
	# And back.
	listen_a
	on b lazy-migrate --mode cold --shared-storage "$ID" "unix://$T/a"
	run ! on b state "$ID"
	has_status "$ID" running
	counts "$BUNDLE/rootfs/count"
	# Cut off, it is here as before, with its files.
	cut_at before ready
	fails 1 '' migrate --shared-storage "$ID" "unix://$T/cut"
	has_status "$ID" running
	counts "$BUNDLE/rootfs/count"
	wait_until 10 nothing_shared
}

# What CRIU has logged may stay in $BUNDLE/migration, at the source.
nothing_shared() { [[ -z $(on b list --quiet) && ! -e $BUNDLE/arrival ]]; }

@test "there and back, again and again: nothing is lost, and nothing is left" {
	local i moves=2
	[[ ${VZ_FULL:-} != 1 ]] || moves=${VZ_MOVES:-10}
	MODE=lazy
	small_guest
	# Where it comes back to.
	listen_b
	listen_a
	migrate "$ID" "unix://$T/b"
	for ((i = 1; i <= moves; i++)); do
		on b lazy-migrate "$ID" "unix://$T/a"
		migrate "$ID" "unix://$T/b"
	done
	BUNDLE=$T/bundles-a/$ID
	runs_at b
	[[ ! -e $T/bundles-a/$ID && -z $(on a list --quiet) ]]
	[[ -z $(find "$(bundles)/.migrations" "$T/bundles-a/.migrations" -mindepth 1) ]]
	[[ $(ls "$(bundles)/$ID") == $'config.json\nrootfs' ]]
	on b delete --force "$ID"
	[[ -z $(find "$VZ_ROOT/a" "$VZ_ROOT/b" -mindepth 1 -name "$ID*") ]]
	run ! grep -E 'warning|panic|goroutine' "$T/receive.log" "$T/receive-a.log"
}

@test "services under load move there and back: nothing is lost, no connection breaks" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "takes VZ_FULL=1"
	local i name names=(postgres postgres_inside ssh python download)
	CLIENTS=$T/clients
	mkdir "$CLIENTS"
	load_build
	BUNDLE=$(services_bundle "$ID" services postgresql nginx ssh)
	add_workloads "$BUNDLE/rootfs"
	vz_up "$BUNDLE" "$ID" --net "bridge=br0,ip=$ADDRESS/24"
	wait_guest "$ID"
	listen_b
	listen_a
	# They go on although the files that they are run from are gone with the first move.
	for name in postgres postgres_inside ssh python; do
		"${name}_begin"
	done
	for ((i = 1; i < ${VZ_MOVES:-1}; i++)); do
		on a lazy-migrate "$ID" "unix://$T/b"
		on b lazy-migrate "$ID" "unix://$T/a"
		HOST=a BUNDLE=$T/bundles-a/$ID
		client_goes_on postgres postgres_inside ssh python
	done
	download_begin
	run -0 on a lazy-migrate "$ID" "unix://$T/b"
	echo "$output"
	HOST=b BUNDLE=$(bundles)/$ID
	client_goes_on "${names[@]}"
	run -0 on b lazy-migrate --mode cold "$ID" "unix://$T/a"
	echo "$output"
	HOST=a BUNDLE=$T/bundles-a/$ID
	client_goes_on "${names[@]}"
	wait_guest "$ID"
	for name in "${names[@]}"; do
		echo "$name"
		"${name}_end"
		"${name}_check"
	done
}

### Rounds: memory is sent while the guest runs, by the kernel's account of what it writes

tracks_memory() { "$VZRUN" doctor --format json | jq -e '.[] | select(.name == "soft-dirty").state == "ok"'; }

# no_round_at_a: nothing of rounds is left at the source, whose bundle is there.
no_round_at_a() { [[ -z $(find "$BUNDLE/migration" -name 'round-*' -o -name '*.img' -o -name parent 2>/dev/null) ]]; }

# bats test_tags=rounds
@test "rounds: without a kernel that tracks memory nothing is touched" {
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

# bats test_tags=rounds
@test "rounds: most of the memory goes while the guest runs here" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	MODE=pre-copy moves_in_rounds
	jq -e '.memory_bytes == 0' "$T/stats"
}

# bats test_tags=rounds, short
@test "rounds: most of the memory goes while the guest runs here, the rest when it runs there" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	MODE=hybrid moves_in_rounds
	jq -e '.memory_bytes > 0' "$T/stats"
}

# bats test_tags=rounds
@test "rounds: the budget decides, before the guest is stopped" {
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

# bats test_tags=rounds
@test "rounds: whatever ends them, the guest runs on and nothing is left" {
	lacks 'a kernel that tracks changes of memory' tracks_memory
	local w
	MODE=pre-copy
	listen_b
	LISTENER=$SPAWNED
	for w in a b; do
		echo "$w is killed in a round"
		small_guest
		spawn "$T/migrate.log" nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
			lazy-migrate --mode hybrid --bandwidth 2M "$ID" "unix://$T/b"
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

# bats test_tags=rounds
@test "rounds: a Debian moves with an open connection, there and back" {
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
