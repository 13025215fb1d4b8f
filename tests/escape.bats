#!/usr/bin/env bats
# The known ways out of a container stay closed; each test names its CVE. The
# attacker owns the image, the volumes and a process beside them, so some tests
# are races. Others use a hook to do, at the right moment, what a racer does
# who has won: so they cannot miss.
#
# The first part needs no more than runc's verbs: VZRUN=/path/of/an/old/runc
# shows that a test finds its escape (docs/security.md has the versions).
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	suite_setup
	ATTACKER=$(build_command attacker)
	RECVTTY=$(build_command recvtty)
	export ATTACKER RECVTTY
}
teardown_file() { suite_teardown; }
setup() {
	vz_setup
	OUTSIDE=$VZ_TMP/outside
	mkdir "$OUTSIDE"
}
teardown() {
	VZRUN=${OWN_VZRUN:-$VZRUN} # a copy may be damaged
	vz_teardown
}

# evil ARG... makes the bundle $BUNDLE, whose rootfs is $ROOTFS.
evil() {
	BUNDLE=$(app_bundle "$ID" "$@")
	ROOTFS=$BUNDLE/rootfs
	cp "$ATTACKER" "$ROOTFS/attacker"
}

# add_mount DESTINATION TYPE SOURCE [OPTION...]
add_mount() {
	edit_config "$BUNDLE" '.mounts += [{destination: $ARGS.positional[0], type: $ARGS.positional[1],
		source: $ARGS.positional[2], options: $ARGS.positional[3:]}]' "$@"
}

# own_dev PATH gives the guest a directory of the attacker's as /dev, with the
# devices that it should have.
own_dev() {
	local name
	mkdir -p "$1/pts" "$1/shm" "$1/mqueue"
	for name in null:3 zero:5 full:7 random:8 urandom:9; do
		mknod -m 666 "$1/${name%:*}" c 1 "${name#*:}"
	done
	mknod -m 666 "$1/tty" c 5 0
	ln -s pts/ptmx "$1/ptmx"
	edit_config "$BUNDLE" '.mounts |= map(if .destination == "/dev" then
		{destination: "/dev", type: "bind", source: $ARGS.positional[0], options: ["rbind", "rw"]} else . end)' "$1"
}

# hook SCRIPT runs a script, with $ROOTFS, in the guest's mounts after they were
# made and before the guest's root is changed to them.
hook() {
	local quoted
	printf -v quoted 'ROOTFS=%q\n' "$ROOTFS"
	edit_config "$BUNDLE" '.hooks.createContainer = [{path: "/bin/sh", args: ["sh", "-ec", $ARGS.positional[0]],
		env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]' "$quoted$1"
}

# attempt creates and starts the container; it may be refused. $PID is its
# first process.
attempt() {
	PID=
	vz create --bundle "$BUNDLE" "$@" "$ID" </dev/null >"$VZ_TMP/attempt.log" 2>&1 3>&- || return
	vz start "$ID" >>"$VZ_TMP/attempt.log" 2>&1 || return
	PID=$(pid_of "$ID")
}

# refused CMD... must fail for a reason of its own, and not by chance.
refused() {
	local code=0
	"$@" >"$VZ_TMP/refused" 2>&1 </dev/null 3>&- || code=$?
	if ((code == 0 || code >= 126 && code != 255)) || [[ ! -s $VZ_TMP/refused ]] || grep -qE 'panic|goroutine|SIGSEGV' "$VZ_TMP/refused"; then
		printf 'not refused in an orderly way (%s): %s\n' "$code" "$*"
		jq -c '.mounts[-1]' "$BUNDLE/config.json"
		cat "$VZ_TMP/refused"
		return 1
	fi
}

# untouched: the attacker has made nothing outside.
untouched() {
	[[ -z $(find "$OUTSIDE" -mindepth 1 ! -name 'precious*') ]] || {
		echo "made outside of the container:"
		find "$OUTSIDE" -mindepth 1 -ls
		return 1
	}
	[[ ! -e $OUTSIDE/precious || $(<"$OUTSIDE/precious") == precious ]]
}

# swapping A B exchanges two names until unswap.
swapping() {
	spawn "$VZ_TMP/swap.log" "$ATTACKER" swap "$1" "$2"
	SWAPPER=$SPAWNED
	wait_line "$VZ_TMP/swap.log" '^ready$'
}

unswap() {
	has_ended "$SWAPPER" && {
		cat "$VZ_TMP/swap.log"
		return 1
	}
	kill -KILL "$SWAPPER"
	wait "$SWAPPER" || true
}

# mounted_at PID TEXT prints where a process has mounts of that source.
mounted_at() { awk -v text="$2" '{ for (i = 7; $i != "-"; i++); if ($(i + 2) == text) print $5 }' "/proc/$1/mountinfo"; }

### CVE-2019-5736: the runtime's own program, reached through /proc/PID/exe

# own_program runs a copy of vzrun that may be damaged.
own_program() {
	copy_vzrun "$VZ_TMP/program"
	PROGRAM_SUM=$(sha256sum <"$VZ_TMP/program")
	OWN_VZRUN=$VZRUN
	VZRUN=$VZ_TMP/program
}

program_is_whole() { [[ $(sha256sum <"$VZ_TMP/program") == "$PROGRAM_SUM" ]]; }

@test "CVE-2019-5736: the first process is no handle on the runtime's program" {
	local pid
	own_program
	evil sleep 1000
	vz create --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>&1 3>&-
	pid=$(pid_of "$ID")
	exec 9<"/proc/$pid/exe"
	[[ $(stat -Lc %s /proc/self/fd/9) -gt 6000000 ]] # the runtime, not yet the guest
	vz start "$ID"
	wait_until 10 grep -q ^sleep "/proc/$pid/cmdline"
	# Nobody runs it any more, and this is root with all capabilities.
	run -1 bash -c 'echo overwritten >/proc/self/fd/9'
	exec 9<&-
	program_is_whole
}

@test "CVE-2019-5736: exec is no handle on the runtime's program" {
	local i target
	own_program
	evil /attacker overwrite
	printf '#!/proc/self/exe\n' >"$ROOTFS/script"
	chmod +x "$ROOTFS/script"
	# More than a guest usually has: it may look at processes that hide.
	edit_config "$BUNDLE" '.process.capabilities[] += ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]'
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^ready$'
	for i in {1..6}; do
		for target in /bin/true /proc/self/exe /script; do
			# Whether it runs does not matter.
			timeout "$(slow 20)" "$VZRUN" --root "$VZ_ROOT" exec "$ID" "$target" </dev/null >/dev/null 2>&1 3>&- || [[ $? -ne 124 ]]
		done
	done
	wait_line "$VZ_TMP/out" '^(caught|OVERWRITTEN)'
	wait_line "$VZ_TMP/out" '^(refused|OVERWRITTEN)'
	run ! grep OVERWRITTEN "$VZ_TMP/out"
	program_is_whole
}

@test "CVE-2019-5736: the runtime as entrypoint is no handle on its program" {
	local entry other=$ID-other
	own_program
	evil /attacker overwrite
	edit_config "$BUNDLE" '.process.capabilities[] += ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]'
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_line "$VZ_TMP/out" '^ready$'
	PID=$(pid_of "$ID")
	for entry in /proc/self/exe /script; do
		program_is_whole
		rm -rf "${VZ_TMP:?}/$other"
		BUNDLE=$(app_bundle "$other" "$entry" init)
		printf '#!/proc/self/exe\n' >"$BUNDLE/rootfs/script"
		chmod +x "$BUNDLE/rootfs/script"
		edit_config "$BUNDLE" '.linux.namespaces |= map(if .type == "pid" then .path = $ARGS.positional[0] else . end)' "/proc/$PID/ns/pid"
		timeout "$(slow 20)" "$VZRUN" --root "$VZ_ROOT" run --bundle "$BUNDLE" "$other" </dev/null >/dev/null 2>&1 3>&- || [[ $? -ne 124 ]]
		vz delete --force "$other" 2>/dev/null || true
	done
	wait_line "$VZ_TMP/out" '^(caught|OVERWRITTEN)'
	wait_line "$VZ_TMP/out" '^(refused|OVERWRITTEN)'
	run ! grep OVERWRITTEN "$VZ_TMP/out"
	program_is_whole
}

@test "CVE-2019-5736: the program loads no library that a guest could bring" {
	run -1 ldd "$VZRUN"
	[[ $output == *"not a dynamic executable"* ]]
}

### CVE-2019-16884 and CVE-2019-19921: what is mounted at /proc

@test "CVE-2019-16884: nothing but a procfs is mounted at /proc, and nothing in it" {
	local dest type source options
	evil sh -c 'echo escaped >/started; exec sleep 1000'
	mkdir -p "$OUTSIDE/precious-proc/self/attr" "$ROOTFS/volume/self/attr"
	ln -s /proc "$ROOTFS/link"
	ln -s proc/self "$ROOTFS/deep"
	ln -s .. "$ROOTFS/usr/up"
	cp "$BUNDLE/config.json" "$VZ_TMP/good.json"
	while read -r dest type source options; do
		cp "$VZ_TMP/good.json" "$BUNDLE/config.json"
		add_mount "$dest" "$type" "$source" "$options"
		refused vz run --detach --bundle "$BUNDLE" "$ID"
		[[ ! -e $ROOTFS/started ]]
		assert_nothing_left
	done <<-EOT
		/proc bind $OUTSIDE/precious-proc bind
		/proc bind $ROOTFS/volume rbind
		/proc tmpfs tmpfs rw
		/proc/self bind $OUTSIDE/precious-proc bind
		/proc/self/attr bind $OUTSIDE/precious-proc bind
		/proc/sys tmpfs tmpfs rw
		/proc/1/../sys/kernel tmpfs tmpfs rw
		/link bind $OUTSIDE/precious-proc bind
		/link/self/attr tmpfs tmpfs rw
		/deep tmpfs tmpfs rw
		/usr/up/proc bind $OUTSIDE/precious-proc bind
	EOT
}

@test "CVE-2019-19921: a /proc or /sys that is a link is refused" {
	local name target
	evil sh -c 'echo escaped >/started; exec sleep 1000'
	for name in proc sys; do
		for target in /fake "$OUTSIDE" ../../outside /etc; do
			rm -rf "${ROOTFS:?}/$name"
			mkdir -p "$ROOTFS/fake"
			ln -s "$target" "$ROOTFS/$name"
			refused vz run --detach --bundle "$BUNDLE" "$ID"
			[[ ! -e $ROOTFS/started ]]
			untouched
			assert_nothing_left
		done
		rm "$ROOTFS/$name"
		mkdir "$ROOTFS/$name"
	done
}

@test "CVE-2019-19921: a race for /proc ends with a procfs there, or with no container" {
	local i up=0
	evil sleep 1000
	mkdir -p "$ROOTFS/fake"
	ln -s /fake "$ROOTFS/proc-link"
	swapping "$ROOTFS/proc" "$ROOTFS/proc-link"
	for i in {1..8}; do
		if attempt; then
			up=$((up + 1))
			# The directory may have been renamed again since, with its mount.
			[[ $(mounted_at "$PID" proc | head -n 1) =~ ^/proc(-link)?$ ]]
		fi
		vz delete --force "$ID" 2>/dev/null || true
	done
	unswap
	echo "$up of $i came up"
	untouched
	assert_nothing_left
}

### CVE-2021-30465 and CVE-2024-45310: a volume's own links as destinations

@test "CVE-2021-30465: links in the image never lead a mount or a directory out" {
	local dest
	evil sleep 1000
	mkdir -p "$ROOTFS/volume"
	ln -s "$OUTSIDE" "$ROOTFS/volume/absolute"
	ln -s ../../../../../../../../../../../.."$OUTSIDE" "$ROOTFS/volume/relative"
	ln -s "$OUTSIDE/new" "$ROOTFS/volume/dangling"
	ln -s /proc/self/cwd "$ROOTFS/volume/magic"
	ln -s /proc/1/root"$OUTSIDE" "$ROOTFS/volume/magic2"
	for dest in absolute/a relative/b dangling/c dangling absolute magic/d magic2/e; do
		add_mount "/volume/$dest" tmpfs "marker-${dest//\//-}" rw
	done
	touch "$VZ_TMP/file"
	add_mount /volume/absolute/file bind "$VZ_TMP/file" bind
	if attempt; then
		[[ $(mounted_at "$PID" marker-absolute-a) == *"/outside/a" ]]
	fi
	untouched
	vz delete --force "$ID" || true
	untouched
	assert_nothing_left
}

# race_volume MOUNTS makes a volume whose directory /volume/dir becomes a link
# to $OUTSIDE and back, all the while.
race_volume() {
	evil sleep 1000
	mkdir -p "$ROOTFS/volume/dir"
	ln -s "$OUTSIDE" "$ROOTFS/volume/link"
	swapping "$ROOTFS/volume/dir" "$ROOTFS/volume/link"
}

@test "CVE-2021-30465: a race never leads a mount out" {
	local i n found up=0
	mkdir "$OUTSIDE"/precious{1..24}
	race_volume
	# They exist on both sides, so that a path can be checked and then changed.
	mkdir -p "$ROOTFS/volume/dir" "$ROOTFS/volume/link"
	for n in {1..24}; do
		mkdir -p "$ROOTFS/volume/dir/precious$n" "$ROOTFS/volume/link/precious$n"
		add_mount "/volume/dir/precious$n" tmpfs "marker$n" rw
	done
	for i in {1..8}; do
		if attempt; then
			up=$((up + 1))
			for n in {1..24}; do
				# What was mounted elsewhere is not in the guest.
				found=$(mounted_at "$PID" "marker$n")
				[[ $found == */precious$n ]] || {
					echo "marker$n went elsewhere: '$found'"
					return 1
				}
			done
		fi
		vz delete --force "$ID" 2>/dev/null || true
	done
	unswap
	echo "$up of $i came up"
	untouched
	assert_nothing_left
}

@test "CVE-2024-45310: a race makes no file and no directory on the host" {
	local i n up=0
	race_volume
	touch "$VZ_TMP/file"
	for n in {1..12}; do
		add_mount "/volume/dir/a$n/b/c" tmpfs "marker$n" rw
		add_mount "/volume/dir/f$n/file" bind "$VZ_TMP/file" bind
	done
	for i in {1..8}; do
		! attempt || up=$((up + 1))
		vz delete --force "$ID" 2>/dev/null || true
		untouched
		rm -rf "$ROOTFS"/volume/{dir,link}/[af]* 2>/dev/null || true
	done
	unswap
	echo "$up of $i came up"
	untouched
	assert_nothing_left
}

### CVE-2024-21626: descriptors of the host, as working directory or as they are

# steal is a guest's program that reads the host's secret by way of its working
# directory.
steal='cat "./../../../../../../../../../..$1/secret" 2>/dev/null; cat "$1/secret" 2>/dev/null; true'

@test "CVE-2024-21626: no descriptor of the runtime can be a working directory" {
	local fd out
	echo stolen >"$OUTSIDE/precious" && mv "$OUTSIDE/precious" "$VZ_TMP/secret"
	evil sh -c "$steal" sh "$VZ_TMP"
	# The caller's own descriptors are no way out either.
	exec 9</
	for fd in {3..10}; do
		edit_config "$BUNDLE" '.process.cwd = $ARGS.positional[0]' "/proc/self/fd/$fd"
		out=$(vz run --bundle "$BUNDLE" "$ID" </dev/null 2>&1 3>&-) || true
		[[ $out != *stolen* ]] || {
			echo "run: descriptor $fd leads out"
			return 1
		}
		assert_nothing_left
	done
	edit_config "$BUNDLE" '.process.cwd = "/" | .process.args = ["sleep", "1000"]'
	app_up "$BUNDLE" "$ID"
	for fd in {3..10}; do
		ln -sfn "/proc/self/fd/$fd" "$ROOTFS/work"
		out=$(vz exec --cwd "/proc/self/fd/$fd" "$ID" sh -c "$steal" sh "$VZ_TMP" </dev/null 2>&1 3>&-) || true
		out+=$(vz exec --cwd /work "$ID" sh -c "$steal" sh "$VZ_TMP" </dev/null 2>&1 3>&-) || true
		[[ $out != *stolen* ]] || {
			echo "exec: descriptor $fd leads out"
			return 1
		}
	done
	exec 9<&-
}

# inheritable PID lists descriptors above stderr that a process would hand on:
# those without O_CLOEXEC (02000000) in their flags, which are octal.
inheritable() {
	local file key value
	for file in "/proc/$1/fdinfo/"*; do
		((${file##*/} > 2)) || continue
		while read -r key value; do
			[[ $key != flags: ]] || (((8#$value & 8#2000000) != 0)) || readlink "/proc/$1/fd/${file##*/}"
		done <"$file"
	done
}

@test "CVE-2024-21626: no process of a guest begins with a descriptor of the host" {
	evil /attacker descriptors
	exec 8<"$VZRUN" 9</
	[[ $(vz run --bundle "$BUNDLE" "$ID" </dev/null 3>&-) == ready ]]
	edit_config "$BUNDLE" '.process.args = ["sleep", "1000"]'
	app_up "$BUNDLE" "$ID"
	[[ $(vz exec "$ID" /attacker descriptors </dev/null 3>&-) == ready ]]
	exec 8<&- 9<&-
	# While it waits to be started, all that it has open ends with its exec.
	vz delete --force "$ID"
	app_create "$BUNDLE" "$ID"
	run inheritable "$(pid_of "$ID")"
	[[ -z $output ]]
}

### CVE-2025-31133: /dev/null, which hides masked paths

# masked: if the container runs, /masked is /dev/null, and nothing else.
masked() {
	[[ $(stat -Lc '%F %t:%T' "/proc/$PID/root/masked") == 'character special file 1:3' ]] || {
		stat -L "/proc/$PID/root/masked"
		return 1
	}
}

masking() {
	evil sleep 1000
	echo hidden >"$ROOTFS/masked"
	echo precious >"$ROOTFS/target"
	edit_config "$BUNDLE" '.linux.maskedPaths += ["/masked"]'
}

@test "CVE-2025-31133: masks are made of the real /dev/null" {
	masking
	attempt
	masked
	vz delete --force "$ID"
	# A link, another device, a plain file, nothing at all.
	own_dev "$VZ_TMP/dev"
	for kind in 'ln -s /target' 'mknod -m 666' 'touch' ':'; do
		rm -f "$VZ_TMP/dev/null"
		case $kind in
		mknod*) mknod -m 666 "$VZ_TMP/dev/null" c 1 5 ;;
		*) $kind "$VZ_TMP/dev/null" ;;
		esac
		if attempt; then masked; fi
		vz delete --force "$ID" 2>/dev/null || true
		assert_nothing_left
	done
}

@test "CVE-2025-31133: whoever replaces /dev/null in time gains nothing" {
	masking
	hook 'ln -sfn /target "$ROOTFS/dev/null"; test -L "$ROOTFS/dev/null"'
	if attempt; then masked; fi
	vz delete --force "$ID" || true
	hook 'rm "$ROOTFS/dev/null"'
	if attempt; then masked; fi
	vz delete --force "$ID" || true
	[[ $(<"$ROOTFS/target") == precious ]]
}

### CVE-2025-52565: /dev/console, where the terminal is mounted

# with_terminal attempts to create the container with a terminal.
with_terminal() {
	local status=0
	rm -f "$VZ_TMP/socket"
	spawn "$VZ_TMP/received" "$RECVTTY" tty "$VZ_TMP/socket"
	wait_line "$VZ_TMP/received" '^listening$'
	attempt --console-socket "$VZ_TMP/socket" || status=$?
	return "$status"
}

# target_is_whole: neither emptied nor covered by a terminal.
target_is_whole() {
	[[ $(<"$ROOTFS/target") == precious ]]
	[[ -z $PID || $(timeout "$(slow 5)" cat "/proc/$PID/root/target") == precious ]]
}

@test "CVE-2025-52565: the terminal is mounted at /dev/console and nowhere else" {
	evil sh -c 'exec sleep 1000'
	echo precious >"$ROOTFS/target"
	edit_config "$BUNDLE" '.process.terminal = true'
	with_terminal
	[[ $(stat -Lc %F "/proc/$PID/root/dev/console") == "character special file" ]]
	vz delete --force "$ID"
	hook 'ln -sfn /target "$ROOTFS/dev/console"; test -L "$ROOTFS/dev/console"'
	with_terminal || true
	target_is_whole
	vz delete --force "$ID" || true
	edit_config "$BUNDLE" 'del(.hooks)'
	own_dev "$VZ_TMP/dev"
	ln -s /target "$VZ_TMP/dev/console"
	with_terminal || true
	target_is_whole
	vz delete --force "$ID" || true
	target_is_whole
}

@test "CVE-2025-52565: a /dev/pts or /dev/ptmx of the attacker's gives no terminal of another's" {
	local kind
	evil sh -c 'exec sleep 1000'
	echo precious >"$ROOTFS/target"
	edit_config "$BUNDLE" '.process.terminal = true'
	# Instead of the guest's own: links, files, and the host's own terminals.
	for kind in 'rm "$ROOTFS/dev/ptmx"; ln -s /target "$ROOTFS/dev/ptmx"' \
		'mount -t tmpfs none "$ROOTFS/dev/pts"; for i in 0 1 2 3; do ln -s /target "$ROOTFS/dev/pts/$i"; done' \
		'mount -t tmpfs none "$ROOTFS/dev/pts"; ln -s /target "$ROOTFS/dev/pts/ptmx"'; do
		hook "$kind"
		with_terminal || true
		target_is_whole
		vz delete --force "$ID" 2>/dev/null || true
	done
}

### CVE-2025-52881: writes to a /proc that is not one

@test "CVE-2025-52881: a sysctl is not written to where a false /proc leads" {
	evil sleep 1000
	echo precious >"$ROOTFS/target"
	edit_config "$BUNDLE" '.linux.sysctl = {"net.ipv4.ip_forward": "1"}'
	attempt
	[[ $(<"/proc/$PID/root/target") == precious ]]
	[[ $(nsenter -t "$PID" -n sysctl -n net.ipv4.ip_forward) == 1 ]]
	vz delete --force "$ID"
	hook 'mount -t tmpfs none "$ROOTFS/proc"; mkdir -p "$ROOTFS/proc/sys/net/ipv4" "$ROOTFS/proc/self"
		ln -s self "$ROOTFS/proc/thread-self"; ln -s /target "$ROOTFS/proc/sys/net/ipv4/ip_forward"'
	attempt || true
	[[ $(<"$ROOTFS/target") == precious ]]
	vz delete --force "$ID" 2>/dev/null || true
	# A mount on the one file, as a false /proc of many mounts would have it.
	hook 'mount --bind "$ROOTFS/target" "$ROOTFS/proc/sys/net/ipv4/ip_forward"'
	attempt || true
	[[ $(<"$ROOTFS/target") == precious ]]
}

@test "CVE-2025-52881: a security label is not written to where a false /proc leads" {
	lacks AppArmor grep -qx Y /sys/module/apparmor/parameters/enabled
	evil sleep 1000
	echo precious >"$ROOTFS/target"
	edit_config "$BUNDLE" '.process.apparmorProfile = "unconfined"'
	hook 'mount -t tmpfs none "$ROOTFS/proc"; mkdir -p "$ROOTFS/proc/self/attr/apparmor" "$ROOTFS/proc/self/fd"
		ln -s self "$ROOTFS/proc/thread-self"
		for file in exec apparmor/exec; do ln -s /target "$ROOTFS/proc/self/attr/$file"; done'
	attempt || true
	[[ $(<"$ROOTFS/target") == precious ]]
}

### CVE-2026-41579: /dev as a link

@test "CVE-2026-41579: a /dev that is a link changes nothing where it leads" {
	local target
	evil sleep 1000
	for target in "$OUTSIDE" ../../outside; do
		rm -rf "${ROOTFS:?}/dev"
		ln -s "$target" "$ROOTFS/dev"
		echo precious >"$OUTSIDE/precious"
		mv "$OUTSIDE/precious" "$OUTSIDE/ptmx"
		for filter in . '.mounts |= map(select(.destination | startswith("/dev") | not))'; do
			edit_config "$BUNDLE" "$filter"
			attempt || true
			vz delete --force "$ID" 2>/dev/null || true
			[[ $(ls -A "$OUTSIDE") == ptmx && $(<"$OUTSIDE/ptmx") == precious ]]
		done
	done
	assert_nothing_left
}

### Hostile guests: whole systems whose root is an enemy

# hostile SCRIPT makes the bundle $BUNDLE of a system container whose init is a
# script that calls itself systemd.
hostile() {
	BUNDLE=$VZ_TMP/$ID ROOTFS=$VZ_TMP/$ID/rootfs
	new_bundle "$BUNDLE" "$VZRUN_BUSYBOX"
	mkdir -p "$ROOTFS/lib/systemd"
	printf '#!/bin/sh\nexport PATH=/bin:/sbin:/usr/bin:/usr/sbin\n%s\n' "$1" >"$ROOTFS/lib/systemd/systemd"
	chmod +x "$ROOTFS/lib/systemd/systemd"
	ln -sf /lib/systemd/systemd "$ROOTFS/sbin/init"
	(cd "$BUNDLE" && vz spec --system --hostname "$ID")
	edit_config "$BUNDLE" '.process.terminal = false | .linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID")"
}

@test "spec and create write nothing where a system's links lead" {
	local link
	hostile 'echo up >/up; exec sleep 1000'
	for link in run etc/systemd etc/machine-id etc/hostname etc/resolv.conf var/run dev sys/fs; do
		rm -rf "${ROOTFS:?}/$link"
		mkdir -p "$ROOTFS/$(dirname "$link")"
		ln -s "$OUTSIDE" "$ROOTFS/$link"
	done
	rm "$BUNDLE/config.json"
	(cd "$BUNDLE" && vz spec --system --hostname "$ID")
	untouched
	edit_config "$BUNDLE" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID")"
	attempt || true
	untouched
	vz delete --force "$ID" 2>/dev/null || true
	untouched
	# An init that a link takes from the host is none.
	cp "$ROOTFS/lib/systemd/systemd" "$OUTSIDE/precious-init"
	ln -sfn "$OUTSIDE/precious-init" "$ROOTFS/sbin/init"
	rm -r "$ROOTFS/lib/systemd" "$BUNDLE/config.json"
	(cd "$BUNDLE" && fails 1 'no init in the rootfs' vz spec --system)
}

# calm: a guest may break what concerns itself; each call must still end in
# time, and not by a crash.
calm() {
	local code=0
	timeout "$(slow 30)" "$VZRUN" --root "$VZ_ROOT" "$@" </dev/null >"$VZ_TMP/calm" 2>&1 3>&- || code=$?
	if ((code == 124 || code == 137)) || grep -qE 'panic|goroutine|SIGSEGV' "$VZ_TMP/calm"; then
		printf 'ended with %s: %s\n' "$code" "$*"
		cat "$VZ_TMP/calm"
		return 1
	fi
}

@test "a system that has replaced its /proc, shell and sockets harms only itself" {
	local before
	hostile 'trap "" TERM
		mkdir -p /evil/self /evil/1/fd /run/systemd /evil/sys/kernel
		echo precious >/evil/target
		for name in self/attr self/exe 1/root thread-self; do ln -sfn /evil/target /evil/$name; done
		rm -f /bin/true /etc/passwd; mkfifo /bin/true /etc/passwd /run/systemd/private
		mount --bind /evil /proc
		mount -t tmpfs none /dev/pts 2>/dev/null
		echo up >/up
		while :; do sleep 1; done'
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_file "$ROOTFS/up"
	before=$(sha256sum <"$VZRUN")
	calm exec "$ID" /bin/true
	calm exec "$ID" sh -c 'cat /proc/target'
	calm exec --cwd /proc/1/root "$ID" pwd
	calm ready --timeout 2s "$ID"
	calm ps "$ID"
	calm state "$ID"
	calm list
	timeout "$(slow 30)" script --quiet --return --command "timeout 5 '$VZRUN' --root '$VZ_ROOT' enter '$ID'" /dev/null </dev/null >/dev/null || [[ $? -lt 128 ]]
	calm pause "$ID"
	calm resume "$ID"
	has_status "$ID" running
	[[ $(<"$ROOTFS/evil/target") == precious ]]
	[[ $(sha256sum <"$VZRUN") == "$before" ]]
	calm stop --timeout 1s "$ID"
	vz delete --force "$ID"
	assert_nothing_left
}

@test "delete follows no mount of the guest, and finds all of its cgroups" {
	local before
	echo precious >"$OUTSIDE/precious"
	hostile 'mkdir -p /a/b/c /mnt/host
		mount --bind / /mnt/host; mount -t tmpfs none /a; mkdir -p /a/b; mount --bind /volume /a/b
		cd /sys/fs/cgroup && mkdir -p "with blank" "with
		line" ..x "$(printf "\001\033[2J")" 2>/dev/null
		mkdir -p 1/2/3/4/5/6/7/8/9/10/11/12
		(echo 0 >1/2/3/4/cgroup.procs; exec sleep 1000) &
		echo up >/up; sleep 1000'
	mkdir "$ROOTFS/volume"
	add_mount /volume bind "$OUTSIDE" bind
	before=$(tree_sum "$OUTSIDE")
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_file "$ROOTFS/up"
	run -0 vz list
	[[ $output != *$'\e'* ]]
	vz delete --force "$ID"
	[[ $(tree_sum "$OUTSIDE") == "$before" && -x $ROOTFS/bin/busybox ]]
	assert_nothing_left
}
