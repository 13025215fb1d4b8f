#!/usr/bin/env bats
# Hosts that are not fully privileged: what they cannot grant is lowered with one
# warning, or refused where the operator insists. Privileges are dropped here, so
# it does not matter what the machine has.
# $ARGS is jq's, other variables in single quotes the guest's.
# shellcheck disable=SC2016

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() { vz_teardown; }

sys_time=$((1 << 25))

# few CMD... runs it without two capabilities and with few open files.
few() { prlimit --nofile=1000:1000 setpriv --bounding-set=-sys_resource,-sys_time -- "$@"; }

box() { BUNDLE=$(busybox_bundle "$ID" "$@"); }

conf() { edit_config "$BUNDLE" "$@"; }

# wish asks for what `few` has not.
wish() {
	conf '.process.rlimits = [{type: "RLIMIT_NOFILE", hard: 4096, soft: 2048}] | .process.oomScoreAdj = -500
		| .process.capabilities |= map_values(. + ["CAP_SYS_TIME"])'
}

# poor VERB... is vzrun on a poor host.
poor() { few "$VZRUN" --root "$VZ_ROOT" "$@" </dev/null; }

detached() { poor "$@" >"$VZ_TMP/stdout" 2>"$VZ_TMP/stderr" 3>&- || { cat "$VZ_TMP/stderr" && return 1; }; }

# one_warning TEXT... fails unless $stderr is one warning with each of the texts.
one_warning() {
	local text
	[[ ${#stderr_lines[@]} -eq 1 && $stderr == "vzrun: warning: "* ]] || {
		printf 'not one warning: %s\n' "$stderr"
		return 1
	}
	for text; do
		[[ $stderr == *"$text"* ]] || {
			printf 'not in the warning: %s: %s\n' "$text" "$stderr"
			return 1
		}
	done
}

@test "what the host cannot grant is lowered, with one warning for all of it" {
	local own
	own=$(</proc/self/oom_score_adj)
	box sh -c 'ulimit -Hn; ulimit -Sn; cat /proc/self/oom_score_adj; awk "/^CapBnd/ { print \$2 }" /proc/self/status'
	wish
	run -0 --separate-stderr poor run --bundle "$BUNDLE" "$ID"
	[[ ${lines[0]} == 1000 && ${lines[1]} == 1000 && ${lines[2]} == "$own" ]]
	(((16#${lines[3]} & sys_time) == 0))
	one_warning CAP_SYS_TIME "RLIMIT_NOFILE 4096 to 1000" "oom_score_adj -500 to $own"
	assert_nothing_left
}

@test "what the host can grant is granted, without a word" {
	box sh -c 'ulimit -Hn; cat /proc/self/oom_score_adj; awk "/^CapEff/ { print \$2 }" /proc/self/status'
	conf '.process.rlimits = [{type: "RLIMIT_NOFILE", hard: 1000, soft: 100}] | .process.oomScoreAdj = 500'
	run -0 --separate-stderr poor run --bundle "$BUNDLE" "$ID"
	[[ -z $stderr && ${lines[0]} == 1000 && ${lines[1]} == 500 ]]
	# And on a host with more, more.
	conf '.process.rlimits[0].hard = 1001 | .process.capabilities |= map_values(. + ["CAP_SYS_TIME"])'
	run -0 --separate-stderr vz run --bundle "$BUNDLE" "$ID" </dev/null
	[[ -z $stderr && ${lines[0]} == 1001 ]]
	(((16#${lines[2]} & sys_time) != 0))
}

@test "org.vzrun.strict makes each of them an error" {
	local wish want
	box true
	conf '.annotations = {"org.vzrun.strict": "true"} | del(.process.rlimits)'
	cp "$BUNDLE/config.json" "$VZ_TMP/strict.json"
	for wish in '.process.rlimits = [{type: "RLIMIT_NOFILE", hard: 1001, soft: 100}]' '.process.oomScoreAdj = -500' \
		'.process.capabilities.bounding += ["CAP_SYS_TIME"]'; do
		cp "$VZ_TMP/strict.json" "$BUNDLE/config.json"
		conf "$wish"
		case $wish in
		*rlimits*) want='cannot grant RLIMIT_NOFILE 1001 to 1000' ;;
		*oom*) want='cannot grant oom_score_adj -500 to' ;;
		*) want='cannot grant CAP_SYS_TIME' ;;
		esac
		fails 5 "$want" poor run --bundle "$BUNDLE" "$ID"
		assert_nothing_left
	done
	cp "$VZ_TMP/strict.json" "$BUNDLE/config.json"
	run -0 --separate-stderr poor run --bundle "$BUNDLE" "$ID"
	[[ -z $stderr ]]
	conf '.annotations["org.vzrun.strict"] = "perhaps"'
	run -1 --separate-stderr poor run --bundle "$BUNDLE" "$ID"
	[[ $stderr == *org.vzrun.strict*perhaps* ]]
	assert_nothing_left
}

@test "more open files than the kernel allows anybody are lowered for everybody" {
	box sh -c 'ulimit -Hn'
	conf '.process.rlimits = [{type: "RLIMIT_NOFILE", hard: 1099511627776, soft: 100}]'
	run -0 --separate-stderr vz run --bundle "$BUNDLE" "$ID" </dev/null
	((output <= $(</proc/sys/fs/nr_open)))
	one_warning "RLIMIT_NOFILE 1099511627776 to $output"
}

@test "root of a user namespace has all capabilities there, and no higher limits" {
	box sh -c 'awk "/^CapEff/ { print \$2 }" /proc/self/status; ulimit -Hn'
	chown -R 500000:500000 "$BUNDLE/rootfs"
	conf '.linux.namespaces += [{type: "user"}] | .linux.uidMappings = [{containerID: 0, hostID: 500000, size: 1000}]
		| .linux.gidMappings = .linux.uidMappings'
	wish
	conf 'del(.process.oomScoreAdj)'
	run -0 --separate-stderr poor run --bundle "$BUNDLE" "$ID"
	(((16#${lines[0]} & sys_time) != 0))
	[[ ${lines[1]} == 1000 ]]
	one_warning "RLIMIT_NOFILE 4096 to 1000"
	[[ $stderr != *CAP_* ]]
}

@test "exec is lowered too, and warns of what is new only" {
	box sleep 1000
	wish
	detached run --detach --bundle "$BUNDLE" "$ID"
	run -0 --separate-stderr poor exec "$ID" sh -c 'ulimit -Hn; cat /proc/self/oom_score_adj'
	[[ -z $stderr && ${lines[0]} == 1000 && ${lines[1]} == "$(</proc/self/oom_score_adj)" ]]
	jq '.process | .args = ["sh", "-c", "ulimit -Hn"] | .rlimits[0].hard = 5000' "$BUNDLE/config.json" >"$VZ_TMP/process.json"
	run -0 --separate-stderr poor exec --process "$VZ_TMP/process.json" "$ID"
	[[ $output == 1000 ]]
	one_warning "RLIMIT_NOFILE 5000 to 1000"
	[[ $stderr != *CAP_SYS_TIME* ]]
}

@test "a capability that exec is told to give must be there" {
	box sleep 1000
	detached run --detach --bundle "$BUNDLE" "$ID"
	fails 255 'cannot grant CAP_SYS_TIME' poor exec --cap CAP_SYS_TIME "$ID" true
	run -0 --separate-stderr poor exec --cap CAP_CHOWN "$ID" awk '/^CapEff/ { print $2 }' /proc/self/status
	[[ -z $stderr ]]
	(((16#$output & 1) != 0))
	has_status "$ID" running
}

@test "a strict container is strict with exec" {
	box sleep 1000
	conf '.annotations = {"org.vzrun.strict": "true"} | del(.process.rlimits)'
	detached run --detach --bundle "$BUNDLE" "$ID"
	jq '.process | .args = ["true"] | .rlimits = [{type: "RLIMIT_NOFILE", hard: 5000, soft: 1}]' "$BUNDLE/config.json" >"$VZ_TMP/process.json"
	fails 255 'cannot grant RLIMIT_NOFILE' poor exec --process "$VZ_TMP/process.json" "$ID"
	run -0 --separate-stderr poor exec "$ID" true
	[[ -z $stderr ]]
}

@test "an engine's log gets the warning once" {
	box sleep 1000
	wish
	detached --log "$VZ_TMP/log" --log-format json create --bundle "$BUNDLE" "$ID"
	detached --log "$VZ_TMP/log" --log-format json start "$ID"
	[[ $(jq -r 'select(.level == "warning") | .msg' "$VZ_TMP/log" | grep -c 'cannot grant') -eq 1 ]]
	has_status "$ID" running
}
