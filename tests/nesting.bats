#!/usr/bin/env bats
# Container engines inside a guest with the feature nesting: a real dockerd, compose,
# Podman. What the features themselves open is in openings.bats.
#
# The tests share one guest, a Debian with Docker and Podman inside; setup boots
# it again if a test has left none.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load engines/nested

setup_file() {
	shared_guest --ram 2G --features nesting,fuse
	NETNS=vzrun-test-$VZ_TAG
	export NETNS
	ip netns add "$NETNS"
	ip -n "$NETNS" link set lo up
	nested_install "$BUNDLE"
	boot
}

teardown_file() {
	vz_teardown
	ip netns delete "$NETNS"
	suite_teardown
}

setup() {
	shared_test
	has_status "$ID" running 2>/dev/null || boot
}

teardown() {
	# What a test of Docker's has left.
	if guest "$ID" systemctl --quiet is-active docker; then
		guest "$ID" sh -c 'docker ps --all --quiet | xargs -r docker rm --force --volumes' >/dev/null
	fi
	shared_test_ends
}

# boot starts the guest, with a link to a network namespace of the suite's, and
# Docker in it.
boot() {
	vz delete --force "$ID"
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
	link_up
	start_docker
	guest "$ID" docker image inspect busybox >/dev/null 2>&1 || nested_image docker
}

# link_up connects the guest. The other end is not on the host, so that it has to
# be taken away before a checkpoint.
link_up() {
	ip -n "$NETNS" link add out type veth peer name eth0 netns "$(pid_of "$ID")"
	ip -n "$NETNS" addr add 10.77.0.1/24 dev out
	ip -n "$NETNS" link set out up
	guest "$ID" sh -c 'ip link set lo up; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up'
}

# docker_is_idle tells whether the guest's bridge has lost its carrier.
docker_is_idle() { guest "$ID" ip route show | grep -q 'docker0 .*linkdown'; }

# outside CMD... runs a command at the other end of the guest's link.
outside() { ip netns exec "$NETNS" "$@"; }

### FUSE

@test "fuse: a file system that is a program is mounted in the guest" {
	guest "$ID" sh -ec 'mkdir -p /var/fuse/low /var/fuse/up /var/fuse/work /var/fuse/at; echo below >/var/fuse/low/file
		fuse-overlayfs -o lowerdir=/var/fuse/low,upperdir=/var/fuse/up,workdir=/var/fuse/work /var/fuse/at
		grep -q "/var/fuse/at fuse.fuse-overlayfs" /proc/mounts
		cat /var/fuse/at/file; echo above >/var/fuse/at/file'
	[[ $(cat "$BUNDLE/rootfs/var/fuse/up/file" "$BUNDLE/rootfs/var/fuse/low/file") == $'above\nbelow' ]]
	# It cannot be saved, and the refusal says so.
	fails 1 'FUSE file system at "/var/fuse/at"' vz checkpoint --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == 'hint: in the guest: umount "/var/fuse/at"'* ]]
	guest "$ID" umount /var/fuse/at
}

### Docker

@test "docker runs a container, on overlay2" {
	[[ $(docker info --format '{{.Driver}} {{.CgroupVersion}} {{.CgroupDriver}}') == "overlay2 2 systemd" ]]
	run -7 --separate-stderr docker run --rm --env A=b busybox sh -c 'echo $A; id -u; grep " / overlay" /proc/mounts | cut -d " " -f 3; exit 7'
	[[ $output == $'b\n0\noverlay' ]]
	# Changed, saved as an image, and run again.
	docker run --name c1 busybox sh -c 'rm /etc/hostname; echo new >/made; chown 33:33 /made'
	docker commit c1 changed >/dev/null
	[[ $(docker run --rm changed stat -c '%u %s' /made) == "33 4" ]]
	docker image rm changed
}

@test "docker publishes a port, for the guest and from outside" {
	docker run --detach --name web --publish 8080:80 busybox sh -c 'echo hello from inside >/index.html; exec httpd -f -p 80 -h /' >/dev/null
	wait_until "$VZ_PATIENCE" outside curl --silent --fail http://10.77.0.2:8080/
	[[ $(outside curl --silent http://10.77.0.2:8080/) == "hello from inside" ]]
	guest "$ID" bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080; printf "GET / HTTP/1.0\r\n\r\n" >&3; grep -q "hello from inside" <&3'
	# And what a container sends goes out, from the guest's address.
	mkdir "$T/www"
	echo hello from outside >"$T/www/index.html"
	spawn "$T/httpd.log" ip netns exec "$NETNS" busybox httpd -f -p 10.77.0.1:80 -h "$T/www"
	wait_until "$VZ_PATIENCE" outside curl --silent --fail http://10.77.0.1/
	[[ $(docker exec web wget -qO - http://10.77.0.1/) == "hello from outside" ]]
}

@test "docker run --privileged: mounts, a sysfs of its own to write to, containers in it" {
	run -0 docker run --rm --privileged busybox sh -ec 'mount -t tmpfs none /mnt; mount | grep -q "on /mnt type tmpfs"
		mount | grep "on /sys type sysfs (rw"; grep -c . /proc/self/status >/dev/null; ip link add d0 type bridge; ip link set d0 up
		echo 1 >/proc/sys/net/ipv4/ip_forward; ls /dev/fuse'
	[[ $output == *"/dev/fuse"* ]]
	# The host's devices are no nearer than to the guest itself.
	run ! docker run --rm --privileged busybox mknod /dev/vda b 254 0
	run ! docker run --rm --privileged busybox sh -c 'echo x >/proc/sys/kernel/core_pattern'
}

@test "docker limits a container where the guest has controllers" {
	lacks "controllers in the guest's cgroups" has_controller memory
	run -0 docker run --rm --memory 64m --cpus 0.5 --pids-limit 50 busybox cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max
	[[ $output == $'67108864\n50000 100000\n50' ]]
	run -137 docker run --rm --memory 16m busybox sh -c 'exec tail -c 64000000 /dev/zero'
	[[ $(docker stats --no-stream --format '{{.Name}}' | wc -l) == 0 ]]
}

@test "where it has none, docker says so and runs it" {
	! has_controller memory || skip "this guest has controllers"
	run -0 docker run --rm --memory 64m --pids-limit 50 busybox echo fine
	[[ $output == *fine* && $output == *"memory limit capabilities"* ]]
}

@test "docker compose: services find each other by name" {
	mkdir "$BUNDLE/rootfs/root/app"
	cat >"$BUNDLE/rootfs/root/app/compose.yaml" <<-'YAML'
		services:
		  web:
		    image: busybox
		    pull_policy: never
		    init: true
		    command: sh -c 'echo served >/index.html; exec httpd -f -p 80 -h /'
		  client:
		    image: busybox
		    pull_policy: never
		    init: true
		    depends_on: [web]
		    command: sh -c 'until wget -qO - http://web/; do sleep 0.1; done'
		    volumes: ["data:/data"]
		volumes: {data: {}}
	YAML
	guest "$ID" sh -c 'cd /root/app && docker compose up --quiet-pull --timeout 0 --exit-code-from client --abort-on-container-exit' >"$T/log" 2>&1 || {
		cat "$T/log"
		return 1
	}
	grep -q 'client.*served' "$T/log"
	guest "$ID" sh -c 'cd /root/app && docker compose down --timeout 0 --volumes' >/dev/null 2>&1
	[[ -z $(docker ps --all --quiet)$(docker volume ls --quiet) ]]
	rm -r "$BUNDLE/rootfs/root/app"
}

@test "vzrun is a runtime of the docker inside" {
	run -0 docker run --rm --runtime vzrun busybox echo twice
	[[ $output == twice ]]
	docker run --detach --runtime vzrun --name deep busybox sleep 1000 >/dev/null
	[[ $(docker exec deep id -u) == 0 ]]
	docker rm --force deep
}

### Podman

@test "podman runs a container, with crun and on overlay, and in a network of its own" {
	podman image exists busybox || nested_image podman
	[[ $(podman info --format '{{.Store.GraphDriverName}} {{.Host.OCIRuntime.Name}} {{.Host.CgroupManager}}') == "overlay crun systemd" ]]
	run -5 --separate-stderr podman run --rm busybox sh -c 'echo here; ip -4 -o addr show eth0 | wc -l; exit 5'
	[[ $output == $'here\n1' ]]
	run -0 --separate-stderr podman run --rm --privileged --network none busybox sh -c 'mount -t tmpfs none /mnt && echo mounted'
	[[ $output == mounted ]]
}

### Checkpoints, and the end

@test "a checkpoint is refused while a container runs inside, and says which to stop" {
	local id
	id=$(docker run --detach --name busy busybox sh -c 'sleep 1000 & exec sleep 1000')
	fails 1 "docker-$id.scope .*is a container inside the guest" vz checkpoint --image-path "$T/images" "$ID"
	[[ ${stderr_lines[1]} == "hint: in the guest: docker stop ${id:0:12}, and start it again afterwards"* ]]
	# One line for one container, whatever runs in it.
	[[ $(grep -o 'container inside' <<<"$stderr" | wc -l) == 1 ]]
	[[ $(docker exec busy echo alive) == alive ]]
}

@test "a guest with docker is saved and restored while none of its containers runs" {
	docker run --detach --name kept busybox sleep 1000 >/dev/null
	docker stop --timeout 0 kept
	ip -n "$NETNS" link delete out
	# The kernel marks routes of an interface without a carrier after a while, and
	# would not take them back like that.
	wait_until 20 docker_is_idle
	vz checkpoint --image-path "$T/images" "$ID"
	vz restore --detach --bundle "$BUNDLE" --image-path "$T/images" "$ID" </dev/null >"$T/restore.log" 2>&1 3>&- || {
		cat "$T/restore.log"
		return 1
	}
	wait_guest "$ID"
	link_up
	docker start kept
	[[ $(docker exec kept echo again) == again ]]
	[[ $(docker run --rm --privileged busybox mount | grep -c 'on /sys type sysfs (rw') == 1 ]]
}

@test "stop ends the containers inside with the guest, and nothing is left" {
	docker run --detach --init --name left --publish 8081:80 busybox httpd -f -p 80 >/dev/null
	vz stop "$ID"
	[[ $(status_of "$ID") == stopped ]]
	vz delete "$ID"
	run ! grep -F "$(cgroup_of "$ID")" <<<"$(list_cgroups)"
	run ! grep -F "$VZ_TMP" <<<"$(list_mounts)"
	[[ ! -e $VZ_ROOT/$ID ]]
}
