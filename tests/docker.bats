#!/usr/bin/env bats
# Docker with vzrun as its runtime.
# Variables in single quotes are the container's; $output and its like are bats's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load engines/docker

setup_file() {
	suite_setup
	docker_up
}
teardown_file() {
	local ok=0
	docker_down || ok=1
	suite_teardown
	return "$ok"
}
setup() { vz_setup; }
teardown() {
	remove_containers "$ID"
	vz_teardown
}

# The network is what takes the most time; few tests need one.

# once FLAG... IMAGE CMD... runs a container in the foreground.
once() { docker run --rm --name "$ID-once" --network none "$@"; }

# up FLAG... IMAGE CMD... starts the container $ID.
up() { docker run --detach --name "$ID" --network none "$@" >/dev/null; }

# A process that ends when it is told to.
IDLE='trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done'

### Set-up

@test "the configuration for users makes vzrun the default, and docker reads its features" {
	[[ $(docker info --format '{{.DefaultRuntime}}') == vzrun ]]
	docker info --format '{{json .Runtimes.vzrun.status}}' |
		jq -e '."org.opencontainers.runtime-spec.features" | fromjson
			| (.ociVersionMax | startswith("1.")) and .linux.seccomp.enabled and (.linux.namespaces | index("user") != null)'
}

@test "a runtime with arguments of its own works" {
	run -0 once --runtime debugged busybox echo hello
	[[ $output == hello ]]
}

# build_context CMD... makes a context whose image is busybox, changed by commands.
build_context() {
	mkdir -p "$VZ_TMP/context"
	tar -C "$VZRUN_BUSYBOX" -cf "$VZ_TMP/context/root.tar" .
	{
		printf '%s\n' 'FROM scratch' 'ADD root.tar /' 'ENV GREETING=hello'
		printf 'RUN %s\n' "$@"
		printf '%s\n' 'USER 33:34' 'CMD ["cat", "/built"]'
	} >"$VZ_TMP/context/Dockerfile"
}

# The builder that is a part of dockerd starts the default runtime.
@test "an image is built, with commands that run in containers" {
	build_context 'id -u >/built' 'echo $GREETING >>/built'
	DOCKER_BUILDKIT=0 docker build --tag "built:$ID" "$VZ_TMP/context"
	[[ $(once "built:$ID") == $'0\nhello' && $(once "built:$ID" id -u) == 33 ]]
	build_context 'exit 9'
	DOCKER_BUILDKIT=0 run -9 docker build "$VZ_TMP/context"
}

# What docker-buildx asks dockerd for, without it: the answer is not for people.
buildkit() {
	tar -C "$VZ_TMP/context" -c . | curl --silent --fail --max-time 60 --unix-socket "$DOCKER_RUN/docker.sock" --data-binary @- \
		--header 'Content-Type: application/x-tar' "http://docker/build?version=2&networkmode=none&t=$1" >"$VZ_TMP/answer"
}

@test "BuildKit builds with the program it is told to take for runc" {
	build_context 'id -u >/built' 'echo $GREETING >>/built'
	buildkit "built:$ID"
	[[ $(once "built:$ID") == $'0\nhello' && $(once "built:$ID" id -u) == 33 ]]
	build_context 'exit 9'
	buildkit "failed:$ID"
	jq -s -e 'any(.error // "" | test("exit code: 9"))' "$VZ_TMP/answer"
}

### run

@test "run passes output, exit code, environment, user, directory and host name" {
	run -7 --separate-stderr once --env A=b --user 1000:5 --group-add 7 --workdir /made/up --hostname here busybox \
		sh -c 'echo $A; id; pwd; hostname; echo trouble >&2; exit 7'
	[[ $output == $'b\nuid=1000 gid=5 groups=5,7\n/made/up\nhere' && $stderr == trouble ]]
	run -0 once --entrypoint /bin/echo busybox one two
	[[ $output == "one two" ]]
}

@test "standard input and output carry megabytes" {
	head -c 3000000 /dev/urandom >"$VZ_TMP/sent"
	once --interactive busybox cat <"$VZ_TMP/sent" >"$VZ_TMP/received"
	cmp "$VZ_TMP/sent" "$VZ_TMP/received"
}

@test "a terminal has the client's size" {
	run -0 once --tty busybox tty
	[[ $output == /dev/pts/0$'\r' ]]
	# The client sets the size after the start.
	run -6 script -qec "stty rows 33 cols 111; docker run -it --rm --name $ID-tty --network none busybox sh -c '
		i=0; until [ \"\$(stty size)\" = \"33 111\" ] || [ \$i -gt 100 ]; do i=\$((i + 1)); sleep 0.1; done; stty size; exit 6'" /dev/null
	[[ ${lines[-1]} == *"33 111"$'\r' ]]
}

@test "a program that is not there is 127, one that cannot be executed 126" {
	run -127 once busybox /not/there
	[[ $output == *'exec: "/not/there": stat /not/there: no such file or directory'* ]]
	run -127 once busybox not-there
	[[ $output == *'exec: "not-there": executable file not found in $PATH'* ]]
	run -126 once busybox /etc/passwd
	[[ $output == *'exec: "/etc/passwd": permission denied'* ]]
	run -126 once busybox /etc
	[[ $output == *'is a directory'* ]]
	# None of them leaves a container behind.
	[[ -z $(docker ps --all --quiet --filter "name=$ID") ]]
}

@test "volumes, tmpfs, a root that is read-only" {
	mkdir "$VZ_TMP/volume"
	echo mine >"$VZ_TMP/volume/file"
	run -0 --separate-stderr once --read-only --tmpfs /scratch:size=1m,mode=1700 --shm-size 2m --volume "$VZ_TMP/volume:/rw" \
		--volume "$VZ_TMP/volume:/ro:ro" --mount "type=bind,src=$VZ_TMP/volume/file,dst=/single" --volume "$ID:/named" busybox sh -c '
		cat /single && echo changed >/rw/new && touch /named/kept
		touch /ro/new || touch /new || head -c 2000000 /dev/zero >/scratch/big || stat -c %a /scratch
		df -k /scratch /dev/shm | awk "NR > 1 { print \$2 }"'
	[[ $output == $'mine\n1700\n1024\n2048' ]]
	[[ $(cat "$VZ_TMP/volume/new") == changed ]]
	run -0 once --volume "$ID:/named" busybox ls /named
	[[ $output == kept ]]
	docker volume rm "$ID"
}

@test "an init, sysctls, hidden files of /proc" {
	run -0 --separate-stderr once --init --sysctl net.ipv4.ip_unprivileged_port_start=99 --sysctl kernel.msgmax=9999 busybox \
		sh -c 'cat /proc/1/comm /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax; wc -c </proc/keys; ls -A /sys/firmware
			echo 1 >/proc/sys/kernel/msgmax || echo refused'
	[[ $output == $'docker-init\n99\n9999\n0\nrefused' ]]
}

@test "capabilities, no new privileges, ulimits" {
	run -0 once --cap-drop ALL --cap-add NET_ADMIN --cap-add CHOWN --security-opt no-new-privileges --ulimit nofile=512:1024 busybox \
		sh -c 'awk "/^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)/ { print \$2 }" /proc/self/status; ulimit -n; ulimit -Hn'
	[[ $output == $'0000000000001001\n0000000000001001\n0000000000001001\n0000000000000000\n1\n512\n1024' ]]
	# What docker gives to all.
	run -0 once busybox sh -c 'awk "/^Cap(Eff|Bnd)|^NoNewPrivs/ { print \$2 }" /proc/self/status'
	[[ $output == $'00000000a80425fb\n00000000a80425fb\n0' ]]
}

@test "docker's own system call filter holds, and so does one of the user" {
	run -0 --separate-stderr once busybox sh -c 'awk "/^Seccomp:/ { print \$2 }" /proc/self/status; unshare -U true || echo refused'
	[[ $output == $'2\nrefused' ]]
	lacks "user namespaces" unshare --user true
	once --security-opt seccomp=unconfined busybox unshare -U true
	jq -n '{defaultAction: "SCMP_ACT_ALLOW", syscalls: [{names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 28}]}' >"$VZ_TMP/filter"
	run -1 once --security-opt "seccomp=$VZ_TMP/filter" busybox mkdir /new
	[[ $output == *"No space left on device"* ]]
}

@test "privileged: all that the daemon may do, writable /proc and /sys, all devices" {
	run -0 once --privileged busybox sh -c 'awk "/^CapEff/ { print \$2 }" /proc/self/status
		mkdir /new && mount -t tmpfs none /new && echo there >/proc/sys/kernel/hostname && grep -c "^sysfs /sys sysfs rw" /proc/mounts'
	[[ $output == "$(awk '/^CapEff/ { print $2 }' "/proc/$(daemon_pid dockerd)/status")"$'\n1' ]]
	[[ $(once --privileged busybox ls /dev | wc -l) -gt $(once busybox ls /dev | wc -l) ]]
}

@test "devices are there when asked for, with the access asked for" {
	[[ -c /dev/fuse ]] || lacks /dev/fuse false
	run -0 --separate-stderr once --device /dev/fuse:/dev/other:r busybox \
		sh -c 'stat -c %t:%T /dev/other; true </dev/other && echo read; true >>/dev/other || echo no'
	[[ $output == $'a:e5\nread\nno' ]]
	run -0 --separate-stderr once busybox sh -c 'mknod /node c 10 229; true </node || echo no'
	[[ $output == no ]]
	run -0 once --device-cgroup-rule 'c 10:229 rwm' busybox sh -c 'mknod /node c 10 229; true <>/node && echo yes'
	[[ $output == yes ]]
}

@test "namespaces of the host and of other containers" {
	run -0 docker run --rm --pid host --uts host --ipc host --network host busybox \
		sh -c 'for ns in pid uts ipc net mnt; do readlink /proc/self/ns/$ns; done'
	[[ $output == "$(near sh -c 'for ns in pid uts ipc net; do readlink /proc/self/ns/$ns; done')"$'\n'mnt:* ]]
	up busybox sh -c "$IDLE"
	once --pid host busybox test -d "/proc/$(field "$ID" '{{.State.Pid}}')"
	run -0 docker run --rm --pid "container:$ID" --network "container:$ID" --ipc host busybox sh -c 'cat /proc/1/cmdline | tr "\0" " "'
	[[ $output == "sh -c trap"* ]]
}

@test "limits given to run are in the cgroup" {
	up --memory 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 --pids-limit 50 --cpuset-cpus 0 busybox sh -c "$IDLE"
	[[ $(cgroup_value "$ID" memory/memory.limit_in_bytes memory.max) == 67108864 ]]
	[[ $(cgroup_value "$ID" memory/memory.soft_limit_in_bytes memory.low) == 33554432 ]]
	[[ $(cgroup_value "$ID" pids/pids.max pids.max) == 50 ]]
	[[ $(cgroup_value "$ID" cpuset/cpuset.cpus cpuset.cpus) == 0 ]]
	[[ $(cgroup_value "$ID" cpu/cpu.cfs_quota_us cpu.max) =~ ^50000( 100000)?$ ]]
	[[ $(cgroup_file "$ID" pids/pids.max pids.max) == */vzrun-test-"$VZ_TAG"/* ]]
}

@test "a container out of memory is said to be, in inspect and as an event" {
	spawn "$VZ_TMP/events" docker events --filter "container=$ID" --filter event=oom --filter event=die --format '{{.Action}}'
	run -137 docker run --name "$ID" --network none --memory 16m busybox sh -c 'x=12345678; while :; do x=$x$x; done'
	[[ $(field "$ID" '{{.State.OOMKilled}} {{.State.ExitCode}}') == "true 137" ]]
	wait_line "$VZ_TMP/events" '^oom$'
	wait_line "$VZ_TMP/events" '^die$'
	run -137 docker run --name "$ID-killed" --network none --memory 16m busybox sh -c 'sh -c "kill -9 \$\$"; exit $?'
	[[ $(field "$ID-killed" '{{.State.OOMKilled}}') == false ]]
}

### Containers in the background

@test "logs keep both streams, exec runs beside with what it is asked for" {
	up busybox sh -c "echo one; echo two >&2; $IDLE"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	run -0 --separate-stderr docker logs "$ID"
	[[ $output == $'one\nready' && $stderr == two ]]
	run -5 docker exec --env A=b --workdir /tmp --user 12:13 "$ID" sh -c 'echo $A; pwd; id; exit 5'
	[[ $output == $'b\n/tmp\nuid=12 gid=13 groups=13' ]]
	run -0 docker exec --tty "$ID" tty
	[[ $output == /dev/pts/0$'\r' ]]
	[[ $(echo through | docker exec --interactive "$ID" cat) == through ]]
	docker exec --detach "$ID" sh -c 'echo done >/proc/1/fd/1'
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^done$'
	run -0 docker exec "$ID" awk '/^CapEff/ { print $2 }' /proc/self/status
	[[ $output == 00000000a80425fb ]]
	run -0 docker exec --privileged "$ID" awk '/^CapEff/ { print $2 }' /proc/self/status
	[[ $output != 00000000a80425fb ]]
	run -137 docker exec "$ID" sh -c 'kill -9 $$'
}

@test "exec of what is not there is 127, of what cannot be executed 126" {
	up busybox sh -c "$IDLE"
	run -127 docker exec "$ID" not-there
	[[ $output == 'OCI runtime exec failed: '*'exec: "not-there": executable file not found in $PATH'* ]]
	run -126 docker exec "$ID" /etc/passwd
	[[ $output == *'exec: "/etc/passwd": permission denied'* ]]
	run -127 docker exec --workdir /not/there "$ID" true
	[[ $output == *'chdir to cwd ("/not/there")'*'no such file or directory'* ]]
	docker exec "$ID" true
}

@test "stats and top" {
	up busybox sh -c "sleep 1000 & $IDLE"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	docker stats --no-stream --format '{{json .}}' "$ID" >"$VZ_TMP/stats"
	jq -e '(.PIDs | tonumber) >= 2 and (.MemUsage | test("^[1-9][0-9.]*[KM]iB / ")) and (.CPUPerc | test("^[0-9.]+%$"))' "$VZ_TMP/stats"
	docker top "$ID" -o pid,args >"$VZ_TMP/top"
	grep -qE "^$(field "$ID" '{{.State.Pid}}') +sh -c " "$VZ_TMP/top"
	grep -qE '^[0-9]+ +sleep 1000$' "$VZ_TMP/top"
	docker top "$ID" | grep -q '^UID .*CMD$'
}

@test "update changes the limits of a running container" {
	up --memory 128m --memory-swap 128m busybox sh -c "$IDLE"
	docker update --memory 64m --memory-swap 64m --cpus 0.25 --cpu-shares 300 --pids-limit 77 --cpuset-cpus 0 "$ID"
	[[ $(cgroup_value "$ID" memory/memory.limit_in_bytes memory.max) == 67108864 ]]
	[[ $(cgroup_value "$ID" pids/pids.max pids.max) == 77 ]]
	[[ $(cgroup_value "$ID" cpuset/cpuset.cpus cpuset.cpus) == 0 ]]
	[[ $(cgroup_value "$ID" cpu/cpu.cfs_quota_us cpu.max) =~ ^25000( 100000)?$ ]]
	docker update --memory 256m --memory-swap 512m --pids-limit -1 "$ID"
	[[ $(cgroup_value "$ID" memory/memory.limit_in_bytes memory.max) == 268435456 ]]
	[[ $(cgroup_value "$ID" pids/pids.max pids.max) == max ]]
	[[ $(cgroup_value "$ID" cpu/cpu.cfs_quota_us cpu.max) =~ ^25000( 100000)?$ ]]
	docker exec "$ID" true
}

@test "pause and unpause" {
	up busybox sh -c "$IDLE"
	docker pause "$ID"
	[[ $(field "$ID" '{{.State.Status}}') == paused ]]
	[[ $(cgroup_value "$ID" freezer/freezer.state cgroup.freeze) =~ ^(FROZEN|1)$ ]]
	run -1 docker exec "$ID" true
	[[ $output == *paused* ]]
	docker unpause "$ID"
	[[ $(field "$ID" '{{.State.Status}}') == running ]]
	docker exec "$ID" true
	docker pause "$ID"
	docker rm --force "$ID"
}

@test "stop asks, kill does not, restart starts again, wait tells the exit code" {
	up busybox sh -c "trap 'echo usr' USR1; $IDLE"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	docker kill --signal USR1 "$ID"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^usr$'
	spawn "$VZ_TMP/waited" docker wait "$ID"
	docker stop --time 60 "$ID"
	wait_exit "$SPAWNED"
	[[ $(cat "$VZ_TMP/waited") == 3 && $(field "$ID" '{{.State.ExitCode}} {{.State.Running}}') == "3 false" ]]
	docker start "$ID"
	docker restart --time 60 "$ID"
	[[ $(field "$ID" '{{.State.Running}}') == true ]]
	docker kill "$ID"
	[[ $(docker wait "$ID") == 137 ]]
	run -1 docker exec "$ID" true
	[[ $output == *"is not running"* ]]
}

@test "a container that fails is started again, as often as its policy says" {
	up --restart on-failure:2 busybox sh -c 'echo try; exit 4'
	wait_until "$VZ_PATIENCE" has_field "$ID" '{{.RestartCount}} {{.State.Status}}' "2 exited"
	[[ $(docker logs "$ID" | grep -c try) -eq 3 && $(field "$ID" '{{.State.ExitCode}}') == 4 ]]
}

@test "attach follows a running container to its exit code, start --interactive feeds it" {
	local code=0
	up busybox sh -c 'until test -e /end; do echo tick; sleep 0.1; done; echo bye; exit 4'
	spawn "$VZ_TMP/attached" docker attach --no-stdin "$ID"
	wait_line "$VZ_TMP/attached" '^tick$'
	docker exec "$ID" touch /end
	wait "$SPAWNED" || code=$?
	((code == 4))
	[[ $(tail -n 1 "$VZ_TMP/attached") == bye ]]
	docker create --interactive --name "$ID-fed" --network none busybox sh -c 'read x; echo "got $x"; cat; exit 5'
	run -5 docker start --attach --interactive "$ID-fed" <<<$'one\ntwo'
	[[ $output == $'got one\ntwo' ]]
}

@test "a healthcheck finds out what is unhealthy and what is well again" {
	up --health-cmd 'test -e /well' --health-interval 200ms --health-retries 1 busybox sh -c "$IDLE"
	wait_until "$VZ_PATIENCE" has_field "$ID" '{{.State.Health.Status}}' unhealthy
	docker exec "$ID" touch /well
	wait_until "$VZ_PATIENCE" has_field "$ID" '{{.State.Health.Status}}' healthy
}

@test "six containers start, work and end at the same time" {
	local i code pids=()
	for i in 1 2 3 4 5 6; do
		docker run --rm --name "$ID-$i" --network none busybox sh -c "exit $((40 + i))" >"$VZ_TMP/$i" 2>&1 3>&- &
		pids+=($!)
	done
	for i in 1 2 3 4 5 6; do
		code=0
		wait "${pids[i - 1]}" || code=$?
		((code == 40 + i))
	done
	[[ -z $(docker ps --all --quiet --filter "name=$ID") ]]
}

### Networks

@test "a published port answers on the bridge" {
	docker run --detach --name "$ID" --publish 18080:80 busybox \
		sh -c 'mkdir /www; echo "hello from $(hostname -i)" >/www/index.html; exec httpd -f -p 80 -h /www'
	wait_until "$VZ_PATIENCE" near curl --silent --fail --max-time 5 http://127.0.0.1:18080/
	run -0 near curl --silent --fail --max-time 5 http://172.30.99.1:18080/
	[[ $output == "hello from 172.30.99."* ]]
	[[ $(docker exec "$ID" cat /sys/class/net/eth0/operstate) == up ]]
	docker stats --no-stream --format '{{.NetIO}}' "$ID" | grep -q '^[1-9].* / [1-9]'
}

@test "containers on a network of the user's find each other by name" {
	docker network create "$ID" >/dev/null
	docker run --detach --name "$ID-web" --network "$ID" --network-alias web busybox \
		sh -c 'mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www'
	wait_until "$VZ_PATIENCE" docker exec "$ID-web" wget -qO /dev/null http://127.0.0.1/
	[[ $(docker run --rm --network "$ID" busybox wget -qO- "http://$ID-web/") == hello ]]
	[[ $(docker run --rm --network "container:$ID-web" busybox wget -qO- http://127.0.0.1/) == hello ]]
	up busybox sh -c "$IDLE"
	docker network disconnect none "$ID"
	docker network connect "$ID" "$ID"
	[[ $(docker exec "$ID" wget -qO- http://web/) == hello ]]
	docker rm --force "$ID" "$ID-web" >/dev/null
	docker network rm "$ID"
}

### Checkpoints

# The steps that a counting container has made.
COUNT='i=0; while :; do i=$((i + 1)); echo $i; sleep 0.05; done'

# goes_on CONTAINER N: it has counted beyond N, and left no number out.
goes_on() {
	wait_until "$VZ_PATIENCE" has_logged "$1" "^$(($2 + 3))\$"
	docker logs "$1" >"$VZ_TMP/counted"
	diff <(seq "$(wc -l <"$VZ_TMP/counted")") "$VZ_TMP/counted"
}

@test "checkpoint create saves a container that goes on, or ends it" {
	local last
	up busybox sh -c "$COUNT"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^3$'
	docker checkpoint create --leave-running "$ID" first
	[[ $(field "$ID" '{{.State.Status}}') == running ]]
	last=$(docker logs --tail 1 "$ID")
	goes_on "$ID" "$last"
	docker checkpoint create "$ID" second
	[[ $(docker wait "$ID") == 137 && $(docker checkpoint ls "$ID" | tail -n +2 | sort) == $'first\nsecond' ]]
	docker checkpoint rm "$ID" first
}

# start_from_saved ID sets $STARTED and $SAID. dockerd hands the checkpoint to
# containerd, which refuses it as long as it has the same one left over from when
# it was made: until then this fails.
start_from_saved() {
	STARTED=0
	SAID=$(docker start --checkpoint saved "$1" 2>&1) || STARTED=$?
	[[ $SAID != *"already exists"* ]]
}

@test "start --checkpoint lets a container on the host's network go on" {
	local last
	docker run --detach --name "$ID" --network host busybox sh -c "$COUNT"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^3$'
	docker checkpoint create "$ID" saved
	[[ $(docker wait "$ID") == 137 ]]
	last=$(docker logs --tail 1 "$ID")
	wait_until 30 start_from_saved "$ID"
	[[ $STARTED == 0 ]]
	goes_on "$ID" "$last"
	docker exec "$ID" true
	docker stop --time 0 "$ID"
}

# dockerd 28.5 looks for the network namespace of a process that it has not
# started yet, whatever the runtime. When this test fails, so has that ended.
@test "start --checkpoint with another network fails in docker, and leaves nothing" {
	up busybox sh -c "$COUNT"
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^3$'
	docker checkpoint create "$ID" saved
	[[ $(docker wait "$ID") == 137 ]]
	wait_until 30 start_from_saved "$ID"
	[[ $STARTED == 1 && $SAID == *"/proc/0/ns/net"* ]]
	docker rm "$ID"
}

### A whole operating system

@test "a Debian with systemd comes up, and shuts down when stopped" {
	tar -C "$VZRUN_DEBIAN" -c . | docker import --change 'CMD ["/sbin/init"]' --change 'STOPSIGNAL SIGRTMIN+3' - "debian:$VZ_TAG" >/dev/null
	up --tty --cap-add SYS_ADMIN --security-opt writable-cgroups=true --cgroupns private \
		--tmpfs /run --tmpfs /run/lock "debian:$VZ_TAG"
	# Before systemd listens, systemctl finds nobody to ask.
	wait_until "$VZ_PATIENCE" docker exec "$ID" systemctl is-system-running --wait
	[[ $(docker exec "$ID" systemctl is-system-running) == running ]]
	[[ $(docker exec "$ID" systemctl is-active nginx dbus systemd-logind | sort -u) == active ]]
	docker exec "$ID" systemctl restart nginx
	docker stop --time 60 "$ID"
	[[ $(field "$ID" '{{.State.ExitCode}}') == 0 ]]
}

### Ends that nobody asked for

@test "a shim that is killed takes its container with it, and the runtime cleans up" {
	local init shim
	up busybox sh -c "$IDLE"
	init=$(field "$ID" '{{.State.Pid}}')
	shim=$(awk '/^PPid/ { print $2 }' "/proc/$init/status")
	[[ $(cat "/proc/$shim/comm") == containerd-shim* ]]
	kill -KILL "$shim"
	wait_exit "$init"
	wait_until "$VZ_PATIENCE" has_field "$ID" '{{.State.Running}}' false
	wait_until "$VZ_PATIENCE" no_container_cgroup "$(field "$ID" '{{.Id}}')"
	docker start "$ID"
	docker exec "$ID" true
}

no_container_cgroup() { [[ -z $(find /sys/fs/cgroup -type d -name "$1") ]]; }

@test "containers outlive a dockerd that is killed, and are its own again afterwards" {
	local init dockerd
	up busybox sh -c "$IDLE"
	docker run --detach --name "$ID-web" --publish 18081:80 busybox sh -c 'mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www'
	init=$(field "$ID" '{{.State.Pid}}')
	dockerd=$(daemon_pid dockerd)
	[[ $(cat "/proc/$dockerd/comm") == dockerd ]]
	kill -KILL "$dockerd"
	wait_exit "$dockerd"
	[[ -d /proc/$init ]]
	start_dockerd
	[[ $(field "$ID" '{{.State.Pid}} {{.State.Running}} {{.RestartCount}}') == "$init true 0" ]]
	docker exec "$ID" true
	[[ $(near curl --silent --fail --max-time 5 http://172.30.99.1:18081/) == hello ]]
	docker stop --time 60 "$ID"
	[[ $(field "$ID" '{{.State.ExitCode}}') == 3 ]]
}
