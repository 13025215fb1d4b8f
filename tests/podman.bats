#!/usr/bin/env bats
# vzrun as the runtime of a real Podman.
# Variables in single quotes are the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load engines/podman

setup_file() {
	suite_setup
	podman_up
}
teardown_file() {
	podman_down
	suite_teardown
}
setup() { vz_setup; }
teardown() {
	podman_tidy
	vz_teardown
}

image=localhost/busybox

# up ARG... runs a container in the background; $CID is its whole id.
up() { CID=$(pm_run "$ID" --detach "$@"); }

# init_of CID prints the pid of a container's first process. The runtime is asked,
# as Podman takes half a second to answer.
init_of() { "$VZRUN" --root "$PODMAN_RUN/state" state "$1" | jq .pid; }

# in_terminal CMD... runs a function of this suite at a terminal, with what it
# writes in $VZ_TMP/typescript. What script(1) types, the end, may be echoed there.
in_terminal() {
	local code=0
	export VZ_PATIENCE
	export -f pm pm_run near podman_netns podman_cgroup
	SHELL=$BASH script --quiet --return --log-out "$VZ_TMP/raw" --command "${*@Q}" </dev/null >/dev/null 3>&- || code=$?
	tr -d '\r' <"$VZ_TMP/raw" | tee "$VZ_TMP/typescript"
	return "$code"
}

has_logged() { pm logs "$1" 2>&1 | grep -qE -- "$2"; }

### run

@test "run connects stdin, stdout and stderr, and passes the exit code on" {
	run -3 --separate-stderr pm_run "$ID" --rm --interactive "$image" sh -c 'cat; echo oops >&2; exit 3' < <(printf 'one\ntwo')
	[[ $output == $'one\ntwo' && $stderr == oops ]]
	no_runtime_state
}

@test "run sets environment, user, groups, directory and host name, and drops what it is told to" {
	pm_run "$ID" --rm --env A=1,2 --user 1000:1001 --group-add 7 --workdir /etc --hostname inside --read-only \
		--cap-drop all --cap-add net_raw --security-opt no-new-privileges "$image" sh -c '
			echo "$A|$(pwd)|$(hostname)|$(id -u):$(id -G)"
			touch /x 2>/dev/null || echo read-only
			awk "/^(CapBnd|NoNewPrivs|Seccomp):/ { print \$1, \$2 }" /proc/self/status' >"$VZ_TMP/out"
	diff "$VZ_TMP/out" - <<-'END'
		1,2|/etc|inside|1000:1001 7
		read-only
		CapBnd: 0000000000002000
		NoNewPrivs: 1
		Seccomp: 2
	END
}

@test "run mounts volumes and tmpfs, writable and not" {
	mkdir "$VZ_TMP/v"
	echo content >"$VZ_TMP/v/file"
	pm_run "$ID" --rm --volume "$VZ_TMP/v:/v" --volume "$VZ_TMP/v:/fixed:ro" --volume "$VZ_TMP/v/file:/etc/one" \
		--tmpfs /t:size=1m,mode=0700 "$image" sh -c '
			cat /v/file /etc/one; echo new >/v/new; cat /fixed/new
			touch /fixed/x 2>/dev/null || echo fixed
			stat -c "%a %T" -f /t; stat -c %a /t; df -k /t | awk "END { print \$2 }"' >"$VZ_TMP/out"
	[[ $(grep -v tmpfs "$VZ_TMP/out") == $'content\ncontent\nnew\nfixed\n700\n1024' ]]
	grep -q tmpfs "$VZ_TMP/out"
	[[ $(<"$VZ_TMP/v/new") == new ]]
}

@test "run limits memory, processors, processes and files" {
	local pid
	up --memory 64m --cpus 0.5 --cpu-shares 512 --pids-limit 50 --ulimit nofile=100:200 "$image" sleep 1000
	pid=$(init_of "$CID")
	[[ $(cgroup_value "$pid" memory/memory.limit_in_bytes memory.max) == $((64 << 20)) ]]
	[[ $(cgroup_value "$pid" cpu/cpu.cfs_quota_us cpu.max) == @(50000|"50000 100000") ]]
	[[ $(cgroup_value "$pid" pids/pids.max pids.max) == 50 ]]
	[[ $(awk '/^Max open files/ { print $4, $5 }' "/proc/$pid/limits") == "100 200" ]]
}

@test "run --userns maps ids, and the image's files belong to the container's root" {
	pm_run "$ID" --rm --uidmap 0:300000:65536 --gidmap 0:300000:65536 "$image" sh -c '
		cat /proc/self/uid_map | xargs; stat -c %u:%g /etc/passwd; touch /mine; stat -c %u /mine; id -u' >"$VZ_TMP/out"
	[[ $(<"$VZ_TMP/out") == $'0 300000 65536\n0:0\n0\n0' ]]
}

@test "run --init reaps, and run --tty gives a terminal" {
	local code=0
	in_terminal pm_run "$ID" --rm --init --tty --interactive "$image" sh -c 'tty; ps -o args | sed -n 2p; exit 5' || code=$?
	grep -q '/dev/pts/0$' "$VZ_TMP/typescript"
	grep -q '/run/podman-init -- sh' "$VZ_TMP/typescript"
	[[ $code -eq 5 ]]
}

@test "a program that cannot be started gives Podman's exit codes" {
	run -127 pm_run "$ID-1" --rm "$image" /no/such/program </dev/null
	[[ $output == *"no such file or directory"*"command that was not found"* ]]
	run -127 pm_run "$ID-2" --rm "$image" no-such-program </dev/null
	[[ $output == *"executable file not found in"*"command that was not found"* ]]
	run -126 pm_run "$ID-3" --rm "$image" /etc/passwd </dev/null
	[[ $output == *"ermission denied"* ]]
	run -126 pm_run "$ID-4" --rm "$image" /etc </dev/null
	no_runtime_state
}

### A container in the background

@test "logs, top, ps and stats show what runs" {
	up "$image" sh -c 'echo out; echo err >&2; sleep 2000 & exec sleep 1000'
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^err$'
	pm logs "$ID" >"$VZ_TMP/stdout" 2>"$VZ_TMP/stderr"
	[[ $(<"$VZ_TMP/stdout") == out && $(<"$VZ_TMP/stderr") == err ]]
	[[ $(pm top "$ID" args | sort) == $'COMMAND\nsleep 1000 \nsleep 2000 ' ]]
	[[ $(pm ps --filter "name=$ID" --format '{{.Names}} {{.State}}') == "$ID running" ]]
	pm stats --no-stream --format json "$ID" | jq -e '.[0] | .pids == "2" and (.mem_usage | startswith("0B") | not)'
}

@test "exec runs in the container and gives back output and exit code" {
	up "$image" sleep 1000
	run -9 --separate-stderr pm exec --interactive --env X=y --user 12 --workdir /etc "$ID" \
		sh -c 'cat; echo "$X $(id -u) $(pwd)"; echo oops >&2; exit 9' < <(echo typed)
	[[ $output == $'typed\ny 12 /etc' && $stderr == oops ]]
	run -127 pm exec "$ID" no-such-program
	run -126 pm exec "$ID" /etc/passwd
	pm exec --detach "$ID" sh -c 'echo here >/detached' >/dev/null
	wait_file "/proc/$(init_of "$CID")/root/detached"
}

@test "exec --tty gives a terminal" {
	local code=0
	up "$image" sleep 1000
	in_terminal pm exec --tty --interactive "$ID" sh -c 'tty; exit 6' || code=$?
	grep -q '/dev/pts/[0-9]$' "$VZ_TMP/typescript"
	[[ $code -eq 6 ]]
}

@test "pause freezes, unpause lets go on" {
	up "$image" sleep 1000
	pm pause "$ID" >/dev/null
	has_field "$ID" '{{.State.Status}}' paused
	run -255 pm exec "$ID" true
	[[ $output == *"running"* ]]
	pm unpause "$ID" >/dev/null
	has_field "$ID" '{{.State.Status}}' running
	pm exec "$ID" true
}

@test "stop asks, kill tells, wait waits" {
	up "$image" sh -c 'trap "echo asked; exit 7" TERM; echo ready; while :; do sleep 0.05; done'
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	pm stop "$ID" >/dev/null
	has_field "$ID" '{{.State.Status}} {{.State.ExitCode}}' 'exited 7'
	has_logged "$ID" '^asked$'
	no_runtime_state
	pm start "$ID" >/dev/null
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	pm kill --signal KILL "$ID" >/dev/null
	[[ $(pm wait "$ID") == 137 ]]
	wait_until "$VZ_PATIENCE" no_runtime_state
}

@test "stop kills what does not hear" {
	up "$image" sh -c 'trap "" TERM; echo ready; while :; do sleep 0.05; done'
	wait_until "$VZ_PATIENCE" has_logged "$ID" '^ready$'
	pm stop --time 1 "$ID" >/dev/null
	has_field "$ID" '{{.State.ExitCode}}' 137
}

@test "restart makes a new process in the same container" {
	local before
	up "$image" sh -c 'echo mark >>/marks; exec sleep 1000'
	before=$(init_of "$CID")
	pm restart --time 0 "$ID" >/dev/null
	[[ $(init_of "$CID") != "$before" ]]
	wait_until "$VZ_PATIENCE" marks 2
}

marks() { [[ $(pm exec "$ID" wc -l /marks) == "$1 /marks" ]]; }

@test "rm --force ends a running container and leaves nothing" {
	up "$image" sleep 1000
	pm rm --force --time 0 "$ID" >/dev/null
	run -1 pm container exists "$ID"
	no_runtime_state
	[[ -z $(find /sys/fs/cgroup -type d -path "*$(podman_cgroup)/libpod-[0-9a-f]*") ]]
}

@test "update changes the limits of a running container" {
	local pid
	up --memory 64m "$image" sleep 1000
	pid=$(init_of "$CID")
	pm update --memory 96m --cpus 0.25 --pids-limit 77 "$ID" >/dev/null
	[[ $(cgroup_value "$pid" memory/memory.limit_in_bytes memory.max) == $((96 << 20)) ]]
	[[ $(cgroup_value "$pid" cpu/cpu.cfs_quota_us cpu.max) == @(25000|"25000 100000") ]]
	[[ $(cgroup_value "$pid" pids/pids.max pids.max) == 77 ]]
}

@test "a health check runs in the container" {
	up --health-cmd 'test -e /well' --health-interval disable "$image" sleep 1000
	run -1 pm healthcheck run "$ID"
	pm exec "$ID" touch /well
	run -0 pm healthcheck run "$ID"
	[[ $(field "$ID" '{{.State.Health.Status}}') == healthy ]]
}

@test "a container that ran out of memory is known to have" {
	run -137 pm_run "$ID" --memory 32m --memory-swap 32m "$image" tail /dev/zero
	has_field "$ID" '{{.State.OOMKilled}} {{.State.ExitCode}}' 'true 137'
}

@test "rm works after Podman's monitor was killed" {
	up "$image" sleep 1000
	kill -KILL "$(field "$ID" '{{.State.ConmonPid}}')"
	pm rm --force --time 0 "$ID" >/dev/null
	no_runtime_state
}

### Pods, networks, systemd

@test "containers of a pod share its namespaces" {
	pm pod create --name "$ID" --network none --cgroup-parent "$(podman_cgroup)" --share net,ipc,uts --hostname of-a-pod >/dev/null
	CID=$(pm run --detach --pod "$ID" --name "$ID-a" "$image" sleep 1000)
	[[ $(pm run --rm --pod "$ID" --name "$ID-b" "$image" sh -c 'readlink /proc/self/ns/net; hostname') == \
		"$(readlink "/proc/$(init_of "$CID")/ns/net")"$'\nof-a-pod' ]]
	[[ $(pm pod inspect --format '{{.State}}' "$ID") == Running ]]
	pm pod rm --force --time 0 "$ID" >/dev/null
	no_runtime_state
}

@test "a bridge network connects containers, and -p publishes a port" {
	local network=$ID-$VZ_TAG address
	pm network create --disable-dns --subnet 10.99.77.0/24 "$network" >/dev/null
	pm run --detach --name "$ID" --cgroup-parent "$(podman_cgroup)" --network "$network" --publish 127.0.0.1:8099:80 \
		"$image" sh -c 'mkdir /www; echo page >/www/index.html; exec httpd -f -h /www' >/dev/null
	wait_until "$VZ_PATIENCE" near curl -fsS --max-time 2 http://127.0.0.1:8099/
	address=$(field "$ID" "{{(index .NetworkSettings.Networks \"$network\").IPAddress}}")
	[[ $address == 10.99.77.* ]]
	[[ $(pm run --rm --cgroup-parent "$(podman_cgroup)" --network "$network" "$image" wget -qO- "http://$address/") == page ]]
	near nft list ruleset | grep -q 8099
	pm rm --force --time 0 "$ID" >/dev/null
	run ! grep 8099 <(near nft list ruleset)
	pm network rm "$network" >/dev/null
	[[ -z $(ip -n "$(podman_netns)" -o link show type bridge) ]]
}

@test "--systemd=always boots a Debian, and stop shuts it down" {
	# With its last argument: an overlay over it, so that it is not written to.
	up --systemd=always --rootfs "$VZRUN_DEBIAN:O" /sbin/init
	wait_until "$VZ_PATIENCE" is_booted
	[[ $(pm exec "$ID" systemctl --failed --no-legend) == "" ]]
	pm exec "$ID" systemctl is-active nginx
	pm stop --time 30 "$ID" >/dev/null
	has_field "$ID" '{{.State.ExitCode}}' 0
}

is_booted() { [[ $(pm exec "$ID" systemctl is-system-running) == running ]]; }

### Without root

@test "a user runs containers without root" {
	lacks 'a way for users to the programs of the engine' rootless test -x "$PODMAN_ENGINE/bin/podman" -a -x "$VZRUN"
	tar -C "$VZRUN_BUSYBOX" -c . >"$VZ_TMP/busybox.tar"
	rootless podman import --quiet "$VZ_TMP/busybox.tar" "$image"
	run -4 --separate-stderr rootless podman run --rm --network none "$image" sh -c 'id -u; cat /proc/self/uid_map | xargs; exit 4'
	[[ $output == $'0\n0 '"$(id -u nobody) 1 1 700000 65536" ]]
	rootless podman run --rm --network none --userns keep-id --user 1000:1000 "$image" id -u >"$VZ_TMP/out"
	[[ $(<"$VZ_TMP/out") == 1000 ]]
	# A container in the background, all at once: a user's processes end with
	# each call of rootless.
	rootless bash -c 'set -e
		podman run --detach --name a --network none --init "$1" sleep 1000
		podman exec a sh -c "echo in >/x; exit 9" || echo "code $?"
		podman top a args
		podman stop --time 1 a
		podman inspect --format "{{.State.Status}}" a
		podman rm a' - "$image" >"$VZ_TMP/out"
	grep -qx 'code 9' "$VZ_TMP/out"
	grep -q '^sleep 1000' "$VZ_TMP/out"
	grep -qx exited "$VZ_TMP/out"
	run -127 rootless podman run --rm --network none "$image" /no/such/program
}

# rootless CMD... runs a command as a user, with Podman's configuration for her.
rootless() {
	[[ -d $VZ_TMP/user ]] || {
		chmod o+x "$VZ_TMP"
		podman_configure "$VZ_TMP/user" "$VZ_TMP/user/run"
		mkdir -m 0700 "$VZ_TMP/user/run"
	}
	unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- \
		"$BATS_TEST_DIRNAME/engines/podman-rootless" "$VZ_TMP/user" "$@" </dev/null 3>&-
}

### Checkpoints

# counting runs a container that counts in memory and on a tmpfs.
counting() {
	up --tmpfs /t "$image" sh -c 'while :; do echo $((i += 1)) >/t/new; mv /t/new /t/n; sleep 0.02; done'
	wait_count "$CID" 5
}

# count_of CID looks from outside, which is quicker than exec.
count_of() { cat "/proc/$(init_of "$1")/root/t/n"; }

# wait_count CID N waits until it has counted to N.
wait_count() {
	local file
	file=/proc/$(init_of "$1")/root/t/n
	wait_until "$VZ_PATIENCE" has_counted "$file" "$2"
}

has_counted() { (($(<"$1") >= $2)); }

@test "a checkpoint is exported, and restored where the container is gone" {
	local log verified
	up "$image" /usr/local/bin/vzguest count /count
	wait_lines "/proc/$(init_of "$CID")/root/count" 5
	pm container checkpoint --export "$VZ_TMP/save.tar" "$ID" >/dev/null
	has_field "$ID" '{{.State.Status}} {{.State.Checkpointed}}' 'exited true'
	no_runtime_state
	pm rm "$ID" >/dev/null
	pm container restore --import "$VZ_TMP/save.tar" >/dev/null
	has_field "$ID" '{{.State.Status}} {{.State.Restored}}' 'running true'
	log=/proc/$(init_of "$CID")/root/count
	wait_lines "$log" $(($(wc -l <"$log") + 5))
	verified=$(pm exec "$ID" /usr/local/bin/vzguest verify /count)
	[[ $verified == first=1\ * ]]
}

@test "a checkpoint leaves the container running, and is restored beside it under a new name" {
	local at clone
	counting
	pm container checkpoint --leave-running --export "$VZ_TMP/save.tar" "$ID" >/dev/null
	at=$(count_of "$CID")
	wait_count "$CID" $((at + 5))
	clone=$(pm container restore --import "$VZ_TMP/save.tar" --name "$ID-new")
	[[ $clone != "$CID" ]]
	(($(count_of "$clone") >= 5))
	wait_count "$clone" $((at + 5))
	wait_count "$CID" $((at + 10))
}

@test "a checkpoint is kept and restored in place; the next replaces it" {
	local at images first
	counting
	pm container checkpoint --keep "$ID" >/dev/null
	has_field "$ID" '{{.State.Status}}' exited
	pm container restore --keep "$ID" >/dev/null
	at=$(count_of "$CID")
	((at >= 5))
	wait_count "$CID" $((at + 5))
	# Podman has one place for a container's images.
	images=$PODMAN_DATA/root/overlay-containers/$CID/userdata/checkpoint
	first=$(jq -r .created "$images/vzrun.json")
	pm container checkpoint --keep --print-stats "$ID" >"$VZ_TMP/stats"
	jq -e '.container_statistics[0].criu_statistics.frozen_time > 0' "$VZ_TMP/stats"
	[[ $(jq -r .created "$images/vzrun.json") > $first && ! -e $images/.replaced ]]
	pm container restore "$ID" >/dev/null
	(($(count_of "$CID") >= at))
}

@test "a checkpoint of a container on a bridge network is restored into the network" {
	local network=$ID-$VZ_TAG
	pm network create --disable-dns --subnet 10.99.78.0/24 "$network" >/dev/null
	CID=$(pm run --detach --name "$ID" --cgroup-parent "$(podman_cgroup)" --network "$network" --publish 127.0.0.1:8098:80 \
		"$image" sh -c 'mkdir /www; echo page >/www/index.html; exec httpd -f -h /www')
	wait_until "$VZ_PATIENCE" near curl -fsS --max-time 2 http://127.0.0.1:8098/
	pm container checkpoint "$ID" >/dev/null
	run ! near curl -fsS --max-time 2 http://127.0.0.1:8098/
	pm container restore "$ID" >/dev/null
	# In the namespace that Podman has made and connected.
	[[ $(readlink "/proc/$(init_of "$CID")/ns/net") == "net:[$(stat -L -c %i "$(field "$ID" '{{.NetworkSettings.SandboxKey}}')")]" ]]
	wait_until "$VZ_PATIENCE" near curl -fsS --max-time 2 http://127.0.0.1:8098/
	pm rm --force --time 0 "$ID" >/dev/null
	pm network rm "$network" >/dev/null
}

# own_bundle ARCHIVE prints a bundle of the test's own for what Podman has exported:
# its configuration, over its image with what was changed in that.
own_bundle() {
	local bundle=$VZ_TMP/own
	mkdir -m 0700 "$bundle"
	cp -a "$(pm image mount "$image")" "$bundle/rootfs"
	pm image unmount "$image" >/dev/null
	tar -xOf "$1" rootfs-diff.tar | tar -C "$bundle/rootfs" -x
	tar -xOf "$1" spec.dump >"$bundle/config.json"
	edit_config "$bundle" '.root.path = "rootfs" | .linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID")"
	echo "$bundle"
}

@test "what Podman has exported is inspected and restored without Podman, over a copy of its image" {
	local bundle
	up "$image" /usr/local/bin/vzguest count /count
	wait_lines "/proc/$(init_of "$CID")/root/count" 5
	pm container checkpoint --export "$VZ_TMP/save.tar" "$ID" >/dev/null
	vz checkpoint inspect --format json "$VZ_TMP/save.tar" | jq -e --arg id "$CID" '.id == $id and .compression == "zstd" and (.verified | not)'
	fails 1 'no root file system in the archive' vz restore --detach --import "$VZ_TMP/save.tar" --bundle "$VZ_TMP/none" "$ID"
	bundle=$(own_bundle "$VZ_TMP/save.tar")
	app_launch restore --detach --import "$VZ_TMP/save.tar" --work-path "$VZ_TMP" --bundle "$bundle" "$ID"
	grep -q 'nothing in it says that it is whole' "$VZ_TMP/launch.log"
	wait_lines "$bundle/rootfs/count" $(($(wc -l <"$bundle/rootfs/count") + 5))
	vz delete --force "$ID"
	"$bundle/rootfs/usr/local/bin/vzguest" verify "$bundle/rootfs/count"
}

@test "Podman refuses an archive of vzrun, and has nothing of it" {
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	vz checkpoint --export "$VZ_TMP/save.tar.zst" --with-rootfs "$ID"
	run -125 pm container restore --import "$VZ_TMP/save.tar.zst"
	[[ $output == *'parsing reference "": repository name must have at least one component'* ]]
	run -1 pm container exists "$ID"
}
