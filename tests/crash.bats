#!/usr/bin/env bats
# vzrun is killed in the middle of what it does: the next call finds its way, no
# container is lost, the rootfs is untouched, nothing is left over.
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() { vz_teardown; }

# The counter's own folder is all that its guest writes to.
count=var/lib/vzcount

# start VERB [FLAG...] ID starts vzrun itself, whose pid is $SPAWNED then; a
# function in between would be killed in its place.
start() { spawn "$VZ_TMP/$1.log" "$VZRUN" --root "$VZ_ROOT" "$@"; }

# crash kills the vzrun that start began, and fails if it was over.
crash() {
	local code=0
	kill -KILL "$SPAWNED"
	wait "$SPAWNED" || code=$?
	[[ $code -eq 137 ]] || {
		echo "vzrun had ended with $code before it was killed:"
		cat "$VZ_TMP"/*.log
		return 1
	}
}

# crash_after SECONDS VERB... runs vzrun and kills it, unless it is over before.
crash_after() {
	local code=0
	timeout --foreground --signal=KILL "$1" "$VZRUN" --root "$VZ_ROOT" --log "$VZ_TMP/launch.log" "${@:2}" \
		</dev/null >/dev/null 2>&1 3>&- || code=$?
	# timeout says 124 where the kill met a process that had just ended.
	[[ $code -eq 0 || $code -eq 124 || $code -eq 137 ]] || {
		echo "$2 failed with $code:"
		cat "$VZ_TMP/launch.log"
		return 1
	}
	CRASHED=$((code == 137))
}

# took CMD... sets TOOK to the milliseconds that it takes.
took() {
	local began=${EPOCHREALTIME/./}
	"$@"
	TOOK=$(((${EPOCHREALTIME/./} - began) / 1000))
}

# crash_within MS VERB... is crash_after, at a moment drawn from so many milliseconds.
crash_within() {
	local ms=$((1 + RANDOM % $1)) # timeout takes 0 for never
	crash_after "$((ms / 1000)).$(printf %03d $((ms % 1000)))" "${@:2}"
}

# crash_at DIR NAME VERB... starts vzrun and kills it when a file NAME appears
# in DIR.
crash_at() {
	local watcher
	mkdir -p "$1"
	spawn "$VZ_TMP/watch" inotifywait -e create,moved_to --include "/$2\$" "$1"
	watcher=$SPAWNED
	wait_line "$VZ_TMP/watch" 'Watches established'
	start "${@:3}"
	wait "$watcher"
	kill -KILL "$SPAWNED" || true
	wait "$SPAWNED" || true
}

# in_journal OPERATION: the crash has left this operation unfinished.
in_journal() { jq -e --arg name "$1" '.operation.name == $name' "$VZ_ROOT/@/$ID.json"; }

# counter makes the bundle $BUNDLE of a counter, and $BEFORE of its rootfs.
counter() {
	BUNDLE=$(app_bundle "$ID" /usr/local/bin/vzguest count "/$count/log")
	mkdir -p "$BUNDLE/rootfs/$count"
	BEFORE=$(tree_sum "$BUNDLE/rootfs" "$count")
	IMAGES=$VZ_TMP/images
}

counter_up() {
	counter
	app_up "$BUNDLE" "$ID"
	wait_counter "$BUNDLE/rootfs"
}

# counter_lives: the counter runs on, or can be restored from whole images;
# either way it goes on counting without a gap.
counter_lives() {
	local status
	status=$(status_of "$ID")
	case $status in
	running) ;;
	'' | stopped)
		[[ -e $IMAGES/vzrun.json ]]
		vz delete --force "$ID"
		app_restore "$BUNDLE" "$ID" "$IMAGES"
		;;
	*)
		echo "the counter is $status"
		return 1
		;;
	esac
	wait_counter "$BUNDLE/rootfs"
	[[ $(guest "$ID" echo works) == works ]]
	[[ ! -e $VZ_ROOT/@/$ID.json ]] || jq -e '.operation == null' "$VZ_ROOT/@/$ID.json"
	verify_counter "$BUNDLE/rootfs"
}

# clean_end: what all of this leaves is a rootfs as it was.
clean_end() {
	vz delete --force "$ID"
	assert_nothing_left
	[[ $(tree_sum "$BUNDLE/rootfs" "$count") == "$BEFORE" ]]
}

# hold makes a hook of $BUNDLE wait. When held returns it does, and $HOOK is its
# pid; it ends with the test.
hold() {
	mkfifo "$VZ_TMP/gate"
	edit_config "$BUNDLE" '.hooks[$ARGS.positional[0]] = [{path: "/bin/sh", args: ["sh", "-c", "echo $$ >$1/held.new; mv $1/held.new $1/held; read -r _ <$1/gate", "sh", $ARGS.positional[1]],
		env: ["PATH=/usr/bin:/bin"]}]' "$1" "$VZ_TMP"
}

held() {
	wait_file "$VZ_TMP/held"
	HOOK=$(<"$VZ_TMP/held")
	VZ_SPAWNED+=("$HOOK")
}

unhold() {
	kill -KILL "$HOOK"
	wait_exit "$HOOK"
	rm "$VZ_TMP/held" "$VZ_TMP/gate"
	edit_config "$BUNDLE" 'del(.hooks)'
}

# slow_criu writes a criu to $CRIU that waits before it works for a container.
slow_criu() {
	local criu
	criu=$(real_criu)
	CRIU=$VZ_TMP/criu
	mkfifo "$VZ_TMP/gate"
	cat >"$CRIU" <<-EOF
		#!/bin/sh
		if [ "\$1" = swrk ]; then
			echo \$\$ >'$VZ_TMP/held.new'
			mv '$VZ_TMP/held.new' '$VZ_TMP/held'
			read -r _ <'$VZ_TMP/gate'
		fi
		exec '$criu' "\$@"
	EOF
	chmod +x "$CRIU"
}

# real_criu prints the criu that vzrun finds.
real_criu() {
	local criu
	for criu in "$(dirname "$VZRUN")/../libexec/vzrun/criu" /usr/local/libexec/vzrun/criu /usr/libexec/vzrun/criu criu; do
		command -v "$criu" && return
	done
}

let_criu_go() { timeout "$VZ_PATIENCE" tee "$VZ_TMP/gate" <<<go >/dev/null; }

### create

@test "create is killed while a hook runs, and the id can be used again" {
	counter
	hold createRuntime
	start create --bundle "$BUNDLE" "$ID"
	held
	crash
	in_journal create
	unhold
	app_create "$BUNDLE" "$ID"
	vz start "$ID"
	wait_counter "$BUNDLE/rootfs"
	clean_end
}

@test "create is killed while a hook runs, and delete --force cleans up" {
	counter
	hold createRuntime
	start create --bundle "$BUNDLE" "$ID"
	held
	crash
	[[ -n $(find /sys/fs/cgroup -path "*$(cgroup_of "$ID")") ]]
	run -0 --separate-stderr vz delete --force "$ID"
	[[ -z $output$stderr ]]
	clean_end
}

@test "create is killed while a hook runs, and whoever looks cleans up" {
	counter
	hold createRuntime
	start run --detach --bundle "$BUNDLE" "$ID"
	held
	crash
	fails 1 'does not exist' vz state "$ID"
	[[ -z $(vz list -q) ]]
	clean_end
}

@test "create and run are killed at any moment" {
	local ms verb crashes=0
	counter
	for ((ms = 4; ms <= 90; ms += 7)); do
		verb=(create)
		((ms % 2)) || verb=(run --detach)
		crash_after "0.$(printf %03d $ms)" "${verb[@]}" --bundle "$BUNDLE" "$ID"
		crashes=$((crashes + CRASHED))
		clean_end
	done
	echo "$crashes crashes"
	((crashes > 0))
	app_up "$BUNDLE" "$ID"
	wait_counter "$BUNDLE/rootfs"
	clean_end
}

### checkpoint

@test "checkpoint is killed before CRIU begins" {
	counter_up
	slow_criu
	spawn "$VZ_TMP/checkpoint.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" checkpoint --image-path "$IMAGES" "$ID"
	wait_file "$VZ_TMP/held"
	fails 3 'busy' vz delete --force "$ID"
	crash
	in_journal checkpoint
	let_criu_go
	counter_lives
	[[ ! -e $IMAGES/vzrun.json ]]
	# The same place may be used again.
	vz checkpoint --image-path "$IMAGES" "$ID"
	counter_lives
	clean_end
}

@test "two checkpoints into one directory: the second is refused, and not undone with the first" {
	local other=$ID-other bundle
	counter_up
	bundle=$(app_bundle "$other" sleep 1000)
	app_up "$bundle" "$other"
	slow_criu
	spawn "$VZ_TMP/checkpoint.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" checkpoint --image-path "$IMAGES" "$ID"
	wait_file "$VZ_TMP/held"
	fails 3 'another checkpoint or a restore is at work' vz checkpoint --image-path "$IMAGES" "$other"
	fails 3 'a checkpoint writes into' vz restore --detach --bundle "$bundle" --image-path "$IMAGES" "$other-new"
	has_status "$other" running
	crash
	# CRIU has not written anything yet: there is room for another.
	vz checkpoint --image-path "$IMAGES" "$other"
	let_criu_go
	has_status "$ID" running
	app_restore "$bundle" "$other" "$IMAGES"
	has_status "$other" running
	vz delete --force "$other"
	IMAGES=$VZ_TMP/images-own
	counter_lives
	clean_end
}

@test "images that are read are not replaced, and those that are written are not read" {
	counter_up
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	fails 3 'at work on the images' flock --shared "$IMAGES" "$VZRUN" --root "$VZ_ROOT" checkpoint --image-path "$IMAGES" "$ID"
	has_status "$ID" running
	# Nobody has the directory when that is over: no child of vzrun, no guest.
	flock --nonblock "$IMAGES" true
	vz checkpoint --image-path "$IMAGES" "$ID"
	fails 3 'a checkpoint writes into' flock "$IMAGES" "$VZRUN" --root "$VZ_ROOT" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	fails 3 'at work on the images' flock --shared "$IMAGES" "$VZRUN" --root "$VZ_ROOT" restore --detach --auto-dedup --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	flock --shared --close "$IMAGES" "$VZRUN" --root "$VZ_ROOT" --log "$VZ_TMP/launch.log" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID" </dev/null >/dev/null 2>&1 3>&-
	flock --nonblock "$IMAGES" true
	counter_lives
	clean_end
}

@test "checkpoint is killed while CRIU dumps" {
	local file
	counter_up
	for file in dump.log pages-1.img inventory.img; do
		IMAGES=$VZ_TMP/images-$file
		crash_at "$IMAGES" "$file" checkpoint --image-path "$IMAGES" "$ID"
		counter_lives
	done
	clean_end
}

@test "checkpoint is killed at any moment, and the next call freezes again what was frozen" {
	local ice file
	counter_up
	ice=$(jq -er '.cgroup_paths[""]' "$VZ_ROOT/$ID/state.json")/ice
	lacks 'cgroup.freeze (Linux 5.2)' test -e "${ice%/ice}/cgroup.freeze"
	mkdir "$ice"
	pid_of "$ID" >"$ice/cgroup.procs"
	echo 1 >"$ice/cgroup.freeze"
	wait_until 10 grep -qx 'frozen 1' "$ice/cgroup.events"
	for file in dump.log inventory.img pages-1.img vzrun.json; do
		crash_at "$VZ_TMP/images-$file" "$file" checkpoint --leave-running --image-path "$VZ_TMP/images-$file" "$ID"
		has_status "$ID" running
		grep -qx 'frozen 1' "$ice/cgroup.events"
	done
	echo 0 >"$ice/cgroup.freeze"
	IMAGES=$VZ_TMP/images
	counter_lives
	clean_end
}

@test "checkpoint is killed when the images are whole" {
	counter_up
	for flag in --leave-running ''; do
		IMAGES=$VZ_TMP/images$flag
		crash_at "$IMAGES" vzrun.json checkpoint --image-path "$IMAGES" ${flag:+"$flag"} "$ID"
		[[ -e $IMAGES/vzrun.json ]]
		counter_lives
	done
	clean_end
}

@test "a checkpoint stays until the one that replaces it is whole" {
	local file before
	counter_up
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	before=$(cd "$IMAGES" && sha256sum ./*.img vzrun.json)
	slow_criu
	spawn "$VZ_TMP/checkpoint.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" checkpoint --image-path "$IMAGES" "$ID"
	wait_file "$VZ_TMP/held"
	[[ ! -e $IMAGES/vzrun.json && -d $IMAGES/.replaced ]]
	crash
	let_criu_go
	has_status "$ID" running
	[[ $(cd "$IMAGES" && sha256sum ./*.img vzrun.json) == "$before" && ! -e $IMAGES/.replaced ]]
	for file in dump.log pages-1.img inventory.img vzrun.json; do
		rm -f "$IMAGES/dump.log"
		crash_at "$IMAGES" "$file" checkpoint --leave-running --image-path "$IMAGES" "$ID"
		has_status "$ID" running
		[[ -e $IMAGES/vzrun.json && ! -e $IMAGES/.replaced ]]
		vz checkpoint inspect "$IMAGES"
	done
	vz checkpoint --image-path "$IMAGES" "$ID"
	[[ $(cd "$IMAGES" && sha256sum ./*.img vzrun.json) != "$before" && ! -e $IMAGES/.replaced ]]
	counter_lives
	clean_end
}

@test "CRIU itself is killed" {
	local code=0
	counter_up
	slow_criu
	spawn "$VZ_TMP/checkpoint.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" checkpoint --image-path "$IMAGES" "$ID"
	wait_file "$VZ_TMP/held"
	kill -KILL "$(<"$VZ_TMP/held")"
	wait "$SPAWNED" || code=$?
	[[ $code -eq 1 ]]
	counter_lives
	clean_end
}

### restore

@test "restore is killed before CRIU begins" {
	counter_up
	vz checkpoint --image-path "$IMAGES" "$ID"
	slow_criu
	spawn "$VZ_TMP/restore.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	wait_file "$VZ_TMP/held"
	crash
	in_journal restore
	let_criu_go
	counter_lives
	clean_end
}

@test "restore is killed while CRIU restores" {
	local file
	counter_up
	vz checkpoint --image-path "$IMAGES" "$ID"
	for file in restore.log stats-restore; do
		crash_at "$VZ_TMP/work" "$file" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" --work-path "$VZ_TMP/work" "$ID"
		rm -r "$VZ_TMP/work"
		counter_lives
		IMAGES=$IMAGES-2
		vz checkpoint --image-path "$IMAGES" "$ID"
	done
	counter_lives
	clean_end
}

@test "restore is killed while a hook runs" {
	counter_up
	vz checkpoint --image-path "$IMAGES" "$ID"
	hold createRuntime
	start restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	held
	crash
	in_journal restore
	unhold
	counter_lives
	clean_end
}

@test "fifteen kills at random moments of checkpoint and restore lose no container" {
	local i from saving restoring seed=${VZ_SEED:-$RANDOM} crashes=0
	echo "VZ_SEED=$seed draws the same moments"
	RANDOM=$seed
	counter_up
	took vz checkpoint --image-path "$IMAGES" "$ID"
	saving=$TOOK
	vz delete --force "$ID"
	took app_restore "$BUNDLE" "$ID" "$IMAGES"
	restoring=$TOOK
	for ((i = 0; i < 15; i++)); do
		from=$IMAGES
		if [[ $(status_of "$ID") == running ]]; then
			IMAGES=$VZ_TMP/images-$i
			crash_within "$saving" checkpoint --image-path "$IMAGES" "$ID"
			crashes=$((crashes + CRASHED))
		fi
		# Half of the time it is restored whether or not it was to be killed.
		if ((RANDOM % 2)) && [[ -e $IMAGES/vzrun.json ]] && ! has_status "$ID" running; then
			vz delete --force "$ID"
			crash_within "$restoring" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
			crashes=$((crashes + CRASHED))
		fi
		counter_lives
		[[ $from == "$IMAGES" ]] || rm -rf "$from"
	done
	echo "$crashes crashes"
	((crashes >= 3))
	clean_end
}

### delete and stop

@test "delete is killed at any moment" {
	local ms crashes=0
	counter
	for ((ms = 2; ms <= 44; ms += 6)); do
		app_up "$BUNDLE" "$ID"
		wait_counter "$BUNDLE/rootfs" 1
		crash_after "0.$(printf %03d $ms)" delete --force "$ID"
		crashes=$((crashes + CRASHED))
		clean_end
	done
	echo "$crashes crashes"
	((crashes > 0))
}

@test "delete is killed while a hook runs" {
	counter
	hold poststop
	app_up "$BUNDLE" "$ID"
	start delete --force "$ID"
	held
	crash
	fails 1 'does not exist' vz state "$ID"
	unhold
	clean_end
	app_up "$BUNDLE" "$ID"
	wait_counter "$BUNDLE/rootfs"
	clean_end
}

@test "stop is killed while it waits" {
	BUNDLE=$(app_bundle "$ID" sh -c 'trap "touch /asked" TERM; touch /ready; while :; do sleep 0.05; done')
	app_up "$BUNDLE" "$ID"
	wait_file "$BUNDLE/rootfs/ready"
	start stop --timeout "$(slow 60)s" "$ID"
	wait_file "$BUNDLE/rootfs/asked"
	crash
	has_status "$ID" running
	[[ $(guest "$ID" echo works) == works ]]
	vz stop --timeout 0 "$ID"
	has_status "$ID" stopped
	vz delete "$ID"
	assert_nothing_left
}
