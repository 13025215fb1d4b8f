# shellcheck shell=bash
# Suites use $ID; $ARGS is jq's.
# shellcheck disable=SC2016,SC2034
# Helpers of all suites. A suite begins with:
#
#   load helpers
#   setup_file() { suite_setup; }
#   teardown_file() { suite_teardown; }   # also checks that the host is clean
#   setup() { vz_setup; }
#   teardown() { vz_teardown; }
#
# Everything that a suite makes has $VZ_TAG in its name: state directories,
# bundles, cgroups. So what is left over can be told from what other users of
# the machine have, and suites that run beside it. With VZRUN_REQUIRE=1 (CI:
# nobody else is there) the whole host is compared too, once all suites that run
# side by side have ended.

bats_require_minimum_version 1.5.0

. "${BASH_SOURCE[0]%/*}/host.bash"

# slow SECONDS prints how long that is on this machine: the lab of virtual machines
# sets VZ_SLOW, as an emulated processor needs that many times longer.
slow() { echo $(($1 * ${VZ_SLOW:-1})); }

# Seconds that any wait may take; a busy two-core machine is slow.
VZ_PATIENCE=${VZ_PATIENCE:-$(slow 60)}

# test_may_take SECONDS, in setup_file, gives each test of the suite that long, or
# longer where the caller says so.
test_may_take() {
	local limit
	limit=$(slow "$1")
	((${BATS_TEST_TIMEOUT:-0} >= limit)) || export BATS_TEST_TIMEOUT=$limit
}

### Life cycle of suites and tests

suite_setup() {
	: "${VZRUN:?run the suites with tests/run or make bats}" "${VZRUN_BUSYBOX:?}" "${VZRUN_DEBIAN:?}"
	VZ_TAG=$(basename "$BATS_TEST_FILENAME" .bats)-$$-$RANDOM
	export VZ_TAG
	snapshot_host "$BATS_FILE_TMPDIR/host.before"
}

suite_teardown() {
	assert_host_clean "$BATS_FILE_TMPDIR/host.before"
}

# test_begins comes first in setup.
test_begins() {
	# Lets bats 1.13 end the countdown of a test that fails. It has its pid in a variable
	# of a function that has been left by then, and waits for all of $BATS_TEST_TIMEOUT
	# (bats-core, issue 1206).
	[[ -z ${BATS_killer_pid:-} ]] || declare -g BATS_killer_pid=$BATS_killer_pid
	# A failure is in a line of the suite: what helpers do is not traced, since the trap
	# of bats takes time at each of their commands.
	bats_add_debug_exclude_path "$BATS_TEST_DIRNAME"
}

# vz_setup gives each test its own state directory ($VZ_ROOT), its own place on
# the real disk ($VZ_TMP, as /tmp may be a tmpfs) and a fresh id ($ID).
vz_setup() {
	test_begins
	VZ_ROOT=/run/vzrun-test.$VZ_TAG.${BATS_TEST_NUMBER:-0}
	VZ_TMP=/var/tmp/vzrun-test.$VZ_TAG.${BATS_TEST_NUMBER:-0}
	# Both are closed to others: no guest needs its bundle open.
	mkdir -m 0700 "$VZ_ROOT" "$VZ_TMP"
	ID=$(new_id)
	VZ_SPAWNED=()
}

vz_teardown() {
	local pid id
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	# What is there beside the runtime's own directory, "@", is containers.
	if compgen -G "$VZ_ROOT/[!@]*" >/dev/null; then
		for id in $(vz list --quiet); do
			vz delete --force "$id" || true
		done
	fi
	remove_tree "$VZ_ROOT" "$VZ_TMP"
}

# Suites whose tests share one Debian call these instead; the guest is $ID, its
# bundle $BUNDLE, and each test has the directory $T:
#
#   setup_file() { shared_guest --ram 512M; boot; }
#   teardown_file() { shared_guest_ends; }
#   setup() { shared_test; }
#   teardown() { shared_test_ends; }

# shared_guest [FLAG of spec --system...] makes the bundle; nothing runs yet.
shared_guest() {
	suite_setup
	vz_setup
	BUNDLE=$VZ_TMP/$ID
	export VZ_ROOT VZ_TMP ID BUNDLE
	debian_bundle "$ID" "$@" >/dev/null
}

shared_guest_ends() {
	vz_teardown
	suite_teardown
}

shared_test() {
	test_begins
	VZ_SPAWNED=()
	T=$VZ_TMP/test-$BATS_TEST_NUMBER
	mkdir -m 0711 "$T"
}

# shared_test_ends [ID...] ends what a test has left, but for the shared guest and
# those that are named.
shared_test_ends() {
	local pid id
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	for id in $(vz list --quiet); do
		[[ " $ID $* " == *" $id "* ]] || vz delete --force "$id"
	done
	rm -rf --one-file-system -- "$T"
}

# remove_tree DIR... never follows a mount: what is mounted there may be a rootfs.
remove_tree() {
	local dir mounted
	mapfile -t mounted </proc/self/mountinfo
	for dir; do
		[[ "${mounted[*]}" != *" $dir/"* ]] || {
			echo "mounts are left below $dir: nothing is removed"
			printf '%s\n' "${mounted[@]}" | grep -F " $dir/"
			return 1
		}
	done
	rm -rf --one-file-system -- "$@"
}

new_id() { echo "t-$BATS_TEST_NUMBER-$RANDOM$RANDOM"; }

### The runtime

# copy_vzrun FILE: with the program that has the other verbs, where this runtime has one.
copy_vzrun() {
	local other=${VZRUN%/*}/vzrun-full
	install -m 0755 "$VZRUN" "$1"
	[[ ! -e $other ]] || install -m 0755 "$other" "${1%/*}/vzrun-full"
}

vz() { "$VZRUN" --root "$VZ_ROOT" "$@"; }

# vz_up BUNDLE ID [FLAG...] runs a container in the background. Its output goes
# to a file: bats waits for all who hold its own descriptors.
vz_up() {
	local bundle=$1 id=$2
	shift 2
	if ! vz run --detach --bundle "$bundle" "$@" "$id" </dev/null >"$bundle/console.log" 2>&1 3>&-; then
		cat "$bundle/console.log"
		return 1
	fi
}

status_of() { state_field "$1" status; }
pid_of() { state_field "$1" pid; }

# state_field ID NAME prints nothing of a container that is not there. No jq: suites ask
# for this thousands of times.
state_field() {
	local state
	state=$(vz state "$1") || true
	[[ ! $state =~ \"$2\":\ *\"?([a-z0-9]+) ]] || echo "${BASH_REMATCH[1]}"
}

# spawn LOG CMD... starts a helper of the test, which teardown ends; $! and
# $SPAWNED are its pid.
spawn() {
	local log=$1
	shift
	"$@" </dev/null >"$log" 2>&1 3>&- &
	SPAWNED=$!
	VZ_SPAWNED+=("$SPAWNED")
}

### Bundles; both print the bundle's path

# busybox_bundle ID ARG... makes a bundle whose process is ARG...
busybox_bundle() { small_bundle . "$@"; }

# small_bundle FILTER ID ARG... is a busybox_bundle that a filter of jq has changed.
small_bundle() {
	local filter=$1 id=$2 bundle=$VZ_TMP/$2
	shift 2
	new_bundle "$bundle" "$VZRUN_BUSYBOX"
	vz spec --bundle "$bundle"
	# All in one: some jq take longer to start than a container.
	edit_config "$bundle" '.process.terminal = false | .process.args = $ARGS.positional[1:]
		| .root.readonly = false | .hostname = "busybox"
		| .linux.cgroupsPath = $ARGS.positional[0] | '"$filter" "$(cgroup_of "$id")" "$@"
	echo "$bundle"
}

# debian_bundle ID [FLAG of spec --system...] makes a bundle of a whole Debian.
debian_bundle() {
	local id=$1 bundle=$VZ_TMP/$1
	shift
	new_bundle "$bundle" "$VZRUN_DEBIAN"
	(cd "$bundle" && vz spec --system --hostname "$id" "$@")
	edit_config "$bundle" '.process.terminal = false | .linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	echo "$bundle"
}

new_bundle() {
	mkdir -m 0700 "$1"
	cp -a --reflink=auto "$2" "$1/rootfs"
}

# cgroup_of ID is one level deep, so that nothing is left when it is removed.
cgroup_of() { echo "/vzrun-test-$VZ_TAG-$1"; }

# edit_config BUNDLE FILTER [ARG...] changes config.json; ARG... are
# $ARGS.positional in the jq filter.
edit_config() {
	local config=$1/config.json filter=$2
	shift 2
	jq "$filter" --args -- "$@" <"$config" >"$config.new"
	mv "$config.new" "$config"
}

### Guests

# guest ID CMD... runs a command in a guest.
guest() { vz exec "$@" </dev/null; }

# wait_guest ID waits until systemd is up; all its units must be.
wait_guest() {
	vz ready --timeout "${VZ_PATIENCE}s" "$1" || {
		guest "$1" systemctl --no-pager list-jobs || true
		return 1
	}
	[[ $(guest "$1" systemctl is-system-running) == running ]] || {
		guest "$1" systemctl --no-pager --failed
		return 1
	}
}

# verify_counter ROOTFS checks the log of a guest's vzcount.service from outside.
verify_counter() { "$1/usr/local/bin/vzguest" verify "$1/var/lib/vzcount/log"; }

# wait_counter ROOTFS [N] waits until the counter has made N (5) more steps.
wait_counter() {
	local log=$1/var/lib/vzcount/log from
	wait_file "$log"
	from=$(wc -l <"$log")
	wait_lines "$log" $((from + ${2:-5}))
}

### Waiting: for events where the kernel tells them, always with a deadline

# wait_exit PID [SECONDS]; a zombie has ended, whenever its parent looks.
wait_exit() { wait_until "${2:-$VZ_PATIENCE}" has_ended "$1"; }

has_ended() {
	local stat
	read -r stat <"/proc/$1/stat" || return 0
	[[ ${stat##*) } == [ZX]* ]]
} 2>/dev/null

# wait_line FILE REGEX [SECONDS] waits for a line of a growing file.
wait_line() {
	timeout "${3:-$VZ_PATIENCE}" grep -qm 1 -E -- "$2" < <(exec tail -n +1 -F "$1" 2>/dev/null 3>&-) || {
		echo "no line '$2' in $1; its end:"
		tail -n 20 "$1"
		return 1
	}
}

# wait_lines FILE COUNT [SECONDS] waits until a growing file has COUNT lines.
wait_lines() {
	local n
	n=$(timeout "${3:-$VZ_PATIENCE}" head -n "$2" < <(exec tail -n +1 -F "$1" 2>/dev/null 3>&-) | wc -l)
	((n >= $2)) || {
		echo "$1 has $n lines, $2 awaited"
		return 1
	}
}

# wait_file PATH [SECONDS] waits for a file to appear.
wait_file() {
	local path=$1 deadline=$((SECONDS + ${2:-$VZ_PATIENCE}))
	until [[ -e $path ]]; do
		((SECONDS < deadline)) || {
			echo "no file $path"
			return 1
		}
		# It may have come before the watch was there, so look again each
		# second; and there is nothing to watch before its directory exists.
		timeout 1 inotifywait -qq -e create,moved_to "$(dirname "$path")" 2>/dev/null 3>&- || sleep 0.05
	done
}

# wait_until SECONDS CMD... polls: only for what sends no event. On a slow machine
# it takes longer, up to $VZ_PATIENCE.
wait_until() {
	local limit deadline
	limit=$(slow "$1")
	((limit <= VZ_PATIENCE)) || limit=$(($1 > VZ_PATIENCE ? $1 : VZ_PATIENCE))
	deadline=$((SECONDS + limit))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || {
			echo "still not true after waiting: $*"
			return 1
		}
		sleep 0.05
	done
}

# wait_status ID STATUS [SECONDS]
wait_status() { wait_until "${3:-$VZ_PATIENCE}" has_status "$1" "$2"; }

has_status() { [[ $(status_of "$1") == "$2" ]]; }

### Requirements

# require WHAT CMD... skips the test if CMD fails, or fails it where nothing may
# be skipped.
require() {
	local what=$1
	shift
	"$@" >/dev/null 2>&1 && return
	if [[ ${VZRUN_REQUIRE:-} == 1 ]]; then
		echo "missing: $what (contrib/bootstrap installs what can be installed)"
		return 1
	fi
	skip "needs $what"
}

# lacks WHAT CMD... skips the test if CMD fails, in CI too: for what the kernel
# or the machine cannot have.
lacks() {
	local what=$1
	shift
	"$@" >/dev/null 2>&1 || skip "this machine lacks $what"
}
