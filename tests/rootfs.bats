#!/usr/bin/env bats
# What a guest's root can consist of: overlays, images, subvolumes, and what an
# engine has mounted. Each boots a Debian, is checkpointed, restored and cloned.
#
# VZ_FULL=1 clones every kind, and kills vzrun at more moments.
# $ARGS is jq's, other variables in single quotes are the guest's; suites use
# what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load roots

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }

setup() {
	vz_setup
	roots_setup
	IMAGES=$VZ_TMP/images
	DEVICE=
}

teardown() {
	roots_teardown
	[[ -z $DEVICE ]] || losetup --detach "$DEVICE" || true
	vz_teardown
}

### Parts of a life

boot() {
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
}

# save and load_as ID BUNDLE; errors come with what CRIU found remarkable.
save() {
	vz checkpoint --image-path "$IMAGES" "$ID" || {
		grep -E 'Warn|Error|fsnotify: ' "$IMAGES/dump.log" | tail -n 25
		return 1
	}
}

load_as() {
	app_restore "$2" "$1" "$IMAGES" --work-path "$2" || {
		grep -E 'Warn|Error|fsnotify: ' "$2/restore.log" | tail -n 25
		return 1
	}
}

### What is there, and what is not

# assert_free: neither a mount nor a loop device of this test is on the host.
assert_free() {
	assert_nothing_left
	no_loops
}

# alive ID: systemd answers and works, the counter lost nothing and goes on.
alive() {
	local before
	[[ $(vz ready --timeout "$(slow 60)s" "$1") == running ]]
	guest "$1" timeout "$(slow 60)" systemctl restart nginx
	before=$(guest "$1" sh -c 'wc -l </var/lib/vzcount/log')
	wait_until 20 eval "((\$(guest '$1' sh -c 'wc -l </var/lib/vzcount/log') > $before))"
	guest "$1" /usr/local/bin/vzguest verify /var/lib/vzcount/log
}

# watch_root has the guest watch two directories and, as systemd does, all above
# them, and write down what happens: CRIU saves such watches by handles.
watch_root() {
	guest "$ID" sh -c 'mkdir -p /srv/watched
		for path in /etc /srv/watched; do
			name=watch-$(systemd-escape "$path")
			printf "[Path]\nPathChanged=%s\n" "$path" >"/etc/systemd/system/$name.path"
			printf "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nExecStart=touch /run/seen-%s\n" "${name#watch-}" >"/etc/systemd/system/$name.service"
		done
		systemctl daemon-reload
		for path in /etc /srv/watched; do
			systemctl start "watch-$(systemd-escape "$path").path" || exit
		done'
}

# watches_work ID: what is made in each of these directories is noticed.
watches_work() {
	guest "$1" sh -c 'rm -f /run/seen-*; for path in /etc /srv/watched; do : >"$path/made-$$"; rm "$path/made-$$"; done'
	wait_until 20 eval "[[ \$(guest '$1' sh -c 'ls /run/seen-*' | wc -l) == 2 ]]"
}

# change makes changes of all sorts in the guest's root; changed ID sees them.
change() {
	guest "$ID" sh -c 'echo kept >/root/kept; chown daemon:daemon /root/kept
		mv /etc/nginx /etc/nginx2; mkdir /etc/nginx; cp -a /etc/nginx2/. /etc/nginx/
		rm /etc/issue; rm -r /usr/share/zsh; mkdir /usr/share/zsh; echo new >/usr/share/zsh/new
		ln /etc/hosts /etc/hosts.link; echo more >>/etc/hosts; sync'
}

changed() {
	guest "$1" sh -c '[ "$(cat /root/kept)" = kept ] && [ "$(stat -c %U:%G:%u /root/kept)" = daemon:daemon:1 ] &&
		[ ! -e /etc/issue ] && [ "$(ls /usr/share/zsh)" = new ] &&
		grep -qx more /etc/hosts.link && [ "$(stat -c %u:%g / /etc/passwd | sort -u)" = 0:0 ]'
}

# life of a guest: boot, change, watch, checkpoint, restore, again, stop, delete.
life() {
	local round
	boot
	change
	watch_root
	# Its root is an ordinary user on the host.
	(($(stat -c %u "/proc/$(pid_of "$ID")") >= 65536))
	for round in 1 2; do
		IMAGES=$VZ_TMP/images-$round
		save
		assert_nothing_left
		[[ $round != 1 || -z ${1:-} ]] || "$1"
		load_as "$ID" "$BUNDLE"
		alive "$ID"
		changed "$ID"
		watches_work "$ID"
	done
	[[ $(echo 'cat /root/kept' | vz enter "$ID" 2>/dev/null | tr -d '\r') == *kept* ]]
	vz ps "$ID" | grep -q nginx
	vz stop "$ID"
	vz delete "$ID"
	assert_nothing_left
}

# clone_life: a clone of round 1, in the bundle $VZ_TMP/clone, lives beside its
# origin, and neither sees what the other writes.
clone_life() {
	local id=$ID-clone
	IMAGES=$VZ_TMP/images-1
	cp "$BUNDLE/config.json" "$VZ_TMP/clone/"
	edit_config "$VZ_TMP/clone" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	[[ -z ${1:-} ]] || edit_config "$VZ_TMP/clone" "$1"
	vz_up "$BUNDLE" "$ID"
	load_as "$id" "$VZ_TMP/clone"
	alive "$id"
	changed "$id"
	watches_work "$id"
	guest "$id" sh -c 'echo mine >/root/clone'
	run -1 guest "$ID" test -e /root/clone
	vz stop "$id"
	vz stop "$ID"
	vz delete "$id"
	vz delete "$ID"
	assert_nothing_left
}

full() { [[ ${VZ_FULL:-} == 1 ]]; }

### Overlay

# Only the upper directory is copied: the kernel keeps an index in the other.
copy_upper() {
	mkdir -m 0711 "$VZ_TMP/clone"
	mkdir -m 0700 "$VZ_TMP/clone/rootfs"
	cp -a "$BUNDLE/rootfs/upper" "$VZ_TMP/clone/rootfs/"
}

@test "overlay: a guest beside a template lives, is saved, restored and cloned" {
	local before
	before=$(tree_sum "$VZRUN_DEBIAN" usr)
	bundle_of overlay
	life copy_upper
	# Owners on disk are not shifted, and the template is as it was.
	[[ $(stat -c %u:%g "$BUNDLE/rootfs/upper/root/kept" "$BUNDLE/rootfs/upper/root") == 1:1$'\n'0:0 ]]
	[[ $(stat -c %a "$BUNDLE/rootfs") == 700 ]]
	[[ $(tree_sum "$VZRUN_DEBIAN" usr) == "$before" ]]
	clone_life
	# Its images are of no use for another kind of root.
	edit_config "$VZ_TMP/clone" 'del(.annotations["org.vzrun.rootfs.overlay"])'
	fails 1 'the kind of rootfs is directory in the bundle and overlay in the images' \
		vz restore --detach --bundle "$VZ_TMP/clone" --image-path "$VZ_TMP/images-1" "$ID"
	assert_nothing_left
}

# page_of PID FILE prints the number of the physical page that holds the first
# page of a file that is mapped by a process; root may see it
# (Documentation/admin-guide/mm/pagemap.rst).
page_of() {
	local address entry
	address=$(awk -v file="$2" '$3 == "00000000" && $6 == file { split($1, range, "-"); print range[1]; exit }' "/proc/$1/maps")
	entry=$(dd if="/proc/$1/pagemap" bs=8 count=1 skip=$((16#$address / $(getconf PAGESIZE))) status=none | od -An -tu8)
	# Bit 63 says present, bits 0 to 54 are the number.
	((entry >> 63 & 1))
	echo $((entry & (1 << 55) - 1))
}

@test "overlay: guests of one template, with other ids, share its pages in memory" {
	local id libc pages=()
	for id in "$ID-one" "$ID-two" "$ID-copy"; do
		mkdir -m 0711 "$VZ_TMP/$id"
		if [[ $id == *-copy ]]; then
			cp -a --reflink=auto "$VZRUN_DEBIAN" "$VZ_TMP/$id/rootfs"
			describe "$VZ_TMP/$id" "$id"
		else
			describe "$VZ_TMP/$id" "$id" --template "$VZRUN_DEBIAN"
		fi
		vz_up "$VZ_TMP/$id" "$id"
	done
	for id in "$ID-one" "$ID-two" "$ID-copy"; do
		wait_guest "$id"
		libc=$(awk '$6 ~ /\/libc\.so/ { print $6; exit }' "/proc/$(pid_of "$id")/maps")
		pages+=("$(page_of "$(pid_of "$id")" "$libc")")
	done
	lacks "the right to see physical pages" test "${pages[0]}" != 0
	[[ $(stat -c %u "/proc/$(pid_of "$ID-one")") != "$(stat -c %u "/proc/$(pid_of "$ID-two")")" ]]
	[[ ${pages[0]} == "${pages[1]}" ]]
	# The same file in a tree of its own is another page: the test can tell.
	[[ ${pages[0]} != "${pages[2]}" ]]
}

@test "overlay: several templates, the uppermost wins; the init may be in any of them" {
	# A name may hold what mount options are made of; ':' separates templates.
	local top="$VZ_TMP/top a,b\\"
	mkdir -p "$top/etc" "$top/opt"
	mkdir -m 0711 "$BUNDLE"
	echo top >"$top/etc/layer"
	cp "$VZRUN_DEBIAN/usr/bin/cat" "$top/opt/cat"
	setcap cap_dac_read_search=ep "$top/opt/cat"
	describe "$BUNDLE" "$ID" --template "$top:$VZRUN_DEBIAN"
	[[ $(jq -r '.annotations["org.vzrun.guest"]' "$BUNDLE/config.json") == systemd ]]
	boot
	[[ $(guest "$ID" cat /etc/layer) == top ]]
	guest "$ID" sh -c 'echo guest >/etc/layer'
	[[ $(<"$top/etc/layer") == top && $(<"$BUNDLE/rootfs/upper/etc/layer") == guest ]]
	# File capabilities count, of the template's and of the guest's own files.
	guest "$ID" setpriv --reuid=1 --regid=1 --clear-groups /opt/cat /etc/shadow | grep -q '^root:'
	run ! guest "$ID" setpriv --reuid=1 --regid=1 --clear-groups cat /etc/shadow
	guest "$ID" cp -a /opt/cat /opt/copy
	guest "$ID" setpriv --reuid=1 --regid=1 --clear-groups /opt/copy /etc/shadow | grep -q '^root:'
	[[ $(getcap "$BUNDLE/rootfs/upper/opt/copy") == *cap_dac_read_search* ]]
	# The guest learns nothing of the host's directories.
	[[ $(guest "$ID" cat /proc/self/mountinfo) != *"$VZ_TMP"* ]]
}

### Images

copy_image() {
	mkdir -m 0711 "$VZ_TMP/clone"
	mkdir -m 0700 "$VZ_TMP/clone/rootfs"
	cp --sparse=always --reflink=auto "$BUNDLE/disk.img" "$VZ_TMP/clone/"
}

@test "ext4 image: a guest in it lives, is saved and restored" {
	bundle_of ext4
	if full; then
		life copy_image
		clone_life
		e2fsck -fn "$VZ_TMP/clone/disk.img"
	else
		life
	fi
	no_loops
	e2fsck -fn "$BUNDLE/disk.img"
}

@test "xfs image: a guest in it lives, is saved and restored" {
	require "xfsprogs" command -v mkfs.xfs
	bundle_of xfs
	if full; then
		life copy_image
		clone_life
	else
		life
	fi
	no_loops
	xfs_repair -n "$BUNDLE/disk.img"
}

@test "btrfs image: a guest in it lives, is saved and restored" {
	require "btrfs-progs" command -v mkfs.btrfs
	bundle_of btrfs
	if full; then
		life copy_image
		clone_life
	else
		life
	fi
	no_loops
	btrfs check "$BUNDLE/disk.img"
}

# copies KIND: two clones of a guest in an image run beside each other, in copies of
# it; the origin's is not written to, and none is made while that runs, or has since.
copies() {
	local id sum
	bundle_of "$1"
	boot
	change
	watch_root
	save
	sum=$(sha256sum <"$BUNDLE/disk.img")
	for id in "$ID-a" "$ID-b"; do
		app_launch restore --detach --clone-of "$IMAGES" --bundle "$VZ_TMP/$id" "$id"
	done
	for id in "$ID-a" "$ID-b"; do
		alive "$id"
		changed "$id"
		watches_work "$id"
		[[ $(guest "$id" hostname) == "$id" ]]
		guest "$id" sh -c 'echo mine >"/root/$(hostname)"'
		[[ $(uids_of "$id") != "$(jq '.linux.uidMappings[0].hostID' "$BUNDLE/config.json")" ]]
	done
	run -1 guest "$ID-a" test -e "/root/$ID-b"
	[[ $(uids_of "$ID-a") != "$(uids_of "$ID-b")" ]]
	vz delete --force "$ID-a"
	vz delete --force "$ID-b"
	assert_nothing_left
	wait_until 10 no_loops
	[[ $(sha256sum <"$BUNDLE/disk.img") == "$sum" ]]
	load_as "$ID" "$BUNDLE"
	alive "$ID"
	fails 1 'image .*/disk.img of the origin: in use' vz restore --detach --clone-of "$IMAGES" --bundle "$VZ_TMP/none" "$ID-none"
	vz delete --force "$ID"
	fails 1 'has changed since' vz restore --detach --clone-of "$IMAGES" --bundle "$VZ_TMP/none" "$ID-none"
	[[ ! -e $VZ_TMP/none ]]
	assert_nothing_left
	wait_until 10 no_loops
}

uids_of() { awk '{ print $2 }' "/proc/$(pid_of "$1")/uid_map"; }

@test "ext4 image: clones have copies of it" { copies ext4; }

@test "xfs image: clones have copies of it" {
	full || skip "long: VZ_FULL=1"
	require "xfsprogs" command -v mkfs.xfs
	copies xfs
}

@test "btrfs image: clones have copies of it" {
	full || skip "long: VZ_FULL=1"
	require "btrfs-progs" command -v mkfs.btrfs
	copies btrfs
}

@test "a block device is an image, too, for one guest at a time" {
	mkdir -m 0711 "$BUNDLE"
	new_image ext4 "$VZ_TMP/disk.img" "$VZRUN_DEBIAN"
	DEVICE=$(losetup --find --show "$VZ_TMP/disk.img")
	describe "$BUNDLE" "$ID" --image "$DEVICE"
	boot
	mkdir -m 0711 "$VZ_TMP/second" "$VZ_TMP/second/rootfs"
	cp "$BUNDLE/config.json" "$VZ_TMP/second/"
	edit_config "$VZ_TMP/second" '.linux.cgroupsPath += "-second" | .annotations["org.vzrun.ids"] = "shared"'
	fails 1 "image $DEVICE: in use" vz run --detach --bundle "$VZ_TMP/second" "$ID-second"
	save
	fails 5 "a clone of a container whose root is the block device $DEVICE" vz restore --detach --clone-of "$IMAGES" "$ID-second"
	load_as "$ID" "$BUNDLE"
	alive "$ID"
	vz delete --force "$ID"
	assert_nothing_left
	wait_until 10 losetup --detach "$DEVICE"
	DEVICE=
	wait_until 10 no_loops
}

### Subvolumes, directories

snapshot() {
	mkdir -m 0711 "$VZ_TMP/clone"
	btrfs -q subvolume snapshot "$VZ_TMP/pool/web" "$VZ_TMP/pool/clone"
}

# The pool is mounted by the test, which is no leftover.
assert_nothing_left() {
	if ! wait_until 5 nothing_left "$VZ_TMP/pool"; then
		all_left "$VZ_TMP/pool"
		return 1
	fi
}

@test "btrfs subvolume: a guest in it lives; a snapshot is its clone's root" {
	require "btrfs-progs" command -v mkfs.btrfs
	bundle_of subvolume
	life snapshot
	clone_life ".root.path = \"$VZ_TMP/pool/clone\""
	btrfs subvolume delete "$VZ_TMP/pool/clone"
}

### What an engine has mounted

@test "an engine's overlay: it runs; with index and nfs_export it is saved and restored, else the error says how" {
	bundle_of engine
	engine_mount index=off
	fails 5 'map ids of .*: not supported here: its file system has no id-mapped mounts' vz run --detach --bundle "$BUNDLE" "$ID"
	[[ ${stderr_lines[1]} == *org.vzrun.rootfs.overlay* ]]
	edit_config "$BUNDLE" 'del(.annotations["org.vzrun.rootfs"])'
	boot
	fails 1 'overlay' vz checkpoint --image-path "$IMAGES" "$ID"
	[[ ${stderr_lines[1]} == *index=on,nfs_export=on* ]]
	alive "$ID"
	vz delete --force "$ID"
	unmount_all
	engine_mount index=on,nfs_export=on
	boot
	change
	watch_root
	save
	load_as "$ID" "$BUNDLE"
	alive "$ID"
	changed "$ID"
	watches_work "$ID"
	vz delete --force "$ID"
}

### Bad input; none of it needs a whole system

# app_overlay and app_image make bundles of a program in a busybox.
app_overlay() {
	BUNDLE=$(app_bundle "$1" sleep 1000)
	mv "$BUNDLE/rootfs" "$VZ_TMP/template"
	mkdir -m 0700 "$BUNDLE/rootfs"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$VZ_TMP/template"
}

app_image() {
	BUNDLE=$(app_bundle "$1" sleep 1000)
	truncate -s "${2:-64M}" "$BUNDLE/disk.img"
	mkfs.ext4 -q -d "$BUNDLE/rootfs" "$BUNDLE/disk.img"
	rm -r "$BUNDLE/rootfs"
	mkdir -m 0700 "$BUNDLE/rootfs"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.image"] = "disk.img"'
}

# refused REGEX [ID [CODE]]
refused() { fails "${3:-1}" "$1" vz run --detach --bundle "$BUNDLE" "${2:-$ID}"; }

@test "templates that cannot work are refused, and nothing is left" {
	app_overlay "$ID"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = "/nowhere/debian"'
	refused 'template /nowhere/debian: file does not exist'
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$BUNDLE/config.json"
	refused 'template .*/config.json is not a directory'
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$BUNDLE"
	refused 'template .* overlap'
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = "/proc/sys"'
	refused 'mount an overlay on .*: not supported here by these file systems' "$ID" 5
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.image"] = "disk.img"'
	refused 'exclude each other'
	assert_free
	mkdir "$VZ_TMP/empty" "$VZ_TMP/b"
	fails 1 'no init in the rootfs' vz spec --system --bundle "$VZ_TMP/b" --template "$VZ_TMP/empty"
	fails 1 'template .*: file does not exist' vz spec --system --bundle "$VZ_TMP/b" --template "$VZ_TMP/none"
	fails 1 'image .*: file does not exist' vz spec --system --bundle "$VZ_TMP/b" --image none.img
	run -2 vz spec --system --bundle "$VZ_TMP/b" --image a --template b
	run -2 vz spec --system --bundle "$VZ_TMP/b" --image ''
	run -2 vz spec --bundle "$VZ_TMP/b" --template "$VZ_TMP/empty"
	[[ -z $(ls "$VZ_TMP/b") ]]
}

@test "an upper directory is for one container at a time, and for its own template" {
	app_overlay "$ID"
	app_up "$BUNDLE" "$ID"
	edit_config "$BUNDLE" '.linux.cgroupsPath += "-second"'
	refused 'rootfs .*/upper is in use' "$ID-second"
	[[ $(guest "$ID" echo alive) == alive ]]
	vz delete --force "$ID"
	cp -a "$VZ_TMP/template" "$VZ_TMP/other"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$VZ_TMP/other"
	refused 'upper belongs to another template, or is a copy'
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$VZ_TMP/template"
	# Of a copy that has the index of its origin, the remedy in the hint helps.
	cp -a "$BUNDLE" "$VZ_TMP/copy"
	BUNDLE=$VZ_TMP/copy
	refused 'upper belongs to another template, or is a copy'
	[[ ${stderr_lines[1]} == *"remove $VZ_TMP/copy/rootfs/work" ]]
	rm -r "$VZ_TMP/copy/rootfs/work"
	app_up "$BUNDLE" "$ID"
	vz delete --force "$ID"
	assert_free
}

@test "a full disk below the upper directory is an error with a remedy" {
	app_overlay "$ID"
	truncate -s 300K "$VZ_TMP/small.img"
	mkfs.ext4 -q -O ^has_journal -N 16 "$VZ_TMP/small.img"
	host_mount "$VZ_TMP/pool" -o loop "$VZ_TMP/small.img"
	cp "$BUNDLE/config.json" "$VZ_TMP/pool/"
	mkdir "$VZ_TMP/pool/rootfs"
	while : >"$VZ_TMP/pool/$RANDOM"; do :; done 2>/dev/null
	BUNDLE=$VZ_TMP/pool
	refused 'prepare the rootfs: .*no space left'
	[[ ${stderr_lines[1]} == *"free space or inodes on the file system of $VZ_TMP/pool/rootfs"* ]]
	assert_nothing_left
}

@test "images that cannot work are refused, and nothing is left" {
	app_image "$ID"
	cp --sparse=always "$BUNDLE/disk.img" "$VZ_TMP/good.img"
	: >"$BUNDLE/disk.img"
	refused 'image .*/disk.img: no ext4, xfs or btrfs file system found'
	[[ ${stderr_lines[1]} == *mkfs.ext4* ]]
	truncate -s 1M "$BUNDLE/disk.img"
	refused 'no ext4, xfs or btrfs file system found'
	printf '\x55\xaa' | dd of="$BUNDLE/disk.img" bs=1 seek=510 conv=notrunc status=none
	refused 'it is a disk with partitions'
	# A superblock, and rubbish for the rest.
	head -c 4096 "$VZ_TMP/good.img" >"$BUNDLE/disk.img"
	refused 'mount the ext4 of image .*/disk.img'
	[[ ${stderr_lines[1]} == *"e2fsck -f $BUNDLE/disk.img"* ]]
	rm "$BUNDLE/disk.img"
	refused 'image .*/disk.img: file does not exist'
	ln -s "$VZ_TMP/good.img" "$BUNDLE/disk.img"
	refused 'image disk.img leads out of the bundle'
	rm "$BUNDLE/disk.img"
	mkdir "$BUNDLE/disk.img"
	refused 'neither a file nor a block device'
	rmdir "$BUNDLE/disk.img"
	cp --sparse=always "$VZ_TMP/good.img" "$BUNDLE/disk.img"
	chmod 0444 "$BUNDLE/disk.img"
	refused 'image .* is read-only'
	chmod 0600 "$BUNDLE/disk.img"
	host_mount "$VZ_TMP/pool" --bind -o ro "$BUNDLE"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.image"] = $ARGS.positional[0]' "$VZ_TMP/pool/disk.img"
	mount -o remount,bind,ro "$VZ_TMP/pool"
	refused 'image is read-only'
	assert_free
}

@test "an image is for one container at a time, and for nobody beside it" {
	app_image "$ID"
	app_up "$BUNDLE" "$ID"
	edit_config "$BUNDLE" '.linux.cgroupsPath += "-second"'
	refused 'image .*/disk.img: in use' "$ID-second"
	[[ $(guest "$ID" echo alive) == alive ]]
	# Under another name it is the same image.
	ln "$BUNDLE/disk.img" "$BUNDLE/link.img"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.image"] = "link.img"'
	refused 'image .*/link.img: in use' "$ID-second"
	vz delete --force "$ID"
	# What the host has attached by itself is found.
	DEVICE=$(losetup --find --show --read-only "$BUNDLE/disk.img")
	refused "image .*/link.img: in use: it is $DEVICE"
	losetup --detach "$DEVICE"
	DEVICE=
	app_up "$BUNDLE" "$ID"
	vz delete --force "$ID"
	assert_free
	e2fsck -fn "$BUNDLE/disk.img"
}

# tame: the guest's device node does not work, and errors do not end the host.
tame() {
	run ! guest "$ID" dd if=/disk of=/dev/null count=1
	[[ $output == *ermission* ]]
	grep -E ' / / .*nodev.* - ext4 ' "/proc/$(pid_of "$ID")/mountinfo" | grep -q 'errors=remount-ro'
}

@test "a hostile image gets no device nodes and no panic, restored or not" {
	app_image "$ID"
	debugfs -w -R 'mknod disk b 254 0' "$BUNDLE/disk.img" 2>/dev/null
	tune2fs -e panic "$BUNDLE/disk.img" >/dev/null
	app_up "$BUNDLE" "$ID"
	tame
	save
	load_as "$ID" "$BUNDLE"
	tame
}

### Crashes

# slay DELAY... kills vzrun run after each delay, and looks for what is left.
slay() {
	local delay
	for delay; do
		timeout --foreground --signal=KILL "$delay" "$VZRUN" --root "$VZ_ROOT" run --detach --bundle "$BUNDLE" "$ID" \
			</dev/null >/dev/null 2>&1 3>&- || true
		vz delete --force "$ID"
		assert_nothing_left
		wait_until 10 no_loops
	done
}

@test "killed at any moment, vzrun leaves no mount and no loop device" {
	local delays=(0.01 0.03 0.06 0.1)
	! full || mapfile -t delays < <(seq 0.005 0.005 0.2)
	app_image "$ID"
	slay "${delays[@]}"
	e2fsck -fn "$BUNDLE/disk.img" || [[ $? == 4 ]] # a journal to recover
	app_up "$BUNDLE" "$ID"
	vz delete --force "$ID"
	e2fsck -fn "$BUNDLE/disk.img"
	rm -r "$BUNDLE"
	app_overlay "$ID"
	slay "${delays[@]}"
	app_up "$BUNDLE" "$ID"
	[[ $(guest "$ID" echo alive) == alive ]]
}

@test "killed in a checkpoint or a restore, an image and an overlay are free for the next" {
	local kind delay
	for kind in image overlay; do
		rm -rf "$VZ_TMP/template" "$BUNDLE"
		"app_$kind" "$ID"
		app_up "$BUNDLE" "$ID"
		app_launch checkpoint --image-path "$VZ_TMP/$kind" "$ID"
		for delay in 0.02 0.05 0.1 0.2; do
			timeout --foreground --signal=KILL "$delay" "$VZRUN" --root "$VZ_ROOT" restore --detach --bundle "$BUNDLE" \
				--image-path "$VZ_TMP/$kind" "$ID" </dev/null >/dev/null 2>&1 3>&- || true
			vz delete --force "$ID"
			assert_free
		done
		app_restore "$BUNDLE" "$ID" "$VZ_TMP/$kind"
		[[ $(guest "$ID" echo alive) == alive ]]
		vz delete --force "$ID"
	done
	assert_free
}
