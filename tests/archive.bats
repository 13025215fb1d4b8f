#!/usr/bin/env bats
# Checkpoints as archives: exported, moved, verified and restored.
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() { vz_setup; }
teardown() {
	[[ -z ${SMALL:-} ]] || umount -l "$SMALL" || true
	vz_teardown
}

# The counter's own folder is all that its guest writes to.
count=var/lib/vzcount

# counter_up starts a counter from the bundle $BUNDLE.
counter_up() {
	BUNDLE=$(app_bundle "$ID" /usr/local/bin/vzguest count "/$count/log")
	mkdir -p "$BUNDLE/rootfs/$count"
	app_up "$BUNDLE" "$ID"
	wait_counter "$BUNDLE/rootfs"
}

# overlay_up is counter_up with an overlay over a template, of which it has
# deleted and replaced something.
overlay_up() {
	BUNDLE=$(app_bundle "$ID" /usr/local/bin/vzguest count "/$count/log")
	mv "$BUNDLE/rootfs" "$VZ_TMP/template"
	mkdir -p "$BUNDLE/rootfs" "$VZ_TMP/template/$count" "$VZ_TMP/template/srv/old"
	echo template >"$VZ_TMP/template/srv/gone"
	echo template >"$VZ_TMP/template/srv/old/note"
	edit_config "$BUNDLE" '.annotations["org.vzrun.rootfs.overlay"] = $ARGS.positional[0]' "$VZ_TMP/template"
	app_up "$BUNDLE" "$ID"
	guest "$ID" sh -c 'rm /srv/gone; rm -r /srv/old; mkdir /srv/old; echo guest >/srv/new'
	wait_counter "$BUNDLE/rootfs/upper"
}

# export_to FILE [FLAG...]
export_to() { vz checkpoint --export "$1" "${@:2}" "$ID" 2>"$VZ_TMP/export.err" || { cat "$VZ_TMP/export.err"; return 1; }; }

# import_from FILE [FLAG...] restores it under $ID.
import_from() { app_launch restore --detach --import "$1" "${@:2}" "$ID"; }

# still_running ROOTFS: the guest goes on counting, and nothing private is left.
still_running() {
	has_status "$ID" running
	wait_counter "$1"
	"$VZRUN_BUSYBOX/usr/local/bin/vzguest" verify "$1/$count/log"
	[[ -z $(find "$VZ_TMP" -name '.*vzrun-*') ]] || {
		find "$VZ_TMP" -name '.*vzrun-*'
		return 1
	}
}

# refused FILE CODE REGEX [FLAG...] is an import that must fail and leave nothing.
refused() {
	fails "$2" "$3" vz restore --detach --import "$1" --work-path "$VZ_TMP" --bundle "$VZ_TMP/refused" "${@:4}" "$ID-refused"
	[[ ! -e $VZ_TMP/refused && -z $(find "$VZ_TMP" -name '.*vzrun-*') ]]
	fails 1 'does not exist' vz state "$ID-refused"
}

### Round trips

@test "a file and a pipe: a guest goes on from what was in the archive" {
	counter_up
	export_to "$VZ_TMP/save.tar.zst"
	fails 1 'does not exist' vz state "$ID"
	[[ $(stat -c %a "$VZ_TMP/save.tar.zst") == 600 ]]
	assert_nothing_left
	# What is there is not written to again, nor is the guest touched for it.
	import_from "$VZ_TMP/save.tar.zst" --bundle "$BUNDLE"
	still_running "$BUNDLE/rootfs"
	fails 1 'file already exists' vz checkpoint --export "$VZ_TMP/save.tar.zst" "$ID"
	still_running "$BUNDLE/rootfs"

	vz checkpoint --export - --work-path "$VZ_TMP/work" "$ID" | cat >"$VZ_TMP/piped"
	# The guest's standard input is not what is left of the pipe.
	dd if="$VZ_TMP/piped" status=none | vz --log "$VZ_TMP/launch.log" restore --detach --import - --bundle "$BUNDLE" "$ID" >/dev/null 2>&1 3>&-
	[[ $(readlink "/proc/$(pid_of "$ID")/fd/0") == /dev/null ]]
	still_running "$BUNDLE/rootfs"
	vz delete --force "$ID"
	assert_nothing_left
}

@test "the members are those that other programs know, and their digests are right" {
	counter_up
	export_to "$VZ_TMP/save.tar" --leave-running
	still_running "$BUNDLE/rootfs"
	tar -tf "$VZ_TMP/save.tar" >"$VZ_TMP/list"
	grep -qx 'checkpoint/' "$VZ_TMP/list"
	grep -qx 'checkpoint/inventory.img' "$VZ_TMP/list"
	grep -qx 'dump.log' "$VZ_TMP/list"
	grep -qx 'stats-dump' "$VZ_TMP/list"
	tar -xOf "$VZ_TMP/save.tar" config.dump | jq -e --arg id "$ID" '.id == $id and .runtime == "vzrun"'
	tar -xOf "$VZ_TMP/save.tar" spec.dump | jq -e '.process.args[0] == "/usr/local/bin/vzguest"'
	mkdir "$VZ_TMP/x"
	tar -C "$VZ_TMP/x" -xf "$VZ_TMP/save.tar"
	jq -r '.[] | "\(.sha256)  \(.name)"' "$VZ_TMP/x/vzrun.digests" >"$VZ_TMP/sums"
	(cd "$VZ_TMP/x" && sha256sum --check --quiet "$VZ_TMP/sums")
	(($(wc -l <"$VZ_TMP/sums") > 10))

	vz checkpoint inspect --format json "$VZ_TMP/save.tar" >"$VZ_TMP/inspected"
	jq -e --arg id "$ID" '.verified and .id == $id and .form == "tar" and .rootfs == "directory" and .tasks == 1 and .bytes > 10000' "$VZ_TMP/inspected"
	[[ $(jq -r .digest "$VZ_TMP/inspected") == "$(<"$VZ_TMP/x/vzrun.end")" ]]
	vz checkpoint inspect - <"$VZ_TMP/save.tar" | grep -qx "container  *$ID"
	vz checkpoint inspect "$VZ_TMP/save.tar" | grep -qx 'command  */usr/local/bin/vzguest count .*'
	fails 2 'container id is missing|argument is missing' vz checkpoint

	# As engines export what vzrun has saved for them: without digests.
	export_to "$VZ_TMP/last.tar"
	mkdir "$VZ_TMP/y"
	tar -C "$VZ_TMP/y" -xf "$VZ_TMP/last.tar"
	tar -C "$VZ_TMP/y" -czf "$VZ_TMP/engine.tar.gz" --exclude ./vzrun.* .
	import_from "$VZ_TMP/engine.tar.gz" --bundle "$BUNDLE"
	grep -q 'nothing in it says that it is whole' "$VZ_TMP/launch.log"
	still_running "$BUNDLE/rootfs"
}

@test "memory that is compressed while CRIU writes it is what CRIU has written" {
	local file
	BUNDLE=$(app_bundle "$ID" /memory 48 /log)
	cp "$(build_command memory)" "$BUNDLE/rootfs/memory"
	app_up "$BUNDLE" "$ID"
	remembers
	export_to "$VZ_TMP/save.tar.zst" --leave-running --image-path "$VZ_TMP/kept"
	mkdir "$VZ_TMP/x"
	tar -C "$VZ_TMP/x" --zstd -xf "$VZ_TMP/save.tar.zst"
	for file in "$VZ_TMP"/kept/*.img; do
		cmp "$file" "$VZ_TMP/x/checkpoint/${file##*/}"
	done
	(($(du -bc "$VZ_TMP"/x/checkpoint/pages-*.img | tail -n 1 | cut -f 1) > 48 << 20))
	jq -r '.[] | "\(.sha256)  \(.name)"' "$VZ_TMP/x/vzrun.digests" >"$VZ_TMP/sums"
	(cd "$VZ_TMP/x" && sha256sum --check --quiet "$VZ_TMP/sums")
	export_to "$VZ_TMP/save.oci" --leave-running
	vz checkpoint inspect --format json "$VZ_TMP/save.oci" | jq -e '.verified'
	remembers
	export_to "$VZ_TMP/last.tar.zst"
	import_from "$VZ_TMP/last.tar.zst" --bundle "$BUNDLE"
	remembers
	[[ -z $(find "$VZ_TMP" -name '.*vzrun-*') ]]
}

# remembers waits for two more rounds of a guest that verifies its memory.
remembers() {
	wait_file "$BUNDLE/rootfs/log"
	wait_lines "$BUNDLE/rootfs/log" $(($(wc -l <"$BUNDLE/rootfs/log") + 2))
	! grep bad "$BUNDLE/rootfs/log"
}

@test "a container that is called inspect is checkpointed, not inspected" {
	ID=inspect
	counter_up
	vz checkpoint --image-path "$VZ_TMP/images" inspect
	fails 1 'does not exist' vz state inspect
	vz checkpoint inspect --format json "$VZ_TMP/images" | jq -e '.id == "inspect" and .form == "directory"'
}

@test "an encrypted archive opens for its recipients alone" {
	require age age --version
	local identity=$VZ_TMP/key
	age-keygen 2>/dev/null >"$identity"
	age-keygen 2>/dev/null >"$VZ_TMP/other"
	age-keygen 2>/dev/null >"$VZ_TMP/third"
	counter_up
	fails 1 'recipients' vz checkpoint --export "$VZ_TMP/save.age" --encrypt-to age1nonsense "$ID"
	still_running "$BUNDLE/rootfs"
	sed -n 's/^# public key: //p' "$identity" >"$VZ_TMP/recipients"
	export_to "$VZ_TMP/save.age" --encrypt-to "$VZ_TMP/recipients" --encrypt-to "$(sed -n 's/^# public key: //p' "$VZ_TMP/other")"
	[[ $(head -c 21 "$VZ_TMP/save.age") == age-encryption.org/v1 ]]
	# It is what age and tar read, too.
	age --decrypt --identity "$identity" "$VZ_TMP/save.age" | tar --zstd -t | grep -qx config.dump
	refused "$VZ_TMP/save.age" 1 'is encrypted'
	refused "$VZ_TMP/save.age" 1 'is encrypted to others' --identity "$VZ_TMP/third"
	import_from "$VZ_TMP/save.age" --bundle "$BUNDLE" --identity "$VZ_TMP/other"
	still_running "$BUNDLE/rootfs"
	vz checkpoint inspect --identity "$identity" --format json "$VZ_TMP/save.age" | jq -e '.encrypted and .verified'
}

@test "an OCI image layout has the annotations of a checkpoint" {
	counter_up
	export_to "$VZ_TMP/save.oci"
	jq -e '.imageLayoutVersion == "1.0.0"' "$VZ_TMP/save.oci/oci-layout"
	jq -r '.manifests[0].digest' "$VZ_TMP/save.oci/index.json" >"$VZ_TMP/digest"
	jq -e --arg id "$ID" '.annotations["org.criu.checkpoint.container.name"] == $id and .annotations["org.criu.checkpoint.engine.name"] == "vzrun"
		and (.layers | length == 1)' "$VZ_TMP/save.oci/blobs/sha256/$(cut -d : -f 2 "$VZ_TMP/digest")"
	(cd "$VZ_TMP/save.oci/blobs/sha256" && for blob in *; do echo "$blob  $blob"; done | sha256sum --check --quiet)
	import_from "$VZ_TMP/save.oci" --bundle "$BUNDLE"
	still_running "$BUNDLE/rootfs"
	fails 2 'is a directory, not a stream' vz checkpoint --export - --export-format oci "$ID"
}

### Root file systems

@test "with the rootfs, a guest is restored where there is nothing of it" {
	counter_up
	mkdir -p "$BUNDLE/rootfs/srv"
	(cd "$BUNDLE/rootfs/srv" && mkfifo fifo && chown 12:34 fifo && mknod -m 0606 null c 1 3 && touch -d @1000000000 null && ln ../etc/passwd hard)
	export_to "$VZ_TMP/save.tar.zst" --with-rootfs
	mv "$BUNDLE" "$VZ_TMP/old"
	sum=$(tree_sum "$VZ_TMP/old/rootfs" "$count")
	import_from "$VZ_TMP/save.tar.zst" --bundle "$VZ_TMP/new" --image-path "$VZ_TMP/kept"
	still_running "$VZ_TMP/new/rootfs"
	[[ $(tree_sum "$VZ_TMP/new/rootfs" "$count") == "$sum" ]]
	[[ -e $VZ_TMP/kept/vzrun.json && $(stat -c %a "$VZ_TMP/new") == 700 ]]
	vz delete --force "$ID"
	# A restore that fails leaves no bundle.
	run -1 vz --criu /bin/false restore --detach --import "$VZ_TMP/save.tar.zst" --bundle "$VZ_TMP/new2" "$ID"
	[[ ! -e $VZ_TMP/new2 ]]
	# Nor does one under an id that is taken touch anything.
	app_up "$VZ_TMP/new" "$ID"
	fails 1 'already exists' vz restore --detach --import "$VZ_TMP/save.tar.zst" --bundle "$VZ_TMP/new2" "$ID"
	[[ ! -e $VZ_TMP/new2 ]]
}

@test "of an overlay the changes are in the archive, and its template on request" {
	overlay_up
	export_to "$VZ_TMP/save.tar.zst" --with-rootfs --leave-running
	export_to "$VZ_TMP/diff.tar"
	tar -xOf "$VZ_TMP/diff.tar" rootfs-diff.tar | tar -t >"$VZ_TMP/list"
	grep -qx 'srv/.wh.gone' "$VZ_TMP/list"
	grep -qx 'srv/old/.wh..wh..opq' "$VZ_TMP/list"
	tar -xOf "$VZ_TMP/diff.tar" deleted.files | jq -e '. == ["/srv/gone"]'
	mv "$BUNDLE" "$VZ_TMP/old"
	import_from "$VZ_TMP/diff.tar" --bundle "$VZ_TMP/new"
	still_running "$VZ_TMP/new/rootfs/upper"
	[[ $(guest "$ID" sh -c 'ls /srv /srv/old; cat /srv/new') == *guest ]]
	guest "$ID" test ! -e /srv/gone -a ! -e /srv/old/note
	vz delete --force "$ID"

	mv "$VZ_TMP/template" "$VZ_TMP/elsewhere"
	refused "$VZ_TMP/diff.tar" 1 'template .* is not here'
	# The other archive is of a moment at which less was counted.
	import_from "$VZ_TMP/save.tar.zst" --bundle "$VZ_TMP/new3"
	still_running "$VZ_TMP/new3/rootfs/upper"
	guest "$ID" test ! -e /srv/gone -a ! -e /srv/old/note -a -e /srv/new
	refused "$VZ_TMP/diff.tar" 1 'template .* is not here'
}

@test "without a rootfs in the archive there must be a bundle" {
	counter_up
	export_to "$VZ_TMP/save.tar.zst"
	refused "$VZ_TMP/save.tar.zst" 1 'no root file system in the archive'
	import_from "$VZ_TMP/save.tar.zst" --bundle "$BUNDLE"
	still_running "$BUNDLE/rootfs"
}

### What is refused

@test "damaged and hostile archives are refused before anything is created" {
	local size at archive byte
	counter_up
	export_to "$VZ_TMP/save.tar.zst" --with-rootfs --leave-running
	export_to "$VZ_TMP/save.tar" --leave-running
	for archive in save.tar.zst save.tar; do
		size=$(stat -c %s "$VZ_TMP/$archive")
		for at in 0 20 600 $((size / 7)) $((size / 3)) $((size / 2)) $((size - 5000)) $((size - 30)); do
			head -c "$at" "$VZ_TMP/$archive" >"$VZ_TMP/short"
			refused "$VZ_TMP/short" 1 'refused'
			cp "$VZ_TMP/$archive" "$VZ_TMP/flipped"
			byte=$(od -An -tu1 -j "$at" -N 1 "$VZ_TMP/flipped")
			# shellcheck disable=SC2059 # that is the byte
			printf "\\x$(printf %02x $((byte ^ 0x40)))" | dd of="$VZ_TMP/flipped" bs=1 seek="$at" conv=notrunc status=none
			refused "$VZ_TMP/flipped" 1 'refused'
		done
	done
	echo hello >"$VZ_TMP/text"
	refused "$VZ_TMP/text" 1 'no archive of a checkpoint'
	refused "$VZ_TMP" 1 'no archive of a checkpoint'

	# What GNU tar makes, with names that lead out of it.
	mkdir -p "$VZ_TMP/x/checkpoint"
	touch "$VZ_TMP/x/checkpoint/inventory.img"
	ln -s /etc/passwd "$VZ_TMP/x/checkpoint/pages-1.img"
	tar -C "$VZ_TMP/x" -cf "$VZ_TMP/link" checkpoint
	refused "$VZ_TMP/link" 1 'root file system|no regular file' # the first of them that is found
	fails 1 'is no regular file' vz restore --detach --import "$VZ_TMP/link" --bundle "$BUNDLE" --work-path "$VZ_TMP" "$ID-refused"
	rm "$VZ_TMP/x/checkpoint/pages-1.img"
	tar -C "$VZ_TMP/x/checkpoint" -cPf "$VZ_TMP/up" ../checkpoint/inventory.img --transform 's,^\.\./,../../,'
	fails 1 'leads out of it' vz restore --detach --import "$VZ_TMP/up" --bundle "$BUNDLE" --work-path "$VZ_TMP" "$ID-refused"
	# And one of another runtime.
	tar -C "$VZ_TMP/x" -czf "$VZ_TMP/foreign" checkpoint
	run -5 --separate-stderr vz restore --detach --import "$VZ_TMP/foreign" --bundle "$BUNDLE" --work-path "$VZ_TMP" "$ID-refused"
	[[ $stderr == *"there is no vzrun.json in the archive"* ]]
	# A header that is of another machine, or newer.
	mkdir "$VZ_TMP/y"
	echo '{"format":1,"arch":"s390x","images":0}' >"$VZ_TMP/y/vzrun.archive"
	tar -C "$VZ_TMP/y" -cf "$VZ_TMP/arch" vzrun.archive
	refused "$VZ_TMP/arch" 5 's390x'
	echo '{"format":99,"arch":"amd64","images":0}' >"$VZ_TMP/y/vzrun.archive"
	tar -C "$VZ_TMP/y" -cf "$VZ_TMP/newer" vzrun.archive
	refused "$VZ_TMP/newer" 5 'newer version'
	still_running "$BUNDLE/rootfs"
}

@test "what cannot be in an archive is refused, and the guest goes on" {
	counter_up
	fails 2 'goes with --export' vz checkpoint --with-rootfs "$ID"
	fails 2 'compression-level' vz checkpoint --export "$VZ_TMP/x" --compression-level 23 "$ID"
	fails 5 'pre-dump' vz checkpoint --export "$VZ_TMP/x" --pre-dump "$ID"
	fails 5 'memory that is elsewhere' vz checkpoint --export "$VZ_TMP/x" --parent-path ../x "$ID"
	run -1 --separate-stderr vz checkpoint --export "$VZ_TMP/none/x" "$ID"
	[[ $stderr == *"no such file or directory"* ]]
	fails 2 'goes with --import' vz restore --identity "$VZ_TMP/x" "$ID-x"
	[[ ! -e $VZ_TMP/x ]]
	still_running "$BUNDLE/rootfs"
}

### Failures

@test "a full disk and a reader that goes away leave the guest running" {
	counter_up
	SMALL=$VZ_TMP/small
	mkdir "$SMALL" "$VZ_TMP/work"
	mount -t tmpfs -o size=300k none "$SMALL"
	fails 1 'no space left on device' vz checkpoint --export "$SMALL/save.tar" --work-path "$VZ_TMP/work" --with-rootfs "$ID"
	[[ -z $(ls -A "$SMALL") ]]
	still_running "$BUNDLE/rootfs"
	# The images themselves do not fit.
	run -1 vz checkpoint --export "$SMALL/save.tar" "$ID"
	[[ ! -e $SMALL/save.tar && -z $(find "$SMALL" -name '*.img') ]]
	# The log that the error names is there until the next export.
	[[ -s $(sed -n 's/.*(log: \(.*\)).*/\1/p' <<<"$output") ]]
	rm -r "$SMALL"/.vzrun-images-*
	still_running "$BUNDLE/rootfs"
	run ! bash -c '"$1" --root "$2" checkpoint --with-rootfs --compression-level 0 --export - --work-path "$4" "$3" 2>"$4.err" | head -c 100000 >/dev/null; exit "${PIPESTATUS[0]}"' \
		sh "$VZRUN" "$VZ_ROOT" "$ID" "$VZ_TMP/work"
	grep -q 'broken pipe' "$VZ_TMP/work.err"
	still_running "$BUNDLE/rootfs"
	umount "$SMALL"
	SMALL=''
}

@test "a full disk leaves nothing of an import" {
	counter_up
	export_to "$VZ_TMP/save.tar.zst" --with-rootfs
	SMALL=$VZ_TMP/small
	mkdir "$SMALL"
	mount -t tmpfs -o size=300k none "$SMALL"
	fails 1 'not enough space' vz restore --detach --import "$VZ_TMP/save.tar.zst" --bundle "$SMALL/new" --work-path "$VZ_TMP" "$ID"
	[[ -z $(ls -A "$SMALL") ]]
	umount "$SMALL"
	SMALL=''
	assert_nothing_left
}

@test "an export that is killed in the middle leaves the guest running" {
	counter_up
	mkdir "$VZ_TMP/work"
	mkfifo "$VZ_TMP/pipe"
	spawn "$VZ_TMP/export.log" bash -c 'exec "$@" >"$0"' "$VZ_TMP/pipe" "$VZRUN" --root "$VZ_ROOT" checkpoint --export - \
		--with-rootfs --compression-level 0 --work-path "$VZ_TMP/work" "$ID"
	exec {PIPE}<"$VZ_TMP/pipe"
	# The first bytes are there, and nobody reads on: it is in the middle.
	head -c 4096 <&"$PIPE" | wc -c | grep -qx 4096
	[[ -n $(find "$VZ_TMP/work" -name inventory.img) ]]
	kill -KILL "$SPAWNED"
	wait "$SPAWNED" || true
	exec {PIPE}<&-
	wait_status "$ID" running
	still_running "$BUNDLE/rootfs"
	export_to "$VZ_TMP/save.tar.zst"
	import_from "$VZ_TMP/save.tar.zst" --bundle "$BUNDLE"
	still_running "$BUNDLE/rootfs"
}

@test "exports that are killed at any moment lose nothing" {
	local ms last=340 step=75
	[[ -z ${VZ_FULL:-} ]] || {
		last=2300
		step=15
	}
	counter_up
	for ((ms = 40; ms <= last; ms += step)); do
		timeout --foreground --signal=KILL "$((ms / 1000)).$(printf %03d $((ms % 1000)))" "$VZRUN" --root "$VZ_ROOT" --log "$VZ_TMP/launch.log" \
			checkpoint --with-rootfs --export "$VZ_TMP/save.tar.zst" "$ID" </dev/null >/dev/null 2>&1 3>&- || true
		if ! has_status "$ID" running 2>/dev/null; then
			vz delete --force "$ID"
			import_from "$VZ_TMP/save.tar.zst" --bundle "$BUNDLE"
		fi
		rm -f "$VZ_TMP/save.tar.zst"
		has_status "$ID" running
	done
	export_to "$VZ_TMP/save.tar.zst" --leave-running
	still_running "$BUNDLE/rootfs"
}

### A whole system

@test "a Debian with services moves in one archive" {
	local new=$VZ_TMP/new
	BUNDLE=$(debian_bundle "$ID")
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
	wait_counter "$BUNDLE/rootfs"
	guest "$ID" sh -c 'setfacl -m u:nobody:r /etc/fstab 2>/dev/null; echo state >/srv/state; sync'
	export_to "$VZ_TMP/save.tar.zst" --with-rootfs
	mv "$BUNDLE" "$VZ_TMP/old"
	vz restore --detach --import "$VZ_TMP/save.tar.zst" --bundle "$new" "$ID" </dev/null >"$VZ_TMP/restore.log" 2>&1 3>&- || {
		cat "$VZ_TMP/restore.log"
		return 1
	}
	[[ $(vz ready --timeout "$(slow 30)s" "$ID") == running ]]
	wait_counter "$new/rootfs"
	verify_counter "$new/rootfs"
	[[ $(guest "$ID" cat /srv/state) == state ]]
	guest "$ID" timeout "$(slow 30)" systemctl restart nginx
	[[ $(getfattr -d -m - --absolute-names "$new/rootfs/var/log/journal" | sed 1d) == "$(getfattr -d -m - --absolute-names "$VZ_TMP/old/rootfs/var/log/journal" | sed 1d)" ]]
}
