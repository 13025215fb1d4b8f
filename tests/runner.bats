#!/usr/bin/env bats
# tests/run itself, with suites of one line: what fails or is lost beside others is seen.
# Suites use what `run` sets.
# shellcheck disable=SC2154

load helpers

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }

setup() {
	vz_setup
	unset VZ_SIDE_BY_SIDE VZ_UNTIL VZ_TAGS VZ_FILTER VZRUN_REQUIRE
	export VZ_JOBS=2 VZRUN_CACHE=$VZ_TMP/cache
	mkdir -p "$VZ_TMP/tests" "$VZ_TMP/contrib" "$VZRUN_CACHE"
	cp "$BATS_TEST_DIRNAME/run" "$BATS_TEST_DIRNAME/host.bash" "$VZ_TMP/tests"
	printf '#!/bin/sh\necho /nonexistent\n' >"$VZ_TMP/contrib/rootfs"
	chmod +x "$VZ_TMP/contrib/rootfs"
	suite one true
	suite two true
}

teardown() { vz_teardown; }

# suite NAME COMMAND makes a suite with one test.
suite() { printf '@test "%s holds" {\n\t%s\n}\n' "$1" "$2" >"$VZ_TMP/tests/$1.bats"; }

@test "suites side by side are printed one by one, and summed up" {
	run -0 "$VZ_TMP/tests/run"
	[[ $output == *$'1..1\nok 1 one holds'* && $output == *$'1..1\nok 1 two holds'* && ${lines[-1]} == '2 passed, 0 failed, 0 skipped' ]]
}

@test "one that fails does not end the others, and all have failed" {
	suite lifecycle false
	run -1 "$VZ_TMP/tests/run"
	[[ $output == *'not ok 1 lifecycle holds'* && ${lines[-1]} == '2 passed, 1 failed, 0 skipped' ]]
}

@test "one whose runner is killed is a failure" {
	# Its nearest ancestor that runs one suite.
	# shellcheck disable=SC2016 # for the suite
	suite one 'p=$$; until grep -qz -e --one "/proc/$p/cmdline"; do p=$(awk "/^PPid/ { print \$2 }" "/proc/$p/status"); done; kill -KILL "$p"'
	run -1 "$VZ_TMP/tests/run" one two
	[[ $output != *'1 one holds'* ]]
}

@test "what is left out is skipped, and counted so" {
	VZ_UNTIL=1 run -0 "$VZ_TMP/tests/run"
	[[ $output == *'ok 1 one holds # skip no time is left'* && ${lines[-1]} == '0 passed, 0 failed, 2 skipped' ]]
}

@test "what has no suite's name, but is left on the host, is a failure" {
	local left=/run/vzrun-test.$VZ_TAG.left
	suite one "mkdir $left"
	VZ_CLEAN_PATIENCE=1 VZRUN_REQUIRE=1 run -1 "$VZ_TMP/tests/run"
	rmdir "$left"
	[[ $output == *"not ok all suites leave nothing on the host"*"# $left"* ]]
}
