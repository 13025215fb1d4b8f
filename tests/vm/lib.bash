# shellcheck shell=bash
# What the programs of the VM lab have in common.

vm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "$vm/../.." && pwd)
cache=${VZRUN_CACHE:-$tree/.cache}/vm
me=$(basename "$0")
prefix=${PREFIX:-/usr/local}

# Part of a snapshot, hence of its name.
memory=${VZRUN_VM_MEMORY:-2G}
cpus=${VZRUN_VM_CPUS:-2}

say() { echo "vm/$me: $*" >&2; }

complain() {
	echo "vm/$me: $1" >&2
	echo "hint: $2" >&2
}

die() {
	complain "$@"
	told=1
	exit 1
}

# usage prints the comment block at the top of a program.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

need() {
	local program
	for program; do
		command -v "$program" >/dev/null || die "$program not found" "run contrib/bootstrap"
	done
}

require_root() { ((EUID == 0)) || die "must run as root" "the files of a VM's disk belong to its root"; }

### Things built once

# built NAME FUNCTION ARG... sets $built to $cache/NAME, which FUNCTION WORK ARG...
# fills unless it is there. What a killed build leaves is a temporary directory,
# never a thing; what it replaces is removed unless a VM uses it.
built() {
	local name=$1 start=$SECONDS
	shift
	built=$cache/$name
	mkdir -p "$cache"
	if [[ ! -d $built ]]; then
		build_locked "$name" "$@"
		say "$name: $((SECONDS - start)) s, $(du -sh "$built" | cut -f 1)"
	fi
	in_use "$built"
}

# in_use DIR keeps DIR from being removed as long as this program runs.
in_use() {
	local fd
	exec {fd}<"$1"
	flock --shared "$fd"
}

build_locked() (
	name=$1
	shift
	require_root
	exec 9>"$cache/.lock.${name%-*}"
	flock 9
	[[ ! -d $cache/$name ]] || exit 0
	require_space
	say "building $name"
	rm -rf --one-file-system -- "$cache/.new.${name%-*}".*
	work=$(mktemp -d "$cache/.new.${name%-*}.XXXXXX")
	trap 'build_ends $?' EXIT
	mkdir -m 0755 "$work/new"
	"$1" "$work/new" "${@:2}" 9>&-
	mv -T "$work/new" "$cache/$name"
	prune "$name"
)

# build_ends CODE tidies up, and says so if a program failed that gives no hint.
build_ends() {
	local free
	free=$(free_space)
	rm -rf --one-file-system -- "$work"
	(($1 == 0 || ${told:-0})) || die "building $name failed" "see the lines above; $free MB were free below $cache"
}

# prune NAME removes the other versions of a thing.
prune() {
	local old
	find "$cache" -mindepth 1 -maxdepth 1 -type d -name "${1%-*}-????????????" ! -name "$1" |
		while read -r old; do
			flock --nonblock "$old" rm -rf --one-file-system -- "$old" || true
		done
}

require_space() {
	local free
	free=$(free_space)
	((free >= ${VZRUN_VM_SPACE:-3000})) ||
		die "only $free MB free below $cache" "make room, or set VZRUN_CACHE to a larger disk"
}

free_space() { df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9; }

hash_of() { sha256sum | cut -c 1-12; }

### Debian packages

# debian MODE SUITE DIR PACKAGE... puts packages into DIR with mmdebstrap.
debian() {
	local variant=$1 suite=$2 dir=$3 mirror mirrors options=()
	shift 3
	need mmdebstrap
	mirror=$("$tree/contrib/debian-mirror")
	mirrors=("$mirror")
	# The machine's own word on this, as of a mirror that is kept as it was.
	if [[ $(apt-config dump Acquire::Check-Valid-Until) == *'"false"'* ]]; then
		options+=(--aptopt='Acquire::Check-Valid-Until "false"')
	fi
	# What such a suite lacks is in the one that it is for.
	if [[ $suite == *-backports ]]; then
		options+=(--aptopt="APT::Default-Release \"$suite\"")
		mirrors=("deb $mirror $suite main" "deb $mirror ${suite%-backports} main")
	fi
	say "fetching packages of $suite from $mirror"
	mmdebstrap --quiet --mode=root --variant="$variant" --format=directory --include="$*" \
		--dpkgopt=force-unsafe-io "${options[@]}" "$suite" "$dir" "${mirrors[@]}" >&2 ||
		die "mmdebstrap failed for $suite" "see the lines above; is a mirror within reach, and the disk not full?"
}
