# shellcheck shell=bash
# What bats gives to suites.
# shellcheck disable=SC2154
# A Podman of a suite's own: private storage, state, configuration and network,
# with contrib/engines/podman.conf.
#
#   load helpers
#   load engines/podman
#   setup_file() { suite_setup; podman_up; }
#   teardown_file() { podman_down; suite_teardown; }
#   setup() { vz_setup; }
#   teardown() { podman_tidy; vz_teardown; }
#
# To see what another runtime does in its place, name that one in VZRUN.
#
# Podman works in a network namespace of its own: bridges, packet filter rules and
# net.ipv4.ip_forward are its, and end with it. What is published with -p is
# reached with `near`.

podman_up() {
	PODMAN_ENGINE=$("$BATS_TEST_DIRNAME/engines/root" podman | tail -n 1)
	PODMAN_RUN=/run/vzrun-test.$VZ_TAG.engine
	PODMAN_DATA=/var/tmp/vzrun-test.$VZ_TAG.engine
	# Podman asks the criu in PATH whether there is one, then vzrun its own.
	PATH=$PODMAN_ENGINE/bin:${PREFIX:-/usr/local}/libexec/vzrun:$PATH
	export PATH PODMAN_ENGINE PODMAN_RUN PODMAN_DATA
	mkdir -m 0711 "$PODMAN_RUN" "$PODMAN_DATA"
	ip netns add "$(podman_netns)"
	ip -n "$(podman_netns)" link set lo up
	podman_configure "$PODMAN_DATA" "$PODMAN_RUN" "$PODMAN_RUN/state"
	export HOME=$PODMAN_DATA/home CONTAINERS_CONF=$PODMAN_DATA/podman.conf
	export CONTAINERS_CONF_OVERRIDE=$PODMAN_DATA/private.conf CONTAINERS_REGISTRIES_CONF=/dev/null
	export PODMAN_IGNORE_CGROUPSV1_WARNING=1
	tar -C "$VZRUN_BUSYBOX" -c . | pm import --quiet - localhost/busybox >/dev/null
}

podman_netns() { echo "vzrun-test-$VZ_TAG"; }

# near CMD... runs a command where Podman's networks are.
near() { nsenter --net="/run/netns/$(podman_netns)" -- "$@"; }

# podman_configure DATA RUN [STATE] writes to DATA the file that users get, and
# one with what is private. The runtime's state is in STATE, else where it puts it
# by itself.
podman_configure() {
	local data=$1 run=$2
	mkdir -p "$data/home/.config/containers" "$data/networks" "$data/tmp"
	sed "s,\"/usr/local/sbin/vzrun\",\"$VZRUN\"," "$BATS_TEST_DIRNAME/../contrib/engines/podman.conf" >"$data/podman.conf"
	cat >"$data/private.conf" <<-TOML
		[engine]
		cgroup_manager = "cgroupfs"
		conmon_path = ["$PODMAN_ENGINE/bin/conmon"]
		helper_binaries_dir = ["$PODMAN_ENGINE/bin"]
		init_path = "$PODMAN_ENGINE/bin/catatonit"
		events_logger = "file"
		events_logfile_path = "$run/events"
		image_copy_tmp_dir = "$data/tmp"
		lock_type = "file"
		tmp_dir = "$run/libpod"
		[network]
		network_backend = "netavark"
		network_config_dir = "$data/networks"
		firewall_driver = "nftables"
	TOML
	[[ -z ${3:-} ]] || printf '[engine.runtimes_flags]\nvzrun = ["root=%s"]\n' "$3" >>"$data/private.conf"
	echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$data/home/.config/containers/policy.json"
}

# pm ARG... is podman. Conmon, which stays, must not hold bats's descriptor.
pm() {
	near timeout --foreground "$VZ_PATIENCE" podman --root "$PODMAN_DATA/root" --runroot "$PODMAN_RUN/root" "$@" 3>&-
}

# pm_run NAME ARG... runs a container with a cgroup of this suite's, by default
# without a network.
pm_run() {
	local name=$1
	shift
	pm run --name "$name" --network none --cgroup-parent "$(podman_cgroup)" "$@"
}

podman_cgroup() { echo "/vzrun-test-$VZ_TAG"; }

# podman_tidy ends what a test has left. Every call of podman costs half a second,
# so it is asked only if the runtime knows of something.
podman_tidy() {
	[[ -z $(runtime_state) ]] || pm rm --all --force --time 0 >/dev/null
}

# runtime_state lists the containers that the runtime knows.
runtime_state() { find "$PODMAN_RUN/state" -mindepth 1 -maxdepth 1 ! -name @ -printf '%f\n' 2>/dev/null; }

no_runtime_state() { [[ -z $(runtime_state) ]]; }

# podman_down removes all containers and checks that the runtime has kept nothing.
# Whatever fails, the rest is ended.
podman_down() {
	local ok=0
	[[ -d ${PODMAN_RUN:-} ]] || return 0
	pm_remove_all || ok=1
	no_runtime_state || {
		echo "the runtime has kept state of deleted containers: $(runtime_state)"
		ok=1
	}
	podman_leavings || ok=1
	ip netns delete "$(podman_netns)" || ok=1
	# Podman keeps the layers below a mount of its own, and its own cgroups.
	umount "$PODMAN_DATA/root/overlay" 2>/dev/null || true
	remove_cgroups || ok=1
	remove_tree "$PODMAN_RUN" || ok=1
	remove_tree "$PODMAN_DATA" || ok=1
	return "$ok"
}

# remove_cgroups: on cgroup v1 Podman makes cgroups in each directory of
# /sys/fs/cgroup, also in one where no hierarchy is mounted. Files stay there.
remove_cgroups() {
	local dir
	for dir in /sys/fs/cgroup/*/"vzrun-test-$VZ_TAG"; do
		[[ $(stat -f -c %T "$dir" 2>/dev/null) != tmpfs ]] || rm -rf --one-file-system -- "$dir"
	done
	find /sys/fs/cgroup -depth -type d -path "*/vzrun-test-$VZ_TAG*" -exec rmdir {} +
}

pm_remove_all() {
	pm pod rm --all --force --time 0 >/dev/null
	pm rm --all --force --time 0 >/dev/null
	pm network prune --force >/dev/null
}

# podman_leavings fails if a process of a container or an interface has outlived
# Podman's containers.
podman_leavings() {
	local left
	left=$(list_processes | grep -F "$PODMAN_DATA" | grep -v grep) || true
	left+=$(ip -n "$(podman_netns)" -o link | grep -v ': lo:') || true
	[[ -z $left ]] || {
		printf 'left over by podman:\n%s\n' "$left"
		return 1
	}
}

### For tests

# field CONTAINER FORMAT
field() { pm inspect --format "$2" "$1"; }

has_field() { [[ $(field "$1" "$2") == "$3" ]]; }

# cgroup_value PID V1 V2 prints the content of a file in a process's cgroup:
# CONTROLLER/FILE of cgroup v1, or FILE of cgroup2.
cgroup_value() {
	local controller=${2%%/*}
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$3"
	else
		cat "/sys/fs/cgroup/$controller$(sed -nE "s/^[0-9]+:([^:]*,)?$controller(,[^:]*)?://p" "/proc/$1/cgroup")/${2#*/}"
	fi
}
