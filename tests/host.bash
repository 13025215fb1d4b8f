# shellcheck shell=bash
# What may be left on a host after a suite, or after a run of many. Suites have it by
# helpers.bash.

mounts() { awk '{ print $5 }' /proc/self/mountinfo; }

host_kinds=(mounts cgroups netns loops directories processes rules)

# snapshot_host DIR writes what could be left over, one sorted list per kind.
snapshot_host() {
	local dir=$1 kind
	mkdir -p "$dir"
	for kind in "${host_kinds[@]}"; do
		# Not one pipeline: the list of processes would show the filter.
		"list_$kind" >"$dir/$kind.all"
		ours "$kind" <"$dir/$kind.all" | sort >"$dir/$kind"
	done
}

# host_is_clean BEFORE fails on all that is there now and was not before, and prints it.
host_is_clean() {
	local before=$1 after=$1.now kind left clean=0
	snapshot_host "$after"
	for kind in "${host_kinds[@]}"; do
		left=$(comm -13 "$before/$kind" "$after/$kind")
		[[ -z $left ]] || {
			printf 'left over on the host, %s:\n%s\n' "$kind" "$left"
			clean=1
		}
	done
	return "$clean"
}

# assert_host_clean BEFORE waits a little, as the kernel takes some things down only after
# their last user has ended.
assert_host_clean() {
	local left deadline=$((SECONDS + ${VZ_CLEAN_PATIENCE:-5} * ${VZ_SLOW:-1}))
	until left=$(host_is_clean "$1"); do
		((SECONDS < deadline)) || {
			echo "$left"
			return 1
		}
		sleep 0.05
	done
}

# alone tells whether nobody else is at work on this machine, nor another suite.
alone() { [[ ${VZRUN_REQUIRE:-} == 1 && ${VZ_SIDE_BY_SIDE:-} != 1 ]]; }

# ours keeps what carries the tag $VZ_TAG, or all where nobody else is at work.
# Of processes all that is there comes and goes: only ours and CRIU's count.
ours() {
	if ! alone; then
		grep -F -e "$VZ_TAG" || true
	elif [[ $1 == processes ]]; then
		grep -E -e "$VZ_TAG" -e '^ ?[0-9]+ [^ ]+ [^ ]*criu( |$)' || true
	else
		cat
	fi
}

# The first `ip netns add` of a machine makes /run/netns a mount, and it stays.
list_mounts() { mounts | grep -vx /run/netns || true; }
list_cgroups() { find /sys/fs/cgroup -type d -name '*vzrun-test*' 2>/dev/null || true; }
list_netns() { find /run/netns /run/vzrun -maxdepth 1 -name '*' -type f 2>/dev/null || true; }
list_loops() { losetup --noheadings --list --output NAME,BACK-FILE 2>/dev/null || true; }
list_directories() { find /run /var/tmp -maxdepth 1 -type d -name 'vzrun-test.*' || true; }

# list_processes prints pid, cgroups and command line of each.
list_processes() { ps -ww -eo pid=,cgroup:2048=,args= | tr -s ' '; }

# list_rules prints packet filter rules without their counters.
list_rules() {
	{
		nft list ruleset || true
		iptables-save || true
		ip6tables-save || true
	} 2>/dev/null | sed -E '/^#/d; s/\[[0-9]+:[0-9]+\]//; s/counter packets [0-9]+ bytes [0-9]+/counter/'
}
