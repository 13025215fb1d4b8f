#!/usr/bin/env bats
# The root of a whole Debian is an enemy: what it can see, change and use up is
# its own. tests/cmd/inmate makes the attempts; two guests share the host.
# $ARGS is jq's, other variables in single quotes are the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	shared_guest --ram 512M
	OTHER=$ID-other
	INMATE=$(build_command inmate)
	export OTHER INMATE
	debian_bundle "$OTHER" --ram 512M >/dev/null
	local id
	for id in "$ID" "$OTHER"; do
		cp "$INMATE" "$VZ_TMP/$id/rootfs/usr/local/bin/inmate"
		vz_up "$VZ_TMP/$id" "$id"
	done
	wait_guest "$ID"
	wait_guest "$OTHER"
}

teardown_file() { shared_guest_ends; }

setup() { shared_test; }

teardown() { shared_test_ends "$OTHER"; }

# bundle_at DIR [FLAG...] makes a bundle with a rootfs that has an init and
# nothing else; it can be created, not booted.
bundle_at() {
	local dir=$1
	shift
	mkdir -p "$dir/rootfs/sbin"
	cp "$VZRUN_BUSYBOX/bin/busybox" "$dir/rootfs/sbin/init"
	vz spec --system --bundle "$dir" "$@"
	edit_config "$dir" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID-${dir##*/}")"
}

# ids_in FILE makes vz use another record of ids than the host's.
ids_in() {
	IDS=$1
	vz() { "$VZRUN" --root "$VZ_ROOT" --id-record "$IDS" "$@"; }
}

id_base() { jq '.linux.uidMappings[0].hostID' "$1/config.json"; }

# as UID CMD... runs a command with these ids and no other right.
as() { setpriv --reuid "$1" --regid "$1" --clear-groups --no-new-privs --bounding-set=-all "${@:2}"; }

has_resource() { ((0x$(awk '/^CapEff:/ { print $2 }' /proc/self/status) >> 24 & 1)); }

# host_disk prints MAJ:MIN of a block device of the host.
host_disk() { cat /sys/block/*/dev | head -n 1; }

### What a guest's root gets hold of

@test "a guest's root gets no device, no host file system, no host file, no call on the host" {
	local how
	for how in inmate "unshare --user --map-root-user --mount inmate"; do
		# shellcheck disable=SC2086 # words
		guest "$ID" $how attempts "$(host_disk)" >"$T/attempts"
		cut -f 1 "$T/attempts" | wc -l
		(($(wc -l <"$T/attempts") > 120))
		if grep -P '\tallowed$' "$T/attempts"; then
			echo "got by: $how"
			return 1
		fi
	done
}

@test "a guest's root can write to those files of /proc and /sys that are its namespaces'" {
	guest "$ID" inmate writable >"$T/writable" 2>"$T/errors"
	cat "$T/errors"
	# Of the namespaces user, network, ipc, uts, pid; and /proc/pressure, where
	# everybody may ask to be woken. Nothing else, in whatever kernel.
	grep -vE -e '^/proc/sys/(user|net|fs/mqueue)/' -e '^/proc/pressure/' \
		-e '^/proc/sys/kernel/(domainname|hostname|ns_last_pid|pid_max|auto_msgmni|msg(max|mnb|mni|_next_id)|sem|sem_next_id|shm(all|max|mni|_next_id|_rmid_forced))$' \
		-e '^/proc/sys/fs/binfmt_misc/' \
		-e '^/sys/(devices/virtual|class)/net/[^/]+/' "$T/writable" >"$T/beyond" || true
	cat "$T/beyond"
	[[ ! -s $T/beyond && -s $T/writable ]]
	# And what it writes there is not the host's.
	local before
	before=$(cat /proc/sys/kernel/hostname /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward /proc/sys/user/max_user_namespaces)
	guest "$ID" sh -c 'echo 17 >/proc/sys/kernel/shmmni; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 77 >/proc/sys/user/max_user_namespaces
		hostname changed; hostname; cat /proc/sys/kernel/shmmni; hostname '"$ID" >"$T/own"
	[[ $(<"$T/own") == changed$'\n'17 ]]
	[[ $(cat /proc/sys/kernel/hostname /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward /proc/sys/user/max_user_namespaces) == "$before" ]]
}

@test "the devices of a guest are those of the list, and no others" {
	guest "$ID" find / -xdev \( -type b -o -type c \) >"$T/on-disk"
	[[ ! -s $T/on-disk ]]
	# They are mounts: the directory calls them files.
	guest "$ID" sh -c 'find /dev ! -type l ! -path "/dev/pts/[0-9]*" \( -exec test -b {} \; -o -exec test -c {} \; \) -print | sort' >"$T/dev"
	diff "$T/dev" - <<-'END'
		/dev/full
		/dev/null
		/dev/pts/ptmx
		/dev/random
		/dev/tty
		/dev/urandom
		/dev/zero
	END
	# Second line: the cgroup says the same, should a node come in.
	if [[ -d /sys/fs/cgroup/devices ]]; then
		cat "/sys/fs/cgroup/devices$(cgroup_of "$ID")/devices.list" >"$T/list"
		run ! grep -vxE '[bc] \*:\* m|c (1:[35789]|5:[012]|136:\*|10:200) rwm' "$T/list"
	fi
}

@test "a guest puts nothing into the terminal of whom it is attached to" {
	local exec
	exec=$(printf '%q ' "$VZRUN" --root "$VZ_ROOT" exec "$ID" inmate push $'echo pushed >&2\n')
	script --quiet --return --command "$exec; cat" /dev/null </dev/null >"$T/session" 2>&1 3>&- || true
	grep -q 'TIOCSTI' "$T/session"
	run ! grep -q pushed "$T/session"
}

### Other guests, and users of the host

@test "the ids of one guest are no right to another's files and processes" {
	local one pid rootfs=$VZ_TMP/$OTHER/rootfs path
	one=$(id_base "$VZ_TMP/$ID")
	pid=$(pid_of "$OTHER")
	[[ $one != "$(id_base "$VZ_TMP/$OTHER")" ]]
	for path in "$rootfs/etc/passwd" "$rootfs/etc/shadow" "$VZ_TMP/$OTHER/config.json" "$VZ_ROOT/$OTHER/state.json" \
		"/proc/$pid/root/etc/passwd" "/proc/$pid/environ" "/proc/$pid/maps" "/proc/$pid/fd/0" "$VZ_TMP/$ID/rootfs/etc/passwd"; do
		run ! as "$one" cat "$path"
	done
	# Who may open this may trace it, ptrace(2).
	as "$one" sh -c ': <"/proc/$$/mem"'
	run ! as "$one" sh -c ': <"$0"' "/proc/$pid/mem"
	run ! as "$one" kill -CONT "$pid"
	run ! as "$one" nsenter --target "$pid" --user true
	# Inside, only its own processes are there, and its root is where it is.
	[[ $(guest "$ID" sh -c 'cat /proc/[0-9]*/cgroup /proc/[0-9]*/cmdline 2>/dev/null' | tr '\0' ' ') != *"$OTHER"* ]]
	[[ $(guest "$ID" sh -c 'stat -Lc %d:%i /proc/[0-9]*/root 2>/dev/null | sort -u | wc -l') == 1 ]]
}

@test "a set-uid program of a guest's root is of no use to users of the host" {
	local program=$VZ_TMP/$ID/rootfs/srv/sh
	guest "$ID" sh -c 'cp /bin/sh /srv/sh && chmod 4755 /srv/sh'
	# It is root's on disk, as the owners are not shifted.
	[[ $(stat -c %u:%a "$program") == 0:4755 ]]
	# By a program of the user's: setpriv(1) itself may still have root's way there.
	run ! setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'exec "$0" -c id' "$program"
	run ! setpriv --reuid 65534 --regid 65534 --clear-groups test -e "$program"
	guest "$ID" rm /srv/sh
}

@test "a rootfs that users of the host can walk to is refused, unless that is meant" {
	local open
	# On a disk: a /run with nosuid is no danger.
	open=$(mktemp -d /var/tmp/vzrun-test."$VZ_TAG".open.XXXXXX)
	bundle_at "$open/b"
	chmod 0755 "$open"
	fails 1 'refused: every user of this host can walk to' vz create --bundle "$open/b" "$ID-open"
	assert_nothing_left "$ID" "$OTHER"
	# One closed directory on the way is enough, wherever it is.
	chmod 0711 "$open/b" && chmod 0750 "$open"
	vz create --bundle "$open/b" "$ID-open" </dev/null >/dev/null 2>&1 3>&-
	[[ $(vz list --format json | jq -r --arg id "$ID-open" '.[] | select(.id == $id).rootfs') == "$open/b/rootfs" ]]
	vz delete "$ID-open"
	chmod 0755 "$open" "$open/b"
	edit_config "$open/b" '.annotations["org.vzrun.rootfs.open"] = "true"'
	chmod 0755 "$open/b"
	vz create --bundle "$open/b" "$ID-open" </dev/null >/dev/null 2>&1 3>&-
	vz delete "$ID-open"
	remove_tree "$open"
}

@test "what is mounted from a closed bundle is found by create and by restore" {
	local bundle=$T/closed
	mkdir -m 0700 "$bundle"
	mkdir -m 0755 "$bundle/share"
	cp -a "$VZRUN_BUSYBOX" "$bundle/rootfs"
	echo hello >"$bundle/share/greeting"
	echo file >"$bundle/single"
	vz spec --system --bundle "$bundle"
	edit_config "$bundle" '.process.args = ["/bin/sleep", "1000"] | .linux.cgroupsPath = $ARGS.positional[0]
		| .mounts += [{destination: "/mnt/share", type: "bind", source: "share", options: ["rbind"]},
			{destination: "/mnt/single", type: "bind", source: "single", options: ["bind"]}]' "$(cgroup_of "$ID-closed")"
	app_up "$bundle" "$ID-closed"
	[[ $(guest "$ID-closed" cat /mnt/share/greeting /mnt/single) == hello$'\n'file ]]
	vz checkpoint --image-path "$T/images" "$ID-closed"
	vz --log "$T/log" restore --detach --bundle "$bundle" --image-path "$T/images" "$ID-closed" </dev/null >/dev/null 2>&1 3>&- || {
		cat "$T/log"
		return 1
	}
	echo again >"$bundle/share/greeting"
	[[ $(guest "$ID-closed" cat /mnt/share/greeting /mnt/single) == again$'\n'file ]]
	vz delete --force "$ID-closed"
}

### What can be used up

@test "a guest that forks until it cannot leaves processes to the host and to others" {
	local limit=400 count
	vz update --pids-limit "$limit" "$ID"
	run guest "$ID" sh -c 'i=0; while [ $i -lt 600 ]; do sleep 1000 >/dev/null 2>&1 </dev/null & i=$((i + 1)); done'
	[[ $output == *ork* ]]
	count=$(control_file "$(cgroup_of "$ID")" pids.current pids.current)
	((count <= limit && count > limit - 20))
	guest "$OTHER" sh -c 'true & wait'
	(true &)
	vz exec "$OTHER" true </dev/null
	# The host gets in where there is no room left, to end it.
	vz update --pids-limit 4000 "$ID"
	guest "$ID" sh -c 'pkill -f "^sleep 1000"'
	vz update --pids-limit 32768 "$ID"
}

@test "a guest fills its own /run, /dev and /dev/shm, up to a bound" {
	local dir bytes files run
	run=$(stat -fc '%a %d' /run)
	for dir in /run:128 /dev:5 /dev/shm:300; do
		read -r bytes files < <(guest "$ID" inmate fill "${dir%:*}")
		echo "${dir%:*}: $bytes bytes, $files files"
		((bytes > 0 && bytes < ${dir#*:} << 20))
		[[ $dir != /dev:* ]] || ((files < 65536))
	done
	# The host's own did not move with it.
	[[ $(stat -fc '%a %d' /run | awk -v was="$run" '{ split(was, w); print (w[1] - $1 < 5000 && w[2] - $2 < 5000) }') == 1 ]]
}

@test "a guest that takes all inotify instances leaves them to the host and to others" {
	local max held
	lacks "CAP_SYS_RESOURCE, without which guests draw on root's limits" has_resource
	max=$(</proc/sys/fs/inotify/max_user_instances)
	mkfifo "$T/hold"
	# shellcheck disable=SC2094
	spawn "$T/inotify" sh -c 'exec "$@" <"$0"' "$T/hold" "$VZRUN" --root "$VZ_ROOT" exec "$ID" inmate inotify
	exec 9>"$T/hold"
	wait_line "$T/inotify" '^holds '
	cat "$T/inotify"
	held=$(awk '{ print $2 + 0; exit }' "$T/inotify")
	((held > 0 && held <= max))
	spawn "$T/other" sh -c 'exec "$@" <"$0"' "$T/hold" "$VZRUN" --root "$VZ_ROOT" exec "$OTHER" inmate inotify 9>&-
	wait_line "$T/other" '^holds '
	cat "$T/other"
	# Each has what the limit says, less what its own services hold.
	(($(awk '{ print $2 + 0; exit }' "$T/other") > max / 3))
	# The host's root has some, too: 2 says that nothing happened in time.
	run -2 inotifywait --timeout 1 -qq -e create "$T"
	exec 9>&-
}

# kernel_memory ID prints the bytes that the kernel has for a guest: what is not
# the pages of its processes and files, which come and go.
kernel_memory() {
	local cgroup
	cgroup=$(cgroup_of "$1")
	if [[ -e /sys/fs/cgroup/memory$cgroup/memory.kmem.usage_in_bytes ]]; then
		cat "/sys/fs/cgroup/memory$cgroup/memory.kmem.usage_in_bytes"
	else
		awk '$1 == "kernel" { print $2 }' "/sys/fs/cgroup$cgroup/memory.stat"
	fi
}

# is_settled: the kernel has freed what was in use before.
is_settled() {
	local before
	before=$(kernel_memory "$1")
	sleep 0.3
	(($(kernel_memory "$1") > before - 65536))
}

@test "mounts, network namespaces and files that a guest holds count as its memory, and others have theirs" {
	local kind bytes before after held
	mkfifo "$T/hold"
	# Bytes are half of what the kernel takes for each, at least.
	for kind in mounts:200 namespaces:20000 files:100; do
		bytes=${kind#*:} kind=${kind%:*}
		wait_until 20 is_settled "$ID"
		before=$(kernel_memory "$ID")
		# shellcheck disable=SC2094
		spawn "$T/$kind" sh -c 'exec "$@" <"$0"' "$T/hold" "$VZRUN" --root "$VZ_ROOT" exec "$ID" inmate hold "$kind"
		exec 9>"$T/hold"
		wait_line "$T/$kind" '^holds '
		cat "$T/$kind"
		held=$(awk '{ print $2 + 0; exit }' "$T/$kind")
		after=$(kernel_memory "$ID")
		echo "$kind: $held, $(((after - before) / held)) bytes each"
		((held >= 40 && held <= 100000))
		((after - before > held * bytes))
		guest "$OTHER" unshare --mount --net sh -c 'mount -t tmpfs none /mnt && exec 3</dev/null && ip link'
		unshare --mount --net sh -c 'mount -t tmpfs none /mnt && exec 3</dev/null'
		# The host gets in where there are many.
		guest "$ID" true
		exec 9>&-
		wait_exit "$SPAWNED"
	done
	# Of mounts there are fs.mount-max in a namespace, and no more.
	grep 'no space left' "$T/mounts"
}

### Ranges of ids

@test "fifty configurations written at once have fifty ranges of ids" {
	local i
	mkdir -p "$T/b"{1..50}/rootfs/sbin
	for i in {1..50}; do
		cp "$VZRUN_BUSYBOX/bin/busybox" "$T/b$i/rootfs/sbin/init"
		spawn "$T/spec$i" "$VZRUN" --root "$VZ_ROOT" spec --system --bundle "$T/b$i"
	done
	wait "${VZ_SPAWNED[@]}"
	[[ $(for i in {1..50}; do id_base "$T/b$i"; done | sort -u | wc -l) == 50 ]]
	# One that is killed in the middle spoils nothing.
	rm -f "$T"/b*/config.json
	VZ_SPAWNED=()
	for i in {1..20}; do
		spawn "$T/spec$i" "$VZRUN" --root "$VZ_ROOT" spec --system --bundle "$T/b$i"
		((i % 2)) || kill -KILL "$SPAWNED"
	done
	wait "${VZ_SPAWNED[@]}" || true
	for i in {1..20}; do
		[[ -s $T/b$i/config.json ]] || rm -f "$T/b$i/config.json"
		[[ -e $T/b$i/config.json ]] || vz spec --system --bundle "$T/b$i"
	done
	[[ $(for i in {1..20}; do id_base "$T/b$i"; done | sort -u | wc -l) == 20 ]]
}

@test "a range is its bundle's as long as its configuration names it" {
	local first
	ids_in "$T/ids.json"
	bundle_at "$T/a"
	first=$(id_base "$T/a")
	[[ $(stat -c %a:%u "$T/ids.json") == 600:0 ]]
	# By hand, and by chance.
	bundle_at "$T/free" --ids 1000000000:131072
	[[ $(jq -c '.linux.gidMappings' "$T/free/config.json") == '[{"containerID":0,"hostID":1000000000,"size":131072}]' ]]
	mkdir -p "$T/b"
	cp -a "$T/a/rootfs" "$T/b"
	fails 1 "refused: ids $first to $((first + 65535)) belong to bundle $T/a" vz spec --system --bundle "$T/b" --ids $((first + 65535))
	fails 1 'too small' vz spec --system --bundle "$T/b" --ids 1000000:1000
	fails 2 'is no range' vz spec --system --bundle "$T/b" --ids many
	[[ ! -e $T/b/config.json ]]
	rm -r "$T/a"
	vz spec --system --bundle "$T/b" --ids "$first"
	[[ $(id_base "$T/b") == "$first" ]]
	jq -e --arg gone "$T/a" 'all(.claims[]; .bundle != $gone)' "$T/ids.json"
}

@test "a record of ids that is damaged is an error, and gives no range twice" {
	ids_in "$T/ids.json"
	bundle_at "$T/a"
	cp "$T/ids.json" "$T/good"
	mkdir -p "$T/b"
	cp -a "$T/a/rootfs" "$T/b"
	truncate --size -10 "$T/ids.json"
	fails 1 'record of ids: read .*ids.json: damaged' vz spec --system --bundle "$T/b"
	fails 1 'record of ids: read .*ids.json: damaged' vz create --bundle "$T/a" "$ID-a"
	chmod 0666 "$T/good" && cp -p "$T/good" "$T/ids.json"
	fails 1 'other users may write to it' vz spec --system --bundle "$T/b"
	jq '.format = 99' "$T/good" >"$T/ids.json" && chmod 0600 "$T/ids.json"
	fails 1 'newer version' vz spec --system --bundle "$T/b"
	[[ ! -e $T/b/config.json ]]
	assert_nothing_left "$ID" "$OTHER"
	rm "$T/ids.json"
	vz spec --system --bundle "$T/b"
}

@test "two guests with one range of ids are refused, or run together where that is meant" {
	local first
	bundle_at "$T/a"
	first=$(id_base "$T/a")
	vz create --bundle "$T/a" "$ID-a" </dev/null >/dev/null 2>&1 3>&-
	mkdir "$T/b"
	cp -a "$T/a/." "$T/b"
	edit_config "$T/b" '.linux.cgroupsPath = $ARGS.positional[0]
		| .process.env |= map(sub("^container_uuid=.*"; "container_uuid=00112233445566778899aabbccddeeff"))' "$(cgroup_of "$ID-b")"
	fails 1 "refused: ids $first to $((first + 65535)) are those of container $ID-a, too" vz create --bundle "$T/b" "$ID-b"
	[[ ! -e $VZ_ROOT/$ID-b ]]
	# Another state root is the same host.
	fails 1 "are those of container $ID-a, too" "$VZRUN" --root "$VZ_ROOT/elsewhere" create --bundle "$T/b" "$ID-b"
	edit_config "$T/b" '.annotations["org.vzrun.ids"] = "shared"'
	vz create --bundle "$T/b" "$ID-b" </dev/null >/dev/null 2>"$T/log" 3>&-
	[[ ! -s $T/log ]] || { cat "$T/log"; return 1; }
	vz delete "$ID-b"
	edit_config "$T/b" 'del(.annotations["org.vzrun.ids"])'
	# What is deleted has no ids any more; what is stopped needs none.
	vz delete "$ID-a"
	vz create --bundle "$T/b" "$ID-b" </dev/null >/dev/null 2>"$T/log" 3>&-
	[[ ! -s $T/log ]] || { cat "$T/log"; return 1; }
	vz delete "$ID-b"
	# A container keeps its range, whatever becomes of its bundle.
	vz create --bundle "$T/b" "$ID-b" </dev/null >/dev/null 2>&1 3>&-
	mv "$T/a/config.json" "$T/was" && mv "$T/b/config.json" "$T/was"
	mkdir -p "$T/c"
	cp -a "$T/a/rootfs" "$T/c"
	fails 1 "belong to bundle $T/b" vz spec --system --bundle "$T/c" --ids "$first"
	vz delete "$ID-b"
	vz spec --system --bundle "$T/c" --ids "$first"
}

@test "ranges are taken from /etc/subuid and /etc/subgid, where they say so" {
	mkdir -p "$T/work" "$T"/{a,b,c}/rootfs/sbin
	for b in a b c; do cp "$VZRUN_BUSYBOX/bin/busybox" "$T/$b/rootfs/sbin/init"; done
	# in_etc LINE... sees an /etc with these lines.
	in_etc() {
		unshare --mount --propagation private bash -c 'set -e
			mount -t tmpfs none "$1" && cp /etc/passwd /etc/group "$1"
			printf "%s\n" "${@:3}" | tee "$1/subuid" >"$1/subgid"
			mount --bind "$1" /etc
			eval "$2"' - "$T/work" "$@"
	}
	spec() { printf '%q ' "$VZRUN" --root "$VZ_ROOT" spec --system --bundle "$T/$1"; }
	in_etc "$(spec a) && $(spec b) && ! $(spec c)" vzrun:3000000000:131072 root:100000:65536 2>"$T/log"
	[[ $({ id_base "$T/a"; id_base "$T/b"; } | sort | xargs) == "3000000000 3000065536" ]]
	grep -q 'no free range of 65536 ids is left' "$T/log"
	rm "$T"/{a,b}/config.json
	in_etc "$(spec a) && $(spec b)" root:3000000000:65536 ann:1048576:1000000000
	[[ $(id_base "$T/a") == 3000000000 ]]
	# When root's are all taken, one that nobody has.
	(($(id_base "$T/b") >= 1048576 + 1000000000 && $(id_base "$T/b") < 3000000000))
}
