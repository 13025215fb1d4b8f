#!/usr/bin/env bats
# Every guest over every kind of root, through the whole life of a server: each cell
# of that table takes all verbs in turn. What failed is named as
# "GUEST over KIND: VERB", and the other cells are tried all the same.
#
# By default two guests over some kinds; VZ_FULL=1 takes all of the table, and
# VZ_CELLS="runit/xfs sid/*" what it names.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load roots

setup_file() {
	test_may_take 1200
	suite_setup
}

teardown_file() { suite_teardown; }

setup() {
	vz_setup
	PLACE=$VZ_TMP
}

teardown() {
	roots_teardown
	VZ_TMP=$PLACE
	vz_teardown
}

### The table

# Suite inits has more of each guest, suite rootfs of each kind of root; here the
# short form is the pairs that neither has.
SHORT=(busybox-init/btrfs debian/overlay)

VERBS=(run ready list state exec enter update pause resume checkpoint restore reboot run_again logs stop delete)

is_wanted() {
	local wanted cells=("${SHORT[@]}")
	[[ ${VZ_FULL:-} != 1 ]] || cells=('*/*')
	[[ -z ${VZ_CELLS:-} ]] || read -ra cells <<<"$VZ_CELLS"
	for wanted in "${cells[@]}"; do
		# shellcheck disable=SC2053 # a pattern
		[[ $1 != $wanted ]] || return 0
	done
	return 1
}

# row GUEST goes through the guest's cells.
row() {
	local guest=$1 kind wanted=() failed=()
	for kind in "${ROOT_KINDS[@]}"; do
		! is_wanted "$guest/$kind" || wanted+=("$kind")
	done
	((${#wanted[@]})) || skip "takes VZ_FULL=1"
	require xfsprogs command -v mkfs.xfs
	require btrfs-progs command -v mkfs.btrfs
	TREE=$("$BATS_TEST_DIRNAME/../contrib/rootfs" "$guest" | tail -n 1)
	for kind in "${wanted[@]}"; do
		cell "$guest" "$kind"
		[[ -z $FAULT ]] || failed+=("$kind: $FAULT")
	done
	((${#failed[@]} == 0)) || {
		printf "$guest over %s failed\n" "${failed[@]}"
		return 1
	}
}

# cell GUEST KIND leads one guest through all verbs, up to the first that fails,
# which $FAULT names then. Neither this nor what calls it may be part of a
# condition: the commands of a verb would not end it then.
cell() {
	local verb
	FAULT=
	GUEST=$1
	ID=$(new_id)
	VZ_TMP=$PLACE/$2
	mkdir -m 0700 "$VZ_TMP"
	T=$VZ_TMP
	roots_setup
	for verb in prepare "${VERBS[@]}"; do
		(
			trap - EXIT DEBUG
			trap 'echo "line $LINENO: $BASH_COMMAND"' ERR
			set -eE
			"verb_$verb" "$2"
		) </dev/null >"$T/said" 2>&1 3>&- &
		wait $! || {
			FAULT=$verb
			echo "$1 over $2: $verb failed:"
			cat "$T/said"
			break
		}
	done
	roots_teardown
	remove_tree "$VZ_TMP"
}

### The guests

init_of() {
	case $GUEST in
	debian* | sid) echo systemd ;;
	sysvinit | openrc) echo sysvinit ;;
	openrc-init) echo openrc ;;
	*) echo "${GUEST%-init}" ;;
	esac
}

reboots() {
	case $GUEST in
	openrc-init) echo openrc-shutdown --reboot now ;;
	*) echo reboot ;;
	esac
}

counter() { guest "$ID" wc -l /var/lib/vzcount/log | cut -d ' ' -f 1; }

# works: both services do, and the counter has lost nothing.
works() {
	local before
	before=$(counter)
	wait_until "$VZ_PATIENCE" counts_on "$before"
	guest "$ID" /usr/local/bin/vzguest verify /var/lib/vzcount/log
	nsenter -t "$(pid_of "$ID")" -n -- ip link set lo up
	wait_until "$VZ_PATIENCE" echo_answers
}

counts_on() { (($(counter) > $1 + 3)); }

echo_answers() { [[ $(guest "$ID" /usr/local/bin/vzguest talk 127.0.0.1:7) == *lines=* ]]; }

limit() { control_file "$(cgroup_of "$ID")" "$@"; }

### The verbs

verb_prepare() {
	bundle_of "$1" "$TREE" --ram 1G
	jq -e --arg init "$(init_of)" '.annotations["org.vzrun.guest"] == $init' "$BUNDLE/config.json"
	if [[ $1 == engine ]]; then
		edit_config "$BUNDLE" 'del(.annotations["org.vzrun.rootfs"])'
		engine_mount index=on,nfs_export=on "$TREE"
	fi
}

verb_run() { app_launch run "${@:2}" --detach --wait --timeout "${VZ_PATIENCE}s" --bundle "$BUNDLE" "$ID"; }

verb_ready() {
	vz ready --format json "$ID" | jq -e '.state == "running" and .failed == []'
	works
}

verb_list() {
	# Only systemd is asked how it is.
	vz list --output id,guest,init,status --format json | jq -e --arg id "$ID" --arg guest "$(init_of)" \
		'. == [{id: $id, guest: $guest, init: (if $guest == "systemd" then "running" else null end), status: "running"}]'
	[[ $(vz list --system --quiet) == "$ID" ]]
}

verb_state() {
	vz state "$ID" | jq -e --arg id "$ID" --arg bundle "$BUNDLE" \
		'.id == $id and .status == "running" and .bundle == $bundle and .pid > 1'
}

verb_exec() {
	local code=0
	[[ $(guest "$ID" sh -c 'echo kept >/root/kept && sync && id -u && stat -c %u:%g / /root/kept') == $'0\n0:0\n0:0' ]]
	guest "$ID" sh -c 'exit 9' || code=$?
	((code == 9))
}

verb_enter() {
	local code=0
	vz enter "$ID" >"$T/entered" <<<'echo "$(id -un) $HOME $(hostname)"; exit 7' || code=$?
	[[ $code == 7 && $(<"$T/entered") == "root /root $ID" ]]
}

verb_update() {
	vz update --memory 700M --pids-limit 1234 "$ID"
	is_updated
}

is_updated() {
	[[ $(limit memory.limit_in_bytes memory.max) == $((700 << 20)) && $(limit pids.max pids.max) == 1234 ]]
}

verb_pause() {
	vz pause "$ID"
	has_status "$ID" paused
	[[ $(limit freezer.state cgroup.freeze) == @(FROZEN|1) ]]
}

verb_resume() {
	vz resume "$ID"
	has_status "$ID" running
	works
}

verb_checkpoint() {
	vz checkpoint --image-path "$T/images" "$ID" || {
		grep -E 'Warn|Error' "$T/images/dump.log" | tail -n 25
		return 1
	}
	run ! vz state "$ID"
}

# attended notes how the vzrun ends that stays with the restored guest.
attended() {
	local code=0
	vz restore --bundle "$BUNDLE" --image-path "$T/images" --work-path "$T" "$ID" || code=$?
	echo "$code" >"$T/code.new"
	mv "$T/code.new" "$T/code"
}

verb_restore() {
	attended </dev/null >"$T/attended" 2>&1 &
	wait_until "$VZ_PATIENCE" has_ended_or_runs || true
	has_status "$ID" running || {
		cat "$T/attended"
		grep -E 'Warn|Error' "$T/restore.log" | tail -n 25
		return 1
	}
	[[ $(vz ready --timeout "${VZ_PATIENCE}s" "$ID") == running ]]
	works
	[[ $(guest "$ID" cat /root/kept) == kept ]]
	is_updated
}

has_ended_or_runs() { [[ -e $T/code ]] || has_status "$ID" running; }

verb_reboot() {
	# It may be killed with the rest of the guest.
	# shellcheck disable=SC2046 # words of a command
	guest "$ID" $(reboots) || true
	wait_file "$T/code"
	[[ $(<"$T/code") == 133 ]] || {
		cat "$T/code" "$T/attended"
		return 1
	}
	run ! vz state "$ID"
}

verb_run_again() {
	local console=(--console)
	# Its journal is its log.
	[[ $(init_of) != systemd ]] || console=()
	verb_run "$1" "${console[@]}"
	[[ $(guest "$ID" cat /root/kept) == kept ]]
	works
}

# systemd's journal has the whole boot; not every init says something of it.
verb_logs() {
	[[ $(init_of) == systemd ]] || guest "$ID" sh -c 'echo "said by $0" >/dev/console' "$ID"
	wait_until 10 has_logged
}

has_logged() { vz logs "$ID" | grep -E "systemd\[1\]: Startup finished|said by $ID"; }

verb_stop() {
	vz stop --timeout "$(slow 60)s" "$ID"
	has_status "$ID" stopped
}

verb_delete() {
	vz delete "$ID"
	# Of the host's own mounts a guest leaves nothing, either.
	unmount_all
	assert_nothing_left
	wait_until 10 no_loops
}

### The rows

@test "systemd of Debian 13 over each kind of root, each verb" { row debian; }

@test "systemd of Debian 12 over each kind of root, each verb" { row debian12; }

@test "systemd of Debian 11 over each kind of root, each verb" { row debian11; }

@test "systemd of Debian unstable over each kind of root, each verb" { row sid; }

@test "sysvinit with its own scripts over each kind of root, each verb" { row sysvinit; }

@test "sysvinit with OpenRC's scripts over each kind of root, each verb" { row openrc; }

@test "openrc-init over each kind of root, each verb" { row openrc-init; }

@test "runit over each kind of root, each verb" { row runit; }

@test "busybox's init over each kind of root, each verb" { row busybox-init; }
