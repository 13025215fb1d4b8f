# shellcheck shell=bash
# What bats gives to suites.
# shellcheck disable=SC2154
# A Docker of a suite's own: dockerd and containerd with private data, state,
# sockets and network, configured by contrib/engines/docker-daemon.json.
#
#   load helpers
#   load engines/docker
#   setup_file() { suite_setup; docker_up; }
#   teardown_file() { docker_down; suite_teardown; }
#
# To see what another runtime does in its place, name that one in VZRUN.
#
# The daemons live in a network namespace of their own. So bridges, packet filter
# rules and net.ipv4.ip_forward are theirs, and end with it; what is published
# with -p is reached with `near`.

docker_up() {
	local engine
	engine=$("$BATS_TEST_DIRNAME/engines/root" docker | tail -n 1)
	PATH=$engine/bin:$PATH
	DOCKER_RUN=/run/vzrun-test.$VZ_TAG.engine
	DOCKER_DATA=/var/tmp/vzrun-test.$VZ_TAG.engine
	DOCKER_HOST=unix://$DOCKER_RUN/docker.sock
	DOCKER_CONFIG=$DOCKER_RUN/client
	export PATH DOCKER_RUN DOCKER_DATA DOCKER_HOST DOCKER_CONFIG
	mkdir -m 0711 "$DOCKER_RUN" "$DOCKER_DATA"
	ip netns add "vzrun-test-$VZ_TAG"
	near ip link set lo up
	write_configuration
	start_containerd
	start_dockerd
	tar -C "$VZRUN_BUSYBOX" -c . | docker import - busybox >/dev/null
}

docker_netns() { echo "/run/netns/vzrun-test-$VZ_TAG"; }

# near CMD... runs a command where the daemons live.
near() { nsenter --net="$(docker_netns)" -- "$@"; }

# write_configuration takes the file that users get, and changes in it what this
# machine may have other things in the place of. Checkpoints need "experimental".
write_configuration() {
	jq --arg runtime "$VZRUN" --arg run "$DOCKER_RUN" --arg data "$DOCKER_DATA" --arg tag "$VZ_TAG" '
		.runtimes[."default-runtime"].path = $runtime
		| .runtimes.debugged = {path: $runtime, runtimeArgs: ["--debug"]}
		| . + {
			"containerd": "\($run)/containerd.sock", "hosts": ["unix://\($run)/docker.sock"],
			"exec-root": "\($run)/exec", "data-root": $data, "pidfile": "\($run)/docker.pid",
			"cgroup-parent": "/vzrun-test-\($tag)", "exec-opts": ["native.cgroupdriver=cgroupfs"],
			"bip": "172.30.99.1/24", "default-address-pools": [{base: "172.30.100.0/22", size: 24}],
			"live-restore": true, "experimental": true
		}' "$BATS_TEST_DIRNAME/../contrib/engines/docker-daemon.json" >"$DOCKER_RUN/daemon.json"
	cat >"$DOCKER_RUN/containerd.toml" <<-TOML
		version = 3
		root = "$DOCKER_DATA/containerd"
		state = "$DOCKER_RUN/containerd"
		disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
		[debug]
		level = "warn"
		[grpc]
		address = "$DOCKER_RUN/containerd.sock"
	TOML
}

start_containerd() {
	start_daemon containerd --config "$DOCKER_RUN/containerd.toml"
	wait_file "$DOCKER_RUN/containerd.sock" || show_daemons
}

# BuildKit, which is in dockerd, takes no runtime from its configuration: without
# this there must be a runc in PATH, and that is what it starts.
start_dockerd() {
	DOCKER_BUILDKIT_RUNC_COMMAND=$VZRUN start_daemon dockerd --config-file "$DOCKER_RUN/daemon.json"
	wait_until "$VZ_PATIENCE" docker version || show_daemons
}

# start_daemon NAME ARG... keeps the pid in a file, as a test may start one again,
# and has bash forget it, which would report its end.
start_daemon() {
	nsenter --net="$(docker_netns)" -- "$@" </dev/null >>"$DOCKER_RUN/$1.log" 2>&1 3>&- &
	echo $! >"$DOCKER_RUN/$1.own"
	disown
}

daemon_pid() { cat "$DOCKER_RUN/$1.own"; }

show_daemons() {
	tail -n 15 "$DOCKER_RUN/containerd.log" "$DOCKER_RUN/dockerd.log"
	return 1
}

# docker_down removes all containers, ends the daemons and checks that the
# runtime has kept nothing. Whatever fails, the rest is ended.
docker_down() {
	local ok=0
	[[ -d ${DOCKER_RUN:-} ]] || return 0
	remove_containers . || ok=1
	stop_daemon dockerd || ok=1
	no_runtime_state || ok=1
	stop_daemon containerd || ok=1
	end_shims || ok=1
	umount_own
	ip netns delete "vzrun-test-$VZ_TAG" || ok=1
	find /sys/fs/cgroup -depth -type d -path "*/vzrun-test-$VZ_TAG*" -exec rmdir {} + || ok=1
	((ok == 0)) || show_daemons || true
	remove_tree "$DOCKER_RUN" || ok=1
	remove_tree "$DOCKER_DATA" || ok=1
	return "$ok"
}

# remove_containers REGEX removes those with such a name.
remove_containers() {
	local ids
	ids=$(timeout 20 docker ps --all --quiet --filter "name=$1") || return 1
	# shellcheck disable=SC2086 # ids are words
	[[ -z $ids ]] || timeout 60 docker rm --force --volumes $ids >/dev/null
}

# stop_daemon NAME asks; one that does not hear is killed, and that is an error.
stop_daemon() {
	local pid
	pid=$(daemon_pid "$1") || return 0
	kill "$pid" 2>/dev/null || true
	wait_exit "$pid" 30 && return
	kill -KILL "$pid"
	wait_exit "$pid" 5
	return 1
}

no_runtime_state() {
	local left
	left=$(find "$DOCKER_RUN"/exec/runtime-*/moby -mindepth 1 ! -path '*/moby/@' ! -path '*/moby/@/seccomp*' ! -path '*/moby/@/criu*' 2>/dev/null) || true
	[[ -z $left ]] || {
		printf 'the runtime has kept state of deleted containers:\n%s\n' "$left"
		return 1
	}
}

# end_shims: one that has outlived its container is an error, and has to go.
end_shims() {
	local pids
	wait_until 5 no_shims && return
	pids=$(shims)
	ps -ww -o pid,args -p "$(paste -sd , <<<"$pids")"
	# shellcheck disable=SC2086 # pids are words
	kill -KILL $pids
	return 1
}

shims() { pgrep -f -- "containerd-shim-runc-v2 .*$DOCKER_RUN/containerd.sock"; }

no_shims() { ! shims; }

# umount_own takes away what dockerd itself leaves mounted with live-restore on:
# its data directory over itself, and the network namespace of --network host.
# No mount of a container is among them, else docker_down fails.
umount_own() {
	local mount
	for mount in "$DOCKER_DATA" "$DOCKER_RUN/exec/netns/default"; do
		umount "$mount" 2>/dev/null || true
	done
}

### For tests

# field CONTAINER FORMAT
field() { docker inspect --format "$2" "$1"; }

has_field() { [[ $(field "$1" "$2") == "$3" ]]; }

# has_logged CONTAINER REGEX
has_logged() { docker logs "$1" 2>&1 | grep -qE -- "$2"; }

# cgroup_value CONTAINER V1 V2 prints the content of a file in the container's
# cgroup: CONTROLLER/FILE of cgroup v1, or FILE of cgroup2.
cgroup_value() { cat "$(cgroup_file "$@")"; }

cgroup_file() {
	local groups controller=${2%%/*}
	groups=/proc/$(field "$1" '{{.State.Pid}}')/cgroup
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "$groups")/$3"
	else
		echo "/sys/fs/cgroup/$controller$(sed -nE "s/^[0-9]+:([^:]*,)?$controller(,[^:]*)?://p" "$groups")/${2#*/}"
	fi
}
