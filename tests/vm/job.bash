# shellcheck shell=bash
# Jobs: what a VM gets, and how it is run with it. Needs lib.bash, qemu.bash, image.bash.

# Seconds that a job may take.
limit=${VZRUN_VM_TIMEOUT:-1800}

# Waits and limits of tests are multiplied by this: emulated, a container's start
# takes 15 times as long, what tests wait for about five.
slow_emulated=5

cannot_write() { die "cannot write the job's files" "see the lines above; $(free_space) MB are free below $cache"; }

# make_job DIR prepares a job's files; its program, DIR/job, is the caller's.
make_job() {
	local dir=$1 vzrun=${VZRUN:-$tree/vzrun}
	[[ -x $vzrun ]] || die "no vzrun binary ($vzrun)" "run make"
	mkdir -p "$dir/tree/.cache" "$dir/results"
	cp "$vzrun" "${vzrun%/*}/vzrun-full" "$dir/tree/" || cannot_write
	cp -a "$tree/contrib" "$dir/tree/" || cannot_write
	cp -a "$tree/tests" "$dir/tree/" || cannot_write
	install -m 0755 "$vm/guest/go" "$dir/go"
	built "commands-$(cat "$vm/job.bash" "$tree"/tests/cmd/*/*.go | hash_of)" build_commands
	cp -r "$built/." "$dir/tree/tests/cmd/"
	cat >"$dir/env" <<-'END'
		cd /var/lib/vzjob/tree
		export VZRUN=$PWD/vzrun VZRUN_CACHE=/var/cache/vzrun VZRUN_REQUIRE=1 CI=true
		export GO=/var/lib/vzjob/go RESULTS=/var/lib/vzjob/results
		export PATH=/var/lib/vzjob/tree:$PATH
	END
	printf 'export VZ_SLOW=%q BATS_TEST_TIMEOUT=%q VZ_PATIENCE=%q VZ_CYCLES=%q VZ_TAGS=%q VZ_FILTER=%q VZ_FULL=%q VZ_CELLS=%q\n' \
		"$(slowness)" "${BATS_TEST_TIMEOUT:-}" "${VZ_PATIENCE:-}" "${VZ_CYCLES:-}" "${VZ_TAGS:-}" "${VZ_FILTER:-}" "${VZ_FULL:-}" "${VZ_CELLS:-}" >>"$dir/env"
}

slowness() {
	if [[ -n ${VZ_SLOW:-} || $accelerator != tcg* ]]; then
		echo "${VZ_SLOW:-1}"
	else
		echo "$slow_emulated"
	fi
}

# build_commands NEW builds the programs of the tests, as there is no Go in a VM:
# guest/go hands them out.
build_commands() {
	local new=$1 dir go
	for go in "${GO:-go}" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
		command -v "$go" >/dev/null && break
	done
	for dir in "$tree"/tests/cmd/*/; do
		# One with modules of its own is for a suite that a VM does not run.
		[[ ! -e $dir/go.mod ]] || continue
		mkdir "$new/$(basename "$dir")"
		(cd "$dir" && CGO_ENABLED=0 "$go" build -trimpath -buildvcs=false -ldflags '-s -w' \
			-o "$new/$(basename "$dir")/built" ./*.go) ||
			die "$dir does not build" "run contrib/bootstrap"
	done
}

# pack DIR FILE makes a job's disk.
pack() {
	tar -C "$1" --owner=0 --group=0 --numeric-owner -cf "$2" . || cannot_write
	pad "$2"
}

# start WORK USERNET LINKNET starts a VM from $state with the job in WORK/job and
# its output on this program's; sets $vm_pid. It ends with this program.
start() {
	local work=$1 wake
	: >"$work/results.tar"
	mkfifo "$work/in"
	# Held open: at the pipe's end the port would be closed.
	exec {wake}<>"$work/in"
	qmp_open "$work"
	qmp_say migrate-incoming "{\"uri\": \"file:$state/memory\"}"
	machine "$image" "file=$state/root.qcow2,snapshot=on" "$work/job"
	TMPDIR=$work setpriv --pdeathsig TERM timeout --kill-after=5 $((limit + 60)) \
		setpriv --pdeathsig KILL "${qemu[@]}" "${machine[@]}" "${qmp[@]}" -incoming defer \
		-chardev "stdio,id=job,signal=off,logfile=$work/output.log" -chardev "file,id=results,path=$work/results.tar" \
		-netdev "user,id=user0,restrict=on$2" -netdev "$3,id=link0" \
		-serial "file:$work/console.log" -monitor none <"$work/in" 2>"$work/qemu.log" &
	vm_pid=$!
	watch_disk "$work" "$vm_pid" &
	echo "go $(date +%s.%N) $(od -An -tx1 -N16 /dev/urandom | tr -d ' ') $limit" >&"$wake"
}

# watch_disk WORK PID ends a VM whose writes found this machine's disk full: QEMU
# pauses it, and it would stay so. Ends with the VM.
watch_disk() {
	while kill -0 "$2"; do
		! disk_was_full "$1" || kill "$2"
		sleep 1
	done >/dev/null 2>&1 || true
}

# finish WORK STATUS RESULTS unpacks what a VM that ended brings back and sets
# $job_code; STATUS is what `wait` said of it. A VM that brought nothing back is a
# job that failed: others may follow.
finish() {
	local work=$1 status=$2 results=$3
	cp "$work"/{console,output}.log "$results/" 2>/dev/null || true
	tar -C "$results" --strip-components=1 -xf "$work/results.tar" 2>/dev/null || true
	[[ ! -s $results/exit ]] || {
		job_code=$(<"$results/exit")
		return
	}
	job_code=1
	cat "$work/qemu.log" >&2
	grep -sE '"error"|"status": "failed"' "$work/qmp.log" >&2 || true
	show_console "$work/console.log"
	if disk_was_full "$work"; then
		complain "the disk below $cache became full, so the VM was ended" "make room, or set VZRUN_CACHE to a larger disk"
	elif ((status == 124 || status == 137)); then
		complain "the VM hung and was ended after $((limit + 60)) s" "see its console above; VZRUN_VM_TIMEOUT is the limit"
	else
		complain "the VM ended without a result (QEMU: exit code $status)" "did its kernel panic? See its console above"
	fi
}
