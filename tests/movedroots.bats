#!/usr/bin/env bats
# Migrations of guests whose root is an overlay, a btrfs subvolume, or on storage that
# both hosts have.
# $ARGS is jq's; suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app
load twohosts

setup_file() { two_hosts; }
teardown_file() { two_hosts_end; }
setup() { two_hosts_test; }
teardown() { two_hosts_test_ends; }

@test "an overlay moves: its changes, and the templates that are not there" {
	local template=$T/template
	busybox_bundle "$ID" sh -c 'n=0; while :; do n=$((n+1)); echo $n >>/count; sleep 0.05; done' >/dev/null
	BUNDLE=$VZ_TMP/$ID
	mv "$BUNDLE/rootfs" "$template"
	mkdir -m 0700 "$BUNDLE/rootfs"
	mkdir -p "$template/old/deep"
	echo gone >"$template/gone"
	echo old >"$template/old/deep/file"
	edit_config "$BUNDLE" '.mounts |= map(select(.type != "cgroup")) | .annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$template"
	app_up "$BUNDLE" "$ID"
	guest "$ID" sh -c 'rm /gone && rm -r /old && mkdir /old && echo new >/old/new && ln /count /other'
	wait_lines "$BUNDLE/rootfs/upper/count" 3
	listen_b
	run -0 migrate --dry-run "$ID" "unix://$T/b"
	[[ $output == *"template 0"*"the same"* ]]
	run -0 migrate --stats "$T/stats" "$ID" "unix://$T/b"
	overlay_moved "$(bundles)/$ID"
	[[ ! -e $(bundles)/$ID/templates && ! -e $BUNDLE ]]
	jq -e '.rootfs_bytes < 200000' "$T/stats"

	# On the way back the other side has another one under that name.
	spawn "$T/receive-a.log" unshare --mount --propagation private -- sh -c 'mount -t tmpfs none "$1" && shift && exec "$@"' sh "$template" \
		nsenter --net="/run/netns/vzrun-test-$VZ_TAG-a" -- "$VZRUN" --root "$VZ_ROOT/a" --id-record "$VZ_TMP/ids-a.json" \
		receive --listen "unix://$T/a" --bundles "$T/bundles-a" --cgroup-parent "vzrun-test-$VZ_TAG-a"
	wait_file "$T/a"
	run -0 on b lazy-migrate --dry-run "$ID" "unix://$T/a"
	[[ $output == *"template 0"*"is sent"* ]]
	on b lazy-migrate --mode cold "$ID" "unix://$T/a"
	[[ $(tree_sum "$template") == "$(tree_sum "$T/bundles-a/$ID/templates/0")" && ! -e $(bundles)/$ID ]]
	[[ $(jq -r '.annotations["org.vzrun.rootfs.overlay"]' "$T/bundles-a/$ID/config.json") == templates/0 ]]
	counts "$T/bundles-a/$ID/rootfs/upper/count"
	[[ $(guest "$ID" sh -c 'cat /old/new; ls /gone 2>/dev/null' || true) == new ]]
	# And once more, with the template that it brought.
	on a lazy-migrate --mode cold "$ID" "unix://$T/b"
	overlay_moved "$(bundles)/$ID"
	[[ -e $(bundles)/$ID/templates/0/bin && ! -e $T/bundles-a/$ID ]]
}

# overlay_moved BUNDLE: it runs at b, with what it had changed.
overlay_moved() {
	[[ $(on b state "$ID" | jq -r .status) == running ]]
	run ! on a state "$ID"
	counts "$1/rootfs/upper/count"
	[[ -c $1/rootfs/upper/gone && $(on b exec "$ID" sh -c 'ls /old; cat /old/new; ls /gone 2>/dev/null' </dev/null) == $'new\nnew' ]]
	on b exec "$ID" sh -c '[ /count -ef /other ]' </dev/null
}

@test "a root on btrfs moves with its nested subvolumes" {
	require btrfs command -v mkfs.btrfs
	truncate -s 512M "$T/pool.img"
	mkfs.btrfs -q "$T/pool.img"
	mkdir "$T/pool"
	mount -o loop "$T/pool.img" "$T/pool"
	small_guest_on_btrfs
	listen_b
	run -0 migrate --dry-run "$ID" "unix://$T/b"
	migrate "$ID" "unix://$T/b"
	BUNDLE=$T/pool/bundle
	runs_at b
	[[ $(<"$(bundles)/$ID/rootfs/srv/nested/file") == kept ]]
	wait_until 10 umount "$T/pool"
}

# small_guest_on_btrfs has its root in a subvolume, with another one in it.
small_guest_on_btrfs() {
	BUNDLE=$T/pool/bundle
	mkdir "$BUNDLE"
	btrfs -q subvolume create "$BUNDLE/rootfs"
	cp -a "$VZRUN_BUSYBOX/." "$BUNDLE/rootfs/"
	mkdir -p "$BUNDLE/rootfs/srv"
	btrfs -q subvolume create "$BUNDLE/rootfs/srv/nested"
	echo kept >"$BUNDLE/rootfs/srv/nested/file"
	vz spec --bundle "$BUNDLE"
	edit_config "$BUNDLE" '.process.terminal = false | .process.args = ["sh", "-c", $ARGS.positional[0]] | .root.readonly = false
		| .linux.cgroupsPath = $ARGS.positional[1] | .mounts |= map(select(.type != "cgroup"))' \
		'n=0; while :; do n=$((n+1)); echo $n >>/count; sleep 0.05; done' "$(cgroup_of "$ID")"
	app_up "$BUNDLE" "$ID"
	wait_lines "$BUNDLE/rootfs/count" 3
}

@test "shared storage: no file is sent, and none removed" {
	MODE=lazy
	small_guest
	listen_b
	run -0 migrate --shared-storage --stats "$T/stats" "$ID" "unix://$T/b"
	jq -e '.rootfs_bytes == 0 and .memory_bytes > 40000000' "$T/stats"
	[[ $(on b state "$ID" | jq -r '.status, .bundle' | tr '\n' ' ') == "running $BUNDLE " ]]
	run ! on a state "$ID"
	counts "$BUNDLE/rootfs/count"
	[[ -e $BUNDLE/config.json && ! -e $BUNDLE/migration && ! -e $BUNDLE/arrival && ! -e $(bundles)/$ID ]]
	# And back.
	listen_a
	on b lazy-migrate --mode cold --shared-storage "$ID" "unix://$T/a"
	run ! on b state "$ID"
	has_status "$ID" running
	counts "$BUNDLE/rootfs/count"
	# Cut off, it is here as before, with its files.
	cut_at before ready
	fails 1 '' migrate --shared-storage "$ID" "unix://$T/cut"
	has_status "$ID" running
	counts "$BUNDLE/rootfs/count"
	wait_until 10 nothing_shared
}

# What CRIU has logged may stay in $BUNDLE/migration, at the source.
nothing_shared() { [[ -z $(on b list --quiet) && ! -e $BUNDLE/arrival ]]; }
