#!/usr/bin/env bats
# Containers of a user who is not root, and of an engine that is root of a user
# namespace only. The user is a number: nothing is added to the machine.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016

load helpers
load app

USER_ID=54321

setup_file() {
	suite_setup
	# The user may not be let to where the binary is.
	copy_vzrun "$BATS_FILE_TMPDIR/vzrun"
	chmod o+x "$BATS_FILE_TMPDIR" "$BATS_RUN_TMPDIR"
	export SHARED_VZRUN=$BATS_FILE_TMPDIR/vzrun
}
teardown_file() { suite_teardown; }
setup() {
	vz_setup
	chown "$USER_ID:$USER_ID" "$VZ_ROOT" "$VZ_TMP"
}
teardown() {
	vz_teardown
	remove_cgroups
}

# as_user CMD...
as_user() {
	setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups --bounding-set=-all --inh-caps=-all -- \
		env -i PATH="$PATH" HOME=/ XDG_RUNTIME_DIR="$VZ_TMP/runtime" "$@"
}

# uz is vzrun as that user.
uz() { as_user "$SHARED_VZRUN" --root "$VZ_ROOT" "$@" </dev/null; }

# up ARG... runs the user's container in the background.
up() {
	box "$@"
	uz run --detach --bundle "$BUNDLE" "$ID" >"$VZ_TMP/up" 2>&1 3>&- || { cat "$VZ_TMP/up" && return 1; }
}

# box ARG... makes a bundle of the user's, $BUNDLE.
box() {
	BUNDLE=$VZ_TMP/$ID
	new_bundle "$BUNDLE" "$VZRUN_BUSYBOX"
	chown -R "$USER_ID:$USER_ID" "$BUNDLE"
	uz spec --rootless --bundle "$BUNDLE"
	conf '.process.terminal = false | .process.args = $ARGS.positional | .root.readonly = false' "$@"
}

conf() { edit_config "$BUNDLE" "$@"; }

@test "a user runs a container, as its root and as nobody else" {
	box sh -c 'id -u; id -g; cat /proc/self/uid_map; touch /made; hostname; ps | wc -l; echo $$'
	run -0 --separate-stderr uz run --bundle "$BUNDLE" "$ID"
	[[ -z $stderr ]]
	[[ ${lines[0]} == 0 && ${lines[1]} == 0 && ${lines[2]} =~ ^\ +0\ +$USER_ID\ +1$ ]]
	[[ ${lines[3]} == vzrun && ${lines[5]} == 1 ]]
	# ps itself, the shell, its subshell and a headline.
	((lines[4] <= 4))
	[[ $(stat -c %u "$BUNDLE/rootfs/made") == "$USER_ID" ]]
	assert_nothing_left
}

@test "all of a container's life is the user's" {
	local pid
	box sleep 1000
	uz create --bundle "$BUNDLE" --pid-file "$VZ_TMP/pid" "$ID" >/dev/null 2>&1 3>&-
	pid=$(<"$VZ_TMP/pid")
	[[ $(uz state "$ID" | jq -r .status) == created && $(stat -c %u "/proc/$pid") == "$USER_ID" ]]
	uz start "$ID"
	uz list --format json | jq -e --arg id "$ID" --argjson pid "$pid" '.[0].id == $id and .[0].pid == $pid and .[0].status == "running" and .[0].owner == "'"$USER_ID"'"'
	[[ $(uz exec "$ID" sh -c 'id -u; readlink /proc/self/ns/pid') == "0"$'\n'"$(readlink "/proc/$pid/ns/pid")" ]]
	run -7 uz exec "$ID" sh -c 'exit 7'
	fails 4 'running' uz start "$ID"
	uz kill "$ID" KILL
	wait_status "$ID" stopped
	uz delete "$ID"
	assert_nothing_left
}

@test "ps and kill --all find the processes without a cgroup" {
	up sh -c 'trap "" USR1; sleep 2000 & sleep 2000 & wait'
	wait_until 10 has_processes 3
	uz ps "$ID" | grep -q 'sleep 2000'
	[[ -z $(find /sys/fs/cgroup -type d -name "*$ID*") ]]
	uz kill --all "$ID" KILL
	wait_status "$ID" stopped
	[[ $(uz ps --format json "$ID") == "[]" ]]
	uz delete "$ID"
	assert_nothing_left
}

has_processes() { [[ $(uz ps --format json "$ID" | jq length) -eq $1 ]]; }

@test "delete --force ends a container that has no cgroup" {
	local pid
	up sleep 1000
	pid=$(pid_of "$ID")
	uz delete --force "$ID"
	wait_exit "$pid"
	assert_nothing_left
}

@test "what only root or a cgroup can do is refused in clear words" {
	box sleep 1000
	cp "$BUNDLE/config.json" "$VZ_TMP/good.json"
	conf '.linux.namespaces |= map(select(.type != "user")) | del(.linux.uidMappings, .linux.gidMappings)'
	fails 5 "user id $USER_ID may create containers in a user namespace only" uz run --bundle "$BUNDLE" "$ID"
	cp "$VZ_TMP/good.json" "$BUNDLE/config.json"
	conf '.annotations = {"org.vzrun.rootfs": "idmap"}'
	fails 5 'id-mapped rootfs' uz run --bundle "$BUNDLE" "$ID"
	cp "$VZ_TMP/good.json" "$BUNDLE/config.json"
	conf '.linux.resources = {pids: {limit: 5}}'
	run -1 --separate-stderr uz run --bundle "$BUNDLE" "$ID"
	# In the words of cgroup v1, or of cgroup2.
	[[ $stderr == *"vzrun: create $ID: "*"cannot set pids limit"* || $stderr == *"vzrun: create $ID: "*"rootless needs no limits"* ]]
	[[ $stderr == *"hint: leave linux.resources out"* ]]
	cp "$VZ_TMP/good.json" "$BUNDLE/config.json"
	run -1 --separate-stderr uz --rootless=false run --bundle "$BUNDLE" "$ID"
	[[ $stderr == "vzrun: "*[Pp]"ermission denied"* ]]
	fails 2 'neither true, false nor auto' uz --rootless=perhaps run --bundle "$BUNDLE" "$ID"
	assert_nothing_left
	uz run --detach --bundle "$BUNDLE" "$ID" >/dev/null 2>&1 3>&-
	# In the words of cgroup v1, or of cgroup2.
	fails 5 'cgroups not configured|freezer not supported' uz pause "$ID"
	[[ $(uz state "$ID" | jq -r .status) == running ]]
}

@test "one user's container is nobody else's" {
	up sleep 1000
	run ! setpriv --reuid 54322 --regid 54322 --clear-groups --bounding-set=-all -- "$SHARED_VZRUN" --root "$VZ_ROOT" kill "$ID" KILL
	run ! setpriv --reuid 54322 --regid 54322 --clear-groups --bounding-set=-all -- "$SHARED_VZRUN" --root "$VZ_ROOT" exec "$ID" true
	has_status "$ID" running
}

@test "a user's state is below the user's runtime directory" {
	box true
	mkdir "$VZ_TMP/runtime"
	chown "$USER_ID" "$VZ_TMP/runtime"
	as_user "$SHARED_VZRUN" create --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>&1 3>&-
	[[ -d $VZ_TMP/runtime/vzrun/$ID ]]
	as_user "$SHARED_VZRUN" delete --force "$ID"
}

### Root of a user namespace, as a user's engine is

# in_userns CMD... runs it as root of the namespace that the holder has, with
# mounts of its own.
in_userns() { nsenter --user --target "$HOLDER" --setuid 0 --setgid 0 -- unshare --mount -- "$@" </dev/null; }

hold_userns() {
	spawn "$VZ_TMP/holder" unshare --user sh -c 'echo ready; exec sleep 1000'
	HOLDER=$SPAWNED
	wait_line "$VZ_TMP/holder" '^ready$'
	echo "0 $USER_ID 1000" >"/proc/$HOLDER/uid_map"
	echo "0 $USER_ID 1000" >"/proc/$HOLDER/gid_map"
}

@test "root of a user namespace runs a container without one of its own" {
	BUNDLE=$(busybox_bundle "$ID" sh -c 'id -u; id -G; cat /proc/self/uid_map; awk "/^CapEff/ { print \$2 }" /proc/self/status')
	chown -R "$USER_ID:$USER_ID" "$BUNDLE" "$VZ_ROOT"
	# With a path the cgroup would be a must; such engines give none.
	conf 'del(.linux.cgroupsPath) | .process.user = {uid: 33, gid: 33, additionalGids: [44]} | del(.linux.resources)
		| .mounts |= map(select(.type != "cgroup"))'
	hold_userns
	run -0 --separate-stderr in_userns "$SHARED_VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	[[ ${lines[0]} == 33 && ${lines[1]} == "33 44" && ${lines[2]} =~ ^\ +0\ +$USER_ID\ +1000$ ]]
	run -1 --separate-stderr in_userns "$SHARED_VZRUN" --root "$VZ_ROOT" --rootless=false run --bundle "$BUNDLE" "$ID"
	[[ $stderr == "vzrun: "*ermission\ denied* ]]
	assert_nothing_left
}

### With a cgroup that the user was given

pure_cgroup2() { [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; }

# delegate makes cgroups for the user; on v1 one in every hierarchy. $JOINED are those
# that its programs start in: on cgroup2 one beside which a container's is made, as
# processes and controllers do not go together.
delegate() {
	local dir
	JOINED=()
	for dir in $(cgroup_mounts); do
		dir=$dir/vzrun-test-$VZ_TAG
		if pure_cgroup2; then
			JOINED+=("$dir/programs")
		else
			JOINED+=("$dir")
		fi
		mkdir -p "${JOINED[-1]}"
		if [[ -e $dir/cpuset.cpus && -e $dir/cpuset.mems && $dir == */cpuset/* ]]; then
			cat "${dir%/*}/cpuset.cpus" >"$dir/cpuset.cpus"
			cat "${dir%/*}/cpuset.mems" >"$dir/cpuset.mems"
		fi
		chown -R "$USER_ID:$USER_ID" "$dir"
	done
}

cgroup_mounts() {
	if pure_cgroup2; then
		echo /sys/fs/cgroup
	else
		findmnt --noheadings --raw --output TARGET --types cgroup
	fi
}

remove_cgroups() {
	find /sys/fs/cgroup -depth -type d -path "*vzrun-test-$VZ_TAG*" -exec rmdir {} + 2>/dev/null || true
}

@test "in cgroups of its own the user's limits hold" {
	box sh -c 'for i in 1 2 3 4 5 6; do sleep 1000 & done; echo all'
	conf '.linux.resources = {pids: {limit: 4}}'
	delegate
	U=$USER_ID V=$SHARED_VZRUN R=$VZ_ROOT B=$BUNDLE I=$ID run --separate-stderr sh -c 'for dir; do echo $$ >"$dir/cgroup.procs" || exit; done
		exec setpriv --reuid "$U" --regid "$U" --clear-groups "$V" --root "$R" run --bundle "$B" "$I"' \
		sh "${JOINED[@]}"
	[[ $status -ne 0 && $stderr == *"Resource temporarily unavailable"* ]]
}
