#!/usr/bin/env bats
# Wrong input of every kind ends with one error, a hint and the right exit code,
# and leaves nothing behind.
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

# One real checkpoint for all tests; each damages a copy.
setup_file() {
	suite_setup
	vz_setup
	SAVED=$VZ_TMP SAVED_ROOT=$VZ_ROOT
	SAVED_BUNDLE=$(app_bundle saved sh -c 'while :; do sleep 0.05; done')
	export SAVED SAVED_ROOT SAVED_BUNDLE
	app_up "$SAVED_BUNDLE" saved
	vz checkpoint --image-path "$SAVED/images" saved
}

teardown_file() {
	remove_tree "$SAVED_ROOT"
	remove_tree "$SAVED"
	suite_teardown
}

setup() { vz_setup; }
teardown() { vz_teardown; }

# bad_bundle FILTER [ARG...] makes a bundle whose configuration a jq filter has
# spoilt; $BUNDLE is its path.
bad_bundle() {
	BUNDLE=$VZ_TMP/$ID
	[[ -d $BUNDLE ]] || BUNDLE=$(app_bundle "$ID" sleep 1000)
	[[ -e $BUNDLE/config.good ]] || cp "$BUNDLE/config.json" "$BUNDLE/config.good"
	cp "$BUNDLE/config.good" "$BUNDLE/config.json"
	edit_config "$BUNDLE" "$@"
}

# no_launch CODE REGEX: neither create nor run nor restore takes the bundle.
no_launch() {
	fails "$1" "$2" vz create --bundle "$BUNDLE" "$ID"
	fails "$1" "$2" vz run --bundle "$BUNDLE" "$ID"
	fails "$1" "$2" vz run --detach --bundle "$BUNDLE" "$ID"
	fails "$1" "$2" vz restore --detach --bundle "$BUNDLE" --image-path "$SAVED/images" "$ID"
	assert_nothing_left
}

# images makes a fresh copy of the checkpoint in $IMAGES.
images() {
	IMAGES=$VZ_TMP/images
	rm -rf "$IMAGES"
	cp -a "$SAVED/images" "$IMAGES"
}

# no_restore CODE REGEX: the images are refused.
no_restore() {
	fails "$1" "$2" vz restore --detach --bundle "$SAVED_BUNDLE" --image-path "$IMAGES" "$ID"
	assert_nothing_left
}

# fake_criu VERSION [COMMANDS] writes a criu to $CRIU that says it has VERSION
# and otherwise runs COMMANDS.
fake_criu() {
	CRIU=$VZ_TMP/criu
	cat >"$CRIU" <<-EOF
		#!/bin/sh
		if [ "\$1" = --version ]; then
			echo "Version: $1"
			exit
		fi
		${2:-exit 1}
	EOF
	chmod +x "$CRIU"
}

one_error() {
	run "-$1" --separate-stderr "${@:3}"
	[[ -z $output && ${stderr_lines[0]} =~ ^vzrun:\ .*$2 ]]
	[[ ${#stderr_lines[@]} -eq 1 || (${#stderr_lines[@]} -eq 2 && ${stderr_lines[1]} == "hint: "*) ]]
}

### Ids

@test "no verb knows an id that does not exist" {
	local verb
	for verb in state start kill delete pause resume ps stop ready enter; do
		fails 1 'container does not exist' vz "$verb" "$ID"
	done
	fails 1 'container does not exist' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	fails 255 'container does not exist' vz exec "$ID" true
	[[ ! -e $VZ_TMP/images ]]
	assert_nothing_left
}

@test "an id never leads to another place" {
	local id long
	printf -v long '%0201d' 0
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	mkdir "$VZ_ROOT/sub" "$VZ_ROOT/../$ID-outside"
	for id in '' . .. ../x a/b /abs "../$ID-outside" sub/.. 'a b' $'a\nb' 'a@b' '@' 'ä' "$long"; do
		fails 1 'invalid container id' vz create --bundle "$BUNDLE" "$id"
		fails 1 'invalid container id' vz delete --force "$id"
	done
	fails 1 'invalid container id' vz restore --bundle "$SAVED_BUNDLE" --image-path "$SAVED/images" "$id"
	fails 1 'invalid container id' vz state "$id"
	fails 255 'invalid container id' vz exec "$id" true
	rmdir "$VZ_ROOT/sub" "$VZ_ROOT/../$ID-outside" # nobody has removed them
	assert_nothing_left
}

@test "an id of 200 characters and one that is a verb are as good as any" {
	local id bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	for id in help version a._+-Z "$(printf '%0200d' 0)"; do
		app_create "$bundle" "$id"
		has_status "$id" created
		vz delete "$id"
	done
	assert_nothing_left
}

### Bundles

@test "a bundle that is not there, or has no config.json" {
	BUNDLE=$VZ_TMP/none
	no_launch 1 'no config.json in bundle'
	mkdir "$BUNDLE"
	no_launch 1 'no config.json in bundle'
	mkdir "$BUNDLE/config.json"
	one_error 1 'not a regular file' vz create --bundle "$BUNDLE" "$ID"
	assert_nothing_left
}

@test "a config.json that is no JSON" {
	local text
	bad_bundle .
	for text in '' nonsense '{"ociVersion": "1.0.2", ' '[]' '{"process": 7}'; do
		echo "$text" >"$BUNDLE/config.json"
		no_launch 1 'no valid JSON'
	done
}

@test "a config.json of the wrong version" {
	bad_bundle '.ociVersion = "2.0.0"'
	no_launch 5 'ociVersion "2.0.0"'
	bad_bundle '.ociVersion = "nonsense"'
	no_launch 5 'ociVersion "nonsense"'
}

@test "a config.json that lacks what is needed" {
	local filter expected
	while IFS='|' read -r filter expected; do
		bad_bundle "$filter"
		one_error 1 "$expected" vz create --bundle "$BUNDLE" "$ID"
		assert_nothing_left
	done <<-'EOF'
		del(.ociVersion)|ociVersion is missing
		del(.root)|root.path is missing
		.root.path = ""|root.path is missing
		del(.linux)|linux section is missing
		del(.process)|process section is missing
		.process.args = []|process.args is empty
		.process.cwd = ""|process.cwd is empty
		.process.cwd = "tmp"|process.cwd .* is not absolute
		.process.rlimits = [{"type": "RLIMIT_X", "hard": 1, "soft": 1}]|unknown type
		.linux.namespaces += [{"type": "nonsense"}]|nonsense
		.linux.namespaces += [{"type": "pid"}]|duplicat
		.annotations = {"org.vzrun.rootfs": "nonsense"}|org.vzrun.rootfs
		.annotations = {"org.vzrun.rootfs": "idmap"}|needs a user namespace
		.mounts += [{"destination": "/mnt", "type": "bind", "source": "/nonexistent", "options": ["bind"]}]|no such file
	EOF
}

@test "a rootfs that is missing, or no directory" {
	bad_bundle '.root.path = "other"'
	no_launch 1 'rootfs .*/other'
	bad_bundle '.root.path = "/nonexistent/rootfs"'
	no_launch 1 'rootfs .*/nonexistent/rootfs'
	bad_bundle '.root.path = "config.json"'
	one_error 1 'not a directory' vz create --bundle "$BUNDLE" "$ID"
	assert_nothing_left
}

@test "a rootfs that leads out of the bundle" {
	local before
	bad_bundle '.root.path = "link"'
	mkdir "$VZ_TMP/outside"
	echo precious >"$VZ_TMP/outside/file"
	before=$(tree_sum "$VZ_TMP/outside")
	ln -s "$VZ_TMP/outside" "$BUNDLE/link"
	no_launch 1 'leads out of the bundle'
	bad_bundle '.root.path = "../outside"'
	no_launch 1 'leads out of the bundle'
	ln -sfn ../outside "$BUNDLE/link"
	bad_bundle '.root.path = "rootfs/../link"'
	no_launch 1 'leads out of the bundle'
	[[ $(tree_sum "$VZ_TMP/outside") == "$before" ]]
}

@test "a cgroup in which others run" {
	local other=$ID-other bundle
	bundle=$(app_bundle "$other" sleep 1000)
	app_up "$bundle" "$other"
	bad_bundle '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$other")"
	no_launch_beside "$other" 1 'cgroup is not empty'
	has_status "$other" running
}

@test "a cgroup that somebody has frozen stays as it is" {
	local cgroup
	if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
		cgroup=/sys/fs/cgroup$(cgroup_of "$ID-frozen")
		mkdir "$cgroup"
		echo 1 >"$cgroup/cgroup.freeze"
	else
		cgroup=/sys/fs/cgroup/freezer$(cgroup_of "$ID-frozen")
		mkdir "$cgroup"
		echo FROZEN >"$cgroup/freezer.state"
	fi
	bad_bundle '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID-frozen")"
	fails 1 'unexpectedly frozen' vz create --bundle "$BUNDLE" "$ID"
	fails 1 'unexpectedly frozen' vz run --bundle "$BUNDLE" "$ID"
	grep -qE '1|FROZEN' "$cgroup"/cgroup.freeze "$cgroup"/freezer.state 2>/dev/null
	rmdir "$cgroup"
}

no_launch_beside() {
	fails "$2" "$3" vz create --bundle "$BUNDLE" "$ID"
	fails "$2" "$3" vz run --bundle "$BUNDLE" "$ID"
	assert_nothing_left "$1"
}

### Images

@test "the checkpoint that the other tests damage can be restored" {
	images
	IMAGES=$VZ_TMP/images
	app_restore "$SAVED_BUNDLE" "$ID" "$IMAGES"
	has_status "$ID" running
	vz delete --force "$ID"
	assert_nothing_left
}

@test "an image directory that is not there, or empty" {
	IMAGES=$VZ_TMP/none
	no_restore 1 'image directory: .*no such file'
	mkdir "$IMAGES"
	no_restore 1 'is no checkpoint'
	touch "$VZ_TMP/file"
	IMAGES=$VZ_TMP/file
	one_error 1 '' vz restore --detach --bundle "$SAVED_BUNDLE" --image-path "$IMAGES" "$ID"
	assert_nothing_left
}

@test "an image file that is truncated, missing, longer or a link" {
	images
	truncate --size=-1 "$IMAGES/pages-1.img"
	no_restore 1 'pages-1.img has [0-9]+ bytes, [0-9]+ were written'
	images
	truncate --size=0 "$IMAGES/pages-1.img"
	no_restore 1 'pages-1.img has 0 bytes'
	images
	echo >>"$IMAGES/pages-1.img"
	no_restore 1 'pages-1.img has'
	images
	rm "$IMAGES/inventory.img"
	no_restore 1 'inventory.img is missing'
	images
	mv "$IMAGES/inventory.img" "$VZ_TMP/inventory.img"
	ln -s "$VZ_TMP/inventory.img" "$IMAGES/inventory.img"
	no_restore 1 'inventory.img'
}

@test "a manifest that is missing, damaged, newer or of another machine" {
	images
	rm "$IMAGES/vzrun.json"
	no_restore 1 'is no checkpoint'
	images
	truncate --size=100 "$IMAGES/vzrun.json"
	no_restore 1 'vzrun.json'
	images
	: >"$IMAGES/vzrun.json"
	no_restore 1 'vzrun.json'
	images
	echo '{}' >"$IMAGES/vzrun.json"
	no_restore 1 'vzrun.json is incomplete'
	manifest '.format = 99'
	no_restore 5 'checkpoint format 99'
	manifest '.arch = "pdp11"'
	no_restore 5 'pdp11'
	manifest 'del(.files["inventory.img"])'
	no_restore 1 'inventory.img'
	manifest '.files["../../etc/passwd"] = 7'
	no_restore 1 'not a file name'
	manifest '.pre_dump = true'
	no_restore 1 'pre-dump'
}

manifest() {
	images
	jq "$1" "$SAVED/images/vzrun.json" >"$IMAGES/vzrun.json"
}

@test "images whose contents are damaged" {
	local name size
	# The sizes are right, so CRIU itself has to find it.
	for name in inventory.img pstree.img; do
		images
		size=$(stat -c %s "$IMAGES/$name")
		head -c "$size" /dev/zero >"$IMAGES/$name"
		one_error 1 'criu' vz restore --detach --bundle "$SAVED_BUNDLE" --image-path "$IMAGES" "$ID"
		assert_nothing_left
	done
}

@test "images of another container" {
	images
	bad_bundle .
	one_of_another 'process.args'
	bad_bundle '.process = $ARGS.positional[0]' x
	cp "$SAVED_BUNDLE/config.json" "$BUNDLE/config.good"
	bad_bundle '.process.env += ["container_uuid=0"]'
	one_of_another 'container_uuid'
	bad_bundle '.linux.namespaces |= map(select(.type != "ipc"))'
	one_of_another 'linux.namespaces'
	bad_bundle '.mounts += [{destination: "/mnt", type: "tmpfs", source: "tmpfs"}]'
	one_of_another 'mounts'
}

one_of_another() {
	fails 1 "another container: $1" vz restore --detach --bundle "$BUNDLE" --image-path "$IMAGES" "$ID"
	assert_nothing_left
}

@test "a restore to an id that exists changes nothing" {
	local other=$ID-other pid
	app_up "$(app_bundle "$other" sleep 1000)" "$other"
	pid=$(pid_of "$other")
	images
	fails 1 'container already exists' vz restore --detach --bundle "$SAVED_BUNDLE" --image-path "$IMAGES" "$other"
	[[ $(pid_of "$other") == "$pid" ]]
}

@test "a checkpoint never replaces that of another container" {
	local before
	images
	before=$(tree_sum "$IMAGES")
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	fails 1 'holds a checkpoint already' vz checkpoint --image-path "$IMAGES" "$ID"
	[[ $(tree_sum "$IMAGES") == "$before" ]]
	fails 1 'page server' vz checkpoint --image-path "$VZ_TMP/i" --page-server nonsense "$ID"
	touch "$VZ_TMP/file"
	one_error 1 'image directory' vz checkpoint --image-path "$VZ_TMP/file" "$ID"
	one_error 1 'image directory' vz checkpoint --image-path '' "$ID"
	has_status "$ID" running
	[[ $(guest "$ID" echo works) == works ]]
}

@test "a container that cannot be saved goes on running" {
	local bundle
	bundle=$(app_bundle "$ID" /usr/local/bin/vzguest count /var/lib/vzcount/log)
	# An open file of the host.
	vz run --detach --bundle "$bundle" "$ID" </dev/null >"$VZ_TMP/out" 2>&1 3>&-
	wait_counter "$bundle/rootfs"
	fails 1 'refused: process "vzguest" .* has a file open that is outside the guest' vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	has_status "$ID" running
	wait_counter "$bundle/rootfs"
	vz delete --force "$ID"
	verify_counter "$bundle/rootfs"
	assert_nothing_left
}

### CRIU

@test "CRIU is missing" {
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	fails 5 'criu not found' vz --criu /nonexistent checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	has_status "$ID" running
	vz delete --force "$ID"
	fails 5 'criu not found' vz --criu /nonexistent restore --detach --bundle "$SAVED_BUNDLE" --image-path "$SAVED/images" "$ID"
	assert_nothing_left
}

@test "CRIU is too old" {
	fake_criu 3.17
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	fails 5 'version 3.17.0, 4.2.0 or newer' vz --criu "$CRIU" checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	fake_criu 4.1.1
	fails 5 'version 4.1.1, 4.2.0 or newer' vz --criu "$CRIU" checkpoint --image-path "$VZ_TMP/images" "$ID"
	has_status "$ID" running
	vz delete --force "$ID"
	fails 5 'version 4.1.1' vz --criu "$CRIU" restore --detach --bundle "$SAVED_BUNDLE" --image-path "$SAVED/images" "$ID"
	assert_nothing_left
}

@test "CRIU is no CRIU, or dies" {
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	one_error 1 'version' vz --criu /bin/false checkpoint --image-path "$VZ_TMP/images" "$ID"
	one_error 1 'version' vz --criu /bin/true checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	fake_criu 4.99
	one_error 1 'criu' vz --criu "$CRIU" checkpoint --image-path "$VZ_TMP/images" "$ID"
	fake_criu 4.99 'kill -KILL $$'
	one_error 1 'criu' vz --criu "$CRIU" checkpoint --image-path "$VZ_TMP/images2" "$ID"
	has_status "$ID" running
	[[ $(guest "$ID" echo works) == works ]]
	vz checkpoint --image-path "$VZ_TMP/images" "$ID" # a directory without a checkpoint can be used
	one_error 1 'criu' vz --criu "$CRIU" restore --detach --bundle "$VZ_TMP/$ID" --image-path "$VZ_TMP/images" "$ID"
	assert_nothing_left
}

### Who may

@test "not root" {
	# A copy: the binary may be where nobody else may look, and bundles are.
	chmod 0711 "$VZ_TMP" "$SAVED" "$SAVED_BUNDLE"
	copy_vzrun "$VZ_TMP/copy"
	as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$VZ_TMP/copy" --root "$VZ_ROOT" "$@"; }
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	fails 5 'user id 65534' as_nobody create --bundle "$SAVED_BUNDLE" "$ID-2"
	fails 5 'user id 65534' as_nobody run --bundle "$SAVED_BUNDLE" "$ID-2"
	fails 5 'user id 65534' as_nobody restore --bundle "$SAVED_BUNDLE" --image-path "$SAVED/images" "$ID-2"
	for verb in state start kill delete pause resume ps stop; do
		fails 1 'permission denied' as_nobody "$verb" "$ID"
	done
	fails 1 'permission denied' as_nobody delete --force "$ID"
	fails 1 'permission denied' as_nobody list
	fails 255 'permission denied' as_nobody exec "$ID" true
	fails 1 'permission denied' as_nobody checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ ! -e $VZ_TMP/images ]]
	has_status "$ID" running
	[[ $(vz list -q) == "$ID" ]]
}

### The command line

@test "unknown verbs and flags" {
	fails 2 'unknown verb "nonsense"' vz nonsense
	fails 2 'nonsense' vz --nonsense list
	fails 2 'create: .*nonsense' vz create --nonsense "$ID"
	fails 2 'needs an argument' vz create --bundle
	one_error 2 'nonsense' vz help nonsense
	one_error 2 '--root' "$VZRUN" --root / list
	one_error 2 '--log-format' vz --log-format xml list
	one_error 2 '--format' vz list --format yaml
	assert_nothing_left
}

@test "flags after the id count, and never do half of what was asked" {
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	fails 2 'delete: unknown flag --forced' vz delete "$ID" --forced
	fails 2 'unknown flag -9' vz kill "$ID" -9
	[[ ${stderr_lines[1]} == *"vzrun kill <container-id> 9" ]]
	fails 2 'unknown flag --force' vz delete -- "$ID" --force
	fails 2 'unknown flag --leave' vz checkpoint "$ID" --leave --image-path "$VZ_TMP/images"
	has_status "$ID" running
	[[ ! -e $VZ_TMP/images ]]
	# What follows belongs to the program.
	[[ $(vz exec "$ID" echo --tty --cwd /tmp </dev/null) == '--tty --cwd /tmp' ]]
	vz update "$ID" --pids-limit 77
	[[ $(control_file "$(cgroup_of "$ID")" pids.max pids.max) == 77 ]]
	vz delete "$ID" --force
	assert_nothing_left
}

@test "too many and too few arguments" {
	local verb
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	for verb in create start run state delete pause resume stop ready enter checkpoint restore; do
		fails 2 'unexpected argument "other"' vz "$verb" "$ID" other
		fails 2 'container id is missing' vz "$verb"
	done
	fails 2 'unexpected argument' vz kill "$ID" TERM other
	for verb in kill ps exec; do
		fails 2 'container id is missing' vz "$verb"
	done
	for verb in list features spec; do
		fails 2 'unexpected argument' vz "$verb" other
	done
	has_status "$ID" running
}

@test "flags with values that make no sense" {
	fails 2 'span of time' vz stop --timeout soon "$ID"
	fails 2 'no size' vz spec --system --ram lots
	one_error 2 'more than 0' vz spec --system --cpus 0
	fails 2 'for whole systems' vz spec --hostname x
	fails 2 'manage-cgroups-mode' vz checkpoint --manage-cgroups-mode nonsense "$ID"
	one_error 2 'preserve-fds' vz run --preserve-fds=-1 --bundle "$SAVED_BUNDLE" "$ID"
	fails 1 'network link' vz restore --veth nonsense --bundle "$SAVED_BUNDLE" --image-path "$SAVED/images" "$ID"
	assert_nothing_left
}

### The state directory

@test "a container whose state is damaged does not hide the others" {
	local other=$ID-other
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	app_up "$(app_bundle "$other" sleep 1000)" "$other"
	cp "$VZ_ROOT/$ID/state.json" "$VZ_TMP/state.json"
	truncate --size=100 "$VZ_ROOT/$ID/state.json"
	run -0 --separate-stderr vz list --quiet
	[[ $output == "$other" && $stderr == *"$ID"* ]]
	one_error 1 "$ID: read state" vz state "$ID"
	one_error 1 'container already exists' vz create --bundle "$SAVED_BUNDLE" "$ID"
	has_status "$other" running
	cp "$VZ_TMP/state.json" "$VZ_ROOT/$ID/state.json"
	has_status "$ID" running
}

@test "state of a newer version is left alone" {
	app_up "$(app_bundle "$ID" sleep 1000)" "$ID"
	cp "$VZ_ROOT/@/$ID.json" "$VZ_TMP/record"
	jq '.format = 99' "$VZ_TMP/record" >"$VZ_ROOT/@/$ID.json"
	one_error 1 'newer version' vz delete --force "$ID"
	[[ -d /proc/$(pid_of "$ID") ]]
	cp "$VZ_TMP/record" "$VZ_ROOT/@/$ID.json"
	vz delete --force "$ID"
	assert_nothing_left
}

@test "a state directory that cannot be" {
	touch "$VZ_TMP/file"
	one_error 1 'not a directory' "$VZRUN" --root "$VZ_TMP/file" create --bundle "$SAVED_BUNDLE" "$ID"
	fails 1 'list: state directory: .*no such file' "$VZRUN" --root "$VZ_TMP/none" list -f json
	[[ ! -e $VZ_TMP/none ]]
}

@test "verbs of the other program" {
	mkdir "$VZ_TMP/alone"
	cp "$VZRUN" "$VZ_TMP/alone/vzrun"
	# Wherever it is installed on this machine is hidden.
	alone() {
		unshare --mount sh -c '[ ! -d /usr/local/libexec/vzrun ] || mount -t tmpfs none /usr/local/libexec/vzrun; exec "$@"' \
			sh "$VZ_TMP/alone/vzrun" --root "$VZ_ROOT" "$@"
	}
	run -0 "$VZ_TMP/alone/vzrun" --version
	run -0 alone list -q
	fails 1 'vzrun-full: .* is missing' alone doctor
	[[ ${stderr_lines[1]} == *"install it as /"*/vzrun-full ]]
	fails 1 'vzrun-full' alone restore "$ID"
	# Not one that somebody else has put there, as in /tmp.
	cp "${VZRUN%/*}/vzrun-full" "$VZ_TMP/alone/"
	chown 65534 "$VZ_TMP/alone/vzrun-full"
	fails 1 'belongs to user 65534' alone doctor
	chown 0 "$VZ_TMP/alone/vzrun-full"
	run -0 alone spec --bundle "$VZ_TMP/alone"
	[[ -s $VZ_TMP/alone/config.json ]]
	# As in an installation that has been moved.
	mkdir -p "$VZ_TMP/libexec/vzrun"
	mv "$VZ_TMP/alone/vzrun-full" "$VZ_TMP/libexec/vzrun/"
	run -0 alone --help
	[[ $output == *lazy-migrate* ]]
	fails 2 'unknown verb "nonsense"' alone nonsense
}
