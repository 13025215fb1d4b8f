#!/usr/bin/env bats
# The VM lab given wrong input: one error, one hint, no VM. What needs a VM is
# in tests/vm itself.
# Suites use what `run` sets.
# shellcheck disable=SC2154

load helpers

setup() {
	lacks 'the VM lab (it is not taken into a VM)' test -d "$BATS_TEST_DIRNAME/vm"
	# A lab without anything in it, and a tree of suites of its own.
	T=$(mktemp -d "/var/tmp/vzrun-vmlab.XXXXXX")
	export VZRUN_CACHE=$T/cache
	mkdir -p "$T/tests"
	cp -r "$BATS_TEST_DIRNAME/vm" "$T/tests/vm"
	cp -r "$BATS_TEST_DIRNAME/../contrib" "$T/contrib"
	printf '@test "holds" { true; }\n' >"$T/tests/one.bats"
	: >"$T/tests/empty.bats"
	printf 'load engines/ship\n@test "sails" { true; }\n' >"$T/tests/ship.bats"
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

@test "a lane, a suite and a scenario that are not there are answered with those that are" {
	fails "no lane 'plan9'" 'one of: trixie sid' run plan9
	fails "no lane 'plan9'" 'one of: trixie sid' image plan9
	fails "no lane 'plan9'" 'one of: trixie sid' pair link trixie plan9
	fails "no suite 'two'" 'one of: empty one$' run trixie one two
	fails "suite 'ship' needs an engine" 'make bats SUITE=ship' run trixie ship
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

@test "no command is a wrong command line" {
	run -2 "$T/tests/vm/run"
	run -2 "$T/tests/vm/pair" --unknown
}
