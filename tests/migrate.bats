#!/usr/bin/env bats
# Migration between two hosts, over every transport: connections cut at messages, sides
# that are killed, memory that comes when the guest runs there. Suite rounds has memory
# that goes ahead, suite movedroots kinds of roots.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load workload
load twohosts

setup_file() { two_hosts; }
teardown_file() { two_hosts_end; }
setup() { two_hosts_test; }
teardown() { two_hosts_test_ends; }

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
	spawn_on a "$T/migrate.log" lazy-migrate "$ID" "unix://$T/cut"
	wait_line "$T/cutter.log" '^cut$'
	fails 3 'busy' on b delete --force "$ID"
	"$CUTTER" - "$T/b" noise -
	wait_exit "$SPAWNED"
	grep -q "runs at" "$T/migrate.log"
	runs_at b
}

@test "lazy: neither a signal nor a reader that goes away ends it while memory comes" {
	local reader
	MODE=lazy
	listen_b
	small_guest
	cut_at flaky commit:1:24000000:1
	mkfifo "$T/progress"
	# Whoever starts it over ssh and is gone then.
	grep -m 1 '"step":"committing"' <"$T/progress" >"$T/seen" 3>&- &
	reader=$!
	spawn_on a "$T/progress" lazy-migrate --progress json --bandwidth 8M --stats "$T/stats" "$ID" "unix://$T/cut"
	wait "$reader"
	kill -HUP "$SPAWNED"
	kill -INT "$SPAWNED"
	kill -TERM "$SPAWNED"
	# What came before the connection was lost does not end the attempts to make another.
	wait_line "$T/cutter.log" '^cut$'
	wait_exit "$SPAWNED"
	cat "$T/receive.log"
	jq -e '.links_lost == 1 and .memory_bytes > 48000000' "$T/stats"
	runs_at b
	start_over

	# Then it can be ended, by whoever knows what that means.
	small_guest
	cut_at after committed
	spawn_on a "$T/migrate.log" lazy-migrate "$ID" "unix://$T/cut"
	wait_line "$T/migrate.log" 'connection is lost'
	kill -INT "$SPAWNED"
	wait_exit "$SPAWNED"
	grep 'outcome unconfirmed' "$T/migrate.log"
	has_status "$ID" paused
	settled
}

@test "lazy: systemd reloads while the memory comes, however long that takes" {
	MODE=lazy
	BUNDLE=$(debian_bundle "$ID")
	cp "$MEMORY" "$BUNDLE/rootfs/memory"
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
	guest "$ID" systemd-run --quiet --unit=hoard /memory 96 /count
	wait_lines "$BUNDLE/rootfs/count" 3
	listen_b
	# A connection that ends while tasks are restored, which wait for memory by then:
	# the kernel writes into an area that the C library has registered (rseq).
	cut_at after restore
	run -1 migrate --shared-storage "$ID" "unix://$T/cut"
	wait_until "$VZ_PATIENCE" nothing_at_b
	counts "$BUNDLE/rootfs/count"
	spawn_on a "$T/migrate.log" lazy-migrate --shared-storage --bandwidth 8M --stats "$T/stats" "$ID" "unix://$T/b"
	wait_until "$VZ_PATIENCE" has_reloaded
	# Not after all of it, when watchdogs may have ended services.
	[[ ! -e $T/stats ]]
	wait_exit "$SPAWNED"
	cat "$T/migrate.log" "$T/receive.log"
	jq -e '.memory_bytes > 96000000' "$T/stats"
	run ! grep 'did not reload' "$T/migrate.log" "$T/receive.log"
	counts "$BUNDLE/rootfs/count"
	[[ $(HOST=b guest "$ID" systemctl is-system-running) == running ]]
}

# has_reloaded: a guest boots without a reload.
has_reloaded() { HOST=b guest "$ID" journalctl --quiet --boot --identifier systemd --grep 'Reloading finished'; }

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
