#!/usr/bin/env bats
# vzrun as CRI-O calls it: by way of conmon, and by itself.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load engines/conmon

setup_file() {
	suite_setup
	conmon_up
}
teardown_file() { suite_teardown; }
setup() {
	vz_setup
	conmon_setup
}
teardown() {
	conmon_tidy
	vz_teardown
}

# up ARG... runs a container; $BUNDLE is its bundle.
up() {
	BUNDLE=$(app_bundle "$ID" "$@")
	crio_run "$BUNDLE" "$ID"
}

has_exit_code() { [[ $(cat "$EXITS/$ID") == "$1" ]]; }

### Create, start, the end

@test "conmon reports the pid, and the container waits to be started" {
	BUNDLE=$(app_bundle "$ID" sh -c 'echo started >/mark; exec sleep 1000')
	crio_create "$BUNDLE" "$ID"
	[[ $(jq -r .pid <<<"$SYNC") == "$(<"$BUNDLE/pidfile")" ]]
	vz state "$ID" >"$VZ_TMP/state"
	jq -e --argjson pid "$(<"$BUNDLE/pidfile")" --arg id "$ID" --arg bundle "$BUNDLE" \
		'.status == "created" and .pid == $pid and .id == $id and .bundle == $bundle' "$VZ_TMP/state"
	[[ ! -e $BUNDLE/rootfs/mark ]]
	# Conmon is the one that will be told of the end.
	[[ $(awk '/^PPid:/ { print $2 }' "/proc/$(<"$BUNDLE/pidfile")/status") == "$(<"$BUNDLE/conmon-pidfile")" ]]
	vz start "$ID"
	wait_file "$BUNDLE/rootfs/mark"
	has_status "$ID" running
}

@test "the log has every line with its stream, and the exit file the code" {
	up sh -c 'echo out; echo err >&2; printf partial; exit 7'
	wait_until "$VZ_PATIENCE" has_exit_code 7
	wait_exit "$(<"$BUNDLE/conmon-pidfile")"
	[[ $(lines_of "$BUNDLE/log" stdout) == $'out\npartial' ]]
	[[ $(lines_of "$BUNDLE/log" stderr) == err ]]
	grep -qE '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+) stdout F out$' "$BUNDLE/log"
	grep -qE ' stdout P partial$' "$BUNDLE/log"
	has_status "$ID" stopped
	vz delete --force "$ID"
	assert_nothing_left
}

@test "the exit file tells of a signal as shells do" {
	up sleep 1000
	vz kill "$ID" KILL
	wait_until "$VZ_PATIENCE" has_exit_code 137
}

@test "a container that cannot be created is reported with the reason" {
	BUNDLE=$(app_bundle "$ID" /no/such/program)
	crio_create "$BUNDLE" "$ID" || true
	jq -e '.pid == -1 and (.message | contains("/no/such/program") and contains("no such file or directory"))' <<<"$SYNC"
	edit_config "$BUNDLE" '.process.args = ["true"] | .root.path = "nowhere"'
	crio_create "$BUNDLE" "$ID" || true
	jq -e '.pid == -1 and (.message | contains("nowhere"))' <<<"$SYNC"
	# CRI-O deletes what it could not create.
	vz delete --force "$ID"
	assert_nothing_left
}

@test "a container that ran out of memory leaves the file oom" {
	BUNDLE=$(app_bundle "$ID" sh -c 'tail /dev/zero')
	edit_config "$BUNDLE" '.linux.resources.memory = {limit: 33554432, swap: 33554432} | .process.args = ["tail", "/dev/zero"]'
	crio_run "$BUNDLE" "$ID"
	wait_until "$VZ_PATIENCE" has_exit_code 137
	wait_exit "$(<"$BUNDLE/conmon-pidfile")"
	[[ -e $BUNDLE/oom || -e $VZ_TMP/persist/$ID/oom ]]
}

@test "logs are rotated by size, and opened again when CRI-O asks" {
	BUNDLE=$(app_bundle "$ID" sh -c 'for i in $(seq 200); do echo "line $i"; done; while :; do sleep 0.05; echo more; done')
	crio_run "$BUNDLE" "$ID" --log-size-max 4096
	wait_line "$BUNDLE/log" ' stdout F more$'
	(($(stat -c %s "$BUNDLE/log") <= 4096))
	mv "$BUNDLE/log" "$BUNDLE/log.old"
	echo '2 0 0' >"$BUNDLE/ctl"
	wait_file "$BUNDLE/log"
	wait_line "$BUNDLE/log" ' stdout F more$'
}

### Exec

@test "conmon execs a process and reports its code and output" {
	up sleep 1000
	crio_exec "$ID" "$(process_of "$BUNDLE" sh -c 'echo out; echo err >&2; exit 5')" || [[ $? -eq 5 ]]
	jq -e '.exit_code == 5' <<<"$SYNC"
	[[ $(lines_of "$VZ_TMP/exec.log" stdout) == out ]]
	[[ $(lines_of "$VZ_TMP/exec.log" stderr) == err ]]
	crio_exec "$ID" "$(process_of "$BUNDLE" true)"
	jq -e '.exit_code == 0' <<<"$SYNC"
}

@test "an exec that takes too long is ended" {
	up sleep 1000
	crio_exec "$ID" "$(process_of "$BUNDLE" sleep 2000)" -T 1 || true
	jq -e '.exit_code == -1 and .message == "command timed out"' <<<"$SYNC"
	wait_until "$VZ_PATIENCE" no_process 'sleep 2000'
	has_status "$ID" running
}

no_process() { ! vz ps "$ID" -o pid,args | grep -qF "$1"; }

@test "an exec that cannot start is reported with the reason" {
	up sleep 1000
	crio_exec "$ID" "$(process_of "$BUNDLE" /no/such/program)" || true
	jq -e '.exit_code == -1 and (.message | contains("no such file or directory"))' <<<"$SYNC"
	has_status "$ID" running
}

@test "CRI-O execs with streams by itself, and the code comes back" {
	up sleep 1000
	run -4 --separate-stderr vz exec --process "$(process_of "$BUNDLE" sh -c 'cat; echo oops >&2; exit 4')" "$ID" < <(echo typed)
	[[ $output == typed && $stderr == oops ]]
}

### Attach

@test "attach connects stdin, stdout and stderr" {
	BUNDLE=$(app_bundle "$ID" sh -c 'while read -r line; do echo "got $line"; echo "and $line" >&2; done; echo end')
	crio_run "$BUNDLE" "$ID" -i
	attach "$ID" < <(printf 'one\ntwo\n') >"$VZ_TMP/stdout" 2>"$VZ_TMP/stderr"
	wait_until "$VZ_PATIENCE" has_exit_code 0
	[[ $(<"$VZ_TMP/stdout") == $'attached\ngot one\ngot two\nend' ]]
	[[ $(<"$VZ_TMP/stderr") == $'and one\nand two' ]]
	[[ $(lines_of "$BUNDLE/log" stdout) == $'got one\ngot two\nend' ]]
}

@test "stdin stays open for who attaches next" {
	BUNDLE=$(app_bundle "$ID" sh -c 'while read -r line; do echo "got $line"; done')
	crio_run "$BUNDLE" "$ID" -i --leave-stdin-open
	spawn "$VZ_TMP/first" attach_with "$ID" one
	wait_line "$BUNDLE/log" ' stdout F got one$'
	spawn "$VZ_TMP/second" attach_with "$ID" two
	wait_line "$BUNDLE/log" ' stdout F got two$'
	has_status "$ID" running
}

attach_with() { printf '%s\n' "$2" | attach "$1"; }

@test "a terminal is attached and resized" {
	local turn
	BUNDLE=$(app_bundle "$ID" sh -c 'tty; while read -r line; do stty size; done')
	edit_config "$BUNDLE" '.process.terminal = true'
	crio_run "$BUNDLE" "$ID" -t
	wait_line "$BUNDLE/log" ' stdout [FP] /dev/(pts/0|console)'
	mkfifo "$VZ_TMP/typed"
	spawn "$VZ_TMP/attached" attach_to_terminal
	exec {turn}>"$VZ_TMP/typed"
	wait_line "$VZ_TMP/attached" '^attached$'
	echo '1 33 99' >"$BUNDLE/ctl"
	wait_until "$VZ_PATIENCE" is_resized
	echo >&"$turn"
	wait_line "$VZ_TMP/attached" '^33 99'
	exec {turn}>&-
}

attach_to_terminal() { attach "$ID" <"$VZ_TMP/typed"; }

is_resized() { [[ $(vz exec "$ID" sh -c 'stty size </dev/pts/0' </dev/null) == "33 99" ]]; }

### What CRI-O asks of the runtime itself

@test "stop is kill by name, then KILL; of what has ended it is told so" {
	up sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.05; done'
	wait_line "$BUNDLE/log" ' stdout F ready$'
	vz kill "$ID" SIGTERM
	wait_until "$VZ_PATIENCE" has_exit_code 3
	wait_status "$ID" stopped
	# These words are what CRI-O looks for.
	run ! vz kill "$ID" KILL
	[[ $output == *"container not running"* ]]
	vz delete --force "$ID"
	vz delete --force "$ID"
	assert_nothing_left
}

@test "update takes resources from stdin" {
	local pid
	up sleep 1000
	pid=$(pid_of "$ID")
	vz update --resources - "$ID" <<<'{"memory": {"limit": 67108864}, "cpu": {"shares": 512, "quota": 20000, "period": 100000}}'
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		[[ $(<"/sys/fs/cgroup$(cgroup_of "$ID")/memory.max") == 67108864 ]]
		[[ $(<"/sys/fs/cgroup$(cgroup_of "$ID")/cpu.max") == "20000 100000" ]]
	else
		[[ $(<"/sys/fs/cgroup/memory$(cgroup_of "$ID")/memory.limit_in_bytes") == 67108864 ]]
		[[ $(<"/sys/fs/cgroup/cpu$(cgroup_of "$ID")/cpu.cfs_quota_us") == 20000 ]]
	fi
}

@test "containers of a pod share the namespaces of the first" {
	local infra other ns
	up sleep 1000
	infra=$(pid_of "$ID")
	other=$(app_bundle "$ID-app" sh -c 'echo "$(readlink /proc/self/ns/net) $(readlink /proc/self/ns/ipc) $(hostname)"; exec sleep 1000')
	edit_config "$other" '.hostname = "" | .linux.namespaces |= map(if .type | IN("network", "ipc", "uts") then
		.path = "/proc/\($ARGS.positional[0])/ns/" + {network: "net", ipc: "ipc", uts: "uts"}[.type] else . end)' "$infra"
	crio_run "$other" "$ID-app"
	wait_line "$other/log" ' stdout F '
	[[ $(lines_of "$other/log" stdout) == "$(readlink "/proc/$infra/ns/net") $(readlink "/proc/$infra/ns/ipc") busybox" ]]
	vz kill "$ID-app" KILL
	vz delete --force "$ID-app"
	has_status "$ID" running
}

@test "features and checkpoint --help answer, by which CRI-O knows what it may ask" {
	run -0 vz features
	jq -e '.linux.mountExtensions.idmap.enabled == true and (.mountOptions | contains(["rro"]))' <<<"$output"
	run -0 vz checkpoint --help
}

### Checkpoints

@test "a checkpoint is restored by way of conmon, with its log and its end" {
	local log
	up sh -c 'while :; do echo "tick $((i += 1))"; sleep 0.05; [ ! -e /stop ] || exit 9; done'
	wait_line "$BUNDLE/log" ' tick 5$'
	mkdir "$VZ_TMP/persist/$ID/checkpoint"
	vz checkpoint --file-locks --image-path "$VZ_TMP/persist/$ID/checkpoint" --work-path "$VZ_TMP/persist/$ID" "$ID"
	wait_exit "$(<"$BUNDLE/conmon-pidfile")"
	rm -f "$BUNDLE"/{attach,ctl,winsz,conmon-pidfile,pidfile} "$EXITS/$ID"
	log=$(wc -l <"$BUNDLE/log")
	crio_create "$BUNDLE" "$ID" --restore "$VZ_TMP/persist/$ID/checkpoint"
	[[ $(jq -r .pid <<<"$SYNC") == "$(pid_of "$ID")" ]]
	has_status "$ID" running
	wait_lines "$BUNDLE/log" $((log + 5))
	# It has gone on where it was.
	[[ $(lines_of "$BUNDLE/log" stdout | tail -n +$((log + 1)) | head -n 1) == "tick "@($((log + 1))|$((log + 2))) ]]
	touch "$BUNDLE/rootfs/stop"
	wait_until "$VZ_PATIENCE" has_exit_code 9
}

### Engines that are killed

@test "a container outlives its monitor, and delete removes it" {
	up sleep 1000
	kill -KILL "$(<"$BUNDLE/conmon-pidfile")"
	wait_exit "$(<"$BUNDLE/conmon-pidfile")"
	has_status "$ID" running
	vz kill "$ID" KILL
	wait_status "$ID" stopped
	vz delete --force "$ID"
	assert_nothing_left
}

@test "whenever conmon is killed while it creates, delete removes what there is" {
	local delay
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	for delay in 0.01 0.03 0.06 0.1 0.2; do
		crio_create_killed_after "$delay"
		vz delete --force "$ID"
		assert_nothing_left
		rm -f "$BUNDLE"/{attach,ctl,winsz,conmon-pidfile,pidfile}
	done
}

# crio_create_killed_after SECONDS kills conmon and the runtime that it has begun.
crio_create_killed_after() {
	local group pids
	set -m
	crio_create "$BUNDLE" "$ID" >/dev/null 2>&1 3>&- &
	group=$!
	set +m
	timeout "$1" tail --pid "$group" -f /dev/null || true
	kill -KILL -- "-$group" 2>/dev/null || true
	wait "$group" 2>/dev/null || true
	# Conmon's child has a session of its own, and the runtime is its child.
	while pids=$(pgrep -f -- "--root=$VZ_ROOT"); do
		# shellcheck disable=SC2086 # pids are words
		kill -KILL $pids 2>/dev/null || true
	done
}
