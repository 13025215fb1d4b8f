# shellcheck shell=bash
# Suites use what is set here; $ARGS is jq's.
# shellcheck disable=SC2016,SC2154
# Container engines inside a guest: dockerd and containerd as services of its
# systemd, docker-compose, Podman with crun; runc and vzrun as their runtimes. The
# programs are the private roots of tests/engines/root, mounted read-only where
# they are at home.
#
#   load helpers
#   load engines/nested
#   nested_install BUNDLE      before the guest is started
#
# There is no other network than what a test adds: images are made from the
# suites' busybox.

# nested_install BUNDLE
nested_install() {
	local bundle=$1 kind root
	for kind in docker podman runtimes nested; do
		root=$("$BATS_TEST_DIRNAME/engines/root" "$kind" | tail -n 1)
		edit_config "$bundle" '.mounts += [{destination: $ARGS.positional[0], type: "bind", source: $ARGS.positional[0], options: ["bind", "ro", "nosuid", "nodev"]}]' "$root"
		find "$root/bin" -type f -exec ln -sft "$bundle/rootfs/usr/local/bin" {} +
	done
	# A copy: a runtime makes another one of itself with an overlay of its directory,
	# and that would not have a file that is mounted there.
	copy_vzrun "$bundle/rootfs/usr/local/bin/vzrun"
	# This one is the last: it has the plug-ins of iptables.
	nested_programs "$bundle/rootfs" "$root"
	nested_docker "$bundle/rootfs" "$root"
	nested_podman "$bundle/rootfs"
}

# nested_programs ROOTFS ROOT: one program is all of iptables, by its name.
nested_programs() {
	local name
	for name in {iptables,ip6tables}{,-save,-restore}; do
		ln -sf "$2/bin/xtables-nft-multi" "$1/usr/local/bin/$name"
	done
	mkdir -p "$1/usr/local/lib/docker/cli-plugins"
	ln -s "$2/bin/docker-compose" "$1/usr/local/lib/docker/cli-plugins/"
}

# nested_docker ROOTFS ROOT writes what Debian's packages have, as far as it
# matters to a runtime.
nested_docker() {
	local units=$1/etc/systemd/system
	mkdir -p "$1/etc/containerd" "$1/etc/docker"
	echo 'disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]' >"$1/etc/containerd/config.toml"
	echo '{"runtimes": {"vzrun": {"path": "/usr/local/bin/vzrun"}}}' >"$1/etc/docker/daemon.json"
	cat >"$units/containerd.service" <<-'UNIT'
		[Service]
		Type=notify
		ExecStart=/usr/local/bin/containerd
		Delegate=yes
		KillMode=process
		LimitNOFILE=infinity
		TasksMax=infinity
		OOMScoreAdjust=-999
	UNIT
	cat >"$units/docker.service" <<-UNIT
		[Unit]
		After=containerd.service
		Wants=containerd.service
		[Service]
		Type=notify
		Environment=XTABLES_LIBDIR=$2/xtables
		ExecStart=/usr/local/bin/dockerd --containerd=/run/containerd/containerd.sock
		Delegate=yes
		KillMode=process
		LimitNOFILE=infinity
		TasksMax=infinity
		OOMScoreAdjust=-500
	UNIT
}

# nested_podman ROOTFS: a cgroup without the pids controller has no limit of it,
# which Podman would set.
nested_podman() {
	local conf=$1/etc/containers bin=${PODMAN_ENGINE:-/usr/local/bin}
	mkdir -p "$conf"
	echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$conf/policy.json"
	cat >"$conf/containers.conf" <<-TOML
		[containers]
		pids_limit = ${NESTED_PIDS_LIMIT:-0}
		[engine]
		runtime = "crun"
		conmon_path = ["$bin/conmon"]
		helper_binaries_dir = ["$bin"]
		init_path = "$bin/catatonit"
		[network]
		network_backend = "netavark"
		firewall_driver = "nftables"
	TOML
}

# docker and podman CMD... are those of the guest $ID.
docker() { guest "$ID" docker "$@"; }
podman() { guest "$ID" podman "$@"; }

# nested_image PROGRAM makes the image "busybox" for an engine.
nested_image() {
	tar -C "$VZRUN_BUSYBOX" -c . | vz exec "$ID" "$1" import - "${2:-busybox}" >/dev/null
}

start_docker() {
	guest "$ID" systemctl start docker || {
		guest "$ID" journalctl --no-pager -u docker -u containerd -n 30
		return 1
	}
}

# has_controller NAME tells whether the guest may limit that in its own cgroups.
has_controller() { [[ " $(guest "$ID" cat /sys/fs/cgroup/cgroup.controllers) " == *" $1 "* ]]; }
