#!/usr/bin/env bats
# The VM lab given wrong input, and machines that fail: one error, one hint, and
# nothing half built. Here no VM is booted: what QEMU does is played. VZ_FULL=1 also
# makes real ones panic and hang.
# Suites use what `run` sets; the lab's files use what is set here.
# shellcheck disable=SC2016,SC2034,SC2154

load helpers

setup() {
	# A lab without anything in it, and a tree of suites of its own.
	T=$(mktemp -d "/var/tmp/vzrun-vmlab.XXXXXX")
	export VZRUN_CACHE=$T/cache
	mkdir -p "$T/tests"
	cp -r "$BATS_TEST_DIRNAME/vm" "$T/tests/vm"
	cp -r "$BATS_TEST_DIRNAME/../contrib" "$T/contrib"
	printf '@test "holds" { true; }\n' >"$T/tests/one.bats"
	cp "$T/tests/one.bats" "$T/tests/two.bats"
	: >"$T/tests/empty.bats"
	printf '@test "sails" { true; }\n' >"$T/tests/ship.bats"
	printf '%s\n' 'two 1' 'one 1' 'gone 1' 'ship outside it needs water' >"$T/tests/vm/suites"
}

teardown() {
	[[ -z ${T:-} ]] || rm -rf --one-file-system -- "$T"
}

# fails REGEX HINT CMD... must fail with an error and, last, a hint that match,
# and leave nothing half built.
fails() {
	local error=$1 hint=$2
	shift 2
	run --separate-stderr timeout 60 "$T/tests/vm/$1" "${@:2}"
	if ((status != 1)) || [[ ! ${stderr_lines[-2]} =~ ^vm/$1:\ .*$error || ! ${stderr_lines[-1]} =~ ^hint:\ .*$hint ]]; then
		printf 'code %d, and not an error "%s" with a hint "%s":\n%s\n%s\n' "$status" "$error" "$hint" "$output" "$stderr"
		return 1
	fi
	[[ -z $(find "$T" -name '.new.*') ]]
}

# play BEHAVIOUR gives the lab a QEMU that is a line of shell, for machines whose
# states are there. It has the job's port on its streams and $WORK, the job's
# directory with the log of QEMU's own messages, the console and the results.
play() {
	mkdir -p "$T/play" "$T/cache/vm" "$T/tests/cmd/none"
	touch "$T/tests/run" "$T/tests/cmd/none/main.go"
	printf '#!/bin/bash\nWORK=$TMPDIR\n%s\n' "$1" >"$T/play/qemu"
	chmod +x "$T/play/qemu"
	cat >>"$T/tests/vm/image.bash" <<-END
		require_state() {
			accelerator=tcg image=$T/play state=$T/play qemu=($T/play/qemu)
		}
	END
	echo 'build_commands() { :; }' >>"$T/tests/vm/job.bash"
	install -m 0755 /dev/null "$T/vzrun"
	install -m 0755 /dev/null "$T/vzrun-full"
	export VZRUN=$T/vzrun
}

# brings TAP... is a line of shell that brings back what a job has to say.
brings() {
	printf 'mkdir "$WORK/results"; printf "%%s\\n" %s >"$WORK/results/bats.tap"; echo 0 >"$WORK/results/exit"; tar -C "$WORK" -cf "$WORK/results.tar" results' \
		"$(printf '%q ' "$@")"
}

no_job_left() { [[ -z $(find "$T/cache/vm" -name 'job.*') ]]; }

@test "a lane, a suite and a scenario that are not there are answered with those that are" {
	fails "no lane 'plan9'" 'one of: trixie sid' run plan9
	fails "no lane 'plan9'" 'one of: trixie sid' image plan9
	fails "no lane 'plan9'" 'one of: trixie sid' pair link trixie plan9
	# In the order of the list, and what it does not name last.
	fails "no suite 'three'" 'one of: two one empty$' run trixie one three
	fails "suite 'ship' runs in no VM: it needs water" 'make bats SUITE=ship' run trixie ship
	fails "no scenario 'divorce'" 'one of: all .*link' pair divorce
}

@test "a suite without a test is a failure" {
	fails "suite 'empty' has no test" '@test' run trixie one empty
}

@test "a lab without a mirror says so" {
	export VZRUN_MIRROR=http://127.0.0.1:9/debian
	fails 'mmdebstrap failed for trixie' 'is a mirror within reach' run trixie one
	[[ $stderr == *"fetching packages of trixie from $VZRUN_MIRROR"* ]]
}

@test "too small a disk is found before anything is built" {
	export VZRUN_VM_SPACE=1000000000
	fails 'only [0-9]+ MB free below .*cache' 'VZRUN_CACHE' run trixie one
}

@test "a VM that hangs is ended after its time, and the next suite runs" {
	play "[[ ! -e $T/once ]] || { $(brings 1..1 'ok 1 holds'); exit; }
		touch $T/once; printf '1..2\\nok 1 holds\\n' | tee \$WORK/output.log; echo 'Linux still hangs' >\$WORK/console.log; sleep 1000"
	# Beside its own limit it has a minute to bring back what there is.
	sed -i 's/limit + 60/limit + 1/g' "$T/tests/vm/job.bash"
	VZRUN_VM_TIMEOUT=1 run --separate-stderr timeout 60 "$T/tests/vm/run" trixie one two
	echo "$output$stderr"
	((status == 1))
	[[ $stderr == *'Linux still hangs'*'the VM hung and was ended after 2 s'*'hint: '*VZRUN_VM_TIMEOUT* ]]
	# What it said until then is kept and counted; the test that gave no result has failed.
	grep -qE '^# trixie +one +1 passed, +1 failed, +0 skipped' <<<"$output"
	grep -qE '^# trixie +two +1 passed, +0 failed, +0 skipped' <<<"$output"
	[[ ${lines[-1]} == '2 passed, 1 failed, 0 skipped' ]]
	[[ $(<"$T/cache/vm-results/trixie/one/console.log") == 'Linux still hangs' ]]
	no_job_left
}

@test "a VM that panics: its console is shown" {
	play 'echo "Kernel panic - not syncing" >"$WORK/console.log"'
	run --separate-stderr timeout 60 "$T/tests/vm/run" trixie -- true
	((status == 1))
	[[ $stderr == *'Kernel panic'*'the VM ended without a result'*'hint: did its kernel panic?'* ]]
	run --separate-stderr timeout 60 "$T/tests/vm/run" trixie one
	((status == 1))
	[[ ${lines[-1]} == '0 passed, 1 failed, 0 skipped' ]]
	no_job_left
}

@test "a disk that becomes full ends the VM" {
	play 'echo "{\"nospace\": true}" >>"$WORK/qmp.log"; exec sleep 1000'
	run --separate-stderr timeout 60 "$T/tests/vm/run" trixie -- true
	((status == 1))
	[[ $stderr == *'the disk below '*' became full, so the VM was ended'*'hint: make room'* ]]
	no_job_left
}

@test "QEMU that does not start: its words" {
	play 'echo "qemu: no such machine" >&2; exit 1'
	run --separate-stderr timeout 60 "$T/tests/vm/run" trixie -- true
	((status == 1))
	[[ $stderr == *'qemu: no such machine'*'without a result (QEMU: exit code 1)'*'hint: '* ]]
}

@test "a suite of which no test ran is a failure; what was planned and gave no result has failed" {
	play "$(brings 1..0)"
	run --separate-stderr timeout 60 "$T/tests/vm/run" trixie one
	((status == 1))
	[[ $stderr == *'no test of suite one ran in lane trixie'* && ${lines[-1]} == '0 passed, 1 failed, 0 skipped' ]]
	play "$(brings 1..3 'ok 1 a' 'ok 2 b # skip no')"
	run --separate-stderr timeout 60 "$T/tests/vm/run" all one two
	((status == 1))
	[[ ${lines[-1]} == '4 passed, 4 failed, 4 skipped' ]]
	grep -qE '^# trixie +all +2 passed, +2 failed, +2 skipped' <<<"$output"
	grep -qE '^# sid +all +2 passed, +2 failed, +2 skipped' <<<"$output"
}

@test "a run that is gone on with leaves out what has passed, and has changed in nothing" {
	local resume=(env VZRUN_VM_RESUME=1 "$T/tests/vm/run" trixie one two)
	play "echo \$(tar -xOf \$WORK/job ./job | grep -oE 'tests/run [a-z]+') >>$T/ran
		if [[ -e $T/broken ]]; then $(brings 1..1 'not ok 1 holds'); else $(brings 1..1 'ok 1 holds'); fi"
	ran() {
		[[ $(sed 's/.* //' "$T/ran" 2>/dev/null | paste -sd ' ') == "$*" ]] || {
			echo "ran, where '$*' should have:" && cat "$T/ran"
			return 1
		}
		rm -f "$T/ran"
	}
	touch "$T/broken"
	run ! "${resume[@]}"
	ran one two
	# What failed runs again, and all does where it is not asked for.
	rm "$T/broken"
	"${resume[@]}"
	ran one two
	"$T/tests/vm/run" trixie one two
	ran one two
	run "${resume[@]}"
	ran
	[[ ${lines[-1]} == '2 passed, 0 failed, 0 skipped' ]]
	grep -qE "^# trixie +one +1 passed, +0 failed, +0 skipped +[0-9]+ s  passed $(date +%F) " <<<"$output"
	# A suite changes, then vzrun, then a variable, then the lane's image.
	echo '# more' >>"$T/tests/two.bats"
	"${resume[@]}"
	ran two
	echo 'echo new' >"$VZRUN"
	"${resume[@]}"
	ran one two
	VZ_TAGS=short "${resume[@]}"
	ran one two
	sed -i "s|state=$T/play|state=$T/other|" "$T/tests/vm/image.bash"
	"${resume[@]}"
	ran one two
	no_job_left
}

@test "another version of the same vzrun is the same to it" {
	play "touch $T/ran; $(brings 1..1 'ok 1 holds')"
	printf '#!/bin/sh\necho vzrun version 1111111\n' >"$VZRUN"
	"$T/tests/vm/run" trixie one
	rm "$T/ran"
	sed -i s/1111111/2222222/ "$VZRUN"
	VZRUN_VM_RESUME=1 "$T/tests/vm/run" trixie one
	[[ ! -e $T/ran ]]
	sed -i s/echo/printf/ "$VZRUN"
	VZRUN_VM_RESUME=1 "$T/tests/vm/run" trixie one
	[[ -e $T/ran ]]
}

@test "a KVM that runs no kernel is not used" {
	play 'echo 1 >"$WORK/said" 2>/dev/null; exit 1'
	(
		me=run
		. "$T/tests/vm/lib.bash"
		. "$T/tests/vm/qemu.bash"
		. "$T/tests/vm/image.bash"
		lane trixie
		require_state
		accelerator=kvm
		require_accelerator
		[[ $accelerator == tcg* ]]
	)
}

@test "the real list leaves out suites that load an engine, with a reason, and names none that is gone" {
	local suite why
	grep -lE '^[[:space:]]*load engines/' "$BATS_TEST_DIRNAME"/*.bats | while read -r suite; do
		suite=$(basename "$suite" .bats)
		why=$(sed -nE "s/^$suite +outside +//p" "$BATS_TEST_DIRNAME/vm/suites")
		[[ $suite == vmlab || -n $why ]] || {
			echo "$suite: add a line to tests/vm/suites"
			return 1
		}
	done
	awk '!/^#/ && NF { print $1 }' "$BATS_TEST_DIRNAME/vm/suites" | while read -r suite; do
		[[ -e $BATS_TEST_DIRNAME/$suite.bats ]]
	done
}

@test "a suite that the list wants in full runs so, with its guests" {
	play "$(brings '1..1' 'ok 1 holds'); cp \"\$WORK/job\" '$T/job.tar'"
	echo 'two 1 full busybox' >"$T/tests/vm/suites"
	"$T/tests/vm/run" trixie two
	tar -xOf "$T/job.tar" ./env | grep -x 'export VZ_FULL=1'
	[[ $(tar -xOf "$T/job.tar" ./guests/busybox.tar | tar -t | head -n 1) == busybox-*/ ]]
	VZ_FULL=0 "$T/tests/vm/run" trixie two
	run ! grep -x 'export VZ_FULL=1' <(tar -xOf "$T/job.tar" ./env)
	run ! grep '^./guests' <(tar -tf "$T/job.tar")
}

@test "real machines: one that panics, one that hangs, one whose job never ends" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "takes VZ_FULL=1"
	export VZRUN_CACHE=$BATS_TEST_DIRNAME/../.cache VZRUN_VM_RESULTS=$T/results
	run --separate-stderr "$BATS_TEST_DIRNAME/vm/run" trixie -- 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'
	((status == 1))
	[[ $stderr == *'sysrq triggered crash'*'the VM ended without a result'* ]]
	VZRUN_VM_TIMEOUT=20 run --separate-stderr "$BATS_TEST_DIRNAME/vm/run" trixie -- 'sleep 1000'
	((status == 124))
	[[ $output == *'the job was stopped after 20 s'* ]]
	# Nobody is there any more to stop it.
	VZRUN_VM_TIMEOUT=10 run --separate-stderr "$BATS_TEST_DIRNAME/vm/run" trixie -- 'kill -STOP $(pgrep -x timeout) $PPID $(pgrep -x vzagent); sleep 1000'
	((status == 1))
	[[ $stderr == *'the VM hung and was ended after 70 s'* ]]
}

@test "no command is a wrong command line" {
	run -2 "$T/tests/vm/run"
	run -2 "$T/tests/vm/pair" --unknown
}
