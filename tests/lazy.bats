#!/usr/bin/env bats
# Memory that is not in the images: lazy checkpoints and restores between two
# state directories of one host, page servers, and what is left of each side when
# the other one fails.
# Suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

# bats file_tags=short

load helpers
load app

setup_file() {
	suite_setup
	MEMORY=$(build_command memory)
	export MEMORY
	with_lazy_pages
}

teardown_file() {
	restore_sysctls
	suite_teardown
}

setup() {
	vz_setup
	VZ_HOME=$VZ_ROOT
	VZ_AWAY=$(mktemp -d "/run/vzrun-test.$VZ_TAG.XXXXXX")
	IMAGES=$VZ_TMP/images
	ADDRESS=127.0.0.1:$((20000 + RANDOM % 12000))
}

teardown() {
	local id pid
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
		wait_exit "$pid"
	done
	for id in $(away list --quiet); do
		away delete --force "$id" || true
	done
	remove_tree "$VZ_AWAY"
	vz_teardown
}

# away ... is vzrun of the other host.
away() { "$VZRUN" --root "$VZ_AWAY" --id-record "$VZ_TMP/away.ids" "$@"; }

# away_bundle makes $AWAY, the other host's copy of $BUNDLE; they share the disk.
away_bundle() {
	AWAY=$VZ_TMP/away
	mkdir -m 0700 "$AWAY"
	cp "$BUNDLE/config.json" "$AWAY"
	edit_config "$AWAY" '.root.path = $ARGS.positional[0] | .linux.cgroupsPath += "-away"' "$BUNDLE/rootfs"
}

# rememberer makes $BUNDLE, of a guest that verifies its memory, and another
# for the other host, and runs the first.
rememberer() {
	BUNDLE=$(app_bundle "$ID" /memory 48 /log)
	cp "$MEMORY" "$BUNDLE/rootfs/memory"
	away_bundle
	LOG=$BUNDLE/rootfs/log
	app_up "$BUNDLE" "$ID"
	goes_on
}

# goes_on waits for two more rounds of a guest that has all of its memory.
goes_on() {
	wait_file "$LOG"
	wait_lines "$LOG" $(($(wc -l <"$LOG") + 2))
	if grep bad "$LOG"; then
		return 1
	fi
}

# serve [FLAG...] starts a lazy checkpoint, whose pid is $HOME_PID, and waits until
# memory can be asked for.
serve() {
	status_up
	spawn "$VZ_TMP/checkpoint.log" "$VZRUN" --root "$VZ_HOME" checkpoint --lazy-pages --page-server "$ADDRESS" \
		--status-fd 7 --image-path "$IMAGES" "$@" "$ID"
	HOME_PID=$SPAWNED
	status_ready || {
		cat "$VZ_TMP/checkpoint.log"
		return 1
	}
}

# status_up opens a pipe as descriptor 7, for --status-fd of what is spawned. It is open
# here, too: what a writer says who closes it at once would be gone.
status_up() {
	mkfifo "$VZ_TMP/status"
	exec 7<>"$VZ_TMP/status"
	rm "$VZ_TMP/status"
}

# status_ready waits for the byte.
status_ready() {
	timeout "$VZ_PATIENCE" head -c 1 <&7 >/dev/null || return
	exec 7>&-
}

# fetch starts the lazy restore, whose pid is $AWAY_PID.
fetch() {
	spawn "$VZ_TMP/restore.log" "$VZRUN" --root "$VZ_AWAY" --id-record "$VZ_TMP/away.ids" restore --detach --lazy-pages --page-server "$ADDRESS" \
		--bundle "$AWAY" --image-path "$IMAGES" --work-path "$VZ_TMP/work" --pid-file "$VZ_TMP/pid" "$ID"
	AWAY_PID=$SPAWNED
}

# ends PID CODE waits for one of the two.
ends() {
	local code=0
	wait "$1" || code=$?
	[[ $code -eq $2 ]] || {
		echo "ended with $code, not $2:"
		cat "$VZ_TMP"/*.log
		return 1
	}
}

# criu_of ROOT is the pid of the criu that an operation has noted.
criu_of() { jq -er .operation.criu "$1/@/$ID.json"; }

# holder_of ROOT is that of the process that keeps what is missing from being zeroes.
holder_of() { jq -er .operation.holder "$1/@/$ID.json"; }

is_step() { jq -e --arg step "$2" '.operation.step == $step' "$1/@/$ID.json"; }

# halfway stops the source's criu, so that the memory arrives only in part: of the
# rememberer there are pages that nobody else can read.
halfway() {
	HELD=$(criu_of "$VZ_HOME")
	kill -STOP "$HELD"
	fetch
	wait_until "$VZ_PATIENCE" is_step "$VZ_AWAY" arriving
	wait_until "$VZ_PATIENCE" is_step "$VZ_HOME" shared
}

gone_away() { fails 1 'does not exist' away state "$ID"; }

### It works

@test "a guest runs elsewhere before its memory is there, and has all of it" {
	rememberer
	serve --print-stats
	is_step "$VZ_HOME" serving
	fetch
	ends "$AWAY_PID" 0
	ends "$HOME_PID" 0
	[[ $(<"$VZ_TMP/pid") == $(away state "$ID" | jq .pid) ]]
	fails 1 'does not exist' vz state "$ID"
	jq -e '.sent > 40 * 1048576 and .bytes < 10 * 1048576' "$VZ_TMP/checkpoint.log"
	goes_on
	# What came lazily is saved like any other.
	away checkpoint --image-path "$IMAGES-2" "$ID"
	app_restore "$BUNDLE" "$ID" "$IMAGES-2"
	goes_on
	[[ ! -e $VZ_TMP/work/lazy-pages.socket && ! -e $VZ_TMP/work/lazy-pages ]]
}

@test "a whole Debian moves lazily" {
	local bundle
	bundle=$(debian_bundle "$ID")
	vz_up "$bundle" "$ID"
	wait_guest "$ID"
	BUNDLE=$bundle
	away_bundle
	serve --tcp-established
	fetch
	ends "$AWAY_PID" 0
	ends "$HOME_PID" 0
	VZ_ROOT=$VZ_AWAY
	wait_counter "$bundle/rootfs"
	verify_counter "$bundle/rootfs"
	guest "$ID" systemctl restart nginx
	[[ $(guest "$ID" systemctl is-system-running) == running ]]
	vz stop "$ID"
	VZ_ROOT=$VZ_HOME
}

@test "lazy from images on the disk" {
	rememberer
	vz checkpoint --image-path "$IMAGES" "$ID"
	app_launch restore --detach --lazy-pages --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	goes_on
	[[ $(status_of "$ID") == running ]]
}

@test "runc's way: the user's own criu lazy-pages" {
	local criu=${CRIU:-/usr/local/libexec/vzrun/criu}
	rememberer
	serve
	mkdir "$VZ_TMP/work"
	status_up
	spawn "$VZ_TMP/daemon" "$criu" lazy-pages --page-server --address "${ADDRESS%:*}" --port "${ADDRESS#*:}" \
		--images-dir "$IMAGES" --work-dir "$VZ_TMP/work" --status-fd 7
	status_ready
	app_launch --root "$VZ_AWAY" restore --detach --lazy-pages --bundle "$AWAY" --image-path "$IMAGES" --work-path "$VZ_TMP/work" "$ID"
	ends "$HOME_PID" 0
	goes_on
	[[ $(away state "$ID" | jq -r .status) == running ]]
}

@test "a page server gets the memory of a checkpoint" {
	local criu=${CRIU:-/usr/local/libexec/vzrun/criu}
	rememberer
	mkdir "$VZ_TMP/pages"
	status_up
	spawn "$VZ_TMP/server" "$criu" page-server --address "${ADDRESS%:*}" --port "${ADDRESS#*:}" --images-dir "$VZ_TMP/pages" --status-fd 7
	status_ready
	vz checkpoint --page-server "$ADDRESS" --image-path "$IMAGES" "$ID"
	ends "$SPAWNED" 0
	fails 1 'page server' vz restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	cp "$VZ_TMP"/pages/*.img "$IMAGES"
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	goes_on
}

### It fails

@test "nobody comes for the memory: interrupted, the container goes on" {
	rememberer
	serve
	kill -INT "$HOME_PID"
	ends "$HOME_PID" 1
	[[ $(status_of "$ID") == running ]]
	goes_on
	[[ -z $(find "$IMAGES" -name '*.img' -o -name vzrun.json) ]]
}

@test "vzrun is killed before anybody comes: the container goes on" {
	rememberer
	serve
	kill -KILL "$HOME_PID"
	ends "$HOME_PID" 137
	[[ $(status_of "$ID") == running ]]
	goes_on
	[[ ! -e $IMAGES/vzrun.json ]]
}

@test "the restore fails: the container goes on where it was" {
	rememberer
	serve
	cp "$MEMORY" "$BUNDLE/rootfs/memory.new"
	echo >>"$BUNDLE/rootfs/memory.new"
	mv "$BUNDLE/rootfs/memory.new" "$BUNDLE/rootfs/memory"
	fetch
	ends "$AWAY_PID" 1
	gone_away
	ends "$HOME_PID" 1
	grep 'could not restore' "$VZ_TMP/checkpoint.log"
	[[ $(status_of "$ID") == running ]]
	goes_on
}

@test "the process that fills the memory is killed: the guest ends there and goes on here" {
	rememberer
	serve
	halfway
	kill -KILL "$(holder_of "$VZ_AWAY")"
	ends "$AWAY_PID" 1
	gone_away
	ends "$HOME_PID" 1
	[[ $(status_of "$ID") == running ]]
	goes_on
}

@test "the other host is lost half-way: the container is paused, and resumes" {
	local at holder
	rememberer
	serve
	halfway
	holder=$(holder_of "$VZ_AWAY")
	kill -KILL "$AWAY_PID"
	ends "$AWAY_PID" 137
	kill -0 "$holder" # what is missing is no zeroes yet
	ends "$HOME_PID" 6
	grep 'hint: .*resume' "$VZ_TMP/checkpoint.log"
	[[ $(status_of "$ID") == paused ]]
	has_ended "$HELD"
	gone_away
	has_ended "$holder"
	at=$(wc -l <"$LOG")
	[[ $(wc -l <"$LOG") -eq $at ]]
	vz resume "$ID"
	goes_on
	vz checkpoint --leave-running --image-path "$IMAGES-2" "$ID"
}

@test "vzrun is killed before the guest is there: nothing stays" {
	local criu holder
	rememberer
	serve
	fetch
	wait_until "$VZ_PATIENCE" criu_of "$VZ_AWAY"
	criu=$(criu_of "$VZ_AWAY")
	kill -STOP "$criu"
	is_step "$VZ_AWAY" '' # it is being restored
	holder=$(holder_of "$VZ_AWAY")
	kill -KILL "$AWAY_PID"
	ends "$AWAY_PID" 137
	gone_away
	has_ended "$criu"
	has_ended "$holder"
	kill -INT "$HOME_PID" # nobody has asked for the memory yet
	ends "$HOME_PID" 1
	goes_on
}

@test "vzrun is killed half-way: paused here, ended there" {
	rememberer
	serve
	halfway
	kill -KILL "$HOME_PID"
	ends "$HOME_PID" 137
	ends "$AWAY_PID" 1
	gone_away
	[[ $(status_of "$ID") == paused ]]
	has_ended "$HELD"
	vz resume "$ID"
	goes_on
}

@test "CRIU is killed half-way: paused here, ended there" {
	rememberer
	serve
	halfway
	kill -KILL "$HELD"
	ends "$HOME_PID" 6
	ends "$AWAY_PID" 1
	gone_away
	[[ $(status_of "$ID") == paused ]]
	vz resume "$ID"
	goes_on
}

@test "a guest whose memory arrives is busy, and cannot be saved" {
	rememberer
	serve
	halfway
	fails 3 'busy' away checkpoint --image-path "$IMAGES-2" "$ID"
	kill -CONT "$HELD"
	ends "$AWAY_PID" 0
	ends "$HOME_PID" 0
	goes_on
}

### It is refused

@test "what cannot be is refused before anything is touched" {
	rememberer
	fails 1 'place to serve' vz checkpoint --lazy-pages --image-path "$IMAGES" "$ID"
	fails 1 'leaves it running' vz checkpoint --lazy-pages --leave-running --page-server "$ADDRESS" --image-path "$IMAGES" "$ID"
	fails 1 'no address' vz checkpoint --page-server here --image-path "$IMAGES" "$ID"
	fails 1 'page server' vz checkpoint --lazy-pages --page-server 192.0.2.1:7 --image-path "$IMAGES" "$ID"
	fails 1 'status-fd 9' vz checkpoint --lazy-pages --page-server "$ADDRESS" --status-fd 9 --image-path "$IMAGES" "$ID" 9<&-
	[[ $(status_of "$ID") == running ]]
	vz checkpoint --image-path "$IMAGES" "$ID"
	fails 1 'page server' vz restore --detach --lazy-pages --page-server "$ADDRESS" --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	fails 1 'does not exist' vz state "$ID"
}
