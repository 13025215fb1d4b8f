#!/usr/bin/env bats
# containerd with vzrun for its runtime, asked by ctr. Its CRI plugin is in cri.bats.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2153,SC2154

load helpers
load app
load engines/containerd

setup_file() {
	suite_setup
	containerd_setup
}
teardown_file() {
	containerd_teardown
	suite_teardown
}
setup() {
	vz_setup
	ID=$CTR_NS-$ID
}
teardown() {
	ctr version >/dev/null 2>&1 || containerd_start
	remove_container "$CTR_NS" "$ID" 2>/dev/null
	vz_teardown
}

# nothing_of_task: neither the runtime nor containerd knows of the container.
nothing_of_task() {
	[[ -z $(runtime list -q) && -z $(ctr tasks list -q) && -z $(shims) ]]
	[[ -z $(find /sys/fs/cgroup -type d -name "vzrun-test-$VZ_TAG-$ID*") ]]
}

assert_no_task() {
	wait_until 10 nothing_of_task || {
		runtime list
		ctr tasks list
		shims
		return 1
	}
}

# ends_with CODE deletes the task, and looks how it ended.
ends_with() {
	run -0 ctr tasks delete "$ID"
	[[ $output == *"exit with non-zero exit code $1\"" ]]
}

# limit V1 V2 prints a control file of the container.
limit() { control_file "$(cgroup_of "$ID")" "$@"; }

### run and exec

@test "run passes on output, input and exit codes" {
	local code
	run -0 --separate-stderr ctr_run --rm "$IMAGE" "$ID" sh -c 'echo out; echo err >&2'
	[[ $output == out && $stderr == err ]]
	for code in 1 42 255; do
		run "-$code" ctr_run --rm "$IMAGE" "$ID" sh -c "exit $code"
	done
	# ctr loses the end of its input if that comes before the task is there.
	# shellcheck disable=SC2094 # it grows while it is watched
	{ wait_line "$VZ_TMP/out" ready >&2 && printf 'one\ntwo'; } |
		ctr_run --rm "$IMAGE" "$ID" sh -c 'echo ready; cat' >"$VZ_TMP/out"
	[[ $(<"$VZ_TMP/out") == $'ready\none\ntwo' ]]
	assert_no_task
}

@test "run --tty has a terminal of the caller's size" {
	local code=0
	# script(1) is the terminal that the caller sits at.
	script --quiet --return --log-out "$VZ_TMP/typescript" --command "stty rows 33 cols 99; exec '$ENGINE/bin/ctr' \
		--address '$CTD_RUN/sock' --namespace '$CTR_NS' run --rm --tty --runc-binary '$VZRUN' --runc-root '$CTD_RUN/vzrun' \
		--fifo-dir '$CTD_RUN/fifo' '$IMAGE' '$ID' sh -c 'tty; until [ \"\$(stty size)\" = \"33 99\" ]; do sleep 0.05; done; exit 5'" </dev/null >/dev/null || code=$?
	cat "$VZ_TMP/typescript"
	[[ $code -eq 5 ]]
	grep -qaE '/dev/(console|pts/0)' "$VZ_TMP/typescript"
}

@test "the flags of run reach the container" {
	echo outside >"$VZ_TMP/file"
	run -0 --separate-stderr ctr_run --rm --env A=b --cwd /etc --hostname box --user 1000:1001 --read-only \
		--mount "type=bind,src=$VZ_TMP/file,dst=/file,options=rbind:ro" --seccomp --cap-drop CAP_CHOWN "$IMAGE" "$ID" \
		sh -c 'echo "$A $FROM_IMAGE $(pwd) $(hostname) $(id -u) $(id -g) $(cat /file)"; touch /tmp/x; awk "/^(Seccomp|CapBnd):/ { print \$2 }" /proc/self/status'
	[[ ${lines[0]} == "b yes /etc box 1000 1001 outside" ]]
	[[ $stderr == *"Read-only file system"* ]]
	((16#${lines[1]} != 0 && (16#${lines[1]} & 1) == 0))
	[[ ${lines[2]} == 2 ]]
}

@test "a container in the background is listed, looked at, and joined by exec" {
	local pid
	ctr_up sh -c 'echo of-the-container >/mark; exec sleep 100000'
	task_is RUNNING
	pid=$(task_pid)
	[[ $(runtime state "$ID" | jq -r '.status + " " + (.pid | tostring)') == "running $pid" ]]
	[[ $(ctr_exec cat /mark) == of-the-container ]]
	run -7 ctr_exec sh -c 'exit 7'
	[[ $(ctr_exec sh -c 'echo $FROM_IMAGE; pwd; id -u' | xargs) == "yes / 0" ]]
	[[ $(ctr_exec --user=12:13 --cwd=/etc id -u) == 12 ]]
	run -0 ctr tasks ps "$ID"
	[[ $(awk 'NR == 2 { print $1 }' <<<"$output") == "$pid" ]]
	run -0 ctr tasks metrics --format json "$ID"
	jq -e '[.. | .usage? | objects, numbers] | length > 0' <<<"$output"
	run ! ctr_exec /no/such/program
	[[ $output == *"/no/such/program"*"no such file or directory"* ]]
	task_is RUNNING
}

@test "pause freezes, resume lets go on" {
	ctr_up sh -c 'while :; do echo x >>/count; sleep 0.02; done'
	ctr tasks pause "$ID"
	task_is PAUSED
	[[ $(runtime state "$ID" | jq -r .status) == paused ]]
	run ! ctr_exec true
	[[ $output == *paused* ]]
	ctr tasks resume "$ID"
	task_is RUNNING
	ctr_exec true
}

@test "kill ends a task, whose exit code delete tells" {
	ctr_up sh -c 'trap "exit 9" TERM; echo ready >/ready; while :; do sleep 0.05; done'
	wait_until "$VZ_PATIENCE" ctr_exec test -e /ready
	run ! ctr tasks delete "$ID"
	[[ $output == *"must be stopped"* ]]
	ctr tasks kill "$ID"
	wait_until "$VZ_PATIENCE" task_is STOPPED
	ends_with 9
	ctr containers delete "$ID"
	assert_no_task
}

@test "kill --all reaches all processes of a container that shares the host's pid namespace" {
	local pid
	ctr_up "--with-ns=pid:/proc/$$/ns/pid" sh -c 'sleep 12345 & exec sleep 100000'
	pid=$(task_pid)
	wait_until "$VZ_PATIENCE" has_tasks 2
	ctr tasks kill --all --signal KILL "$ID"
	wait_until "$VZ_PATIENCE" task_is STOPPED
	wait_exit "$pid"
	ends_with 137
	ctr containers delete "$ID"
	assert_no_task
}

has_tasks() { (($(ctr tasks ps "$ID" | wc -l) > $1)); }

@test "a command that does not exist is told, and nothing is left" {
	run -1 --separate-stderr ctr_run --rm "$IMAGE" "$ID" /no/such/program
	[[ $stderr == *'exec: "/no/such/program"'* || $stderr == *"/no/such/program: no such file or directory"* ]]
	run -1 --separate-stderr ctr_run --rm --mount type=bind,src=/no/such,dst=/mnt,options=rbind "$IMAGE" "$ID-b" true
	[[ $stderr == *"/no/such"*"no such file or directory"* ]]
	assert_no_task
	[[ -z $(ctr containers list -q) ]]
}

### Limits

@test "limits of memory, CPU and processes are set" {
	ctr_up "--memory-limit=$((64 << 20))" --cpu-quota=50000 --cpu-period=100000 --cpuset-cpus=0 sleep 100000
	[[ $(limit memory.limit_in_bytes memory.max) == $((64 << 20)) ]]
	[[ $(ctr_exec grep Cpus_allowed_list /proc/self/status | awk '{ print $2 }') == 0 ]]
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		[[ $(limit none cpu.max) == "50000 100000" ]]
	else
		[[ $(limit cpu.cfs_quota_us none) == 50000 ]]
	fi
}

@test "containerd hears that memory has run out" {
	spawn "$VZ_TMP/events" "$ENGINE/bin/ctr" --address "$CTD_RUN/sock" --namespace "$CTR_NS" events
	ctr_up "--memory-limit=$((24 << 20))" sh -c 'while [ ! -e /go ]; do sleep 0.05; done; exec tail /dev/zero'
	wait_line "$VZ_TMP/events" " /tasks/start .*$ID"
	ctr_exec touch /go || true
	wait_line "$VZ_TMP/events" " /tasks/oom .*$ID"
	wait_until "$VZ_PATIENCE" task_is STOPPED
	ends_with 137
}

### Checkpoint and restore

@test "tasks checkpoint writes images, and lets the container go on or end" {
	lacks 'a CRIU that works' criu_works
	ctr_up sleep 100000
	ctr tasks checkpoint --image-path "$VZ_TMP/one" --work-path "$VZ_TMP/work" "$ID"
	[[ -s $VZ_TMP/one/inventory.img ]]
	task_is RUNNING
	ctr tasks checkpoint --exit --image-path "$VZ_TMP/two" "$ID"
	[[ -s $VZ_TMP/two/inventory.img ]]
	wait_until "$VZ_PATIENCE" task_is STOPPED
}

@test "a checkpoint is an image, from which the container comes back with memory and files" {
	local image=$IMAGE-$ID before
	lacks 'a CRIU that works' criu_works
	ctr_up sh -c 'n=0; while :; do n=$((n + 1)); echo $n >/count.new; mv /count.new /count; sleep 0.02; done'
	wait_until "$VZ_PATIENCE" ctr_exec test -s /count
	ctr containers checkpoint --rw --task "$ID" "$image"
	before=$(ctr_exec cat /count)
	ctr tasks delete --force "$ID" || true
	ctr containers delete "$ID"
	assert_no_task
	ctr containers restore --rw --live "$ID" "$image" </dev/null >"$VZ_TMP/restored" 2>&1 3>&- || {
		cat "$VZ_TMP/restored"
		false
	}
	task_is RUNNING
	wait_until "$VZ_PATIENCE" counts_on
	# It went on from where it was, and not from 1.
	(($(ctr_exec cat /count) > before / 2))
	ctr images delete "$image"
}

counts_on() {
	local now
	now=$(ctr_exec cat /count) && wait_until 2 is_not "$now" ctr_exec cat /count
}

is_not() { [[ $("${@:2}") != "$1" ]]; }

criu_works() { "${PREFIX:-/usr/local}/libexec/vzrun/criu" check || criu check; }

### Crashes

@test "containers outlive a containerd that was killed" {
	local pid
	ctr_up sh -c 'trap "exit 3" TERM; while :; do sleep 0.05; done'
	pid=$(task_pid)
	containerd_crash
	has_ended "$pid" && false
	containerd_start
	[[ $(task_pid) == "$pid" ]]
	task_is RUNNING
	[[ $(ctr_exec echo again) == again ]]
	ctr tasks kill "$ID"
	wait_until "$VZ_PATIENCE" task_is STOPPED
	ends_with 3
	ctr containers delete "$ID"
	assert_no_task
}

@test "a container whose shim was killed is cleaned up" {
	local pid shim
	ctr_up sleep 100000
	pid=$(task_pid)
	shim=$(shim_of "$ID")
	kill -KILL "$shim"
	wait_exit "$shim"
	wait_exit "$pid"
	wait_until "$VZ_PATIENCE" forgotten
	ctr containers delete "$ID"
	assert_no_task
}

forgotten() { [[ -z $(ctr tasks list -q) ]]; }

@test "a container is cleaned up by vzrun if containerd and shim were killed" {
	local pid shim
	ctr_up sleep 100000
	pid=$(task_pid)
	shim=$(shim_of "$ID")
	containerd_crash
	kill -KILL "$shim"
	wait_exit "$shim"
	runtime delete --force "$ID"
	has_ended "$pid"
	[[ -z $(runtime list -q) ]]
	containerd_start
	wait_until "$VZ_PATIENCE" forgotten
	ctr containers delete "$ID"
	assert_no_task
}

### A whole operating system

@test "a whole Debian with systemd runs by its own configuration" {
	local bundle=$VZ_TMP/$ID
	bundle=$(debian_bundle "$ID" --ram 512M)
	edit_config "$bundle" '.root.path = $ARGS.positional[0]' "$bundle/rootfs"
	ctr_run "--config=$bundle/config.json" --detach "$ID" </dev/null >"$VZ_TMP/ctr.log" 2>&1 || {
		cat "$VZ_TMP/ctr.log"
		false
	}
	runtime ready --timeout "${VZ_PATIENCE}s" "$ID"
	[[ $(ctr_exec systemctl is-system-running) == running ]]
	[[ $(ctr_exec cat /proc/1/comm) == systemd ]]
	# Root of the guest is nobody of the host.
	(($(stat -c %u "/proc/$(task_pid)") > 65535))
	wait_counter "$bundle/rootfs"
	# SIGRTMIN+3 shuts systemd down.
	ctr tasks kill --signal 37 "$ID"
	wait_until "$VZ_PATIENCE" task_is STOPPED
	verify_counter "$bundle/rootfs"
	ctr tasks delete "$ID"
	ctr containers delete "$ID"
	assert_no_task
}
