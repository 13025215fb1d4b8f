#!/usr/bin/env bats
# vzrun is killed right before and right after each change that it makes to its own
# files (records, folders, names that are given when all behind them is whole), and
# its disk is full from there on: in a checkpoint, a restore, a clone, an export and an
# import. The next call undoes or finishes each; a guest runs as before or is gone, and
# nothing of it is left. VZ_FULL=1 takes all moments, and half an hour; else it is some
# of the records of what is under way.
# Suites use what `run` sets.
# shellcheck disable=SC2153,SC2016,SC2030,SC2031,SC2154

load helpers
load app
load undo

setup_file() {
	((${BATS_TEST_TIMEOUT:-0} >= 1200)) || export BATS_TEST_TIMEOUT=1200
	suite_setup
	TRIPWIRE=$(build_command tripwire)
	export TRIPWIRE
}

teardown_file() { suite_teardown; }

setup() {
	vz_setup
	# Its own output is no change of what others find.
	OUT=$BATS_TEST_TMPDIR
	IDS=$VZ_TMP/ids.json
	WATCHED=$VZ_ROOT,$VZ_TMP BRIEF=$VZ_ROOT/@/ID.json
	PLACE=$VZ_TMP
}

teardown() {
	made_room
	vz_teardown
	[[ -z ${BALLAST:-} ]] || {
		umount "${BALLAST%/*}"
		rmdir "${BALLAST%/*}"
	}
}

vz() { "$VZRUN" --root "$VZ_ROOT" --id-record "$IDS" "$@"; }

# trip POINT ACTION VERB... ID runs vzrun, with $CODE for its end, and fails where it
# ended before it came to that point of what is changed below $WATCHED or, in the short
# form, $BRIEF with the id for ID.
trip() {
	local watched=$WATCHED
	is_full || watched=${BRIEF//ID/${*: -1}}
	CODE=0
	"$TRIPWIRE" "$OUT/changes" "$watched" "$1" "$2" "$VZRUN" --root "$VZ_ROOT" --id-record "$IDS" --log "$OUT/log" \
		"${@:3}" </dev/null >/dev/null 2>"$OUT/error" 3>&- || CODE=$?
	[[ ! -s $OUT/error ]] || cat "$OUT/error"
	grep -qx acted "$OUT/changes" || return 1
	echo "== $2 $1: $CODE, at $(grep -B 1 -x acted "$OUT/changes" | head -n 1)"
}

# each ACTION OPERATION POINT... takes OPERATION through all moments or, in the short
# form, these. OPERATION gets the point and ACTION, and sets REACHED=0 where its end
# came first.
each() {
	local at point whens=(before after)
	n=0 REACHED=1
	if ! is_full; then
		for point in "${@:3}"; do
			n=$((n + 1))
			"$2" "$point" "$1"
			((REACHED))
		done
		return
	fi
	[[ $1 == kill ]] || whens=(before)
	for ((at = 1; ; at++)); do
		for point in "${whens[@]}"; do
			n=$((n + 1))
			"$2" "$at:$point" "$1"
			((REACHED)) || break 2
		done
	done
	echo "# $2, ${1%%=*}: $((n - 1)) moments" >&3
	((n > 10))
}

is_full() { [[ ${VZ_FULL:-} == 1 ]]; }

### Each operation

# made_room ends what a full disk was.
made_room() { [[ -z ${BALLAST:-} ]] || rm -f "$BALLAST"; }

checkpoint_at() {
	IMAGES=$PLACE/images-$n
	trip "$1" "$2" checkpoint --image-path "$IMAGES" "$ID" || REACHED=0
	made_room
	[[ -n $(status_of "$ID") ]] || comes_back
	mkdir -p "$IMAGES"
	as_before
	rm -r "$IMAGES"
}

restore_at() {
	IMAGES=$PLACE/images-$n
	vz checkpoint --image-path "$IMAGES" "$ID"
	trip "$1" "$2" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID" || REACHED=0
	made_room
	[[ -n $(status_of "$ID") ]] || comes_back
	as_before
	rm -r "$IMAGES"
}

clone_at() {
	local id=$ID-$n
	trip "$1" "$2" restore --detach --clone-of "$IMAGES" "$id" || REACHED=0
	made_room
	ended_or_works "$id" "${IDS%/*}/clones/$id/rootfs/upper"
	[[ ! -e ${IDS%/*}/clones || -z $(find "${IDS%/*}/clones" -mindepth 1) ]]
}

export_at() {
	local archive=$PLACE/save-$n.tar.zst
	IMAGES=$PLACE
	trip "$1" "$2" checkpoint --export "$archive" --work-path "$PLACE" --with-rootfs "$ID" || REACHED=0
	made_room
	if [[ -z $(status_of "$ID") ]]; then
		vz checkpoint inspect --format json "$archive" | jq -e .verified
		app_launch restore --detach --import "$archive" --work-path "$PLACE" --bundle "$BUNDLE" "$ID"
	elif [[ -e $archive ]]; then
		vz checkpoint inspect --format json "$archive" | jq -e .verified
	fi
	rm -f "$archive"
	as_before
}

import_at() {
	local id=$ID-$n bundle=$PLACE/new-$n
	trip "$1" "$2" restore --detach --import "$ARCHIVE" --work-path "$PLACE" --bundle "$bundle" "$id" || REACHED=0
	made_room
	LIVED=0
	ended_or_works "$id" "$bundle/rootfs"
	((!LIVED)) || {
		[[ $(cd "$bundle" && echo .[!.]*) == '.[!.]*' ]]
		rm -r --one-file-system -- "$bundle"
	}
	[[ ! -e $bundle ]]
}

# ended_or_works ID ROOTFS: the new container works, as far as there is room for what
# it writes, or nothing is left of it.
ended_or_works() {
	if [[ -n $(status_of "$1" 2>/dev/null) ]]; then
		LIVED=1
		has_status "$1" running || [[ -n ${BALLAST:-} ]]
		[[ -n ${BALLAST:-} ]] || wait_counter "$2" 2
		vz delete --force "$1"
	fi
	assert_nothing_left
	no_criu
}

# swept: with the next archive here that goes which a killed one could not remove.
swept() {
	local left
	left=$(find "$PLACE" -name '.*vzrun-*')
	[[ -z $left ]] || {
		echo "$left"
		return 1
	}
}

### Killed

@test "a checkpoint is killed at each change of its files" {
	subject
	each kill checkpoint_at 1:after 3:after
	end_well
}

@test "a restore is killed at each change of its files" {
	subject
	each kill restore_at 2:after 4:after
	end_well
}

@test "a clone is killed at each change of its files" {
	subject
	IMAGES=$VZ_TMP/images
	vz checkpoint --image-path "$IMAGES" "$ID"
	each kill clone_at 1:after 5:before
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	as_before
	end_well
}

@test "an export is killed at each change of its files" {
	subject
	each kill export_at 2:after 3:before
	vz checkpoint --leave-running --export "$VZ_TMP/save.tar.zst" --work-path "$VZ_TMP" "$ID"
	swept
	end_well
}

@test "an import is killed at each change of its files" {
	subject
	ARCHIVE=$OUT/save.tar.zst
	vz checkpoint --export "$ARCHIVE" --with-rootfs "$ID"
	each kill import_at 1:after 5:after
	app_launch restore --detach --import "$ARCHIVE" --work-path "$VZ_TMP" --bundle "$BUNDLE" "$ID"
	swept
	end_well
}

### On a full disk

# small_disk SIZE mounts one at $PLACE, which is filled with $BALLAST.
small_disk() {
	PLACE=$(mktemp -d "/var/tmp/vzrun-test.$VZ_TAG.XXXXXX")
	mount -t tmpfs -o "size=$1" vzrun-test "$PLACE"
	BALLAST=$PLACE/ballast
}

@test "the state directory gets full at each change, in a checkpoint, a restore and a clone" {
	small_disk 4m
	rmdir "$VZ_ROOT"
	VZ_ROOT=$PLACE/state
	mkdir -m 0700 "$VZ_ROOT"
	WATCHED=$VZ_ROOT BRIEF=$VZ_ROOT/@/.ID.json.new
	PLACE=$VZ_TMP
	subject
	each "fill=$BALLAST" checkpoint_at 3:before
	each "fill=$BALLAST" restore_at 2:before
	IMAGES=$VZ_TMP/images
	vz checkpoint --image-path "$IMAGES" "$ID"
	each "fill=$BALLAST" clone_at 1:before
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	as_before
	end_well
}

@test "the disk of images, bundles and archives gets full at each change" {
	small_disk 24m
	IDS=$PLACE/ids.json
	WATCHED=$VZ_ROOT,$PLACE BRIEF=$PLACE
	subject
	each "fill=$BALLAST" checkpoint_at 1:before
	each "fill=$BALLAST" export_at 2:before
	ARCHIVE=$OUT/save.tar.zst IMAGES=$PLACE/images
	vz checkpoint --leave-running --export "$ARCHIVE" --with-rootfs "$ID"
	vz checkpoint --image-path "$IMAGES" "$ID"
	each "fill=$BALLAST" clone_at 9:before
	each "fill=$BALLAST" import_at 5:before
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	as_before
	swept
	end_well
}
