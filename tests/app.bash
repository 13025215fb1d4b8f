# shellcheck shell=bash
# Suites use what `run` sets, and $ARGS is jq's.
# shellcheck disable=SC2016,SC2154
# Helpers of the suites that work with small containers, beside helpers.bash:
#
#   load helpers
#   load app

# app_bundle ID ARG... is a busybox_bundle that can be checkpointed on any host:
# without a mount of cgroup v1.
app_bundle() { small_bundle '.mounts |= map(select(.type != "cgroup"))' "$@"; }

# These start containers with no file of the host open, as that could not be
# checkpointed: what vzrun has to say is in its log.

# app_up BUNDLE ID [FLAG...]
app_up() { app_launch run --detach --bundle "$1" "${@:3}" "$2"; }

# app_create BUNDLE ID [FLAG...]
app_create() { app_launch create --bundle "$1" "${@:3}" "$2"; }

# app_restore BUNDLE ID IMAGES [FLAG...]
app_restore() { app_launch restore --detach --bundle "$1" --image-path "$3" "${@:4}" "$2"; }

app_launch() {
	vz --log "$VZ_TMP/launch.log" "$@" </dev/null >/dev/null 2>&1 3>&- || {
		cat "$VZ_TMP/launch.log"
		return 1
	}
}

# fails CODE REGEX CMD... runs a command that must end with CODE, say nothing on
# stdout and two lines on stderr: an error that matches, and a hint.
fails() {
	local code=$1 pattern=$2
	shift 2
	run "-$code" --separate-stderr "$@"
	if [[ -n $output || ${#stderr_lines[@]} -ne 2 || ! ${stderr_lines[0]} =~ ^vzrun:\ .*$pattern || ! ${stderr_lines[1]} =~ ^hint:\ . ]]; then
		printf 'not one error that matches "%s" and one hint:\nstdout: %s\nstderr: %s\n' "$pattern" "$output" "$stderr"
		return 1
	fi
}

# tree_sum DIR [PATH] prints a checksum of all names, owners, modes, contents and
# times in DIR, except of what is below DIR/PATH and of the times of directories:
# CRIU works in the guest's /tmp for a moment.
tree_sum() {
	(
		cd "$1" || exit
		{
			find . -path "./${2:-none}" -prune -o -printf '%p %y %#m %U %G %l\n'
			find . -path "./${2:-none}" -prune -o ! -type d -printf '%p %T@\n'
			find . -path "./${2:-none}" -prune -o -type f -print0 | xargs -0 sha256sum
		} | sort | sha256sum
	)
}

# assert_nothing_left [ID...] fails unless no container, mount, cgroup (hence
# process), lock or journal of this test is left but those of the given ids.
assert_nothing_left() {
	local left
	if ! wait_until 5 nothing_left "$@"; then
		left=$(all_left "$@")
		printf 'left over:\n%s\n' "$left"
		return 1
	fi
}

nothing_left() { [[ -z $(all_left "$@") ]]; }

all_left() {
	local id skip=()
	for id; do
		skip+=(-e "$id")
	done
	{
		mounts | grep -F -e "$VZ_ROOT" -e "$VZ_TMP"
		find /sys/fs/cgroup -type d -name "vzrun-test-$VZ_TAG-$ID*"
		# Compiled seccomp programs, and what is known of CRIU, stay for the next
		# container.
		find "$VZ_ROOT" -mindepth 1 ! -path "$VZ_ROOT/@" ! -path "$VZ_ROOT/@/seccomp*" ! -path "$VZ_ROOT/@/criu*"
	} 2>/dev/null | if (($#)); then grep -vF "${skip[@]}"; else cat; fi
}

# netns_exists INODE tells whether any process is still in a network namespace.
netns_exists() { stat -Lc %i /proc/[0-9]*/ns/net 2>/dev/null | grep -qx "$1"; }

netns_gone() { ! netns_exists "$1"; }

netns_of() { stat -Lc %i "/proc/$1/ns/net"; }

# build_command NAME prints the path of tests/cmd/NAME, built for this suite.
build_command() {
	local go
	for go in "${GO:-go}" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
		command -v "$go" >/dev/null && break
	done
	# By file name, so that the module's own dependencies are not needed.
	(cd "$BATS_TEST_DIRNAME/cmd/$1" && CGO_ENABLED=0 "$go" build -buildvcs=false -o "$BATS_FILE_TMPDIR/$1" ./*.go)
	echo "$BATS_FILE_TMPDIR/$1"
}

# control_file CGROUP V1 V2 prints a control file of a cgroup, by its name on
# either layout.
control_file() {
	local path
	for path in /sys/fs/cgroup/*"$1/$2" "/sys/fs/cgroup$1/$3"; do
		[[ ! -e $path ]] || {
			cat "$path"
			return
		}
	done
	echo "no $2 and no $3 in $1"
	return 1
}

# with_lazy_pages sets a host without CAP_SYS_RESOURCE, and with guests in user
# namespaces, to what lazy pages need, until restore_sysctls. Suites that run side by side
# share that: each holds a lock, and the last one puts back what the first one found.
with_lazy_pages() {
	exec {VZ_SYSCTLS}>>"$(lent_sysctls)"
	flock --shared "$VZ_SYSCTLS"
	with_sysctl fs.pipe-max-size 4194304
	with_sysctl vm.unprivileged_userfaultfd 1
}

lent_sysctls() { echo /run/vzrun-test-sysctls; }

# with_sysctl NAME LEAST raises a setting of the host.
with_sysctl() {
	local was
	was=$(sysctl -n "$1")
	((was < $2)) || return 0
	echo "$1=$was" >>"$(lent_sysctls)"
	sysctl -q -w "$1=$2"
}

restore_sysctls() {
	local setting
	[[ -n ${VZ_SYSCTLS:-} ]] || exec {VZ_SYSCTLS}>>"$(lent_sysctls)"
	if flock --exclusive --nonblock "$VZ_SYSCTLS"; then
		while read -r setting; do
			sysctl -q -w "$setting"
		done <"$(lent_sysctls)"
		: >"$(lent_sysctls)"
	fi
	# Whoever else has inherited it.
	flock --unlock "$VZ_SYSCTLS"
}
