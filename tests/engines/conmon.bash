# shellcheck shell=bash
# What bats gives to suites.
# shellcheck disable=SC2154
# What CRI-O does: it starts conmon, which creates a container with the runtime,
# holds its streams and waits for its end; all else CRI-O asks of the runtime.
#
#   load helpers
#   load app
#   load engines/conmon
#   setup_file() { suite_setup; conmon_up; }
#   setup() { vz_setup; conmon_setup; }
#   teardown() { conmon_tidy; vz_teardown; }

conmon_up() {
	local engine go
	engine=$("$BATS_TEST_DIRNAME/engines/root" podman | tail -n 1)
	# CRI-O looks for criu in PATH, and so do other runtimes in place of vzrun.
	PATH=$engine/bin:${PREFIX:-/usr/local}/libexec/vzrun:$PATH
	export PATH
	for go in "${GO:-go}" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
		command -v "$go" >/dev/null && break
	done
	# By file name, so that the module's own dependencies are not needed.
	(cd "$BATS_TEST_DIRNAME/engines/conmon-attach" && CGO_ENABLED=0 "$go" build -buildvcs=false -o "$BATS_FILE_TMPDIR/attach" ./*.go)
}

conmon_setup() {
	EXITS=$VZ_TMP/exits
	SOCKETS=$VZ_TMP/sockets
	mkdir "$EXITS" "$SOCKETS" "$VZ_TMP/persist"
}

# conmon_tidy ends the monitors of this test that are still there, after their
# containers.
conmon_tidy() {
	local id file
	for id in $(vz list --quiet); do
		vz delete --force "$id" || true
	done
	for file in "$VZ_TMP"/*/conmon-pidfile; do
		[[ ! -e $file ]] || wait_exit "$(<"$file")" 10 || kill -KILL "$(<"$file")"
	done
}

# with_pipes CMD... runs conmon with CRI-O's two pipes: what conmon writes to the
# one is in $SYNC then, and the other lets it go on. conmon's own output is in
# $VZ_TMP/conmon.log.
with_pipes() {
	local pipe=$VZ_TMP/sync.$RANDOM code=0
	mkfifo "$pipe"
	# Open for both, so that what was written stays there until it is read.
	exec {sync}<>"$pipe"
	rm "$pipe"
	printf '\0' | _OCI_SYNCPIPE=3 _OCI_STARTPIPE=4 "$@" 3>&"$sync" 4<&0 </dev/null >"$VZ_TMP/conmon.log" 2>&1 {sync}>&- || code=$?
	IFS= read -r -t "$VZ_PATIENCE" -u "$sync" SYNC || SYNC=
	exec {sync}>&-
	return "$code"
}

# crio_create BUNDLE ID [FLAG...] creates a container and sets $SYNC; its log is
# in BUNDLE/log.
crio_create() {
	local bundle=$1 id=$2
	shift 2
	mkdir -p "$VZ_TMP/persist/$id"
	# Conmon writes some files to where it is.
	with_pipes env -C "$bundle" conmon -b "$bundle" -c "$id" --exit-dir "$EXITS" -l "$bundle/log" --log-level info \
		-n "k8s_of_$id" -P "$bundle/conmon-pidfile" -p "$bundle/pidfile" --persist-dir "$VZ_TMP/persist/$id" \
		-r "$VZRUN" --runtime-arg "--root=$VZ_ROOT" --socket-dir-path "$SOCKETS" --syslog -u "$id" "$@"
}

# crio_run BUNDLE ID [FLAG...] also starts it.
crio_run() {
	crio_create "$@" || {
		cat "$VZ_TMP/conmon.log"
		return 1
	}
	[[ $SYNC == *'"pid": '* && $SYNC != *-1* ]] || {
		echo "conmon said: $SYNC"
		return 1
	}
	vz start "$2"
}

# crio_exec ID PROCESS [FLAG...] runs a process to its end and sets $SYNC; its
# output is in $VZ_TMP/exec.log, in the format of logs.
crio_exec() {
	local id=$1 process=$2
	shift 2
	rm -f "$VZ_TMP/exec.log"
	with_pipes conmon -c "$id" -n "k8s_of_$id" -r "$VZRUN" -p "$VZ_TMP/exec.pid" -e -l "$VZ_TMP/exec.log" \
		--socket-dir-path "$SOCKETS" --log-level info --sync --log-global-size-max $((16 << 20)) \
		--exec-process-spec "$process" --runtime-arg "--root=$VZ_ROOT" "$@"
}

# process_of BUNDLE CMD... prints the path of a process for exec: the container's,
# with another command.
process_of() {
	local bundle=$1
	shift
	jq '.process | .args = $ARGS.positional | .terminal = false' --args -- "$@" <"$bundle/config.json" >"$VZ_TMP/process.json"
	echo "$VZ_TMP/process.json"
}

# lines_of LOG STREAM prints what was written to one stream.
lines_of() { sed -nE "s/^[^ ]+ $2 [FP] //p" "$1"; }

# attach ID talks to a container until it ends.
attach() { "$BATS_FILE_TMPDIR/attach" "$SOCKETS/$1/attach"; }
