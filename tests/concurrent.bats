#!/usr/bin/env bats
# Many at once: on one id there is one winner and clear errors, different ids
# do not disturb each other, and whoever is killed in the middle leaves nothing
# that delete --force cannot clean. (tests/crash.bats kills one at a time.)
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() {
	vz_setup
	RESULTS=$VZ_TMP/results
}
teardown() { vz_teardown; }

# Seconds that any call may take beside a hundred others on a small machine.
patience=$((90 * ${VZ_SLOW:-1}))

# at_once runs each line of stdin as arguments of vzrun, all at the same time,
# and waits for them. $RESULTS gets one line for each: its exit code, its
# arguments and what it said, with tabs between.
at_once() {
	local pids=() pid line
	: >"$RESULTS"
	# Who shares this lock can go on when it is free.
	exec 7>"$VZ_TMP/gate"
	flock 7
	while read -r line; do
		call "$line" 3>&- 7>&- &
		pids+=($!)
	done
	exec 7>&-
	for pid in "${pids[@]}"; do
		wait "$pid" || true
	done
	AT_ONCE=${#pids[@]}
}

call() {
	local args said code=0 me=$BASHPID
	read -ra args <<<"$1"
	# A file for the log: a container keeps no pipe of ours open.
	flock --shared --close "$VZ_TMP/gate" timeout "$patience" "$VZRUN" --root "$VZ_ROOT" --log "$VZ_TMP/log.$me" "${args[@]}" \
		</dev/null >/dev/null 2>"$VZ_TMP/said.$me" || code=$?
	said=$(<"$VZ_TMP/said.$me")
	printf '%s\t%s\t%s\n' "$code" "$1" "${said//$'\n'/ | }" >>"$RESULTS"
}

# all_clear: every call of at_once ended by itself, with 0 or with one error that
# a caller can understand. 124 would be a call that hung; 255 is exec's.
all_clear() {
	[[ $(wc -l <"$RESULTS") -eq $AT_ONCE ]]
	! awk -F '\t' '$1 == 0 { next }
		($1 == 1 || $1 == 3 || $1 == 4 || $1 == 255 && $2 ~ /^exec/) &&
			$3 ~ /^vzrun: .*(busy|exist|status|not running|stopped|paused|no such process)/ &&
			$3 !~ /panic|goroutine|vzrun: .*vzrun: / { next }
		{ print "unclear end:", $0 }' "$RESULTS" | grep .
}

# winners VERB counts the calls that did what they were asked.
winners() { awk -F '\t' -v verb="$1" '$1 == 0 && index($2, verb) == 1 { n++ } END { print n + 0 }' "$RESULTS"; }

# repeat N WORD... prints a line N times.
repeat() {
	local i
	for ((i = 0; i < $1; i++)); do echo "${*:2}"; done
}

### One id

@test "a hundred creates of one id have one winner" {
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	at_once < <(repeat 100 create --bundle "$BUNDLE" "$ID")
	all_clear
	[[ $(winners create) -eq 1 ]]
	has_status "$ID" created
	vz start "$ID"
	has_status "$ID" running
	vz delete --force "$ID"
	assert_nothing_left
}

@test "fifty starts and fifty deletes of one id have one winner each" {
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	app_create "$BUNDLE" "$ID"
	at_once < <(repeat 50 start "$ID")
	all_clear
	[[ $(winners start) -eq 1 ]]
	has_status "$ID" running
	at_once < <(repeat 50 delete --force "$ID")
	all_clear
	(($(winners delete) >= 1))
	assert_nothing_left
}

@test "a hundred different calls on one id end, and leave one whole container or none" {
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	app_up "$BUNDLE" "$ID"
	at_once < <(
		{
			repeat 12 create --bundle "$BUNDLE" "$ID"
			repeat 8 run --detach --bundle "$BUNDLE" "$ID"
			repeat 12 start "$ID"
			repeat 12 kill "$ID" KILL
			repeat 12 delete --force "$ID"
			repeat 12 exec "$ID" true
			repeat 10 state "$ID"
			repeat 6 pause "$ID"
			repeat 8 resume "$ID"
			repeat 8 ps "$ID"
		} | shuf
	)
	((AT_ONCE == 100))
	all_clear
	# Whatever is there is what can be there.
	if [[ -n $(vz list --quiet) ]]; then
		[[ $(status_of "$ID") =~ ^(created|running|paused|stopped)$ ]]
	fi
	vz delete --force "$ID" || [[ -z $(vz list --quiet) ]]
	assert_nothing_left
	# The id is as good as new.
	app_up "$BUNDLE" "$ID"
	[[ $(guest "$ID" echo works) == works ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "pauses and resumes of one id leave it running, with all its exec" {
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	app_up "$BUNDLE" "$ID"
	# An exec waits for as long as the last pause lasts, so somebody resumes.
	# shellcheck disable=SC2016 # for the inner shell
	spawn "$VZ_TMP/resumer" bash -c 'while :; do "$1" --root "$2" resume "$3"; sleep 0.1; done' resumer "$VZRUN" "$VZ_ROOT" "$ID"
	at_once < <({
		repeat 20 pause "$ID"
		repeat 20 resume "$ID"
		repeat 20 exec --ignore-paused --detach "$ID" true
	} | shuf)
	all_clear
	kill "$SPAWNED"
	wait_exit "$SPAWNED"
	! has_status "$ID" paused || vz resume "$ID"
	has_status "$ID" running
	[[ $(guest "$ID" echo works) == works ]]
	wait_until 10 only_init
}

only_init() { [[ $(vz ps -f json "$ID" | jq length) -eq 1 ]]; }

### Different ids

@test "a hundred creates of different ids all succeed, and list never fails" {
	local n lister
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	# Each has a cgroup of its own, and they share the rootfs.
	for ((n = 1; n <= 100; n++)); do
		mkdir "$VZ_TMP/b$n"
		jq '.linux.cgroupsPath = $ARGS.positional[0] | .root = {path: $ARGS.positional[1], readonly: true}' \
			"$BUNDLE/config.json" --args -- "$(cgroup_of "$ID-$n")" "$BUNDLE/rootfs" >"$VZ_TMP/b$n/config.json"
	done
	spawn "$VZ_TMP/lists" bash -c '
		echo ready
		until [[ -e $1/enough ]]; do
			"$2" --root "$3" list --format json >"$1/list.json" 2>"$1/list.err" && jq -e "type == \"array\"" "$1/list.json" >/dev/null && [[ ! -s $1/list.err ]] || { echo "list failed"; cat "$1/list.err"; }
			"$2" --root "$3" list >/dev/null || echo "list failed"
		done
		echo done' - "$VZ_TMP" "$VZRUN" "$VZ_ROOT"
	lister=$SPAWNED
	wait_line "$VZ_TMP/lists" '^ready$'
	at_once < <(for ((n = 1; n <= 100; n++)); do echo "create --bundle $VZ_TMP/b$n $ID-$n"; done)
	all_clear
	[[ $(winners create) -eq 100 ]]
	[[ $(vz list --quiet | wc -l) -eq 100 ]]
	[[ $(vz list -f json | jq '[.[] | select(.status == "created")] | length') -eq 100 ]]
	at_once < <(for ((n = 1; n <= 100; n++)); do echo "delete --force $ID-$n"; done)
	touch "$VZ_TMP/enough"
	wait "$lister"
	run ! grep -A3 'list failed' "$VZ_TMP/lists"
	all_clear
	[[ $(winners delete) -eq 100 ]]
	assert_nothing_left
}

### Killed in the middle

@test "engines that are killed in the middle leave nothing that delete --force cannot clean" {
	local round i pids pid seed=${VZ_SEED:-$RANDOM} id verb
	echo "VZ_SEED=$seed repeats this"
	RANDOM=$seed
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	for ((round = 0; round < 6; round++)); do
		pids=()
		# Several at work on the same ids, and all of them die.
		for ((i = 0; i < 12; i++)); do
			id=$ID-$((RANDOM % 3))
			case $((RANDOM % 5)) in
			0) verb=(create --bundle "$BUNDLE-$id") ;;
			1) verb=(run --detach --bundle "$BUNDLE-$id") ;;
			2) verb=(start) ;;
			3) verb=(delete --force) ;;
			4) verb=(kill) ;;
			esac
			if ((round == 0 && i < 3)); then
				id=$ID-$i
				cp -a "$BUNDLE" "$BUNDLE-$id"
				edit_config "$BUNDLE-$id" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
				verb=(run --detach --bundle "$BUNDLE-$id")
			fi
			[[ -d $BUNDLE-$id ]] || continue
			"$VZRUN" --root "$VZ_ROOT" "${verb[@]}" "$id" </dev/null >/dev/null 2>&1 3>&- &
			pids+=($!)
		done
		# The random moment is what is tested.
		sleep "0.$(printf %03d $((RANDOM % 400)))"
		for pid in "${pids[@]}"; do
			kill -KILL "$pid" 2>/dev/null || true
		done
		for pid in "${pids[@]}"; do
			wait "$pid" 2>/dev/null || true
		done
		((round % 2)) || continue
		for id in "$ID"-{0,1,2}; do
			run -0 vz list
			run vz delete --force "$id"
			[[ $status -eq 0 || $output == *"does not exist"* ]] || {
				echo "$output"
				return 1
			}
		done
		run -0 --separate-stderr vz list
		[[ ${#lines[@]} -eq 1 && -z $stderr ]] || {
			echo "deleted, and still there:"
			echo "$output$stderr"
			return 1
		}
	done
	for id in "$ID"-{0,1,2}; do
		vz delete --force "$id" 2>/dev/null || true
	done
	assert_nothing_left
	for i in 0 1 2; do
		app_up "$BUNDLE-$ID-$i" "$ID-$i"
		[[ $(guest "$ID-$i" echo works) == works ]]
		vz delete --force "$ID-$i"
	done
	assert_nothing_left
}
