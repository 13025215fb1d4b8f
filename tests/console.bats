#!/usr/bin/env bats
# A guest's console: attached runs and logins, a holder in the background, several
# clients, what is kept of a detached guest, and what all of that survives.
#
# Tests share one Debian whose console is held in the background; boot_held
# boots it again if a test has left none.
# Suites use what `run` sets; $ARGS is jq's, other variables in single quotes are
# the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154,SC2153

load helpers
load app

setup_file() {
	shared_guest --ram 512M
	DIALOGUE=$(build_command dialogue)
	export DIALOGUE VZ_PATIENCE
	# So that a login really works.
	local shadow=$BUNDLE/rootfs/etc/shadow hash
	hash=$(openssl passwd -6 -salt vzrun secret)
	sed -i "s|^root:[^:]*:|root:$hash:|" "$shadow"
}

teardown_file() { shared_guest_ends; }

setup() {
	shared_test
	VZ=("$VZRUN" --root "$VZ_ROOT") # not the function: it is run by others
}

teardown() { shared_test_ends; }

# dialogue CMD... talks with a program on a terminal; the steps come on stdin.
dialogue() {
	cat >"$T/steps"
	"$DIALOGUE" "$T/steps" "$@" </dev/null >"$T/dialogue" 2>&1 3>&- || {
		local code=$?
		cat -v "$T/dialogue"
		return "$code"
	}
}

# dialogue_begin NAME CMD... begins one in the background; its output is in
# $T/NAME, dialogue_end waits for its end.
dialogue_begin() {
	local name=$1
	shift
	cat >"$T/$name.steps"
	spawn "$T/$name" "$DIALOGUE" "$T/$name.steps" "$@"
}

dialogue_end() { # PID NAME
	local code=0
	wait "$1" || code=$?
	((code == 0)) || cat -v "$T/$2"
	return "$code"
}

boot_held() {
	[[ -e $VZ_ROOT/$ID/console.sock ]] && has_status "$ID" running && return
	vz delete --force "$ID"
	vz run --detach --console --bundle "$BUNDLE" "$ID" </dev/null >"$T/run" 2>&1 3>&- || {
		cat "$T/run"
		return 1
	}
	wait_guest "$ID"
	# The last words of a boot, which may come after it: what a test writes must not be
	# before them.
	wait_until "$VZ_PATIENCE" eval 'vz logs "$ID" | grep -q "login: "'
}

# write_console TEXT writes lines to the guest's console, as its root.
write_console() { vz exec --env "TEXT=$1" "$ID" sh -c 'printf "$TEXT" >/dev/console' </dev/null; }

# processes prints our processes that have to do with this suite's containers.
processes() { pgrep -f -- "^(/proc/self/exe|[^ ]*vzrun) --root $VZ_ROOT " || true; }

# connected PID: the process has a unix socket that is connected, proc(5).
connected() {
	local fd
	for fd in "/proc/$1/fd/"*; do
		fd=$(readlink "$fd") || continue
		[[ $fd != socket:* ]] || ! grep -qE "^\S+ \S+ \S+ \S+ \S+ 03 +${fd//[!0-9]/}( |$)" /proc/net/unix || return 0
	done
	return 1
}

# log_size prints how much the host keeps of the held console.
log_size() { cat "$VZ_ROOT/$ID"/console.log* | wc -c; }

### A terminal of one's own

@test "run from a terminal is the guest's console: a login works, its size follows ours" {
	TERM=xterm-256color dialogue "${VZ[@]}" run --bundle "$BUNDLE" "$ID" <<-'END'
		expect Debian
		expect login:
		send root\r
		expect assword:
		send secret\r
		expect # 
		send tty; stty size; echo TERM is $TERM\r
		expect /dev/(console|pts/[0-9]+)
		expect 24 80
		expect TERM is xterm-256color
		resize 40 100
		send until [ "$(stty size)" = "40 100" ]; do sleep 0.1; done; echo re''sized\r
		expect resized
		send systemctl is-active console-getty\r
		expect active
		send exit\r
		expect login:
		send \x1d\x1d\x1d
		expect left .*, which goes on
		end
	END
	# Escaped: the guest goes on with its console in the background.
	has_status "$ID" running
	wait_guest "$ID"
	[[ $(processes | wc -l) == 1 ]]
	[[ $(stat -c %a "$VZ_ROOT/$ID/console.sock") == 600 ]]
}

@test "console attaches to it again: the prompt is there at once, the escape leaves it" {
	boot_held
	write_console 'prompt>'
	dialogue "${VZ[@]}" console "$ID" <<-'END'
		expect three times within a second
		expect prompt>
		send \r
		expect login:
		send \x1d\x1d\x1d
		end
	END
	# Another key; the usual one is the guest's then.
	dialogue "${VZ[@]}" console --escape ^a "$ID" <<-'END'
		expect \^a three times
		send \r
		expect login:
		send \x1d\x1d\x1d\x15
		send \x01\x01\x01
		end
	END
	has_status "$ID" running
}

@test "two clients see the same, and each other's typing" {
	local one two
	boot_held
	dialogue_begin one "${VZ[@]}" console "$ID" <<-'END'
		expect login:
		send one-was-here
		expect two-was-here
		send \x15\x1d\x1d\x1d
		end
	END
	one=$SPAWNED
	wait_until "$VZ_PATIENCE" grep -q one-was-here "$T/one" # a line without an end
	dialogue_begin two "${VZ[@]}" console "$ID" <<-'END'
		expect one-was-here
		send two-was-here
		expect two-was-here
		send \x1d\x1d\x1d
		end
	END
	two=$SPAWNED
	dialogue_end "$one" one
	dialogue_end "$two" two
}

@test "a client that hangs, or vanishes, delays neither the guest nor others" {
	local hung gone
	boot_held
	# In a process group of its own: the kernel may send SIGHUP to an orphaned one
	# with a stopped process in it (setpgid(2)), and that would be everybody's here.
	spawn "$T/hung" setsid "${VZ[@]}" console "$ID"
	hung=$SPAWNED
	spawn "$T/gone" "${VZ[@]}" console "$ID"
	gone=$SPAWNED
	write_console 'both see this\n'
	wait_line "$T/hung" 'both see this'
	wait_line "$T/gone" 'both see this'
	kill -STOP "$hung"
	kill -KILL "$gone"
	# Far more than what is queued for the one that hangs.
	guest "$ID" sh -c 'head -c 8000000 /dev/zero | tr "\0" x | fold >/dev/console; printf "\nflood over\n" >/dev/console'
	run -0 vz logs --tail 1 "$ID"
	[[ $output == "flood over"* ]]
	spawn "$T/third" "${VZ[@]}" console "$ID"
	write_console 'a third sees this\n'
	wait_line "$T/third" 'a third sees this'
	kill -CONT "$hung"
	wait_line "$T/hung" 'bytes of output skipped'
	write_console 'all see this\n'
	wait_line "$T/hung" 'all see this'
}

@test "a terminal that closes leaves the guest, too" {
	vz delete --force "$ID"
	dialogue "${VZ[@]}" run --bundle "$BUNDLE" "$ID" <<-'END'
		expect login:
		hangup
		end
	END
	has_status "$ID" running
	dialogue "${VZ[@]}" console "$ID" <<-'END'
		expect login:
		send \x1d\x1d\x1d
		end
	END
}

@test "another init starts what its inittab has for the console; poweroff ends run" {
	local id=$ID-inittab bundle=$T/bundle code=0
	new_bundle "$bundle" "$VZRUN_BUSYBOX"
	rm -f "$bundle/rootfs/sbin/init"
	ln -s ../bin/busybox "$bundle/rootfs/sbin/init"
	printf '%s\n' '::sysinit:/bin/echo the system starts' '::askfirst:-/bin/sh' >"$bundle/rootfs/etc/inittab"
	vz spec --system --bundle "$bundle"
	edit_config "$bundle" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	dialogue "${VZ[@]}" run --bundle "$bundle" "$id" <<-'END' || code=$?
		expect the system starts
		expect press Enter
		send \r
		expect #
		send echo $((6 * 7)) $(tty)\r
		expect 42 /dev/(pts/0|console)
		send poweroff\r
		end
	END
	[[ $code == 0 && ! -e $VZ_ROOT/$id ]]
}

### What is kept

@test "the guest's root fills its console, and the host keeps 256 KiB at most" {
	local holder
	boot_held
	holder=$(processes)
	guest "$ID" sh -c 'head -c 100000000 /dev/zero | tr "\0" y >/dev/console; printf "\nthe end\n" >/dev/console'
	(($(log_size) <= 256 << 10 && $(log_size) >= 128 << 10))
	# Nor does who holds it.
	(($(awk '/VmRSS/ { print $2 }' "/proc/$holder/status") < 64 << 10))
	run -0 vz logs --tail 1 "$ID"
	[[ $output == "the end"* ]]
	[[ $(vz ready "$ID") == running ]]
}

@test "logs: the last lines, new ones as they come, until the guest ends; and after that" {
	boot_held
	write_console 'one\ntwo\nthree\n'
	run -0 vz logs --tail 2 "$ID"
	[[ ${output//$'\r'/} == two$'\n'three ]]
	spawn "$T/follow" "${VZ[@]}" logs --follow --tail 0 "$ID"
	wait_until 10 eval "ls -l /proc/$SPAWNED/fd | grep -q inotify"
	write_console 'four\n'
	wait_line "$T/follow" four
	run ! grep -q three "$T/follow"
	vz stop --timeout "$(slow 60)s" "$ID"
	wait "$SPAWNED"
	[[ -z $(processes) ]]
	run -0 vz logs "$ID"
	[[ $output == *four* ]]
	# Systemd's own words on the way down.
	[[ $output == *Stopped*target* || $output == *Reached*target* ]]
	fails 4 'wrong status: it is stopped' vz console "$ID"
	vz delete "$ID"
	assert_nothing_left
}

@test "logs are raw for a pipe, and clean for a terminal but for colours" {
	boot_held
	write_console 'a\033]0;title\007b\033[31mred\033[0m\033[2J\n'
	vz logs --tail 1 "$ID" >"$T/raw"
	grep -q $'\x1b]0;title\x07' "$T/raw"
	dialogue "${VZ[@]}" logs --tail 1 "$ID" <<<'end'
	grep -q $'ab\x1b\\[31mred\x1b\\[0m' "$T/dialogue"
	run ! grep -q -e title -e $'\x1b\\[2J' "$T/dialogue"
}

### Checkpoint, restore

@test "a guest whose console is held is checkpointed and restored, with its console or without" {
	boot_held
	# A console that no session has could not be restored.
	guest "$ID" sh -c 'systemctl stop console-getty && systemd-run --quiet --unit hold -p StandardOutput=tty -p TTYPath=/dev/console sleep 1000'
	fails 1 "unit hold.service .* has the console open, which is no session's terminal" vz checkpoint --image-path "$T/images" "$ID"
	guest "$ID" sh -c 'systemctl stop hold && systemctl start console-getty'
	wait_until 10 vz checkpoint --check "$ID"
	vz checkpoint --image-path "$T/images" "$ID"
	wait_until 10 eval '[[ -z $(processes) ]]'
	assert_nothing_left
	vz restore --detach --console --bundle "$BUNDLE" --image-path "$T/images" "$ID" </dev/null >"$T/restore" 2>&1 3>&-
	[[ ! -s $T/restore ]]
	dialogue "${VZ[@]}" console "$ID" <<-'END'
		expect leaves it
		send \r
		expect login:
		send \x1d\x1d\x1d
		end
	END
	vz checkpoint --image-path "$T/images2" "$ID"
	run -0 vz restore --detach --bundle "$BUNDLE" --image-path "$T/images2" "$ID" </dev/null 3>&-
	[[ $output == *"console is hung up"* ]]
	fails 1 'nobody holds a console' vz console "$ID"
	[[ ${stderr_lines[1]} == *"vzrun enter"* ]]
	[[ -z $(processes) ]]
	vz delete --force "$ID"
}

### Detached

# little_bundle ID makes a bundle of a system whose init is a shell script.
little_bundle() {
	local id=$1 bundle=$T/$1
	new_bundle "$bundle" "$VZRUN_BUSYBOX"
	mkdir -p "$bundle/rootfs/sbin"
	rm -f "$bundle/rootfs/sbin/init"
	cat >"$bundle/rootfs/sbin/init" <<-'END'
		#!/bin/sh
		trap 'echo bye; exit 0' TERM
		echo booted
		echo to stderr >&2
		[ -e /fail ] && exit 3
		while :; do
			sleep 1000 &
			wait
		done
	END
	chmod 0755 "$bundle/rootfs/sbin/init"
	vz spec --system --bundle "$bundle"
	edit_config "$bundle" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	echo "$bundle"
}

@test "detached: the init's output is kept, bounded, without a process of ours" {
	local id=$ID-little bundle pid
	bundle=$(little_bundle "$id")
	vz run --detach --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&-
	[[ -z $(processes) ]]
	wait_until 10 eval '[[ $(vz logs "$id") == booted* ]]'
	[[ $(vz logs "$id") == booted$'\n'"to stderr" ]]
	[[ $(vz logs --tail 1 "$id") == "to stderr" ]]
	fails 1 'nobody holds a console' vz console "$id"
	spawn "$T/follow" "${VZ[@]}" logs --follow "$id"
	guest "$id" sh -c 'echo from exec >>/proc/1/fd/1 || echo from exec >/proc/1/fd/1' || true
	# Its root writes as much as it likes.
	pid=$(pid_of "$id")
	nsenter --target "$pid" --all -- sh -c 'exec 3>/dev/null; head -c 100000000 /dev/zero | tr "\0" z | dd of=/proc/1/fd/1 conv=notrunc oflag=append bs=65536' 2>/dev/null || true
	(($(vz logs "$id" | wc -c) <= 256 << 10))
	(($(stat -Lc %s "/proc/$pid/fd/1") == 256 << 10))
	vz kill "$id" TERM
	wait_status "$id" stopped
	wait "$SPAWNED"
	grep -q booted "$T/follow"
	vz delete "$id"
}

@test "detached: what is kept is checkpointed and restored" {
	local id=$ID-little bundle
	bundle=$(little_bundle "$id")
	vz run --detach --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&-
	wait_until 10 eval '[[ $(vz logs "$id") == *"to stderr" ]]'
	vz checkpoint --image-path "$T/images" "$id"
	vz restore --detach --bundle "$bundle" --image-path "$T/images" "$id" </dev/null >/dev/null 2>"$T/restore" 3>&- || {
		cat "$T/restore"
		false
	}
	[[ $(vz logs "$id") == booted$'\n'"to stderr" ]]
	spawn "$T/follow" "${VZ[@]}" logs --follow "$id"
	wait_line "$T/follow" 'to stderr'
	vz kill "$id" TERM
	wait "$SPAWNED"
	grep -q bye "$T/follow"
	wait_status "$id" stopped
	vz delete "$id"
}

@test "detached systemd: its journal is what logs shows; the caller's files are left alone" {
	local id=$ID-detached bundle
	bundle=$(debian_bundle "$id")
	vz_up "$bundle" "$id"
	[[ -z $(processes) ]]
	wait_guest "$id"
	run -0 vz logs "$id"
	[[ $output == *"Started nginx.service"* || $output == *"nginx.service"* ]]
	[[ $(vz logs --tail 3 "$id" | wc -l) == 3 ]]
	spawn "$T/follow" "${VZ[@]}" logs --follow --tail 0 "$id"
	wait_until 20 eval '[[ $(vz ps --format json "$id" | jq length) -gt 0 ]] && pgrep -f "journalctl --boot.*--follow" >/dev/null'
	guest "$id" sh -c 'echo "a new entry" | systemd-cat'
	wait_line "$T/follow" 'a new entry'
	kill -TERM "$SPAWNED"
	wait "$SPAWNED" || true
	# What goes on in the guest with the pipe is not waited for.
	guest "$id" sh -c 'printf "%s\n" "#!/bin/sh" "echo an entry" "sleep 1000 &" >/usr/local/sbin/journalctl && chmod 0755 /usr/local/sbin/journalctl'
	run -0 timeout "$(slow 20)" "${VZ[@]}" logs "$id"
	[[ $output == "an entry" ]]
	fails 1 'nobody holds a console' vz console "$id"
	vz stop --timeout "$(slow 60)s" "$id"
	fails 1 'no output of it is kept' vz logs "$id"
	vz delete "$id"
	rm -rf --one-file-system -- "$bundle"
}

@test "applications' and engines' stdio is left as it is" {
	local id=$ID-app bundle
	bundle=$(busybox_bundle "$id" sleep 1000)
	vz create --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&-
	vz start "$id"
	[[ $(readlink "/proc/$(pid_of "$id")/fd/1") == /dev/null ]]
	fails 1 'nobody holds a console' vz console "$id"
	fails 1 'no output of it is kept' vz logs "$id"
	vz delete --force "$id"
	rm -rf --one-file-system -- "$bundle"
}

### A supervisor without a terminal, as under systemd

@test "run --console without a terminal: lines on stdout, and a console for others" {
	local run
	boot_held
	vz delete --force "$ID"
	spawn "$T/journal" "${VZ[@]}" run --console --bundle "$BUNDLE" "$ID"
	run=$SPAWNED
	wait_line "$T/journal" '^Welcome to .*Debian'
	wait_until "$VZ_PATIENCE" grep -q 'login:' "$T/journal" # a line without an end
	run ! grep -q -e $'\r' -e $'\x1b' "$T/journal"
	dialogue "${VZ[@]}" console "$ID" <<-'END'
		expect login:
		send \x1d\x1d\x1d
		end
	END
	# Killed: the guest goes on without a console.
	kill -KILL "$run"
	wait_exit "$run"
	has_status "$ID" running
	fails 1 'nobody holds a console' vz console "$ID"
	run -0 vz logs --tail 3 "$ID"
	[[ -n $output ]]
	vz delete --force "$ID"
	assert_nothing_left
}

@test "run --console ends with the guest, its code, and nothing left" {
	local id=$ID-little bundle code=0
	bundle=$(little_bundle "$id")
	touch "$bundle/rootfs/fail"
	vz run --console --bundle "$bundle" "$id" </dev/null >"$T/out" 2>&1 3>&- || code=$?
	[[ $code == 3 ]]
	[[ $(<"$T/out") == booted$'\n'"to stderr" ]]
	code=0
	vz run --console --keep --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&- || code=$?
	[[ $code == 3 ]]
	run -0 vz logs --tail 1 "$id"
	[[ $output == "to stderr"* ]]
	vz delete "$id"
}

@test "run --console survives who reads its stdout" {
	local id=$ID-little bundle
	bundle=$(little_bundle "$id")
	mkfifo "$T/out"
	(exec 3>&-; head -n 1 <"$T/out" >"$T/first") &
	spawn "$T/out" "${VZ[@]}" run --console --bundle "$bundle" "$id"
	wait_file "$VZ_ROOT/$id/console.sock"
	wait_line "$T/first" booted
	for n in 1 2 3; do
		vz exec "$id" sh -c "echo line $n >/dev/console" </dev/null
	done
	wait_until 10 eval '[[ $(vz logs --tail 1 "$id") == "line 3"* ]]'
	kill -0 "$SPAWNED"
	vz kill "$id" TERM
	wait "$SPAWNED"
	[[ ! -e $VZ_ROOT/$id ]]
}

@test "create --console holds it before the start; who deletes the container ends the holder" {
	local id=$ID-little bundle
	bundle=$(little_bundle "$id")
	vz create --console --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&-
	[[ $(processes | wc -l) == 1 ]]
	spawn "$T/watch" "${VZ[@]}" console "$id"
	wait_until 10 connected "$SPAWNED" # what is written before is not shown
	vz start "$id"
	wait_line "$T/watch" booted
	vz delete --force "$id"
	wait_until 10 eval '[[ -z $(processes) ]]'
	wait "$SPAWNED"
	[[ ! -e $VZ_ROOT/$id ]]
	vz create --console --bundle "$bundle" "$id" </dev/null >/dev/null 2>&1 3>&-
	vz delete "$id"
	wait_until 10 eval '[[ -z $(processes) ]]'
}

### Bad input

@test "wrong input of every kind is one error and a hint" {
	fails 1 'container does not exist' vz console no-such
	fails 1 'container does not exist' vz logs no-such
	fails 2 'escape key' vz console --escape ab "$ID"
	fails 2 'escape key' vz run --escape '' --bundle "$BUNDLE" "$ID"
	fails 2 'must not be negative' vz logs --tail -1 "$ID"
	fails 2 'exclude each other' vz run --detach --console --console-socket "$T/s" --bundle "$BUNDLE" x
	fails 2 'the container id is missing' vz console
	fails 2 'is for vzrun itself' vz hold-console "$ID"
	[[ ! -e $VZ_ROOT/x ]]
}
