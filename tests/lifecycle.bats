#!/usr/bin/env bats
# The verbs that containers live by, against real containers.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	suite_setup
	RECVTTY=$(build_command recvtty)
	export RECVTTY
}
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() { vz_teardown; }

# up ARG... runs a container in the background; $BUNDLE is its bundle.
up() {
	BUNDLE=$(busybox_bundle "$ID" "$@")
	app_up "$BUNDLE" "$ID"
}

# foreground ARG... makes the bundle of a container to be run in the foreground.
foreground() { BUNDLE=$(busybox_bundle "$ID" "$@"); }

receive() {
	rm -f "$VZ_TMP/socket"
	spawn "$VZ_TMP/received" "$RECVTTY" "$1" "$VZ_TMP/socket"
	wait_line "$VZ_TMP/received" '^listening$'
}

### spec and features

@test "spec writes a configuration and never replaces one" {
	mkdir "$VZ_TMP/b"
	run -0 --separate-stderr vz spec --bundle "$VZ_TMP/b"
	[[ -z $output ]]
	jq -e '.ociVersion | startswith("1.")' "$VZ_TMP/b/config.json"
	jq -e '.process.args == ["sh"] and .root.path == "rootfs"' "$VZ_TMP/b/config.json"
	jq -e '[.linux.namespaces[].type] | contains(["pid", "network", "ipc", "uts", "mount"])' "$VZ_TMP/b/config.json"
	fails 1 'config.json: file exists' vz spec --bundle "$VZ_TMP/b"
	fails 1 'no such file' vz spec --bundle "$VZ_TMP/nowhere"
	(cd "$VZ_TMP" && vz spec)
	[[ -s $VZ_TMP/config.json ]]
}

@test "features says as JSON what is supported" {
	vz features >"$VZ_TMP/features"
	jq -e '.ociVersionMin and .ociVersionMax' "$VZ_TMP/features"
	jq -e '.hooks | contains(["createRuntime", "poststop"])' "$VZ_TMP/features"
	jq -e '.linux.namespaces | contains(["cgroup", "ipc", "mount", "network", "pid", "user", "uts"])' "$VZ_TMP/features"
	jq -e '.linux.cgroup.v1 == true and .linux.cgroup.v2 == true' "$VZ_TMP/features"
	jq -e '.linux.seccomp.enabled == true' "$VZ_TMP/features"
	jq -e '.mountOptions | contains(["ro", "bind"])' "$VZ_TMP/features"
}

### create, start, state, list, delete

@test "create prepares, start lets go, delete removes" {
	local pid
	BUNDLE=$(busybox_bundle "$ID" sh -c 'echo started >/mark; exec sleep 1000')
	vz create --bundle "$BUNDLE" --pid-file "$VZ_TMP/pid" "$ID" </dev/null >/dev/null 2>&1 3>&-
	has_status "$ID" created
	pid=$(pid_of "$ID")
	[[ $(<"$VZ_TMP/pid") == "$pid" ]]
	[[ -d /proc/$pid && ! -e $BUNDLE/rootfs/mark ]]
	run -0 --separate-stderr vz start "$ID"
	[[ -z $output$stderr ]]
	has_status "$ID" running
	[[ $(pid_of "$ID") == "$pid" ]]
	wait_file "$BUNDLE/rootfs/mark"
	fails 4 'wrong status: it is running' vz start "$ID"
	vz kill "$ID" KILL
	wait_status "$ID" stopped
	run -0 --separate-stderr vz delete "$ID"
	[[ -z $output$stderr ]]
	assert_nothing_left
}

@test "a created container can be deleted without ever being started" {
	app_create "$(busybox_bundle "$ID" true)" "$ID"
	vz delete "$ID"
	assert_nothing_left
}

@test "state has the keys that runc's has" {
	up sleep 1000
	vz state "$ID" >"$VZ_TMP/state"
	jq -e --arg id "$ID" --arg bundle "$BUNDLE" '.id == $id and .bundle == $bundle and .rootfs == $bundle + "/rootfs"' "$VZ_TMP/state"
	jq -e '.status == "running" and .owner == "root" and (.pid | type) == "number"' "$VZ_TMP/state"
	jq -e '(.ociVersion | startswith("1.")) and (.created | sub("\\.[0-9]+"; "") | fromdate > 0)' "$VZ_TMP/state"
	[[ $(jq -r 'keys | join(" ")' "$VZ_TMP/state") == "bundle created id ociVersion owner pid rootfs status" ]]
	[[ $(readlink "/proc/$(pid_of "$ID")/exe") == */busybox ]]
}

@test "annotations of the bundle show in its state" {
	BUNDLE=$(busybox_bundle "$ID" true)
	edit_config "$BUNDLE" '.annotations = {"org.example.key": "value"}'
	app_create "$BUNDLE" "$ID"
	vz state "$ID" | jq -e '.annotations["org.example.key"] == "value"'
}

@test "two containers live side by side, and list shows both" {
	local a=$ID-a b=$ID-b bundle_a bundle_b
	bundle_a=$(busybox_bundle "$a" sleep 1000)
	bundle_b=$(busybox_bundle "$b" sleep 1000)
	[[ $(vz list -f json) == "[]" ]]
	[[ -z $(vz list -q) ]]
	app_up "$bundle_b" "$b"
	app_create "$bundle_a" "$a"
	[[ $(vz list --quiet) == "$a"$'\n'"$b" ]]
	vz list --format json >"$VZ_TMP/list"
	jq -e --arg a "$a" --arg b "$b" '[.[] | {id, status}] == [{id: $a, status: "created"}, {id: $b, status: "running"}]' "$VZ_TMP/list"
	jq -e --argjson one "$(vz state "$b")" '.[1] == $one' "$VZ_TMP/list"
	vz list >"$VZ_TMP/table"
	[[ $(awk 'NR == 1 { $1 = $1; print }' "$VZ_TMP/table") == "ID PID STATUS BUNDLE CREATED OWNER" ]]
	[[ $(awk -v id="$b" '$1 == id { print $2, $3, $4, $6 }' "$VZ_TMP/table") == "$(pid_of "$b") running $bundle_b root" ]]
	[[ $(netns_of "$(pid_of "$a")") != "$(netns_of "$(pid_of "$b")")" ]]
	vz delete --force "$b"
	[[ $(vz list -q) == "$a" ]]
	has_status "$a" created
}

@test "an id is taken once, also if eight ask at the same time" {
	local i n=8 won=0 pids=() code
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	for ((i = 0; i < n; i++)); do
		vz create --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>"$VZ_TMP/error.$i" 3>&- &
		pids+=($!)
	done
	for ((i = 0; i < n; i++)); do
		code=0
		wait "${pids[i]}" || code=$?
		case $code in
		0) won=$((won + 1)) ;;
		1) grep -q 'container already exists' "$VZ_TMP/error.$i" ;;
		3) grep -q 'container is busy' "$VZ_TMP/error.$i" ;;
		*) false ;;
		esac
	done
	[[ $won -eq 1 ]]
	vz start "$ID"
	has_status "$ID" running
	fails 1 'container already exists' vz create --bundle "$BUNDLE" "$ID"
	has_status "$ID" running
}

@test "a container that somebody changes is busy, and can be looked at" {
	up sleep 1000
	# The lock is flock(2)'s, so the kernel frees it whatever becomes of its holder.
	spawn "$VZ_TMP/holder" flock --no-fork "$VZ_ROOT/@/$ID.lock" sh -c 'echo held; exec sleep 1000'
	wait_line "$VZ_TMP/holder" '^held$'
	fails 3 'busy' vz delete --force "$ID"
	fails 3 'busy' vz pause "$ID"
	fails 3 'busy' vz stop "$ID"
	fails 3 'busy' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	has_status "$ID" running
	[[ $(vz list -q) == "$ID" ]]
	[[ $(guest "$ID" echo works) == works ]]
	vz kill "$ID" KILL
}

@test "a container that is being created is busy" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	mkfifo "$VZ_TMP/gate"
	edit_config "$BUNDLE" '.hooks.createRuntime = [{path: "/bin/sh", args: ["sh", "-c", "read -r _ <" + $ARGS.positional[0]]}]' "$VZ_TMP/gate"
	spawn "$VZ_TMP/create" vz create --bundle "$BUNDLE" "$ID"
	# Who opens the gate for writing waits until the hook has opened it, too.
	exec {gate}>"$VZ_TMP/gate"
	fails 3 'busy' vz create --bundle "$BUNDLE" "$ID"
	# Not "does not exist": it soon will.
	fails 3 'busy' vz delete --force "$ID"
	fails 3 'busy' vz start "$ID"
	[[ -z $(vz list -q) ]]
	echo >&"$gate"
	exec {gate}>&-
	wait "$SPAWNED"
	vz start "$ID"
	has_status "$ID" running
}

@test "delete refuses a running container, and kills it with --force" {
	local pid
	up sleep 1000
	pid=$(pid_of "$ID")
	fails 4 'wrong status: it is running' vz delete "$ID"
	[[ -d /proc/$pid ]]
	vz pause "$ID"
	fails 4 'wrong status: it is paused' vz delete "$ID"
	run -0 --separate-stderr vz delete --force "$ID"
	[[ -z $output$stderr ]]
	has_ended "$pid"
	run -0 --separate-stderr vz delete --force "$ID"
	[[ -z $output$stderr ]]
	fails 1 'does not exist' vz delete "$ID"
}

@test "nothing is left of a deleted container, and its rootfs is untouched" {
	local before net pid
	BUNDLE=$(busybox_bundle "$ID" sh -c 'sleep 2000 & exec sleep 1000')
	edit_config "$BUNDLE" '.root.readonly = true'
	before=$(tree_sum "$BUNDLE/rootfs")
	app_up "$BUNDLE" "$ID"
	pid=$(pid_of "$ID")
	net=$(netns_of "$pid")
	[[ -n $(find /sys/fs/cgroup -path "*$(cgroup_of "$ID")") ]]
	netns_exists "$net"
	# Two: what exec started must go, too.
	vz exec --detach "$ID" sleep 3000 </dev/null >/dev/null 2>&1 3>&-
	vz delete --force "$ID"
	assert_nothing_left
	wait_until 5 netns_gone "$net"
	[[ $(tree_sum "$BUNDLE/rootfs") == "$before" ]]
}

@test "the state of a container whose init has died is stopped" {
	local pid
	up sleep 1000
	pid=$(pid_of "$ID")
	kill -KILL "$pid"
	wait_exit "$pid"
	has_status "$ID" stopped
	[[ $(pid_of "$ID") == 0 ]]
	[[ $(vz list -f json | jq -r '.[0].status') == stopped ]]
	fails 4 'stopped' vz start "$ID"
	fails 4 'stopped' vz pause "$ID"
	fails 4 'stopped' vz resume "$ID"
	fails 4 'not running' vz kill "$ID"
	run -0 vz kill --all "$ID"
	run -0 vz stop "$ID"
	fails 255 'stopped' vz exec "$ID" true
	fails 4 'stopped' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	vz delete "$ID"
	assert_nothing_left
}

### run

@test "run passes on exit codes, 128 and more for signals, and deletes" {
	local code
	for code in 0 1 3 126 255; do
		foreground sh -c "exit $code"
		run "-$code" --separate-stderr vz run --bundle "$BUNDLE" "$ID"
		[[ -z $output$stderr ]]
		rm -rf "$BUNDLE"
	done
	# Init has no default action for signals, except for those from outside.
	foreground sh -c 'echo up; exec sleep 1000'
	spawn "$VZ_TMP/out" vz run --bundle "$BUNDLE" "$ID"
	wait_line "$VZ_TMP/out" '^up$'
	vz kill "$ID" KILL
	code=0
	wait "$SPAWNED" || code=$?
	[[ $code -eq 137 ]]
	assert_nothing_left
}

@test "run says so when the program is not there" {
	foreground /no/such/program
	run -1 --separate-stderr vz run --bundle "$BUNDLE" "$ID"
	[[ -z $output && ${stderr_lines[0]} == "vzrun: "*"/no/such/program: no such file or directory" ]]
	assert_nothing_left
}

@test "run connects stdin, stdout and stderr" {
	foreground sh -c 'cat; echo to-stderr >&2; echo "$#"' sh a 'b c'
	run -0 --separate-stderr vz run --bundle "$BUNDLE" "$ID" < <(printf 'one\ntwo\n')
	[[ $output == $'one\ntwo\n2' ]]
	[[ $stderr == to-stderr ]]
	# Much more than a pipe holds.
	foreground_again sh -c 'sha256sum | cut -c 1-64'
	head -c 3000000 /dev/urandom >"$VZ_TMP/data"
	[[ $(vz run --bundle "$BUNDLE" "$ID" <"$VZ_TMP/data") == "$(sha256sum <"$VZ_TMP/data" | cut -c 1-64)" ]]
}

foreground_again() { edit_config "$BUNDLE" '.process.args = $ARGS.positional' "$@"; }

@test "run --keep leaves a stopped container" {
	foreground sh -c 'exit 7'
	run -7 vz run --keep --bundle "$BUNDLE" "$ID"
	has_status "$ID" stopped
	vz delete "$ID"
	assert_nothing_left
}

@test "run --detach returns and writes the pid" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	vz run -d -b "$BUNDLE" --pid-file "$VZ_TMP/pid" "$ID" </dev/null >/dev/null 2>&1 3>&-
	has_status "$ID" running
	[[ $(<"$VZ_TMP/pid") == "$(pid_of "$ID")" ]]
	[[ -z $(find "$VZ_TMP" -maxdepth 1 -name '.pid*') ]]
}

@test "a pid file that cannot be written leaves no container" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	run -1 --separate-stderr vz run -d -b "$BUNDLE" --pid-file "$VZ_TMP/no/pid" "$ID"
	[[ $stderr == *"pid file"* ]]
	run -1 --separate-stderr vz create -b "$BUNDLE" --pid-file "$VZ_TMP/no/pid" "$ID"
	[[ $stderr == *"pid file"* ]]
	assert_nothing_left
}

@test "run takes the working directory for the bundle" {
	foreground cat /etc/hostname
	cd "$BUNDLE"
	[[ $(vz run "$ID") == busybox ]]
}

@test "a container begins with no signal ignored, whoever starts vzrun" {
	# As shells do for what is in the background of a script, and nohup.
	deaf() { sh -c 'trap "" HUP INT; exec "$@"' sh "$VZRUN" --root "$VZ_ROOT" "$@"; }
	# hears reads a SigIgn line. 32 and 33 are the C library's own: its posix_spawn(3),
	# which make uses, leaves them ignored.
	hears() {
		local name mask
		read -r name mask
		echo "$name $mask"
		[[ $name == SigIgn: ]] && ! ((0x$mask & 0x7fffffff))
	}
	BUNDLE=$(busybox_bundle "$ID" grep SigIgn /proc/self/status)
	deaf run --bundle "$BUNDLE" "$ID" </dev/null | hears
	edit_config "$BUNDLE" '.process.args = ["sleep", "1000"]'
	deaf run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	deaf exec "$ID" grep SigIgn /proc/self/status </dev/null | hears
	grep SigIgn "/proc/$(pid_of "$ID")/status" | hears
}

@test "run forwards signals to the container" {
	local signal code
	foreground sh -c 'trap "echo got-usr1" USR1; trap "echo got-hup" HUP; trap "echo got-term; exit 42" TERM
		echo ready; while :; do sleep 0.05; done'
	# Not through vz: a shell in between would get the signals.
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	wait_line "$VZ_TMP/out" '^ready$'
	for signal in USR1 HUP TERM; do
		kill "-$signal" "$SPAWNED"
		wait_line "$VZ_TMP/out" "^got-${signal,,}$"
	done
	code=0
	wait "$SPAWNED" || code=$?
	[[ $code -eq 42 ]]
	assert_nothing_left
}

@test "a container outlives a run that is killed" {
	foreground sh -c 'echo ready; exec sleep 1000'
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	wait_line "$VZ_TMP/out" '^ready$'
	kill -KILL "$SPAWNED"
	wait_exit "$SPAWNED"
	has_status "$ID" running
	[[ $(guest "$ID" echo works) == works ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "file descriptors are handed on when asked for, and only then" {
	foreground sh -c 'cat <&3; ls /proc/self/fd | wc -l'
	echo from-outside >"$VZ_TMP/file"
	# 0, 1, 2, 3 and that of the directory which ls reads.
	run -0 --separate-stderr vz run --bundle "$BUNDLE" --preserve-fds 1 "$ID" 3<"$VZ_TMP/file"
	[[ $output == $'from-outside\n5' ]]
	foreground_again sh -c 'ls /proc/self/fd | wc -l'
	[[ $(vz run --bundle "$BUNDLE" "$ID" 4<"$VZ_TMP/file") == 4 ]]
	fails 1 'descriptor 9.* not open' vz run --bundle "$BUNDLE" --preserve-fds 7 "$ID" 3</dev/null 4</dev/null 5</dev/null 6</dev/null 7</dev/null 8</dev/null 9<&-
}

@test "an id is free when its delete has ended, and not before" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	mkfifo "$VZ_TMP/gate"
	edit_config "$BUNDLE" '.hooks.poststop = [{path: "/bin/sh", args: ["sh", "-c", "read -r _ <" + $ARGS.positional[0]]}]' "$VZ_TMP/gate"
	app_up "$BUNDLE" "$ID"
	spawn "$VZ_TMP/delete" vz delete --force "$ID"
	exec {gate}>"$VZ_TMP/gate"
	edit_config "$BUNDLE" 'del(.hooks)'
	fails 3 'busy' vz create --bundle "$BUNDLE" "$ID"
	echo >&"$gate"
	exec {gate}>&-
	wait "$SPAWNED"
	app_up "$BUNDLE" "$ID"
	has_status "$ID" running
}

@test "hooks are told the state, and run in their order" {
	local kinds=(prestart createRuntime poststart poststop)
	foreground sh -c 'echo process >&2'
	write_hooks "${kinds[@]}"
	vz run --bundle "$BUNDLE" "$ID" 2>/dev/null
	[[ $(<"$VZ_TMP/hooks") == "prestart $ID creating
createRuntime $ID creating
poststart $ID created
poststop $ID stopped" ]]
}

# write_hooks KIND... makes each hook note its kind, and id and status as told.
write_hooks() {
	local kind
	cat >"$VZ_TMP/hook" <<-'EOF'
		#!/bin/sh
		jq -r --arg kind "$2" '$kind + " " + .id + " " + .status' >>"$1"
	EOF
	chmod +x "$VZ_TMP/hook"
	edit_config "$BUNDLE" '.hooks = {}'
	for kind; do
		edit_config "$BUNDLE" '.hooks[$ARGS.positional[2]] = [{path: $ARGS.positional[0], args: ["hook", $ARGS.positional[1], $ARGS.positional[2]],
			env: ["PATH=/usr/local/bin:/usr/bin:/bin"]}]' "$VZ_TMP/hook" "$VZ_TMP/hooks" "$kind"
	done
}

@test "a hook that fails undoes the create" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	edit_config "$BUNDLE" '.hooks.createRuntime = [{path: "/bin/sh", args: ["sh", "-c", "exit 3"]}]'
	run -1 --separate-stderr vz create --bundle "$BUNDLE" "$ID"
	[[ $stderr == *"exit status 3"* ]]
	assert_nothing_left
}

### exec

@test "exec passes on exit codes, 128 and more for signals, 255 for none" {
	local code
	up sleep 1000
	for code in 0 1 42 255; do
		run "-$code" --separate-stderr guest "$ID" sh -c "exit $code"
		[[ -z $output$stderr ]]
	done
	run -143 guest "$ID" sh -c 'kill -TERM $$'
	run -137 guest "$ID" sh -c 'kill -KILL $$'
	run -255 --separate-stderr guest "$ID" /no/such/program
	[[ $stderr == *"no such file or directory"* ]]
	fails 2 'argument is missing' vz exec "$ID"
	fails 255 'does not exist' vz exec nobody-"$ID" true
	has_status "$ID" running
}

@test "exec sets environment, directory, user and groups" {
	up sleep 1000
	edit_config "$BUNDLE" '.process.env += ["FROM=config"]'
	[[ $(guest -e A=1,2 -e 'B=x y' "$ID" sh -c 'echo "$A|$B|$FROM"') == "1,2|x y|config" ]]
	[[ $(guest --cwd /etc "$ID" pwd) == /etc ]]
	[[ $(guest "$ID" pwd) == / ]]
	[[ $(guest --user 1000:1001 -g 7 -g 8 "$ID" sh -c 'id -u; id -g; id -G') == $'1000\n1001\n1001 7 8' ]]
	[[ $(guest -u 12 "$ID" id -u) == 12 ]]
	[[ $(guest "$ID" id -u) == 0 ]]
	fails 2 'no numeric id' guest --user nobody "$ID" id
}

@test "exec drops privileges like init, and raises what it is asked to" {
	local net_admin=$((1 << 12))
	up sleep 1000
	caps() { guest "$@" "$ID" awk '/^CapEff/ { print $2 }' /proc/self/status; }
	(((16#$(caps) & net_admin) == 0))
	(((16#$(caps --cap CAP_NET_ADMIN) & net_admin) != 0))
	[[ $(guest "$ID" awk '/^NoNewPrivs/ { print $2 }' /proc/self/status) == 1 ]]
	[[ $(guest --no-new-privs=false "$ID" awk '/^NoNewPrivs/ { print $2 }' /proc/self/status) == 0 ]]
}

@test "exec connects stdin, stdout and stderr" {
	up sleep 1000
	run -0 --separate-stderr vz exec "$ID" sh -c 'cat; echo oops >&2' < <(printf 'one\ntwo')
	[[ $output == $'one\ntwo' && $stderr == oops ]]
}

@test "exec --process takes the process from a file" {
	up sleep 1000
	jq '.process | .args = ["sh", "-c", "pwd; echo $X"] | .cwd = "/tmp" | .env += ["X=y"]' "$BUNDLE/config.json" >"$VZ_TMP/process.json"
	[[ $(guest --process "$VZ_TMP/process.json" "$ID") == $'/tmp\ny' ]]
	run -255 --separate-stderr vz exec --process "$VZ_TMP/none" "$ID"
	[[ $stderr == "vzrun: "*"none: no such file or directory"* ]]
	echo nonsense >"$VZ_TMP/process.json"
	run -255 --separate-stderr vz exec --process "$VZ_TMP/process.json" "$ID"
	[[ $stderr == "vzrun: "*process.json* ]]
}

@test "exec --detach returns and writes the pid" {
	up sleep 1000
	vz exec --detach --pid-file "$VZ_TMP/pid" "$ID" sleep 2000 </dev/null >/dev/null 2>&1 3>&-
	# As with runc, it may return a moment before the execve(2) itself.
	wait_until "$VZ_PATIENCE" grep -qzx sleep "/proc/$(<"$VZ_TMP/pid")/cmdline"
	[[ $(tr '\0' ' ' <"/proc/$(<"$VZ_TMP/pid")/cmdline") == "sleep 2000 " ]]
	vz ps -f json "$ID" | jq -e --argjson pid "$(<"$VZ_TMP/pid")" 'index($pid) != null'
}

@test "exec joins all of the container's namespaces and its cgroups" {
	local ns pid
	up sleep 1000
	pid=$(pid_of "$ID")
	for ns in ipc mnt net pid uts; do
		[[ $(guest "$ID" readlink "/proc/self/ns/$ns") == "$(readlink "/proc/$pid/ns/$ns")" ]]
	done
	# From inside, a cgroup namespace hides where the cgroups are.
	[[ $(guest "$ID" cat /proc/self/cgroup) == "$(guest "$ID" cat /proc/1/cgroup)" ]]
	grep -qF "$(cgroup_of "$ID")" "/proc/$pid/cgroup"
}

@test "exec forwards signals" {
	local code=0
	up sleep 1000
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" exec "$ID" sh -c 'trap "echo got-term; exit 9" TERM; echo ready; while :; do sleep 0.05; done'
	wait_line "$VZ_TMP/out" '^ready$'
	kill -TERM "$SPAWNED"
	wait "$SPAWNED" || code=$?
	[[ $code -eq 9 ]]
	grep -qx got-term "$VZ_TMP/out"
	has_status "$ID" running
}

### Terminals

@test "create --console-socket hands out the terminal" {
	BUNDLE=$(busybox_bundle "$ID" sh -c 'tty; stty size; exec sleep 1000')
	edit_config "$BUNDLE" '.process.terminal = true | .process.consoleSize = {height: 21, width: 77}'
	fails 1 'terminal' vz create --bundle "$BUNDLE" "$ID"
	assert_nothing_left
	receive tty
	vz create --bundle "$BUNDLE" --console-socket "$VZ_TMP/socket" "$ID" </dev/null >/dev/null 2>&1 3>&-
	wait_line "$VZ_TMP/received" '^terminal received'
	vz start "$ID"
	wait_line "$VZ_TMP/received" '^/dev/(console|pts/0)'
	wait_line "$VZ_TMP/received" '^21 77'
	vz delete --force "$ID"
	wait_exit "$SPAWNED" # the terminal is hung up
	run -1 --separate-stderr vz create --bundle "$BUNDLE" --console-socket "$VZ_TMP/nothing" "$ID"
	[[ $stderr == "vzrun: "*"console socket: "*"no such file or directory"* ]]
	assert_nothing_left
}

@test "exec --tty in a terminal connects both" {
	local code=0
	up sleep 1000
	# script(1) is the terminal that the caller sits at.
	script --quiet --return --log-out "$VZ_TMP/typescript" \
		--command "'$VZRUN' --root '$VZ_ROOT' exec --tty '$ID' sh -c 'tty; stty size; exit 5'" </dev/null >/dev/null || code=$?
	[[ $code -eq 5 ]]
	grep -q '/dev/pts/' "$VZ_TMP/typescript"
	fails 255 'terminal' setsid --wait "$VZRUN" --root "$VZ_ROOT" exec --tty "$ID" true </dev/null
}

@test "exec --tty --detach hands out the terminal" {
	up sleep 1000
	receive tty
	vz exec --tty --detach --console-socket "$VZ_TMP/socket" "$ID" sh -c 'tty && echo is-a-terminal' </dev/null >/dev/null 2>&1 3>&-
	wait_line "$VZ_TMP/received" '^is-a-terminal'
	wait_exit "$SPAWNED"
	fails 255 'nobody would hold it' vz exec --tty --detach "$ID" true
}

@test "run and exec --pidfd-socket send a pidfd" {
	BUNDLE=$(busybox_bundle "$ID" sleep 1000)
	receive pidfd
	vz run --detach --bundle "$BUNDLE" --pidfd-socket "$VZ_TMP/socket" "$ID" </dev/null >/dev/null 2>&1 3>&-
	wait_line "$VZ_TMP/received" "^$(pid_of "$ID")\$"
	receive pidfd
	vz exec --detach --pid-file "$VZ_TMP/pid" --pidfd-socket "$VZ_TMP/socket" "$ID" sleep 1000 </dev/null >/dev/null 2>&1 3>&-
	wait_line "$VZ_TMP/received" "^$(<"$VZ_TMP/pid")\$"
}

### kill, ps, pause, resume, stop

@test "kill sends TERM, or what it is told, by name or number" {
	local name
	BUNDLE=$(busybox_bundle "$ID" sh -c 'for s in TERM USR1 USR2 HUP INT; do trap "echo got-$s" $s; done; echo ready; while :; do sleep 0.05; done')
	# A file of its own, since wait_line looks at all of it.
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^ready$'
	for name in '' USR1 SIGUSR2 1 int; do
		vz kill "$ID" ${name:+"$name"}
		case $name in
		'') wait_line "$VZ_TMP/out" '^got-TERM$' ;;
		1) wait_line "$VZ_TMP/out" '^got-HUP$' ;;
		int) wait_line "$VZ_TMP/out" '^got-INT$' ;;
		*) wait_line "$VZ_TMP/out" "^got-${name#SIG}\$" ;;
		esac
	done
	vz kill "$ID" 0
	fails 2 'unknown signal' vz kill "$ID" NONSENSE
	has_status "$ID" running
}

@test "kill --all reaches every process" {
	BUNDLE=$(busybox_bundle "$ID" sh -c '
		worker() { trap "echo worker; exit" USR1; echo ready; while :; do sleep 0.05; done; }
		trap "echo init" USR1; worker & worker & while :; do sleep 0.05; done')
	# Shells tell on stderr which signals have ended their children.
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>/dev/null 3>&-
	wait_lines "$VZ_TMP/out" 2
	vz kill --all "$ID" USR1
	wait_lines "$VZ_TMP/out" 5
	[[ $(sort "$VZ_TMP/out" | uniq -c | awk '{ print $1 $2 }' | xargs) == "1init 2ready 2worker" ]]
	vz kill --all "$ID" KILL
	wait_status "$ID" stopped
	vz kill --all "$ID" KILL
}

@test "ps lists the processes as a table, as JSON and with ps's own options" {
	up sh -c 'sleep 2000 & exec sleep 1000'
	wait_until 10 has_pids 2
	vz ps --format json "$ID" | jq -e --argjson pid "$(pid_of "$ID")" 'index($pid) != null'
	vz ps "$ID" >"$VZ_TMP/ps"
	[[ $(awk 'NR > 1 { print $2 }' "$VZ_TMP/ps" | sort -n) == "$(vz ps -f json "$ID" | jq '.[]' | sort -n)" ]]
	grep -q '^UID ' "$VZ_TMP/ps"
	[[ $(vz ps "$ID" -o pid,args | awk 'NR > 1 { $1 = ""; print }' | sort) == " sleep 1000"$'\n'" sleep 2000" ]]
	fails 2 'PID column' vz ps "$ID" -o args
}

has_pids() { [[ $(vz ps -f json "$ID" | jq length) -eq $1 ]]; }

@test "pause freezes, resume lets go on" {
	local made waiting
	BUNDLE=$(busybox_bundle "$ID" /usr/local/bin/vzguest count /var/lib/vzcount/log)
	app_up "$BUNDLE" "$ID"
	wait_counter "$BUNDLE/rootfs"
	vz pause "$ID"
	has_status "$ID" paused
	made=$(wc -l <"$BUNDLE/rootfs/var/lib/vzcount/log")
	fails 255 'paused' vz exec "$ID" true
	fails 4 'paused' vz start "$ID"
	vz exec --ignore-paused --detach "$ID" touch /was-here </dev/null >/dev/null 2>&1 3>&- &
	waiting=$!
	# It would have made five steps in a tenth of the time that this takes.
	run -1 wait_lines "$BUNDLE/rootfs/var/lib/vzcount/log" $((made + 1)) 1
	[[ ! -e $BUNDLE/rootfs/was-here ]]
	vz resume "$ID"
	has_status "$ID" running
	wait_counter "$BUNDLE/rootfs"
	wait_file "$BUNDLE/rootfs/was-here"
	wait "$waiting"
	fails 4 'running' vz resume "$ID"
	verify_counter "$BUNDLE/rootfs"
}

@test "stop asks first, kills after the timeout, and deletes nothing" {
	BUNDLE=$(busybox_bundle "$ID" sh -c 'trap "echo asked; exit 0" TERM; echo ready; while :; do sleep 0.05; done')
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^ready$'
	run -0 vz stop "$ID"
	has_status "$ID" stopped
	grep -qx asked "$VZ_TMP/out"
	vz delete "$ID"
	foreground_again sh -c 'trap "" TERM; echo ready; while :; do sleep 0.05; done'
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^ready$'
	run -0 vz stop --timeout 200ms "$ID"
	has_status "$ID" stopped
	vz delete "$ID"
	assert_nothing_left
}

@test "stop, and run that stays with the guest, end in either order" {
	local n code
	for n in 1 2 3 4 5; do
		code=0
		BUNDLE=$(busybox_bundle "$ID-$n" sh -c 'trap "exit 7" TERM; echo ready; while :; do sleep 0.02; done')
		spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" --id-record "$VZ_TMP/ids.json" run --bundle "$BUNDLE" "$ID-$n"
		wait_line "$VZ_TMP/out" '^ready$'
		run -0 vz stop "$ID-$n"
		wait "$SPAWNED" || code=$?
		[[ $code == 7 ]]
		run -1 grep '^vzrun:' "$VZ_TMP/out"
	done
	assert_nothing_left
}

@test "stop leaves alone a container that has got the id meanwhile" {
	BUNDLE=$(busybox_bundle "$ID" sh -c 'trap "touch /asked" TERM; touch /ready; while :; do sleep 0.02; done')
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_file "$BUNDLE/rootfs/ready"
	spawn "$VZ_TMP/stop" "$VZRUN" --root "$VZ_ROOT" --id-record "$VZ_TMP/ids.json" stop "$ID"
	wait_file "$BUNDLE/rootfs/asked"
	kill -STOP "$SPAWNED"
	vz delete --force "$ID"
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	kill -CONT "$SPAWNED"
	wait "$SPAWNED"
	has_status "$ID" running
}

### The log

@test "the error is in a JSON log exactly once, and on stderr" {
	run -1 --separate-stderr vz --log "$VZ_TMP/log" --log-format json state nobody-"$ID"
	[[ ${stderr_lines[0]} == "vzrun: "*"does not exist" ]]
	[[ $(jq -r 'select(.level == "error") | .msg' "$VZ_TMP/log") == "${stderr_lines[0]#vzrun: }" ]]
	jq -es 'all(.[]; .time and .msg and .level)' "$VZ_TMP/log"
}
