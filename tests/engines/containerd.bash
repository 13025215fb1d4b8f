# shellcheck shell=bash
# Suites use what is set here, and $ARGS is jq's.
# shellcheck disable=SC2016,SC2154
# A containerd of a suite's own, beside helpers.bash:
#
#   load engines/containerd
#   setup_file() { suite_setup; containerd_setup; }
#   teardown_file() { containerd_teardown; suite_teardown; }
#
# Its configuration is the file that users are given, with other paths. $CTD is
# the place of all it has; $CTR_NS the namespace of what ctr makes. The runtime
# is called as containerd's shim does it, so $VZRUN has no options here.

containerd_setup() {
	CTD=$(mktemp -d "/var/tmp/vzrun-test.$VZ_TAG.XXXXXX")
	CTD_RUN=$(mktemp -d "/run/vzrun-test.$VZ_TAG.XXXXXX")
	chmod 0711 "$CTD" "$CTD_RUN"
	CTR_NS=$VZ_TAG
	# Bridges, addresses and rules of pods are in it, not on the host.
	NETNS=vzrun-test.$VZ_TAG
	ip netns add "$NETNS"
	ip -n "$NETNS" link set lo up
	IMAGE=localhost/vzrun-test/busybox:1
	ENGINE=$("$BATS_TEST_DIRNAME/engines/root" containerd | tail -n 1)
	CRI=$(cri_client)
	# Kept from being replaced as long as this suite runs.
	exec {ENGINE_FD}<"$ENGINE"
	flock --shared "$ENGINE_FD"
	export CTD CTD_RUN CTR_NS NETNS IMAGE ENGINE CRI ENGINE_FD
	containerd_config >"$CTD/config.toml"
	containerd_start
	busybox_image "$CTD/busybox.tar" "$IMAGE"
	ctr images import "$CTD/busybox.tar" >/dev/null
	ctr_all -n k8s.io images import "$CTD/busybox.tar" >/dev/null
}

# containerd_teardown removes what containerd may have left, then ends it.
containerd_teardown() {
	local ns id
	[[ -d ${CTD:-} ]] || return 0
	kill -0 "$(<"$CTD/pid")" 2>/dev/null || containerd_start
	remove_pods
	for ns in "$CTR_NS" k8s.io; do
		for id in $(ctr_all -n "$ns" containers list -q); do
			remove_container "$ns" "$id"
		done
	done
	containerd_stop
	end_shims
	ip netns del "$NETNS"
	remove_tree "$CTD"
	remove_tree "$CTD_RUN"
}

# containerd_config prints the users' configuration, at home in $CTD.
containerd_config() {
	local given=$BATS_TEST_DIRNAME/../contrib/engines/containerd-config.toml
	grep -qF "BinaryName = '/usr/local/sbin/vzrun'" "$given" || {
		echo "$given does not name vzrun as expected"
		return 1
	}
	sed "s|^\( *BinaryName = \).*|\1'$VZRUN'\n        Root = '$CTD_RUN/vzrun-cri'|" "$given"
	cat <<-EOF

		[plugins.'io.containerd.cri.v1.runtime'.cni]
		  bin_dirs = ['$ENGINE/cni']
		  conf_dir = '$CTD/cni'

		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = '$IMAGE'

		[plugins.'io.containerd.nri.v1.nri']
		  disable = true

		[plugins.'io.containerd.internal.v1.opt']
		  path = '$CTD/opt'
	EOF
}

# containerd_start returns when containerd answers.
containerd_start() {
	# Its CRI plugin asks CRIU itself whether it can checkpoint.
	PATH=$ENGINE/bin:${PREFIX:-/usr/local}/libexec/vzrun:$PATH nsenter --net="/run/netns/$NETNS" \
		"$ENGINE/bin/containerd" --config "$CTD/config.toml" --root "$CTD/lib" --state "$CTD_RUN/state" --address "$CTD_RUN/sock" </dev/null >>"$CTD/log" 2>&1 3>&- {ENGINE_FD}>&- &
	echo $! >"$CTD/pid"
	wait_until "$VZ_PATIENCE" ctr_all version || {
		tail -n 20 "$CTD/log"
		return 1
	}
}

containerd_stop() {
	local pid
	pid=$(<"$CTD/pid")
	kill -TERM "$pid" 2>/dev/null || return 0
	wait_exit "$pid"
}

# containerd_crash kills containerd; its shims and containers live on.
containerd_crash() {
	kill -KILL "$(<"$CTD/pid")"
	wait_exit "$(<"$CTD/pid")"
}

# shims prints the pids of this containerd's shims.
shims() { pgrep -f -- "containerd-shim-runc-v2 .*-address $CTD_RUN/sock" || true; }

# shim_of ID prints the pid of the shim of a container, or of a pod.
shim_of() { pgrep -f -- "containerd-shim-runc-v2 .*-id $1 -address $CTD_RUN/sock"; }

end_shims() {
	local pid
	for pid in $(shims); do
		kill -KILL "$pid" 2>/dev/null || true
		wait_exit "$pid"
	done
}

remove_container() {
	ctr_all -n "$1" tasks delete --force "$2" >/dev/null 2>&1 || true
	ctr_all -n "$1" containers delete "$2" || true
}

### ctr

# ctr_all is ctr without a namespace, ctr that of the suite's.
ctr_all() { "$ENGINE/bin/ctr" --address "$CTD_RUN/sock" --connect-timeout 5s "$@"; }

ctr() { ctr_all --namespace "$CTR_NS" "$@"; }

# ctr_run ARG... starts a container of the suite's runtime; $RUNTIME is another.
ctr_run() {
	local cgroup=()
	# Named like all that tests make, so that what is left over is found.
	[[ " $*" == *" --config="* ]] || cgroup=(--cgroup "$(cgroup_of "$ID")")
	ctr run --runc-binary "${RUNTIME:-$VZRUN}" --runc-root "$CTD_RUN/vzrun" --fifo-dir "$CTD_RUN/fifo" "${cgroup[@]}" "$@" 3>&-
}

# split_flags ARG... sets ${flags[@]} (--NAME or --NAME=VALUE) and ${words[@]}.
split_flags() {
	flags=()
	while [[ $1 == --* ]]; do
		flags+=("$1")
		shift
	done
	words=("$@")
}

# ctr_up [FLAG...] COMMAND... runs a container in the background.
ctr_up() {
	local flags words
	split_flags "$@"
	ctr_run --detach "${flags[@]}" "$IMAGE" "$ID" "${words[@]}" </dev/null >"$VZ_TMP/ctr.log" 2>&1 || {
		cat "$VZ_TMP/ctr.log"
		return 1
	}
}

# ctr_exec [FLAG...] COMMAND... runs one more process in the container.
ctr_exec() {
	local flags words
	split_flags "$@"
	ctr tasks exec --fifo-dir "$CTD_RUN/fifo" --exec-id "e$RANDOM$RANDOM" "${flags[@]}" "$ID" "${words[@]}" </dev/null 3>&-
}

# task_status prints what containerd takes the container for.
task_status() { ctr tasks list | awk -v id="$ID" '$1 == id { print $3 }'; }
task_pid() { ctr tasks list | awk -v id="$ID" '$1 == id { print $2 }'; }
task_is() { [[ $(task_status) == "$1" ]]; }

# runtime ARG... asks vzrun itself, at the state directory that the shim uses.
runtime() { "$VZRUN" --root "$CTD_RUN/vzrun/$CTR_NS" "$@"; }

### Images

# busybox_image TAR NAME makes an OCI archive of the suites' busybox.
busybox_image() {
	local tar=$1 name=$2 dir layer config manifest
	dir=$(mktemp -d "$CTD/image.XXXXXX")
	mkdir -p "$dir/blobs/sha256"
	tar -C "$VZRUN_BUSYBOX" --numeric-owner --sort=name --mtime=@0 -cf "$dir/layer" .
	layer=$(add_blob "$dir" "$dir/layer")
	jq -n --arg layer "$layer" '{architecture: "amd64", os: "linux", config: {Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"], Cmd: ["sleep", "100000"]},
		rootfs: {type: "layers", diff_ids: ["sha256:" + $layer]}}' >"$dir/config"
	config=$(add_blob "$dir" "$dir/config")
	jq -n --argjson config "$(descriptor "$dir" config "$config")" --argjson layer "$(descriptor "$dir" layer "$layer")" \
		'{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
		config: ($config + {mediaType: "application/vnd.oci.image.config.v1+json"}),
		layers: [$layer + {mediaType: "application/vnd.oci.image.layer.v1.tar"}]}' >"$dir/manifest"
	manifest=$(add_blob "$dir" "$dir/manifest")
	jq -n --argjson manifest "$(descriptor "$dir" manifest "$manifest")" --arg name "$name" '{schemaVersion: 2, manifests: [$manifest +
		{mediaType: "application/vnd.oci.image.manifest.v1+json", annotations: {"io.containerd.image.name": $name}}]}' >"$dir/index.json"
	echo '{"imageLayoutVersion": "1.0.0"}' >"$dir/oci-layout"
	tar -C "$dir" -cf "$tar" oci-layout index.json blobs
	rm -rf -- "$dir"
}

# add_blob DIR FILE prints the file's digest.
add_blob() {
	local digest
	digest=$(sha256sum <"$2" | cut -d ' ' -f 1)
	cp "$2" "$1/blobs/sha256/$digest"
	echo "$digest"
}

# descriptor DIR FILE DIGEST
descriptor() { jq -n --arg digest "sha256:$3" --argjson size "$(stat -c %s "$1/$2")" '{digest: $digest, size: $size}'; }

### CRI

# cri_client builds the client once, and prints its path.
cri_client() (
	cache=$(realpath -m "${VZRUN_CACHE:-$BATS_TEST_DIRNAME/../.cache}")
	for go in "${GO:-go}" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
		command -v "$go" >/dev/null && break
	done
	cd "$BATS_TEST_DIRNAME/cmd/cri" || exit
	mkdir -p "$cache/bin"
	cri=$cache/bin/cri-$(cat go.mod go.sum main.go | sha256sum | cut -c 1-12)
	if [[ ! -x $cri ]]; then
		CGO_ENABLED=0 "$go" build -trimpath -buildvcs=false -ldflags '-s -w' -o "$cri.$$" . >&2 || exit
		mv "$cri.$$" "$cri"
	fi
	echo "$cri"
)

# cri METHOD [REQUEST] prints the answer.
cri() { "$CRI" "$CTD_RUN/sock" "$@"; }

remove_pods() {
	local pod
	for pod in $(cri ListPodSandbox | jq -r '.items[].id'); do
		cri StopPodSandbox "{\"pod_sandbox_id\": \"$pod\"}" >/dev/null || true
		cri RemovePodSandbox "{\"pod_sandbox_id\": \"$pod\"}" >/dev/null || true
	done
}
