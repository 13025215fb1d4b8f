# shellcheck shell=bash
# Those who read this use what it sets.
# shellcheck disable=SC2034
# What tests/conformance/run and tests/conformance/runc-suite share. Needs $here.

cache=${VZRUN_CACHE:-$here/../../.cache}/conformance

say() { echo "conformance: $*" >&2; }

die() {
	echo "conformance: $1" >&2
	echo "hint: $2" >&2
	exit 1
}

usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

need() { command -v "$1" >/dev/null || die "$1 not found" "run contrib/bootstrap"; }

find_go() {
	local go
	for go in "${GO:-go}" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
		command -v "$go" && return
	done
	die "no Go found" "run contrib/bootstrap"
}

# find_runtimes sets $vzrun and $runc. runc is Debian's newest, which
# tests/engines/root unpacks, or what $RUNC says.
find_runtimes() {
	vzrun=$(realpath -e "${VZRUN:-$here/../../vzrun}") || die "no vzrun binary" "run make"
	runc=${RUNC:-$("$here/../engines/root" runtimes | tail -n 1)/bin/runc}
	runc=$(realpath -e "$runc") || die "no runc to compare with" "set RUNC to its path"
}

# built NAME FUNCTION sets $built to the cached directory NAME; unless it is
# there FUNCTION DIR makes it. Whatever a killed build left is a temporary
# directory, never NAME.
built() {
	local new
	mkdir -p "$cache"
	cache=$(cd "$cache" && pwd)
	built=$cache/$1
	[[ ! -d $built ]] || return 0
	# Who gets the lock knows that no build goes on.
	exec 9>"$cache/.lock"
	flock 9
	if [[ ! -d $built ]]; then
		rm -rf --one-file-system -- "$cache"/.new.*
		new=$(mktemp -d "$cache/.new.XXXXXX")
		chmod 0755 "$new"
		say "building $1"
		"$2" "$new"
		mv -T "$new" "$built"
	fi
	exec 9>&-
}

hash_of() { sha256sum | cut -c 1-12; }

### Results

# checks STATUS EMPTY reads TAP and prints lines 'pass|fail|skip <tab> text'. A
# program that breaks off, or plans checks that it does not make, fails. Some
# make none, and print an error if there is one; else EMPTY is the result.
checks() {
	awk -v status="$1" -v empty="$2" '
		function result(kind, text) { print kind "\t" text; count++ }
		function text() { sub(/^(not )?ok *[0-9]* *(- *)?/, ""); return $0 == "" ? "(no text)" : $0 }
		/^1\.\.[0-9]+/ {
			planned = substr($0, 4) + 0
			plans++
			if (planned == 0 && /[Ss][Kk][Ii][Pp]/) result("skip", $0)
			next
		}
		/^(not )?ok.*# *[Ss][Kk][Ii][Pp]/ { sub(/ *# *[Ss][Kk][Ii][Pp].*/, ""); result("skip", text()); next }
		/^ok/ { result("pass", text()); next }
		/^not ok/ { result("fail", text()); next }
		/^ *"error":/ { error = 1 }
		END {
			if (status == 124 || status == 137) result("fail", "(did not end in time)")
			else if (status != 0) result("fail", "(broke off)")
			else if (planned > count) result("fail", "(made fewer checks than it planned)")
			else if (count == 0 && error) result("fail", "(error)")
			else if (!plans) result("fail", "(no plan)")
			else if (count == 0) result(empty, "(no error)")
		}'
}

# judge RESULTS LIST NAME... prints the table and what is wrong, from the files
# RESULTS/RUNTIME/NAME.checks; fails if anything is. LIST has known deviations.
judge() {
	local results=$1 list=$2 name runtime
	shift 2
	for name; do
		for runtime in vzrun runc; do
			sed "s/^/$runtime\t$name\t/" "$results/$runtime/$name.checks"
		done
	done | awk -F '\t' -v programs="$*" -v list="$list" -f "$here/judge.awk"
}

### What programs leave on the host

# end_cgroups FIND-EXPRESSION... ends the processes of cgroups and removes them.
end_cgroups() {
	local dir pid
	while read -r dir; do
		while read -r pid; do
			kill -KILL "$pid" 2>/dev/null || true
		done < <(cat "$dir/cgroup.procs" 2>/dev/null)
		remove_cgroup "$dir" || say "cgroup $dir cannot be removed"
	done < <(find /sys/fs/cgroup -depth -type d \( "$@" \) 2>/dev/null)
}

# remove_cgroup DIR: it is busy until its last process is gone, which sends no
# event on cgroup v1.
remove_cgroup() {
	local deadline=$((SECONDS + 10))
	until rmdir "$1" 2>/dev/null || [[ ! -d $1 ]]; do
		((SECONDS < deadline)) || return
		sleep 0.05
	done
}

# remove_tree DIR takes down mounts below a directory of ours, then removes it:
# nothing is deleted through a mount.
remove_tree() {
	local dir=$1 mounts at
	mounts=$(awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
	while read -r at; do
		[[ -z $at ]] || umount --lazy -- "$at" || { say "still mounted: $at"; return; }
	done <<<"$mounts"
	# A process that has just been killed may still be writing.
	rm -rf --one-file-system -- "$dir" 2>/dev/null || rm -rf --one-file-system -- "$dir" || say "left over: $dir"
}

# end_children ends all processes that this script has started.
end_children() {
	local pid
	for pid in $(descendants $$); do
		kill -KILL "$pid" 2>/dev/null || true
	done
}

descendants() {
	local pid
	for pid in $(ps -o pid= --ppid "$1"); do
		echo "$pid"
		descendants "$pid"
	done
}
