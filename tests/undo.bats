#!/usr/bin/env bats
# A checkpoint or a restore fails at each of CRIU's stages: vzrun or CRIU is killed
# or stopped there, the disk is full, the images are taken away. Each time the
# source goes on as it was, or whole images are there; a restore that failed has
# left nothing. VZ_FULL=1: before and after vzrun's part of each stage, and with a
# whole Debian, which takes minutes.
# Suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

# bats file_tags=short

load helpers
load app
load undo

setup_file() {
	# All stages, one after the other, take a minute where nothing else runs.
	test_may_take 1200
	suite_setup
	FAULT=$(build_command fault)
	export FAULT
}

teardown_file() { suite_teardown; }

setup() {
	vz_setup
	IMAGES=$VZ_TMP/images
	DIR=$VZ_TMP/fault
	mkdir "$DIR"
	mkfifo "$DIR/gate"
	spawn "$DIR/log" "$FAULT" serve "$DIR/socket" "$DIR"
	wait_line "$DIR/log" listening
	CRIU=$DIR/criu
	printf '#!/bin/sh\nexec %q criu %q %q "$@"\n' "$FAULT" "$DIR/socket" "$(real_criu)" >"$CRIU"
	chmod +x "$CRIU"
}

teardown() {
	umount_disk
	vz_teardown
}

# faulty STAGE WHEN ACTION VERB... runs vzrun, with that fault, to its end.
faulty() {
	echo "$1 $2 $3" >"$DIR/plan"
	rm -f "$DIR/done" "$DIR/held"
	echo "== $3 at $1, $2: $4"
	spawn "$VZ_TMP/vzrun.log" "$VZRUN" --root "$VZ_ROOT" --criu "$CRIU" "${@:4}"
	FAULTY=$SPAWNED
}

over() {
	CODE=0
	wait "$FAULTY" || CODE=$?
	wait_file "$DIR/done" || {
		echo "vzrun ended with $CODE"
		cat "$VZ_TMP/vzrun.log" "$DIR/log"
		return 1
	}
}

is_held() {
	wait_file "$DIR/held" || {
		cat "$VZ_TMP/vzrun.log" "$DIR/log" "$DIR/stages"
		return 1
	}
}

# stages VERB... prints the stages of an operation that nothing happens to.
stages() {
	rm -f "$DIR/stages" "$DIR/plan"
	vz --criu "$CRIU" --log "$VZ_TMP/stages.log" "$@" </dev/null >/dev/null 2>&1 3>&-
	sort -u "$DIR/stages" | grep .
}

# moments prints when, and what, at a stage: once each, or all in the long form.
moments() {
	if [[ ${VZ_FULL:-} == 1 ]]; then
		printf '%s\n' 'asked kill-vzrun' 'told kill-vzrun' 'asked kill-criu' 'told kill-criu'
	else
		printf '%s\n' 'told kill-vzrun' 'asked kill-criu'
	fi
}

### Stages

# dump_faults KIND [FLAG...]
dump_faults() {
	local stage when action n=0
	subject "$1"
	shift
	IMAGES=$VZ_TMP/images-clean
	mapfile -t all < <(stages checkpoint --image-path "$IMAGES" "$@" "$ID")
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	printf 'stage: %s\n' "${all[@]}"
	((${#all[@]} >= 3))
	for stage in "${all[@]}"; do
		while read -r when action; do
			IMAGES=$VZ_TMP/images-$((n += 1))
			faulty "$stage" "$when" "$action" checkpoint --image-path "$IMAGES" "$@" "$ID"
			over
			((CODE != 0))
			# The only place where it is over here, and whole there.
			[[ -n $(status_of "$ID") ]] || comes_back
			as_before
		done < <(moments)
	done
	end_well
}

restore_faults() {
	local stage when action n=0
	subject "$1"
	vz checkpoint --image-path "$IMAGES" "$ID"
	mapfile -t all < <(stages restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID")
	printf 'stage: %s\n' "${all[@]}"
	((${#all[@]} >= 4))
	for stage in "${all[@]}"; do
		while read -r when action; do
			# CRIU is killed with the tasks about to run, before vzrun hears of it:
			# they run for a moment, and may change files, until they are ended.
			[[ $stage/$when/$action != pre-resume/asked/kill-criu ]] || when=told
			# A guest that has gone on has changed its files since.
			IMAGES=$VZ_TMP/images-$((n += 1))
			vz checkpoint --image-path "$IMAGES" "$ID"
			faulty "$stage" "$when" "$action" restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
			over
			# By then CRIU has nothing more to do.
			((CODE != 0)) || [[ $stage == p*-resume && $action == kill-criu ]]
			if [[ -z $(status_of "$ID") ]]; then
				assert_nothing_left
				no_criu
				app_restore "$BUNDLE" "$ID" "$IMAGES"
			fi
			as_before
		done < <(moments)
	done
	end_well
}

@test "a checkpoint fails at each stage" {
	dump_faults busybox
}

@test "a restore fails at each stage" {
	restore_faults busybox
}

@test "a checkpoint of a Debian fails at each stage" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "long: VZ_FULL=1"
	dump_faults debian --tcp-established
}

@test "a restore of a Debian fails at each stage" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "long: VZ_FULL=1"
	restore_faults debian
}

@test "CRIU killed when the images are whole leaves no names of deleted files" {
	BUNDLE=$(app_bundle "$ID" sh -c 'mkdir /d; echo kept >/d/link_remap.1; echo x >/d/a; ln /d/a /d/b; exec 3</d/a 4</d/link_remap.1; rm /d/a; touch /ready; exec sleep 1000')
	app_up "$BUNDLE" "$ID"
	wait_file "$BUNDLE/rootfs/ready"
	faulty post-dump asked kill-criu checkpoint --link-remap --image-path "$IMAGES" "$ID"
	over
	((CODE != 0))
	has_status "$ID" running
	[[ $(cd "$BUNDLE/rootfs/d" && echo *) == 'b link_remap.1' ]]
	# With nobody left, the next call goes by images of which only an archive was to stay.
	faulty post-dump asked kill-both checkpoint --link-remap --export "$VZ_TMP/archive.tar" "$ID"
	over
	((CODE == 137))
	has_status "$ID" running
	[[ $(cd "$BUNDLE/rootfs/d" && echo *) == 'b link_remap.1' ]]
	[[ -z $(find "$VZ_TMP" -name 'remap-fpath.img' -not -path "$IMAGES/*") ]]
	faulty post-dump told kill-vzrun checkpoint --link-remap --image-path "$IMAGES-2" "$ID"
	over
	[[ -n $(status_of "$ID") ]] || comes_back
	has_status "$ID" running
	[[ $(<"$BUNDLE/rootfs/d/link_remap.1") == kept ]]
	vz checkpoint --link-remap --image-path "$IMAGES-3" "$ID"
	[[ -n $(compgen -G "$BUNDLE/rootfs/d/link_remap.[2-9]*") ]]
	app_restore "$BUNDLE" "$ID" "$IMAGES-3"
	[[ $(cd "$BUNDLE/rootfs/d" && echo *) == 'b link_remap.1' ]]
}

### Disks

@test "the disk is full, in each image" {
	local size step=64 failed=0
	subject
	for ((size = 16; ; size += step)); do
		[[ ${VZ_FULL:-} == 1 ]] || step=$size
		disk "${size}k"
		IMAGES=$VZ_TMP/disk/images
		if vz checkpoint --leave-running --image-path "$IMAGES" "$ID" 2>"$VZ_TMP/error"; then
			break
		fi
		failed=$((failed + 1))
		cat "$VZ_TMP/error"
		as_before
		umount "$VZ_TMP/disk"
	done
	echo "enough: $size KiB, $failed failures"
	((failed >= 3))
	[[ -e $IMAGES/vzrun.json ]]
	umount "$VZ_TMP/disk"
	end_well
}

@test "the disk of the work directory is full, at a checkpoint and at a restore" {
	subject
	disk 64k
	head -c 1M /dev/zero >"$VZ_TMP/disk/full" || true
	vz checkpoint --image-path "$IMAGES" --work-path "$VZ_TMP/disk" "$ID" || as_before
	if [[ -n $(status_of "$ID") ]]; then
		vz checkpoint --image-path "$IMAGES" "$ID"
	fi
	# CRIU can do without its log; vzrun must not leave half a container.
	if ! app_restore "$BUNDLE" "$ID" "$IMAGES" --work-path "$VZ_TMP/disk"; then
		fails 1 'does not exist' vz state "$ID"
		umount "$VZ_TMP/disk"
		assert_nothing_left
		app_restore "$BUNDLE" "$ID" "$IMAGES"
	fi
	as_before
	! mountpoint -q "$VZ_TMP/disk" || umount "$VZ_TMP/disk"
	end_well
}

# fill_but KIB leaves that much free on the small disk.
fill_but() {
	local free
	rm -f "$VZ_TMP/disk/ballast"
	free=$(df --output=avail -k "$VZ_TMP/disk" | tail -n 1)
	head -c "$((free - $1))K" /dev/zero >"$VZ_TMP/disk/ballast"
}

@test "the state directory is full, at a checkpoint, a restore and a create" {
	local free frees=(0 8) failed=0
	[[ ${VZ_FULL:-} != 1 ]] || frees=({0..100..4})
	disk 4m
	remove_tree "$VZ_ROOT"
	VZ_ROOT=$VZ_TMP/disk/state
	mkdir -m 0700 "$VZ_ROOT"
	fill_but 0
	run -1 vz run --detach --bundle "$(app_bundle other sleep 1000)" other
	rm "$VZ_TMP/disk/ballast"
	[[ -z $(vz list -q) ]]
	subject
	for free in "${frees[@]}"; do
		IMAGES=$VZ_TMP/images-$free
		fill_but "$free"
		if vz checkpoint --image-path "$IMAGES" "$ID" 2>"$VZ_TMP/error"; then
			fill_but "$free"
		else
			failed=$((failed + 1))
			cat "$VZ_TMP/error"
			rm "$VZ_TMP/disk/ballast"
			as_before
			vz checkpoint --image-path "$IMAGES" "$ID"
			fill_but "$free"
		fi
		if ! app_restore "$BUNDLE" "$ID" "$IMAGES"; then
			failed=$((failed + 1))
			rm "$VZ_TMP/disk/ballast"
			fails 1 'does not exist' vz state "$ID"
			app_restore "$BUNDLE" "$ID" "$IMAGES"
		fi
		rm -f "$VZ_TMP/disk/ballast"
		as_before
	done
	echo "$failed failures"
	((failed >= 2))
	vz delete --force "$ID"
	umount "$VZ_TMP/disk"
}

### The rest

@test "the images are taken away in the middle of a checkpoint" {
	subject
	faulty post-dump asked hold checkpoint --image-path "$IMAGES" "$ID"
	is_held
	mv "$IMAGES" "$IMAGES.away"
	echo go >"$DIR/gate"
	over_or_not
	((CODE == 1))
	mkdir -p "$IMAGES"
	as_before
	end_well
}

@test "the images are taken away in the middle of a restore" {
	subject
	vz checkpoint --image-path "$IMAGES" "$ID"
	cp -a "$IMAGES" "$IMAGES.copy"
	faulty setup-namespaces asked hold restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	is_held
	rm -r "$IMAGES"
	echo go >"$DIR/gate"
	over_or_not
	mv "$IMAGES.copy" "$IMAGES"
	if ((CODE != 0)); then
		assert_nothing_left
		app_restore "$BUNDLE" "$ID" "$IMAGES"
	fi
	as_before
	end_well
}

# over_or_not waits for vzrun alone: the relay goes on until it ends.
over_or_not() {
	CODE=0
	wait "$FAULTY" || CODE=$?
	cat "$VZ_TMP/vzrun.log"
}

@test "CRIU is stopped, and the checkpoint interrupted" {
	subject
	faulty network-lock told stop-criu checkpoint --image-path "$IMAGES" "$ID"
	is_held
	kill -INT "$FAULTY"
	over_or_not
	((CODE == 1))
	as_before
	end_well
}

@test "CRIU is stopped, and nobody there to see it" {
	[[ ${VZ_FULL:-} == 1 ]] || skip "takes VZ_FULL=1: it is waited for, for five minutes"
	subject
	faulty network-lock told stop-criu checkpoint --image-path "$IMAGES" "$ID"
	is_held
	over_or_not
	((CODE == 1))
	grep -E 'warning: .*CRIU \(pid [0-9]+\) has done nothing for 1m0s; its log ends with: ' "$VZ_TMP/vzrun.log"
	grep -E 'CRIU stood still: .* has done nothing for 5m0s; its log ends with: .*\(log: .*/dump.log\)$' "$VZ_TMP/vzrun.log"
	as_before
	end_well
}

@test "CRIU is stopped, and vzrun killed" {
	subject
	faulty network-lock told stop-criu checkpoint --image-path "$IMAGES" "$ID"
	is_held
	kill -KILL "$FAULTY"
	over_or_not
	as_before
	end_well
}

@test "nobody reads what vzrun has to say" {
	subject
	vz checkpoint --print-stats --leave-running --image-path "$IMAGES" "$ID" >/dev/full 2>/dev/full || true
	as_before
	IMAGES=$IMAGES-2
	vz checkpoint --print-stats --image-path "$IMAGES" "$ID" 1>&- 2>&- </dev/null || true
	fails 1 'does not exist' vz state "$ID"
	app_restore "$BUNDLE" "$ID" "$IMAGES"
	as_before
	end_well
}
