#!/usr/bin/env bats
# What a container and its surroundings tell each other: hooks, the agent of a
# seccomp filter, a service manager's sockets.
# $ARGS is jq's, other variables in single quotes the guest's and the hooks'.
# shellcheck disable=SC2016

load helpers
load app

setup_file() {
	suite_setup
	PEER=$(build_command peer)
	export PEER
}
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() { vz_teardown; }

# box ARG... makes a bundle, $BUNDLE, with $PEER in it.
box() {
	BUNDLE=$(busybox_bundle "$ID" "$@")
	cp "$PEER" "$BUNDLE/rootfs/peer"
}

# conf FILTER [ARG...] changes its configuration.
conf() { edit_config "$BUNDLE" "$@"; }

# now runs it in the foreground.
now() { vz run --bundle "$BUNDLE" "$ID" </dev/null; }

# quietly VERB... leaves no descriptor of bats to the container.
quietly() { vz "$@" </dev/null >"$VZ_TMP/quietly" 2>&1 3>&- || { cat "$VZ_TMP/quietly" && return 1; }; }

### Hooks

# hook KIND SCRIPT [TIMEOUT] adds a hook: the shell script, with $VZ_TMP/hooks
# for its working directory, in the container as well.
hook() {
	conf '.hooks[$ARGS.positional[0]] += [{path: "/bin/sh", args: ["sh", "-c", "cd \($ARGS.positional[2]); " + $ARGS.positional[1]],
		env: ["PATH=/usr/bin:/bin", "KIND=" + $ARGS.positional[0]]} + (if $ARGS.positional[3] then {timeout: ($ARGS.positional[3] | tonumber)} else {} end)]' \
		"$1" "$2" "$([[ $1 == startContainer ]] && echo /hooks || echo "$VZ_TMP/hooks")" ${3:+"$3"}
}

# with_hooks KIND... makes each note its name and what it is told.
with_hooks() {
	local kind
	mkdir -p "$VZ_TMP/hooks"
	conf '.mounts += [{destination: "/hooks", type: "bind", source: $ARGS.positional[0], options: ["bind", "rw"]}] | .annotations = {color: "red"}' "$VZ_TMP/hooks"
	for kind; do
		hook "$kind" 'echo $KIND >>order; cat >$KIND.json; readlink /proc/self/ns/mnt >$KIND.mnt; pwd -P >$KIND.pwd'
	done
}

every_kind=(prestart createRuntime createContainer startContainer poststart poststop)

@test "hooks of all six kinds run, in their order and place, and are told the state" {
	local kind pid ours
	box sh -c 'cp /hooks/order /hooks/seen; readlink /proc/self/ns/mnt >/hooks/guest.mnt; sleep 1000'
	with_hooks "${every_kind[@]}"
	app_create "$BUNDLE" "$ID"
	[[ $(<"$VZ_TMP/hooks/order") != *startContainer* ]]
	pid=$(pid_of "$ID")
	vz start "$ID"
	wait_file "$VZ_TMP/hooks/guest.mnt"
	[[ $(<"$VZ_TMP/hooks/seen") == *$'prestart\ncreateRuntime\ncreateContainer\n'*startContainer* ]]
	[[ ! -e $VZ_TMP/hooks/poststop.json ]]
	vz delete --force "$ID"
	[[ $(tail -n 1 "$VZ_TMP/hooks/order") == poststop && $(sort "$VZ_TMP/hooks/order") == "$(printf '%s\n' "${every_kind[@]}" | sort)" ]]
	for kind in "${every_kind[@]}"; do
		jq -e --arg id "$ID" --arg bundle "$BUNDLE" '.id == $id and .bundle == $bundle and .annotations.color == "red" and (.ociVersion | startswith("1."))' \
			"$VZ_TMP/hooks/$kind.json"
	done
	# The pid is that of the hook's own pid namespace.
	for kind in prestart createRuntime poststart; do
		[[ $(jq .pid "$VZ_TMP/hooks/$kind.json") == "$pid" ]]
	done
	for kind in createContainer startContainer; do
		[[ $(jq .pid "$VZ_TMP/hooks/$kind.json") == 1 ]]
	done
	[[ $(jq -r .status "$VZ_TMP/hooks/prestart.json" "$VZ_TMP/hooks/createRuntime.json" "$VZ_TMP/hooks/createContainer.json" | sort -u) == creating ]]
	[[ $(jq -r .status "$VZ_TMP/hooks/startContainer.json" "$VZ_TMP/hooks/poststop.json" | xargs) == "created stopped" ]]
	# The container's own mounts are there from createContainer on, its root
	# from startContainer on.
	ours=$(<"$VZ_TMP/hooks/guest.mnt")
	[[ $(<"$VZ_TMP/hooks/createContainer.mnt") == "$ours" && $(<"$VZ_TMP/hooks/startContainer.mnt") == "$ours" ]]
	[[ $(<"$VZ_TMP/hooks/createRuntime.mnt") != "$ours" && $(<"$VZ_TMP/hooks/poststart.mnt") != "$ours" ]]
	[[ $(<"$VZ_TMP/hooks/createContainer.pwd") == "$VZ_TMP/hooks" && $(<"$VZ_TMP/hooks/startContainer.pwd") == /hooks ]]
	assert_nothing_left
}

@test "hooks have their own environment and arguments only, and several run in a row" {
	box true
	with_hooks
	hook createRuntime 'env | sort >env; echo one >>order'
	hook createRuntime 'echo two >>order'
	SECRET=x now
	[[ $(<"$VZ_TMP/hooks/order") == $'one\ntwo' ]]
	[[ $(grep -vE '^(PWD|OLDPWD|SHLVL|_)=' "$VZ_TMP/hooks/env") == $'KIND=createRuntime\nPATH=/usr/bin:/bin' ]]
}

@test "a hook that fails before the start ends the container, and says why" {
	local kind
	box sh -c 'echo ran >/hooks/ran'
	with_hooks
	for kind in prestart createRuntime createContainer startContainer poststart; do
		conf '.hooks = {}'
		hook "$kind" "echo it is $kind >&2; exit 3"
		# As in runc, startContainer's failure is the container's own.
		run "-$([[ $kind == startContainer ]] && echo 255 || echo 1)" --separate-stderr now
		[[ $stderr == *"exit status 3"*"it is $kind"* ]]
		assert_nothing_left
	done
	[[ ! -e $VZ_TMP/hooks/ran ]]
}

@test "a poststop hook that fails does not keep the container" {
	box true
	with_hooks
	hook poststop 'echo ran >>order; exit 3'
	run -0 --separate-stderr now
	[[ $stderr == "vzrun: warning: "*"exit status 3"* && $(<"$VZ_TMP/hooks/order") == ran ]]
	assert_nothing_left
	app_create "$BUNDLE" "$ID"
	run --separate-stderr vz delete --force "$ID"
	[[ $stderr == "vzrun: "*"exit status 3"* && $(<"$VZ_TMP/hooks/order") == $'ran\nran' ]]
	assert_nothing_left
}

@test "a hook that takes too long is killed" {
	box true
	with_hooks
	hook createRuntime 'echo $$ >pid; exec sleep 1000' 1
	run -1 --separate-stderr now
	[[ $stderr == *"1.0s"* || $stderr == *"timeout"* ]]
	wait_exit "$(<"$VZ_TMP/hooks/pid")"
	assert_nothing_left
}

### Seccomp

# filter RULE... is a filter that allows all but what the rules (jq) say.
filter() {
	local IFS=,
	conf ".linux.seccomp = {defaultAction: \"SCMP_ACT_ALLOW\", architectures: [\"SCMP_ARCH_X86_64\", \"SCMP_ARCH_X86\"], syscalls: [$*]}"
}

@test "a seccomp filter gives the errno it is told" {
	box sh -c 'mkdir /x; grep -E "^Seccomp:" /proc/self/status'
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 28}'
	run -0 now
	[[ ${lines[0]} == *"No space left on device" && ${lines[1]} =~ 2$ ]]
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO"}'
	run -0 now
	[[ ${lines[0]} == *"Operation not permitted" ]]
	conf '.linux.seccomp.defaultAction = "SCMP_ACT_NONSENSE"'
	run -1 --separate-stderr now
	[[ $stderr == *SCMP_ACT_NONSENSE* ]]
	assert_nothing_left
}

@test "a seccomp filter kills, traps and logs" {
	local action
	box mkdir /x
	for action in KILL_PROCESS KILL TRAP; do
		filter "{names: [\"mkdir\", \"mkdirat\"], action: \"SCMP_ACT_$action\"}"
		run -159 now # SIGSYS
		[[ ! -e $BUNDLE/rootfs/x ]]
	done
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_LOG"}'
	now
	[[ -d $BUNDLE/rootfs/x ]]
}

@test "a seccomp rule can look at arguments" {
	box sh -c 'trap "echo usr2" USR2; kill -USR1 $$; kill -USR2 $$'
	# 10 is USR1.
	filter '{names: ["kill"], action: "SCMP_ACT_ERRNO", errnoRet: 1, args: [{index: 1, value: 10, op: "SCMP_CMP_EQ"}]}'
	run -0 now
	[[ $output == *"not permitted"*usr2 ]]
}

@test "seccomp holds with and without no_new_privs, and for exec" {
	local nnp
	box sleep 1000
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 28}'
	for nnp in true false; do
		conf ".process.noNewPrivileges = $nnp"
		app_up "$BUNDLE" "$ID"
		run ! guest "$ID" mkdir /x
		[[ $output == *"No space left on device" ]]
		vz delete --force "$ID"
	done
}

# programs prints name, inode and size of the compiled filters.
programs() { find "$VZ_ROOT/@/seccomp" -type f -printf '%f %i %s\n'; }

@test "a seccomp filter is compiled once, for containers and for exec" {
	local first path n
	box sleep 1000
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 28}'
	for n in 1 2 3; do
		app_up "$BUNDLE" "$ID-$n"
		run ! guest "$ID-$n" mkdir /y
		[[ $output == *"No space left on device" ]]
		[[ $(guest "$ID-$n" grep -c '^Seccomp:.2' /proc/1/status) == 1 ]]
		# What the program came in is not the guest's: it has its three files.
		[[ $(guest "$ID-$n" ls /proc/1/fd | xargs) == "0 1 2" ]]
		vz delete --force "$ID-$n"
		case $n in
		1)
			first=$(programs) path=$(echo "$VZ_ROOT"/@/seccomp/*)
			cp "$path" "$VZ_TMP/program"
			;;
		2)
			[[ $(programs) == "$first" ]]
			echo damaged >"$path" # it is compiled anew
			;;
		3) cmp "$path" "$VZ_TMP/program" ;;
		esac
	done
	[[ $first =~ ^[0-9a-f]{64}\ [0-9]+\ [0-9]+$ ]]
	# Another filter is another program.
	filter '{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 17}'
	app_up "$BUNDLE" "$ID"
	run ! guest "$ID" mkdir /y
	[[ $output == *"File exists" && $(programs | wc -l) == 2 ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "a seccomp agent decides for the container, and is told which one" {
	box sh -c 'mkdir /no; mkdir /yes && echo made; rmdir /yes'
	filter '{names: ["mkdir"], action: "SCMP_ACT_NOTIFY"}'
	conf '.linux.seccomp.listenerPath = $ARGS.positional[0] | .linux.seccomp.listenerMetadata = "color=red"' "$VZ_TMP/agent"
	run -1 --separate-stderr now
	[[ $stderr == *"$VZ_TMP/agent"* || $stderr == *"no such file"* ]]
	assert_nothing_left
	spawn "$VZ_TMP/agent.log" "$PEER" seccomp "$VZ_TMP/agent" /yes
	wait_line "$VZ_TMP/agent.log" '^listening$'
	run -0 now
	[[ $output == *"No medium found"*made ]]
	grep -qx 'call 83 /no' "$VZ_TMP/agent.log"
	sed -n 's/^state //p' "$VZ_TMP/agent.log" | jq -e --arg id "$ID" --arg bundle "$BUNDLE" '
		.metadata == "color=red" and .fds == ["seccompFd"] and .state.id == $id and .state.bundle == $bundle and .pid == .state.pid and .state.status == "creating"'
	# What exec starts has a filter and a descriptor of its own.
	conf '.process.args = ["sleep", "1000"]'
	app_up "$BUNDLE" "$ID"
	run ! guest "$ID" mkdir /no-exec
	[[ $output == *"No medium found" ]]
	wait_line "$VZ_TMP/agent.log" '^call 83 /no-exec$'
	[[ $(grep -c '^state ' "$VZ_TMP/agent.log") -eq 3 ]]
	[[ $(sed -n 's/^state //p' "$VZ_TMP/agent.log" | tail -n 1 | jq -r .state.status) == running ]]
}

### Sockets from a service manager

@test "sockets that systemd opened are handed on, numbered for the container" {
	box sh -c 'echo "$LISTEN_FDS $LISTEN_PID"; cat <&3; cat <&4; ls /proc/self/fd | wc -l'
	echo socket >"$VZ_TMP/3"
	echo preserved >"$VZ_TMP/4"
	run -0 sh -c 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<"$0/3" 4<"$0/4"' "$VZ_TMP" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" --preserve-fds 1 "$ID"
	[[ $output == $'1 1\nsocket\npreserved\n6' ]]
	# They are somebody else's if the pid is.
	conf '.process.args = ["sh", "-c", "echo \"<$LISTEN_FDS$LISTEN_PID>\"; ls /proc/self/fd | wc -l"]'
	run -0 sh -c 'LISTEN_FDS=1 LISTEN_PID=1 exec "$@" 3<"$0/3"' "$VZ_TMP" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	[[ $output == $'<>\n4' ]]
}

# listen starts the service manager's end of sd_notify(3).
listen() {
	spawn "$VZ_TMP/notified" "$PEER" notify "$VZ_TMP/notify"
	wait_line "$VZ_TMP/notified" '^listening$'
	export NOTIFY_SOCKET=$VZ_TMP/notify
}

@test "run in the foreground passes on what the container says, as its main process" {
	box sh -c '/peer say "STATUS=warming up" && /peer say "MAINPID=1\nREADY=1\nFDSTORE=1" && /peer say WATCHDOG=1; exec sleep 1000'
	listen
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	wait_line "$VZ_TMP/notified" '^WATCHDOG=1$'
	[[ $(<"$VZ_TMP/notified") == "listening
STATUS=warming up
READY=1|MAINPID=$SPAWNED
WATCHDOG=1" ]]
	vz kill "$ID" KILL
	wait_exit "$SPAWNED"
	assert_nothing_left
}

@test "start of a container that runs leaves its socket alone" {
	box sh -c '/peer say READY=1; until [ -e /go ]; do usleep 20000; done; /peer say STOPPING=1; exec sleep 1000'
	listen
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	wait_line "$VZ_TMP/notified" '^READY=1'
	fails 4 'it is running' vz start "$ID"
	touch "$BUNDLE/rootfs/go"
	wait_line "$VZ_TMP/notified" '^STOPPING=1$'
	vz delete --force "$ID"
	assert_nothing_left
}

@test "run --detach returns once the container is ready, and names its main process" {
	box sh -c 'echo >/begun; until [ -e /go ]; do usleep 20000; done; /peer say READY=1; exec sleep 1000'
	listen
	spawn "$VZ_TMP/out" "$VZRUN" --root "$VZ_ROOT" run --detach --bundle "$BUNDLE" --pid-file "$VZ_TMP/pid" "$ID"
	wait_file "$BUNDLE/rootfs/begun"
	wait_file "$VZ_TMP/pid"
	run ! has_ended "$SPAWNED"
	touch "$BUNDLE/rootfs/go"
	wait_exit "$SPAWNED"
	[[ $(<"$VZ_TMP/notified") == "listening
READY=1|MAINPID=$(<"$VZ_TMP/pid")
BARRIER=1" ]]
	[[ $(pid_of "$ID") == "$(<"$VZ_TMP/pid")" ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "create and start pass readiness on, from any user of a user namespace too" {
	box sh -c 'id -u; /peer say READY=1; exec sleep 1000'
	chown -R 500000:500000 "$BUNDLE/rootfs"
	conf '.process.user = {uid: 33, gid: 33} | .linux.namespaces += [{type: "user"}]
		| .linux.uidMappings = [{containerID: 0, hostID: 500000, size: 1000}] | .linux.gidMappings = .linux.uidMappings'
	listen
	quietly create --bundle "$BUNDLE" "$ID"
	[[ $(<"$VZ_TMP/notified") == listening ]]
	vz start "$ID"
	[[ $(<"$VZ_TMP/notified") == "listening
READY=1|MAINPID=$(pid_of "$ID")
BARRIER=1" ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "a container that ends before it is ready keeps nobody waiting" {
	box true
	listen
	quietly run --detach --bundle "$BUNDLE" "$ID"
	quietly delete --force "$ID"
	quietly create --bundle "$BUNDLE" "$ID"
	quietly start "$ID"
	[[ $(<"$VZ_TMP/notified") == listening ]]
	wait_status "$ID" stopped
	vz delete "$ID"
	assert_nothing_left
}

@test "without a service manager there is no socket in the container" {
	unset NOTIFY_SOCKET
	box sh -c 'echo "<$NOTIFY_SOCKET>"; ls -d /run/notify'
	run -1 now
	[[ ${lines[0]} == "<>" ]]
}

@test "a container with a socket is checkpointed, and restored elsewhere" {
	BUNDLE=$(app_bundle "$ID" sh -c '/peer say READY=1; exec sleep 1000')
	cp "$PEER" "$BUNDLE/rootfs/peer"
	listen
	app_up "$BUNDLE" "$ID"
	unset NOTIFY_SOCKET
	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	conf '.linux.cgroupsPath += "-2"'
	app_restore "$BUNDLE" "$ID-2" "$VZ_TMP/images"
	[[ $(guest "$ID-2" ls -d /run/notify) == /run/notify ]]
	has_status "$ID-2" running
	vz delete --force "$ID-2"
	assert_nothing_left
}
