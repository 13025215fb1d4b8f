#!/usr/bin/env bats
# containerd's CRI plugin with vzrun for its runtime, asked as the kubelet does.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2153,SC2154

load helpers
load app
load engines/containerd

setup_file() {
	suite_setup
	containerd_setup
	cni_setup
}
teardown_file() {
	containerd_teardown
	suite_teardown
}
setup() { vz_setup; }
teardown() {
	cri Version >/dev/null 2>&1 || containerd_start
	remove_pods
	remove_parents
	vz_teardown
}

# remove_parents does what the kubelet does: the cgroup of a pod is its own.
remove_parents() { find /sys/fs/cgroup -depth -type d -name "vzrun-test-$VZ_TAG-*" -exec rmdir {} +; }

# cni_setup: pods get addresses on a bridge in the network namespace of the suite.
cni_setup() {
	mkdir -p "$CTD/cni"
	jq -n --arg data "$CTD/ipam" '{cniVersion: "1.0.0", name: "vzrun-test", plugins: [{type: "bridge", bridge: "vzbr0",
		isGateway: true, ipMasq: false, ipam: {type: "host-local", dataDir: $data, ranges: [[{subnet: "10.85.7.0/24"}]]}}]}' >"$CTD/cni/10-test.conflist"
	wait_until "$VZ_PATIENCE" network_is_ready
}

network_is_ready() { cri Status | jq -e '.status.conditions[] | select(.type == "NetworkReady") | .status'; }

# pod_up [FILTER] runs a pod; $POD is its id. The jq filter changes its configuration.
pod_up() {
	jq -n --arg id "$ID" --arg logs "$VZ_TMP" --arg cgroup "$(cgroup_of "$ID")" '{metadata: {name: $id, uid: $id, namespace: "test"},
		hostname: "pod", log_directory: $logs, linux: {cgroup_parent: $cgroup, security_context: {namespace_options: {network: "POD", pid: "CONTAINER"}}}}' |
		jq "${1:-.}" >"$VZ_TMP/pod.json"
	POD=$(cri RunPodSandbox "$(jq '{config: .}' "$VZ_TMP/pod.json")" | jq -r .pod_sandbox_id)
}

# create NAME FILTER COMMAND... makes a container in the pod; $CTR is its id.
create() {
	local name=$1 filter=$2
	shift 2
	jq -n --arg pod "$POD" --slurpfile sandbox "$VZ_TMP/pod.json" --arg image "$IMAGE" --arg name "$name" '{pod_sandbox_id: $pod,
		sandbox_config: $sandbox[0], config: {metadata: {name: $name}, image: {image: $image}, command: $ARGS.positional,
		log_path: ($name + ".log"), linux: {security_context: {namespace_options: {pid: "CONTAINER"}}}}}' --args -- "$@" | jq "$filter" >"$VZ_TMP/$name.json"
	CTR=$(cri CreateContainer "$(<"$VZ_TMP/$name.json")" | jq -r .container_id)
}

# up NAME FILTER COMMAND... starts it, too.
up() {
	create "$@"
	on StartContainer
}

# on METHOD [FILTER] is a call about the container.
on() { cri "$1" "$(jq -nc --arg id "$CTR" '{container_id: $id}' | jq -c "${2:-.}")"; }

# inside COMMAND... runs a process in the container, and prints what it prints.
inside() {
	local answer
	answer=$(cri ExecSync "$(jq -nc --arg id "$CTR" '{container_id: $id, cmd: $ARGS.positional, timeout: 30}' --args -- "$@")") || return
	jq -r '.stdout | @base64d' <<<"$answer"
	return "$(jq .exit_code <<<"$answer")"
}

container_state() { on ContainerStatus | jq -r .status.state; }
container_is() { [[ $(container_state) == "CONTAINER_$1" ]]; }

exited() {
	wait_until "$VZ_PATIENCE" container_is EXITED
	on ContainerStatus | jq -e "$1"
}

### Pods and containers

@test "the engine and its network are ready" {
	[[ $(cri Version | jq -r .runtime_name) == containerd ]]
	cri Status | jq -e 'all(.status.conditions[] | select(.type | test("Ready$")); .status)'
}

@test "a pod and a container go through their lives" {
	pod_up
	cri PodSandboxStatus "{\"pod_sandbox_id\": \"$POD\"}" | jq -e '.status.state == "SANDBOX_READY"'
	create one . sh -c 'echo out; echo err >&2; trap "exit 5" TERM; while :; do sleep 0.05; done'
	container_is CREATED
	on StartContainer
	container_is RUNNING
	wait_line "$VZ_TMP/one.log" ' stdout F out$'
	wait_line "$VZ_TMP/one.log" ' stderr F err$'
	[[ $(inside hostname) == pod ]]
	run -6 inside sh -c 'exit 6'
	on StopContainer '.timeout = "20"'
	exited '.status.exit_code == 5 and .status.reason == "Error"'
	on RemoveContainer
	run ! on ContainerStatus
	cri StopPodSandbox "{\"pod_sandbox_id\": \"$POD\"}"
	cri PodSandboxStatus "{\"pod_sandbox_id\": \"$POD\"}" | jq -e '.status.state == "SANDBOX_NOTREADY"'
	cri RemovePodSandbox "{\"pod_sandbox_id\": \"$POD\"}"
	[[ $(cri ListPodSandbox | jq '.items | length') == 0 ]]
	wait_until 10 nothing_of_pods
}

# nothing_of_pods: no process, no cgroup, no network namespace, no record.
nothing_of_pods() {
	[[ -z $(shims) && -z $(find /sys/fs/cgroup -mindepth 2 -path "*$(cgroup_of "$ID")/*" -type d) ]]
	[[ -z $("$VZRUN" --root "$CTD_RUN/vzrun-cri/k8s.io" list -q) ]]
	! ip -n "$NETNS" -o link show type veth | grep -q .
}

@test "a container that ignores TERM is killed after the timeout" {
	pod_up
	up one . sh -c 'trap "" TERM; while :; do sleep 0.05; done'
	on StopContainer '.timeout = "1"'
	exited '.status.exit_code == 137'
}

@test "a command that does not exist is told" {
	pod_up
	create one . /no/such/program
	run -1 on StartContainer
	[[ $output == *'/no/such/program'*'no such file or directory'* ]]
	exited '.status.exit_code != 0 and (.status.message | test("/no/such/program"))'
}

### Namespaces, privileges

@test "containers of a pod share its network, and pods reach each other" {
	local first address
	pod_up
	first=$POD
	address=$(cri PodSandboxStatus "{\"pod_sandbox_id\": \"$POD\"}" | jq -r .status.network.ip)
	[[ $address == 10.85.7.* ]]
	up server . sh -c 'mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www'
	up beside . sleep 100000
	wait_until "$VZ_PATIENCE" fetch 127.0.0.1
	ID=$ID-b pod_up
	[[ $POD != "$first" ]]
	up client . sleep 100000
	[[ $(fetch "$address") == served ]]
}

fetch() { inside wget -qO - "http://$1/"; }

@test "a pod may have the network, and containers the pids, that are asked for" {
	# The host's network goes with the host's name.
	pod_up '.hostname = "" | .linux.security_context.namespace_options = {network: "NODE", pid: "POD"}'
	up one '.config.linux.security_context.namespace_options = {network: "NODE", pid: "POD"}' sh -c 'exec sleep 4711'
	[[ $(inside readlink /proc/self/ns/net) == "$(nsenter --net="/run/netns/$NETNS" readlink /proc/self/ns/net)" ]]
	up two '.config.linux.security_context.namespace_options = {network: "NODE", pid: "POD"}' sleep 100000
	inside ps | grep -q 'sleep 4711'
}

@test "user, groups, capabilities, seccomp and read-only paths are as asked for" {
	pod_up
	up one '.config.linux.security_context = {run_as_user: {value: "1000"}, run_as_group: {value: "1001"}, supplemental_groups: ["7"],
		readonly_rootfs: true, no_new_privs: true, capabilities: {drop_capabilities: ["ALL"], add_capabilities: ["NET_BIND_SERVICE"]},
		seccomp: {profile_type: "RuntimeDefault"}, masked_paths: ["/proc/kcore"], readonly_paths: ["/proc/sys"]}' sleep 100000
	[[ $(inside sh -c 'id -u; id -g; id -G' | xargs) == "1000 1001 1001 7" ]]
	run ! inside touch /tmp/x
	[[ $(inside awk '/^(CapBnd|NoNewPrivs|Seccomp):/ { print $2 }' /proc/self/status | xargs) == "0000000000000400 1 2" ]]
	[[ -z $(inside head -c 1 /proc/kcore) ]]
}

@test "a privileged container has all devices, and writes to sysctls" {
	pod_up '.linux.security_context.privileged = true'
	up one '.config.linux.security_context.privileged = true' sleep 100000
	[[ $(inside awk '/^CapBnd:/ { print $2 }' /proc/self/status) == "$(awk '/^CapBnd:/ { print $2 }' /proc/self/status)" ]]
	inside sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
	inside mount -t tmpfs none /mnt
}

@test "files are mounted, and mounts of the host arrive where that is asked for" {
	mkdir "$VZ_TMP/dir"
	echo outside >"$VZ_TMP/dir/file"
	mount --bind "$VZ_TMP/dir" "$VZ_TMP/dir"
	mount --make-rshared "$VZ_TMP/dir"
	pod_up
	up one '.config.mounts = [{container_path: "/shared", host_path: "'"$VZ_TMP/dir"'", propagation: "PROPAGATION_HOST_TO_CONTAINER"},
		{container_path: "/ro", host_path: "'"$VZ_TMP/dir"'", readonly: true}]' sleep 100000
	[[ $(inside cat /shared/file) == outside ]]
	run ! inside touch /ro/x
	mkdir "$VZ_TMP/dir/new"
	mount -t tmpfs none "$VZ_TMP/dir/new"
	touch "$VZ_TMP/dir/new/later"
	inside test -e /shared/new/later
	umount "$VZ_TMP/dir/new"
	on StopContainer
	umount "$VZ_TMP/dir"
}

### Limits

# limit V1 V2 prints a control file of the container.
limit() { control_file "$(cgroup_of "$ID")/$CTR" "$@"; }

@test "limits are set, and changed while the container runs" {
	pod_up
	up one '.config.linux.resources = {memory_limit_in_bytes: 67108864, cpu_shares: 512, cpu_quota: 50000, cpu_period: 100000}' sleep 100000
	[[ $(limit memory.limit_in_bytes memory.max) == $((64 << 20)) ]]
	[[ $(limit cpu.cfs_quota_us cpu.max) == 50000* ]]
	on UpdateContainerResources '.linux = {memory_limit_in_bytes: 134217728, cpu_quota: 30000, cpu_period: 100000, cpu_shares: 256}'
	[[ $(limit memory.limit_in_bytes memory.max) == $((128 << 20)) ]]
	[[ $(limit cpu.cfs_quota_us cpu.max) == 30000* ]]
	on ContainerStatus | jq -e '.status.resources.linux.memory_limit_in_bytes == "134217728"'
	container_is RUNNING
}

@test "statistics tell what a container uses" {
	pod_up
	up one . sh -c 'while :; do :; done'
	wait_until "$VZ_PATIENCE" has_used_cpu
	on ContainerStats | jq -e '(.stats.memory.working_set_bytes.value | tonumber) > 0'
	cri PodSandboxStats "{\"pod_sandbox_id\": \"$POD\"}" | jq -e '(.stats.linux.cpu.usage_core_nano_seconds.value | tonumber) > 0'
}

has_used_cpu() { on ContainerStats | jq -e '(.stats.cpu.usage_core_nano_seconds.value | tonumber) > 1e8'; }

@test "a container whose memory runs out is told to be OOMKilled" {
	pod_up
	up one '.config.linux.resources = {memory_limit_in_bytes: 25165824}' sh -c 'exec tail /dev/zero'
	exited '.status.reason == "OOMKilled" and .status.exit_code == 137'
}

### Checkpoint, crash

# A restore is not tried: containerd 2.1 fetches the image that the container was made
# of from its registry, also if it is there (containerd.bats restores by ctr).

@test "a container is checkpointed to an archive, and goes on" {
	pod_up
	up one . sleep 100000
	cri CheckpointContainer "$(jq -nc --arg id "$CTR" --arg to "$VZ_TMP/one.tar" '{container_id: $id, location: $to, timeout: "60"}')"
	tar -tf "$VZ_TMP/one.tar" >"$VZ_TMP/content"
	grep -qx 'checkpoint/inventory.img' "$VZ_TMP/content"
	vz checkpoint inspect --format json "$VZ_TMP/one.tar" |
		jq -e --arg id "$CTR" '.id == $id and .tasks == 1 and .args == ["sleep", "100000"] and (.verified | not)'
	container_is RUNNING
	[[ $(inside echo works) == works ]]
}

@test "pods outlive a containerd that was killed" {
	pod_up
	up one . sh -c 'trap "exit 3" TERM; while :; do sleep 0.05; done'
	containerd_crash
	containerd_start
	wait_until "$VZ_PATIENCE" container_is RUNNING
	[[ $(inside echo again) == again ]]
	on StopContainer '.timeout = "20"'
	exited '.status.exit_code == 3'
}
