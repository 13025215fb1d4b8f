#!/usr/bin/env bats
# Malformed bundles: each ends in time with code 1 and one clear error, on
# stderr and in the log, and leaves no state, cgroup, mount or process.
# The corpus of wrong fields is malformed/fields.tsv.
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }
setup() {
	vz_setup
	BUNDLE=$(app_bundle "$ID" sleep 1000)
	CONFIG=$BUNDLE/config.json
	GOOD=$VZ_TMP/good.json
	cp "$CONFIG" "$GOOD"
}
teardown() { vz_teardown; }

# Seconds that a refusal may take; a busy two-core machine is slow.
patience=20

# refuse CODE REGEX runs the bundle, which must fail like that, with one error
# that matches (case does not matter) and nothing left. It starts no program but
# vzrun, as there are many cases.
refuse() {
	local code=0
	rm -f "$VZ_TMP/log"
	timeout "$patience" "$VZRUN" --root "$VZ_ROOT" --log "$VZ_TMP/log" --log-format json \
		run --detach --bundle "$BUNDLE" "$ID" </dev/null >"$VZ_TMP/stdout" 2>"$VZ_TMP/stderr" 3>&- || code=$?
	if [[ $code -ne $1 || -s $VZ_TMP/stdout ]] || ! one_error "$2" || ! clean; then
		printf 'code %s, on stderr:\n%s\nin the log:\n%s\n' "$code" "$(cut -c1-500 "$VZ_TMP/stderr")" "$(cut -c1-500 "$VZ_TMP/log")"
		all_left
		vz delete --force "$ID" 2>/dev/null || true
		return 1
	fi
}

# one_error REGEX: stderr is one error that matches, and perhaps a hint, of
# printable characters, and the log has one error.
one_error() {
	local lines logged line errors=0
	mapfile -t lines <"$VZ_TMP/stderr"
	mapfile -t logged <"$VZ_TMP/log"
	for line in "${logged[@]}"; do
		[[ $line != *'"level":"error"'* ]] || errors=$((errors + 1))
	done
	((errors == 1 && ${#lines[@]} >= 1 && ${#lines[@]} <= 2 && ${#lines[0]} < 10000)) || return
	((${#lines[@]} == 1)) || [[ ${lines[1]} == "hint: "* ]] || return
	for line in "${lines[@]}"; do
		[[ $line != *[[:cntrl:]]* && $line != *goroutine* ]] || return
	done
	shopt -s nocasematch
	line=0
	[[ ${lines[0]} =~ ^vzrun:\ .*($1) ]] || line=1
	shopt -u nocasematch
	return "$line"
}

# clean: no state, journal, mount or cgroup (hence no process) is left. What is
# there is looked at again, as the kernel takes things down in its own time.
clean() {
	local left=("$VZ_ROOT"/[!@]* "$VZ_ROOT"/@/*.* /sys/fs/cgroup/{,*/}vzrun-test-"$VZ_TAG"-*) path
	for path in "${left[@]}"; do
		[[ ! -e $path ]] || wait_until 5 nothing_left || return
	done
	[[ $(</proc/self/mountinfo) != *"$VZ_TMP"* ]] || wait_until 5 nothing_left
}

### The file

@test "a config.json that is no file" {
	rm "$CONFIG"
	refuse 1 'no config.json in bundle'
	mkdir "$CONFIG"
	refuse 1 'not a regular file'
	rmdir "$CONFIG"
	mkfifo "$CONFIG"
	refuse 1 'not a regular file'
	rm "$CONFIG"
	ln -s config.json "$CONFIG"
	refuse 1 'too many levels of symbolic links'
	ln -sfn /dev/zero "$CONFIG"
	refuse 1 'not a regular file'
	ln -sfn /nonexistent "$CONFIG"
	refuse 1 'no config.json in bundle'
	ln -sfn config.json/x "$CONFIG"
	refuse 1 'symbolic links|not a directory'
	# A link to a good one is as good.
	ln -sfn "$GOOD" "$CONFIG"
	vz run --detach --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>&1 3>&-
	has_status "$ID" running
}

@test "a config.json that is no JSON, or not only" {
	local text
	for text in '' ' ' '{' '}' '[]' '""' 'null' 'nonsense' '{"ociVersion": "1.0.2",}' "{'a': 1}" $'\xff\xfe{}' '{"a": "\ud800' '// x' \
		'{"process": {"args": ["\x"]}}' '1e999' '{"root": {"path": tru}}'; do
		printf '%s' "$text" >"$CONFIG"
		refuse 1 'no valid JSON|ociVersion is missing'
	done
	{
		cat "$GOOD"
		echo '{}'
	} >"$CONFIG"
	refuse 1 'no valid JSON'
	printf '\0\0\0\0' >"$CONFIG"
	refuse 1 'no valid JSON'
	{
		cat "$GOOD"
		printf '\0'
	} >"$CONFIG"
	refuse 1 'no valid JSON'
	head -c -10 "$GOOD" >"$CONFIG"
	refuse 1 'no valid JSON'
	printf '\xef\xbb\xbf' | cat - "$GOOD" >"$CONFIG"
	refuse 1 'no valid JSON'
}

@test "a config.json that is huge or deep" {
	truncate --size=17M "$CONFIG"
	refuse 1 'at most'
	truncate --size=10T "$CONFIG"
	refuse 1 'at most'
	head -c 15000000 /dev/zero | tr '\0' '[' >"$CONFIG"
	refuse 1 'no valid JSON.*depth'
	{
		printf '{"annotations": '
		head -c 100000 /dev/zero | sed 's/\x0/{"a":/g'
	} >"$CONFIG"
	refuse 1 'no valid JSON'
	jq -c '.annotations = {a: ("x" * 15000000)}' "$GOOD" >"$CONFIG"
	# All of it may be kept, or refused, but not half.
	timeout "$patience" "$VZRUN" --root "$VZ_ROOT" run --detach --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>&1 3>&- || [[ $? -eq 1 ]]
	vz delete --force "$ID" || true
	assert_nothing_left
}

### The fields

# fields N tests every fourth case: one test for all would take too long.
fields() {
	local filters=() expected=() configs filter want i bad=0
	while IFS=$'\t' read -r filter want; do
		[[ $filter != '#'* ]] || continue
		filters+=("$filter")
		expected+=("$want")
	done <"$BATS_TEST_DIRNAME/malformed/fields.tsv"
	((${#filters[@]} > 100))
	# All in one go: jq takes longer than vzrun.
	mapfile -t configs < <(jq -c "$(printf '(%s),' "${filters[@]}")empty" "$GOOD")
	((${#configs[@]} == ${#filters[@]}))
	for ((i = $1; i < ${#filters[@]}; i += 4)); do
		printf '%s\n' "${configs[i]}" >"$CONFIG"
		refuse 1 "${expected[i]}" || {
			echo "with: ${filters[i]}"
			bad=1
		}
	done
	return "$bad"
}

@test "wrong fields, first quarter" { fields 0; }
@test "wrong fields, second quarter" { fields 1; }
@test "wrong fields, third quarter" { fields 2; }
@test "wrong fields, last quarter" { fields 3; }

@test "versions that are not understood" {
	local version
	for version in 0.9 2.0.0 nonsense x.1 -1.0 '1 .0'; do
		jq '.ociVersion = $ARGS.positional[0]' "$GOOD" --args -- "$version" >"$CONFIG"
		refuse 5 ociVersion
	done
}

### The rootfs

@test "a rootfs that is none" {
	local path
	for path in other /nonexistent config.json rootfs/etc/passwd /dev/null rootfs/../../x; do
		jq '.root.path = $ARGS.positional[0]' "$GOOD" --args -- "$path" >"$CONFIG"
		refuse 1 'rootfs'
	done
	mv "$BUNDLE/rootfs" "$VZ_TMP/elsewhere"
	cp "$GOOD" "$CONFIG"
	refuse 1 'rootfs .*no|rootfs'
	ln -s "$VZ_TMP/elsewhere" "$BUNDLE/rootfs"
	refuse 1 'leads out of the bundle'
	ln -sfn rootfs "$BUNDLE/rootfs"
	refuse 1 'rootfs|too many'
	rm "$BUNDLE/rootfs"
	mkfifo "$BUNDLE/rootfs"
	refuse 1 'not a directory'
	rm "$BUNDLE/rootfs"
	mkdir "$BUNDLE/rootfs"
	refuse 1 'no such file|not found'
}

### A cgroup path

@test "a cgroup path never leads out of the hierarchies" {
	local path
	mkdir "$VZ_TMP/not-a-cgroup"
	for path in "../../../../../../..$VZ_TMP/not-a-cgroup" "/../../../../..$VZ_TMP/not-a-cgroup" "$(cgroup_of "$ID")/../../../../../..$VZ_TMP/not-a-cgroup"; do
		jq '.linux.cgroupsPath = $ARGS.positional[0]' "$GOOD" --args -- "$path" >"$CONFIG"
		# Such a path is cut to what is below the root.
		if timeout "$patience" "$VZRUN" --root "$VZ_ROOT" run --detach --bundle "$BUNDLE" "$ID" </dev/null >/dev/null 2>&1 3>&-; then
			run ! grep -F '..' "/proc/$(pid_of "$ID")/cgroup"
			vz delete --force "$ID"
		fi
		[[ -z $(ls -A "$VZ_TMP/not-a-cgroup") ]]
		assert_nothing_left
		# What was made on the way to it is empty, and by its name ours.
		find /sys/fs/cgroup -depth -type d -path "*$VZ_TAG*" -exec rmdir {} + 2>/dev/null || true
		find /sys/fs/cgroup -maxdepth 3 -depth -type d -path '*/var/tmp' -exec rmdir {} + 2>/dev/null || true
		find /sys/fs/cgroup -maxdepth 2 -depth -type d -path '*/var' -exec rmdir {} + 2>/dev/null || true
	done
}

### exec

@test "a process.json that is wrong ends with 255 and changes nothing" {
	local text
	app_up "$BUNDLE" "$ID"
	while read -r text; do
		printf '%s' "$text" >"$VZ_TMP/process.json"
		run -255 --separate-stderr timeout "$patience" "$VZRUN" --root "$VZ_ROOT" exec --process "$VZ_TMP/process.json" "$ID" </dev/null
		[[ -z $output && ${stderr_lines[0]} == "vzrun: "* && $stderr != *goroutine* && ${#stderr_lines[@]} -le 2 ]] || {
			printf '%s\n' "$text" "$stderr"
			return 1
		}
	done <<-'EOF'

		{
		[]
		null
		{"args": []}
		{"args": "sh", "cwd": "/"}
		{"args": ["sh"]}
		{"args": ["sh"], "cwd": "tmp"}
		{"args": ["/no/such"], "cwd": "/"}
		{"args": ["sh"], "cwd": "/no/such/directory/\u0000"}
		{"args": ["sh"], "cwd": "/", "env": ["NOEQUALS"]}
		{"args": ["sh"], "cwd": "/", "user": {"uid": -1}}
		{"args": ["sh"], "cwd": "/", "rlimits": [{"type": "x"}]}
		{"args": ["sh"], "cwd": "/", "ioPriority": {"class": "x"}}
		{"args": ["sh"], "cwd": "/", "scheduler": {"policy": "x"}}
		{"args": ["sh"], "cwd": "/", "execCPUAffinity": {"initial": "x"}}
		{"args": ["sh"], "cwd": "/", "terminal": true}
		{"args": ["sh"], "cwd": "/", "apparmorProfile": "nonsense"}
	EOF
	[[ $(vz ps -f json "$ID" | jq length) -eq 1 ]]
	has_status "$ID" running
}
