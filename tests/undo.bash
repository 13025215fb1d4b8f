# shellcheck shell=bash
# Suites set and use $IMAGES, $BUNDLE, $BEFORE and $count.
# shellcheck disable=SC2034,SC2154
# Helpers of the suites that let an operation fail, beside helpers.bash and app.bash:
#
#   load helpers
#   load app
#   load undo

# The counter's own folder is all that its guest writes to.
count=var/lib/vzcount

# real_criu prints the criu that vzrun finds.
real_criu() {
	local criu
	for criu in "$(dirname "$VZRUN")/../libexec/vzrun/criu" /usr/local/libexec/vzrun/criu /usr/libexec/vzrun/criu criu; do
		command -v "$criu" && return
	done
}

# as_before: the guest runs, is whole, and nothing of the operation is left but
# perhaps whole images.
as_before() {
	local pid
	has_status "$ID" running
	wait_counter "$BUNDLE/rootfs" 2
	verify_counter "$BUNDLE/rootfs"
	[[ $(guest "$ID" echo works) == works ]]
	no_criu
	for pid in $(vz ps --format json "$ID" | jq '.[]'); do
		untraced "$pid" || return 1
	done
	unlocked
	jq -e '.operation == null' "$VZ_ROOT/@/$ID.json"
	[[ -e $IMAGES/vzrun.json || -z $(find "$IMAGES" -name '*.img') ]]
}

# no_criu: nobody has our images, or where CRIU works, open.
no_criu() {
	local dir dirs
	# One program for all processes, not one for each.
	mapfile -t dirs < <(find /proc/[0-9]*/cwd -lname "$VZ_TMP/*" -printf '%h\n')
	for dir in "${dirs[@]}"; do
		[[ $(<"$dir/comm") != criu* ]] || {
			echo "left: $dir $(tr '\0' ' ' <"$dir/cmdline")"
			return 1
		}
	done
} 2>/dev/null

# untraced PID: nobody traces it, and it is not stopped; one that has ended is well.
untraced() {
	local status
	status=$(<"/proc/$1/status") || return 0
	if ! grep -qP '^TracerPid:\t0$' <<<"$status" || grep -qP '^State:\t[tT] ' <<<"$status"; then
		grep -E '^(Name|State|TracerPid)' <<<"$status"
		return 1
	fi
} 2>/dev/null

unlocked() {
	local tables
	tables=$(nsenter --net="/proc/$(pid_of "$ID")/ns/net" nft list tables)
	if grep -i criu <<<"$tables"; then
		return 1
	fi
}

# comes_back: what cannot go on is gone, its images are whole, and it comes back.
comes_back() {
	vz delete --force "$ID"
	assert_nothing_left
	[[ -e $IMAGES/vzrun.json ]]
	app_restore "$BUNDLE" "$ID" "$IMAGES"
}

end_well() {
	vz delete --force "$ID"
	assert_nothing_left
	[[ -z ${BEFORE:-} || $(tree_sum "$BUNDLE/rootfs" "$count") == "$BEFORE" ]]
}

# disk SIZE mounts a small disk at $VZ_TMP/disk.
disk() {
	mkdir -p "$VZ_TMP/disk"
	mount -t tmpfs -o "size=$1" vzrun-test "$VZ_TMP/disk"
}

umount_disk() {
	local mount
	for mount in $(mounts | grep "^$VZ_TMP/disk"); do
		umount "$mount"
	done
}

# subject makes $BUNDLE, of a container that counts or, in the long form, of a whole
# Debian that does, and runs it.
subject() {
	if [[ ${1:-} == debian ]]; then
		BUNDLE=$(debian_bundle "$ID")
		vz_up "$BUNDLE" "$ID"
		wait_guest "$ID"
	else
		BUNDLE=$(app_bundle "$ID" /usr/local/bin/vzguest count "/$count/log")
		mkdir -p "$BUNDLE/rootfs/$count"
		BEFORE=$(tree_sum "$BUNDLE/rootfs" "$count")
		app_up "$BUNDLE" "$ID"
	fi
	wait_counter "$BUNDLE/rootfs"
}
