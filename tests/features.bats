#!/usr/bin/env bats
# What config.json can ask for (runtime-spec 1.3), each with its effect, seen
# from inside or outside. Hooks, seccomp and the sockets of services are in
# services.bats; terminals and descriptors in lifecycle.bats.
# $ARGS is jq's, other variables in single quotes the guest's.
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
teardown() {
	local link
	vz_teardown
	# A test that failed half-way may have kept its end of the pair.
	for link in "$(link_name h)" "$(link_name g)"; do
		ip link del "$link" 2>/dev/null || true
	done
}

# box ARG... makes a bundle, $BUNDLE.
box() { BUNDLE=$(busybox_bundle "$ID" "$@"); }

# conf FILTER [ARG...] changes its configuration.
conf() { edit_config "$BUNDLE" "$@"; }

# args ARG... gives it another process.
args() { conf '.process.args = $ARGS.positional' "$@"; }

# cgroup_namespace [PATH] gives it one of its own, or that at PATH. A configuration for
# cgroup2 has its own already.
cgroup_namespace() {
	conf '.linux.namespaces |= map(select(.type != "cgroup")) + [{type: "cgroup"} + ($ARGS.positional | if . == [] then {} else {path: .[0]} end)]' "$@"
}

# now runs it in the foreground.
now() { vz run --bundle "$BUNDLE" "$ID" </dev/null; }

# refused CODE REGEX runs it and wants an error, and nothing left.
refused() {
	run "-$1" --separate-stderr vz run --bundle "$BUNDLE" "$ID"
	if [[ -n $output || ! $stderr =~ ^vzrun:\ .*$2 ]]; then
		printf 'not an error that matches "%s": %s%s\n' "$2" "$output" "$stderr"
		return 1
	fi
	assert_nothing_left
}

cgroup2() { [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; }

# cgroup_dir CONTROLLER prints the container's directory. It need not run.
cgroup_dir() {
	if cgroup2; then
		echo "/sys/fs/cgroup$(cgroup_of "$ID")"
	else
		echo "/sys/fs/cgroup/$1$(cgroup_of "$ID")"
	fi
}

# limit V1 V2 prints a control file of the container.
limit() { control_file "$(cgroup_of "$ID")" "$@"; }

has_controller() {
	if cgroup2; then grep -qw "$1" /sys/fs/cgroup/cgroup.controllers; else [[ -d /sys/fs/cgroup/$1 ]]; fi
}

# status FIELD prints a line of the first process's status, from inside.
status() { guest "$ID" awk -v field="$1:" '$1 == field { $1 = ""; print substr($0, 2) }' /proc/1/status; }

### What is said of it

@test "features names what the tests of this suite rely on" {
	vz features >"$VZ_TMP/features"
	jq -e '.ociVersionMax | startswith("1.3")' "$VZ_TMP/features"
	jq -e '.hooks | sort == ["createContainer", "createRuntime", "poststart", "poststop", "prestart", "startContainer"]' "$VZ_TMP/features"
	jq -e '(.mountOptions | contains(["rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "idmap", "ridmap", "tmpcopyup"]))' "$VZ_TMP/features"
	jq -e '.linux.namespaces | sort == ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]' "$VZ_TMP/features"
	jq -e '.linux.seccomp.enabled and (.linux.seccomp.actions | contains(["SCMP_ACT_NOTIFY", "SCMP_ACT_LOG", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS"]))' "$VZ_TMP/features"
	jq -e '.linux.memoryPolicy | (.modes | contains(["MPOL_BIND"])) and (.flags | contains(["MPOL_F_STATIC_NODES"]))' "$VZ_TMP/features"
	jq -e '[.linux.cgroup.v1, .linux.cgroup.v2, .linux.cgroup.systemd, .linux.apparmor.enabled, .linux.selinux.enabled, .linux.intelRdt.enabled,
		.linux.mountExtensions.idmap.enabled, .linux.netDevices.enabled] | all' "$VZ_TMP/features"
	# Who may set these decides about the host.
	jq -e '.potentiallyUnsafeConfigAnnotations | contains(["org.vzrun.", "org.systemd.property."])' "$VZ_TMP/features"
}

### The process

@test "user, groups, umask, directory and environment are as asked" {
	box sh -c 'id -u; id -g; id -G; umask; pwd; echo "$X"'
	conf '.process.user = {uid: 1000, gid: 1001, additionalGids: [7, 8], umask: 23} | .process.cwd = "/tmp" | .process.env += ["X=a b"]'
	[[ $(now) == $'1000\n1001\n1001 7 8\n0027\n/tmp\na b' ]]
}

@test "capabilities are what each of the five sets says, ambient ones too" {
	local kill=$((1 << 5)) bind=$((1 << 10)) chown=1
	box sleep 1000
	conf '.process.user = {uid: 1000, gid: 1000} | .process.capabilities = {
		bounding: ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"], permitted: ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
		inheritable: ["CAP_NET_BIND_SERVICE"], effective: ["CAP_KILL", "CAP_NET_BIND_SERVICE"], ambient: ["CAP_NET_BIND_SERVICE"]}'
	app_up "$BUNDLE" "$ID"
	# The exec of an ordinary user keeps the ambient ones only, capabilities(7).
	((16#$(status CapAmb) == bind && 16#$(status CapInh) == bind))
	((16#$(status CapEff) == bind && 16#$(status CapPrm) == bind))
	((16#$(status CapBnd) == (kill | bind | chown)))
	vz delete --force "$ID"
	# Root's gets all of the bounding set, unless it must not gain any.
	conf '.process.user = {uid: 0, gid: 0} | del(.process.capabilities.ambient) | .process.noNewPrivileges = false'
	app_up "$BUNDLE" "$ID"
	((16#$(status CapEff) == (kill | bind | chown) && 16#$(status CapAmb) == 0))
}

@test "no_new_privs is set where asked for" {
	local want
	box awk '/^NoNewPrivs/ { print $2 }' /proc/self/status
	for want in true false; do
		conf ".process.noNewPrivileges = $want"
		[[ $(now) == $([[ $want == true ]] && echo 1 || echo 0) ]]
	done
}

@test "rlimits and oom_score_adj are set" {
	box sh -c 'ulimit -Hn; ulimit -Sn; ulimit -Hc; ulimit -Hu; cat /proc/self/oom_score_adj'
	conf '.process.oomScoreAdj = 321 | .process.rlimits = [{type: "RLIMIT_NOFILE", hard: 512, soft: 256},
		{type: "RLIMIT_CORE", hard: 0, soft: 0}, {type: "RLIMIT_NPROC", hard: 777, soft: 77}]'
	[[ $(now) == $'512\n256\n0\n777\n321' ]]
	conf '.process.rlimits[0].type = "RLIMIT_NONSENSE"'
	refused 1 'RLIMIT_NONSENSE'
}

@test "scheduler and nice value are set, for exec too" {
	# nice and policy in proc_pid_stat(5); sched(7) has the numbers.
	box sh -c 'cut -d " " -f 19,41 /proc/$$/stat'
	conf '.process.scheduler = {policy: "SCHED_BATCH", nice: 7}'
	[[ $(now) == "7 3" ]]
	conf '.process.scheduler = {policy: "SCHED_IDLE"}'
	[[ $(now) == "0 5" ]]
	conf '.process.scheduler = {policy: "SCHED_NONSENSE"}'
	refused 1 'SCHED_NONSENSE'
	conf '.process.scheduler = {policy: "SCHED_BATCH", nice: 3} | .process.args = ["sleep", "1000"]'
	app_up "$BUNDLE" "$ID"
	[[ $(guest "$ID" sh -c 'cut -d " " -f 19,41 /proc/$$/stat') == "3 3" ]]
}

@test "I/O priority is set" {
	box sh -c 'ionice -p $$'
	conf '.process.ioPriority = {class: "IOPRIO_CLASS_BE", priority: 6}'
	[[ $(now) == "best-effort: prio 6" ]]
	conf '.process.ioPriority = {class: "IOPRIO_CLASS_IDLE", priority: 0}'
	[[ $(now) == idle* ]]
	conf '.process.ioPriority = {class: "IOPRIO_CLASS_NONSENSE", priority: 0}'
	refused 1 'IOPRIO_CLASS_NONSENSE'
}

@test "a memory policy is set" {
	lacks "NUMA" test -e /proc/self/numa_maps
	box sh -c 'awk "{ print \$2; exit }" /proc/self/numa_maps'
	conf '.linux.memoryPolicy = {mode: "MPOL_BIND", nodes: "0"}'
	[[ $(now) == bind:0 ]]
	conf '.linux.memoryPolicy = {mode: "MPOL_INTERLEAVE", nodes: "0", flags: ["MPOL_F_STATIC_NODES"]}'
	[[ $(now) == interleave=static:0 ]]
	conf '.linux.memoryPolicy = {mode: "MPOL_NONSENSE", nodes: "0"}'
	refused 1 'MPOL_NONSENSE'
}

@test "execCPUAffinity places what exec starts" {
	lacks "a second processor" test "$(nproc)" -ge 2
	box sleep 1000
	conf '.process.execCPUAffinity = {initial: "0", final: "1"}'
	app_up "$BUNDLE" "$ID"
	[[ $(guest "$ID" awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status) == 1 ]]
	# The first process is not exec's.
	[[ $(status Cpus_allowed_list) == "$(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)" ]]
	jq '.process | .args = ["awk", "/^Cpus_allowed_list/ { print $2 }", "/proc/self/status"] | .execCPUAffinity = {final: "0"}' \
		"$BUNDLE/config.json" >"$VZ_TMP/process.json"
	[[ $(guest --process "$VZ_TMP/process.json" "$ID") == 0 ]]
	jq '.execCPUAffinity.final = "nonsense"' "$VZ_TMP/process.json" >"$VZ_TMP/bad.json"
	run -255 --separate-stderr guest --process "$VZ_TMP/bad.json" "$ID"
	[[ $stderr == *execCPUAffinity* ]]
}

@test "a 32-bit personality is seen by uname" {
	lacks "an x86 processor" test "$(uname -m)" = x86_64
	box uname -m
	conf '.linux.personality = {domain: "LINUX32"}'
	[[ $(now) == i686 ]]
	conf '.linux.personality.domain = "LINUX"'
	[[ $(now) == x86_64 ]]
	conf '.linux.personality.domain = "NONSENSE"'
	refused 1 'NONSENSE'
}

@test "a terminal has the size that is asked for" {
	box stty size
	conf '.process.terminal = true | .process.consoleSize = {height: 33, width: 99}'
	spawn "$VZ_TMP/out" "$(build_command recvtty)" tty "$VZ_TMP/socket"
	wait_line "$VZ_TMP/out" '^listening$'
	vz run --detach --bundle "$BUNDLE" --console-socket "$VZ_TMP/socket" "$ID" </dev/null >/dev/null 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^33 99'
}

### Names, clocks, system calls' settings

@test "host name and domain name are set" {
	box sh -c 'hostname; cat /proc/sys/kernel/domainname'
	conf '.hostname = "red" | .domainname = "example.org"'
	[[ $(now) == $'red\nexample.org' ]]
}

@test "a time namespace has its own clocks" {
	lacks "time namespaces" test -e /proc/self/ns/time
	local up
	box sh -c 'cut -d . -f 1 /proc/uptime; cat /proc/self/timens_offsets'
	conf '.linux.namespaces += [{type: "time"}] | .linux.timeOffsets = {boottime: {secs: 1000000}, monotonic: {secs: 5, nanosecs: 7}}'
	run -0 --separate-stderr now
	up=$(cut -d . -f 1 /proc/uptime)
	((lines[0] >= 1000000 + up - 120 && lines[0] <= 1000000 + up))
	[[ ${lines[1]} =~ ^monotonic\ +5\ +7$ && ${lines[2]} =~ ^boottime\ +1000000\ +0$ ]]
}

@test "sysctls of the container's namespaces are set, others refused" {
	box sh -c 'cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax'
	conf '.linux.sysctl = {"net.ipv4.ip_unprivileged_port_start": "81", "kernel.msgmax": "8111"}'
	[[ $(now) == $'81\n8111' && $(</proc/sys/kernel/msgmax) != 8111 ]]
	conf '.linux.sysctl = {"kernel.panic": "1"}'
	refused 1 'kernel.panic'
	conf '.linux.sysctl = {"net.ipv4.ip_forward": "1"} | .linux.namespaces |= map(select(.type != "network"))'
	refused 1 'net.ipv4.ip_forward'
}

@test "namespaces are joined by their paths" {
	local first=$ID pid ns
	box sleep 1000
	conf '.hostname = "first"'
	app_up "$BUNDLE" "$ID"
	pid=$(pid_of "$ID")
	ID=$ID-second
	box sh -c 'hostname; for ns in ipc net pid uts mnt; do readlink /proc/self/ns/$ns; done'
	conf 'del(.hostname) | .linux.namespaces |= map(if .type == "mount" then . else
		.path = "/proc/" + $ARGS.positional[0] + "/ns/" + ({network: "net"}[.type] // .type) end)' "$pid"
	run -0 --separate-stderr now
	[[ ${lines[0]} == first ]]
	for ns in ipc net pid uts; do
		[[ $'\n'$output$'\n' == *$'\n'"$(readlink "/proc/$pid/ns/$ns")"$'\n'* ]]
	done
	[[ ${lines[5]} != "$(readlink "/proc/$pid/ns/mnt")" ]]
	conf '(.linux.namespaces[] | select(.type == "network")).path = "/proc/self/ns/uts"'
	run -1 --separate-stderr now
	[[ $stderr == "vzrun: "*"net namespace: Invalid argument"* ]]
	ID=$first
	has_status "$ID" running
}

@test "namespaces that were joined are joined again by a restore" {
	local first=$ID pid ns
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	cgroup_namespace
	app_up "$BUNDLE" "$ID"
	pid=$(pid_of "$ID")
	ID=$ID-second
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	conf 'del(.hostname) | .linux.namespaces |= map(if .type == "mount" or .type == "pid" or .type == "cgroup" then . else
		.path = "/proc/" + $ARGS.positional[0] + "/ns/" + ({network: "net"}[.type] // .type) end)' "$pid"
	app_up "$BUNDLE" "$ID"
	for _ in 1 2; do
		vz checkpoint --image-path "$VZ_TMP/images" "$ID"
		app_restore "$BUNDLE" "$ID" "$VZ_TMP/images"
		for ns in ipc net uts; do
			[[ $(readlink "/proc/$(pid_of "$ID")/ns/$ns") == "$(readlink "/proc/$pid/ns/$ns")" ]]
		done
	done
	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	vz delete --force "$first"
	fails 1 'namespace to join: .*no such file' vz restore --detach --bundle "$BUNDLE" --image-path "$VZ_TMP/images" "$ID"
	conf 'del(.linux.namespaces[].path)'
	fails 1 'the images hold no network namespace, and config.json has no path' \
		vz restore --detach --bundle "$BUNDLE" --image-path "$VZ_TMP/images" "$ID"
	assert_nothing_left
	# A PID namespace of somebody else's is refused by CRIU, and all goes on.
	ID=$first
	app_up "$VZ_TMP/$first" "$first"
	ID=$ID-third
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	conf '(.linux.namespaces[] | select(.type == "pid")).path = $ARGS.positional[0]' "/proc/$(pid_of "$first")/ns/pid"
	app_up "$BUNDLE" "$ID"
	run -1 vz checkpoint --image-path "$VZ_TMP/images-third" "$ID"
	has_status "$ID" running
	# And a cgroup namespace before that.
	ID=$first-fourth
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	cgroup_namespace "/proc/$(pid_of "$first")/ns/cgroup"
	app_up "$BUNDLE" "$ID"
	fails 1 'cgroup namespace' vz checkpoint --image-path "$VZ_TMP/images-fourth" "$ID"
	has_status "$ID" running
	# The host's is no obstacle.
	vz delete --force "$ID"
	cgroup_namespace "/proc/$$/ns/cgroup"
	app_up "$BUNDLE" "$ID"
	vz checkpoint --image-path "$VZ_TMP/images-fifth" "$ID"
}

@test "a user namespace maps ids, and is joined with its children" {
	local pid second
	box sleep 1000
	chown -R 500000:500000 "$BUNDLE/rootfs"
	conf '.linux.namespaces += [{type: "user"}] | .linux.uidMappings = [{containerID: 0, hostID: 500000, size: 1000}]
		| .linux.gidMappings = .linux.uidMappings'
	app_up "$BUNDLE" "$ID"
	pid=$(pid_of "$ID")
	[[ $(stat -c %u "/proc/$pid") == 500000 && $(guest "$ID" id -u) == 0 ]]
	[[ $(awk '{ print $1, $2, $3 }' "/proc/$pid/uid_map") == "0 500000 1000" ]]
	second=$VZ_TMP/second
	mkdir -m 0711 "$second"
	jq --arg pid "$pid" '.root.path = $ARGS.positional[0] | .linux.cgroupsPath += "-2" | del(.linux.uidMappings, .linux.gidMappings)
		| .process.args = ["sh", "-c", "id -u; cat /proc/self/uid_map"]
		| .linux.namespaces |= map(select(.type == "user" or .type == "mount") | if .type == "user" then .path = "/proc/\($pid)/ns/user" else . end)
		| .linux.namespaces += [{type: "pid"}, {type: "ipc"}, {type: "uts"}, {type: "network"}]' \
		--args "$BUNDLE/rootfs" <"$BUNDLE/config.json" >"$second/config.json"
	run -0 --separate-stderr vz run --bundle "$second" "$ID-2" </dev/null
	[[ ${lines[0]} == 0 && ${lines[1]} =~ ^\ +0\ +500000\ +1000$ ]]
}

@test "a cgroup namespace hides where the cgroups are" {
	box cat /proc/self/cgroup
	cgroup_namespace
	now >"$VZ_TMP/out"
	run ! grep -F "$VZ_TAG" "$VZ_TMP/out"
	grep -q ':/$' "$VZ_TMP/out"
	conf '.linux.namespaces |= map(select(.type != "cgroup"))'
	now | grep -qF "$VZ_TAG"
}

### Network devices

# link_name END is short enough for a network device.
link_name() { echo "vz$1${VZ_TAG##*-}"; }

@test "network devices move in, with a new name, their address and state" {
	local host guest
	host=$(link_name h)
	guest=$(link_name g)
	ip link add "$host" type veth peer name "$guest"
	ip addr add 192.0.2.7/24 dev "$guest"
	box ip addr show eth9
	conf '.linux.netDevices = {($ARGS.positional[0]): {name: "eth9"}}' "$guest"
	run -0 --separate-stderr now
	[[ $output == *eth9*UP*"inet 192.0.2.7/24"* ]]
	run ! ip link show "$guest"
	conf '.linux.netDevices = {"vznone": {}}'
	refused 1 'vznone'
	conf '.linux.namespaces |= map(select(.type != "network"))'
	refused 1 'network'
}

### Mounts

# apart CMD... runs a command in a mount namespace of its own, with a tmpfs in
# $VZ_TMP/tree/sub that the host does not see.
apart() {
	mkdir -p "$VZ_TMP/tree/sub"
	unshare --mount --propagation private -- sh -c '
		mount -t tmpfs sub "$1/sub" && touch "$1/sub/inner" && shift && exec "$@"' sh "$VZ_TMP/tree" "$@" </dev/null
}

tree_at() { conf '.mounts += [{destination: "/tree", type: "bind", source: $ARGS.positional[0], options: $ARGS.positional[1:]}]' "$VZ_TMP/tree" "$@"; }

# mount_options PLACE prints those of a mount and its propagation, from inside.
mount_options() { awk -v place="$1" '$5 == place { print $6, ($7 == "-" ? "private" : $7) }'; }

@test "mount options apply to the mount, recursive ones to all below" {
	box cat /proc/self/mountinfo
	tree_at rbind ro nosuid
	apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID" >"$VZ_TMP/out"
	[[ $(mount_options /tree <"$VZ_TMP/out") == ro,nosuid,* ]]
	[[ $(mount_options /tree/sub <"$VZ_TMP/out") == rw,relatime* ]]
	conf '.mounts[-1].options = ["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"]'
	apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID" >"$VZ_TMP/out"
	[[ $(mount_options /tree <"$VZ_TMP/out") == ro,nosuid,nodev,noexec,noatime* ]]
	[[ $(mount_options /tree/sub <"$VZ_TMP/out") == ro,nosuid,nodev,noexec,noatime* ]]
	# Not recursive at all: what is mounted below stays outside.
	conf '.mounts[-1].options = ["bind"]'
	apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID" >"$VZ_TMP/out"
	[[ -z $(mount_options /tree/sub <"$VZ_TMP/out") ]]
	conf '.mounts[-1].options = ["bind", "nonsense"]'
	refused 1 'nonsense'
}

@test "a mount maps ids of its own, with and without what is below" {
	lacks "id-mapped mounts of $(stat -fc %T "$VZ_TMP")" idmap_works "$VZ_TMP"
	box stat -c %u:%g /tree/outer /tree/sub/inner
	mkdir "$VZ_TMP/tree"
	touch "$VZ_TMP/tree/outer"
	tree_at rbind idmap
	conf '.mounts[-1].uidMappings = [{containerID: 0, hostID: 4000, size: 10}] | .mounts[-1].gidMappings = [{containerID: 0, hostID: 5000, size: 10}]'
	[[ $(apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID") == $'4000:5000\n0:0' ]]
	conf '.mounts[-1].options = ["rbind", "ridmap"]'
	[[ $(apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID") == $'4000:5000\n4000:5000' ]]
	# New files are the mapped id's on disk.
	conf '.process.args = ["touch", "/tree/new"] | .process.user.uid = 4003 | .process.user.gid = 5004'
	chmod 777 "$VZ_TMP/tree"
	apart "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$ID"
	[[ $(stat -c %u:%g "$VZ_TMP/tree/new") == 3:4 ]]
	conf '.mounts[-1].source = "/proc/self/fd"'
	refused 1 'MOUNT_ATTR_IDMAP|invalid argument'
	conf 'del(.mounts[-1].uidMappings, .mounts[-1].gidMappings)'
	refused 1 'mappings'
}

# idmap_works DIR asks util-linux's mount where it can, else believes in vzrun's.
idmap_works() { [[ $(stat -fc %T "$1") =~ ^(ext2/ext3|xfs|btrfs|tmpfs)$ ]]; }

@test "a tmpfs has its size, mode and a copy of what it covers" {
	box sh -c 'cat /etc/kept; grep " /etc " /proc/self/mountinfo; stat -c %a /etc; dd if=/dev/zero of=/etc/big bs=1M count=3'
	echo before >"$BUNDLE/rootfs/etc/kept"
	conf '.mounts += [{destination: "/etc", type: "tmpfs", source: "tmpfs", options: ["tmpcopyup", "mode=751", "size=1m", "noexec"]}]'
	run -1 now
	[[ ${lines[0]} == before && ${lines[1]} == *noexec*tmpfs*size=1024k* && ${lines[2]} == 751 && $output == *"No space left"* ]]
	[[ ! -e $BUNDLE/rootfs/etc/big ]]
}

@test "the root has the propagation that is asked for" {
	local want
	box cat /proc/self/mountinfo
	for want in private shared unbindable slave; do
		conf '.linux.rootfsPropagation = $ARGS.positional[0]' "$want"
		now >"$VZ_TMP/out"
		case $want in
		private) [[ $(mount_options / <"$VZ_TMP/out") == *" private" ]] ;;
		shared) [[ $(mount_options / <"$VZ_TMP/out") == *" shared:"* ]] ;;
		unbindable) [[ $(mount_options / <"$VZ_TMP/out") == *" unbindable" ]] ;;
		# What is mounted on the host has no peers to get mounts from here.
		slave) [[ $(mount_options / <"$VZ_TMP/out") == *" private" || $(mount_options / <"$VZ_TMP/out") == *" master:"* ]] ;;
		esac
	done
	conf '.linux.rootfsPropagation = "nonsense"'
	refused 1 'nonsense'
}

@test "the root is read-only where asked for, mounts in it are not" {
	box sh -c 'touch /x; touch /dev/shm/x && echo wrote'
	conf '.root.readonly = true'
	run -0 now
	[[ $output == *"Read-only file system"*wrote && ! -e $BUNDLE/rootfs/x ]]
}

@test "masked paths are empty, read-only paths cannot be written" {
	box sh -c 'cat /secret/file; ls /hidden | wc -l; echo 1 >/kept/file; cat /kept/file'
	mkdir "$BUNDLE/rootfs/secret" "$BUNDLE/rootfs/hidden" "$BUNDLE/rootfs/kept"
	echo secret | tee "$BUNDLE/rootfs/secret/file" "$BUNDLE/rootfs/hidden/file" >/dev/null
	echo kept >"$BUNDLE/rootfs/kept/file"
	conf '.linux.maskedPaths += ["/secret/file", "/hidden", "/nowhere"] | .linux.readonlyPaths += ["/kept", "/nowhere"]'
	run -0 now
	[[ $output == $'0\n'*"Read-only file system"*$'\nkept' ]]
}

### Devices

@test "devices are made, and the cgroup says which can be used" {
	box sh -c 'stat -c "%F %t:%T %a %u:%g" /dev/log2; : >>/dev/log2 && echo opened'
	conf '.linux.devices = [{path: "/dev/log2", type: "c", major: 1, minor: 11, fileMode: 416, uid: 3, gid: 4}]
		| .process.capabilities.bounding += ["CAP_DAC_OVERRIDE"] | .process.capabilities.permitted += ["CAP_DAC_OVERRIDE"]
		| .process.capabilities.effective += ["CAP_DAC_OVERRIDE"]'
	run -1 now
	[[ ${lines[0]} == "character special file 1:b 640 3:4" && $output == *"Operation not permitted"* ]]
	conf '.linux.resources.devices += [{allow: true, type: "c", major: 1, minor: 11, access: "w"}]'
	run -0 now
	[[ ${lines[1]} == opened ]]
	args sh -c ': </dev/log2'
	run -1 now
	[[ $output == *"Operation not permitted"* ]]
	conf '.linux.devices[0].type = "nonsense"'
	refused 1 'device'
}

@test "the usual devices are there and work" {
	box sh -c 'for d in null zero full random urandom tty; do stat -c "%n %t:%T %a" /dev/$d; done; readlink /dev/fd; readlink /dev/ptmx
		head -c 3 /dev/zero | wc -c; echo x >/dev/full'
	run -1 now
	[[ $output == "/dev/null 1:3 666
/dev/zero 1:5 666
/dev/full 1:7 666
/dev/random 1:8 666
/dev/urandom 1:9 666
/dev/tty 5:0 666
/proc/self/fd
pts/ptmx
3
"*"No space left on device" ]]
}

### Resources

@test "memory is limited, and who takes more is killed" {
	box /peer memory 16
	cp "$PEER" "$BUNDLE/rootfs/peer"
	conf '.linux.resources.memory = {limit: 50331648, reservation: 25165824, swap: 50331648}'
	[[ $(now) == "touched 16" ]]
	args /peer memory 90
	run -137 now
	args sleep 1000
	app_up "$BUNDLE" "$ID"
	[[ $(limit memory.limit_in_bytes memory.max) == 50331648 ]]
	[[ $(limit memory.soft_limit_in_bytes memory.low) == 25165824 ]]
}

@test "processor time, shares and processors are limited" {
	box sleep 1000
	conf '.linux.resources.cpu = {shares: 512, quota: 20000, period: 50000, cpus: "0", mems: "0"}'
	app_up "$BUNDLE" "$ID"
	if cgroup2; then
		[[ $(limit - cpu.max) == "20000 50000" && $(limit - cpuset.cpus) == 0 ]]
	else
		[[ $(limit cpu.cfs_quota_us -) == 20000 && $(limit cpu.cfs_period_us -) == 50000 ]]
		[[ $(limit cpu.shares -) == 512 && $(limit cpuset.cpus -) == 0 && $(limit cpuset.mems -) == 0 ]]
	fi
	[[ $(guest "$ID" nproc) == 1 ]]
	[[ $(status Cpus_allowed_list) == 0 ]]
}

@test "the number of processes is limited" {
	box sh -c 'for i in 1 2 3 4 5 6; do sleep 1000 & done; echo all'
	conf '.linux.resources.pids = {limit: 4}'
	run ! now
	[[ $output == *"Resource temporarily unavailable"* || $output == *"can't fork"* ]]
	conf '.linux.resources.pids.limit = 40'
	run -0 now
	[[ $output == all ]]
}

@test "block I/O is throttled" {
	has_controller io || lacks "a block I/O controller" has_controller blkio
	local device
	device=$(cat /sys/block/*/dev | head -n 1)
	box sleep 1000
	conf '.linux.resources.blockIO = {throttleReadBpsDevice: [{major: ($ARGS.positional[0] | tonumber), minor: ($ARGS.positional[1] | tonumber), rate: 1048576}]}' \
		"${device%:*}" "${device#*:}"
	app_up "$BUNDLE" "$ID"
	[[ $(limit blkio.throttle.read_bps_device io.max) == "$device "*1048576* ]]
}

@test "huge pages are limited" {
	lacks "the hugetlb controller of this layout" has_controller hugetlb
	box sleep 1000
	conf '.linux.resources.hugepageLimits = [{pageSize: "2MB", limit: 4194304}]'
	app_up "$BUNDLE" "$ID"
	[[ $(limit hugetlb.2MB.limit_in_bytes hugetlb.2MB.max) == 4194304 ]]
}

@test "unified resources are set on cgroup2, and refused on v1" {
	box sleep 1000
	conf '.linux.resources.unified = {"memory.high": "33554432", "pids.max": "77"}'
	if ! cgroup2; then
		refused 1 'cannot use unified on cgroup v1'
		return
	fi
	app_up "$BUNDLE" "$ID"
	[[ $(limit - memory.high) == 33554432 && $(limit - pids.max) == 77 ]]
}

### What only some hosts have

@test "an AppArmor profile is applied, or an error where there are none" {
	box cat /proc/self/attr/current
	conf '.process.apparmorProfile = "vzrun-no-such-profile"'
	refused 1 'apparmor'
	grep -qs Y /sys/module/apparmor/parameters/enabled || return 0
	conf '.process.apparmorProfile = "unconfined"'
	[[ $(now) == unconfined* ]]
}

@test "an SELinux label is applied, or an error where there are none" {
	box cat /proc/self/attr/current
	conf '.process.selinuxLabel = "system_u:system_r:container_t:s0"'
	if [[ ! -e /sys/fs/selinux/enforce ]]; then
		refused 1 '[sS][eE][lL]inux'
		return
	fi
	[[ $(now) == *container_t* ]]
}

@test "Intel RDT is used where it is mounted, else refused" {
	box cat /proc/self/status
	conf '.linux.intelRdt = {closID: $ARGS.positional[0], l3CacheSchema: "L3:0=f"}' "$VZ_TAG"
	if ! grep -q ' - resctrl ' /proc/self/mountinfo; then
		refused 1 'intelRdt|Intel RDT|resctrl'
		return
	fi
	now
}
