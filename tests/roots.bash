# shellcheck shell=bash
# $ARGS is jq's, other variables in single quotes are of another shell; suites use
# what is set here.
# shellcheck disable=SC2016,SC2034
# Bundles of whole systems by what their root consists of. After helpers and app:
#
#   load roots
#   setup() { vz_setup; roots_setup; }
#   teardown() { roots_teardown && vz_teardown; }
#
# A bundle is at $BUNDLE, which roots_setup sets.

ROOT_KINDS=(directory overlay ext4 xfs btrfs subvolume engine)

roots_setup() {
	BUNDLE=$VZ_TMP/$ID
	# A file, so that a subshell can mount too.
	HOST_MOUNTS=$VZ_TMP/host-mounts
	: >"$HOST_MOUNTS"
}

roots_teardown() {
	local id
	for id in $(vz list --quiet); do
		vz delete --force "$id" || true
	done
	unmount_all
}

unmount_all() {
	local place
	[[ -e ${HOST_MOUNTS:-} ]] || return 0
	while read -r place; do
		wait_until 10 umount "$place" || true
	done < <(tac "$HOST_MOUNTS")
	: >"$HOST_MOUNTS"
}

# host_mount PLACE ARG... mounts something on the host until the test ends.
host_mount() {
	local place=$1
	shift
	mkdir -p "$place"
	# An overlay's upper directory is in use until the last mount of a container
	# that has ended is gone, which the kernel tells nobody.
	wait_until 10 mount "$@" "$place"
	echo "$place" >>"$HOST_MOUNTS"
}

# new_image FS FILE TREE makes an image with a copy of TREE in it.
new_image() {
	truncate -s 1G "$2"
	case $1 in
	ext4) mkfs.ext4 -q -d "$3" "$2" ;;
	xfs | btrfs)
		"mkfs.$1" -q "$2"
		mkdir -p "$VZ_TMP/fill"
		# Where nobody can take a copy of the mount along.
		unshare --mount --propagation private -- \
			sh -c 'mount -o loop "$1" "$2" && cp -a "$3/." "$2/"' sh "$2" "$VZ_TMP/fill" "$3"
		wait_until 20 no_loop_of "$2"
		;;
	esac
}

# subvolume TREE makes $VZ_TMP/pool, a btrfs, and a copy of TREE in its
# subvolume "web".
subvolume() {
	truncate -s 1G "$VZ_TMP/pool.img"
	mkfs.btrfs -q "$VZ_TMP/pool.img"
	host_mount "$VZ_TMP/pool" -o loop "$VZ_TMP/pool.img"
	btrfs -q subvolume create "$VZ_TMP/pool/web"
	cp -a "$1/." "$VZ_TMP/pool/web/"
}

# bundle_of KIND [TREE [FLAG of spec...]] makes $BUNDLE, for an engine's root
# without its mount.
bundle_of() {
	local kind=$1 tree=${2:-$VZRUN_DEBIAN} flags=()
	mkdir -m 0711 "$BUNDLE"
	case $kind in
	directory) cp -a --reflink=auto "$tree" "$BUNDLE/rootfs" ;;
	overlay) flags=(--template "$tree") ;;
	ext4 | xfs | btrfs)
		new_image "$kind" "$BUNDLE/disk.img" "$tree"
		flags=(--image disk.img)
		;;
	subvolume)
		subvolume "$tree"
		flags=(--rootfs "$VZ_TMP/pool/web")
		;;
	engine) flags=(--rootfs "$tree") ;;
	esac
	describe "$BUNDLE" "$ID" "${flags[@]}" "${@:3}"
	if [[ $kind == engine ]]; then
		mkdir "$BUNDLE/rootfs"
		edit_config "$BUNDLE" '.root.path = "rootfs"'
	fi
}

# describe BUNDLE ID FLAG... writes a config.json.
describe() {
	vz spec --system --bundle "$1" --hostname "$2" "${@:3}"
	edit_config "$1" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$2")"
}

# engine_mount OPTIONS [TREE] mounts an overlay at $BUNDLE/rootfs as engines do:
# with layers that were shifted on disk to the ids of the configuration there.
engine_mount() {
	local base owner group
	base=$(jq '.linux.uidMappings[0].hostID' "$BUNDLE/config.json")
	[[ -d $VZ_TMP/shifted ]] || {
		cp -a --reflink=auto "${2:-$VZRUN_DEBIAN}" "$VZ_TMP/shifted"
		find "$VZ_TMP/shifted" -printf '%U:%G\n' | sort -u >"$VZ_TMP/owners"
		while IFS=: read -r owner group; do
			find "$VZ_TMP/shifted" -uid "$owner" -gid "$group" -exec chown -h "$((owner + base)):$((group + base))" {} +
		done <"$VZ_TMP/owners"
	}
	mkdir -p "$VZ_TMP/engine/upper" "$VZ_TMP/engine/work"
	chown "$base:$base" "$VZ_TMP/engine/upper"
	host_mount "$BUNDLE/rootfs" -t overlay overlay \
		-o "lowerdir=$VZ_TMP/shifted,upperdir=$VZ_TMP/engine/upper,workdir=$VZ_TMP/engine/work,$1"
}

# loops prints the loop devices that this suite's files are in.
loops() { list_loops | grep -F "$VZ_TAG"; }

no_loops() { ! loops; }

no_loop_of() { ! loops | grep -qF "$1"; }
