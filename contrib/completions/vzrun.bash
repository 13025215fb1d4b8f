# bash completion for vzrun. It asks vzrun only for the ids of containers.

# Flags that take a value, of all verbs and globally, between spaces.
_vzrun_valued=' --root --id-record --log --log-format --criu --rootless --bundle -b
 --console-socket --pidfd-socket --pid-file --preserve-fds --format -f --process
 -p --cwd --env -e --user -u --additional-gids -g --process-label --apparmor
 --cap -c --cgroup --timeout --image-path --work-path --parent-path
 --manage-cgroups-mode --veth --hostname --rootfs --template --image --ram
 --swap --cpus --ids --features
 --resources -r --blkio-weight --cpu-period --cpu-quota --cpu-burst --cpu-share
 --cpu-rt-period --cpu-rt-runtime --cpuset-cpus --cpuset-mems --cpu-idle --memory
 --memory-reservation --memory-swap --pids-limit --l3-cache-schema --mem-bw-schema
 --interval --escape --tail -n --output -o --sort -s --iterations --delay
 --machine-id --dns --hosts --lxcfs --net --clone-of --page-server --status-fd --empty-ns
 --lsm-profile --lsm-mount-context
 --mode --frozen-budget --link-timeout --compress --bandwidth --new-id --decide --progress --stats --ssh --remote-command --tls-cert --tls-key
 --tls-ca --listen --bundles --cgroup-parent --allow
 --export --export-format --compression-level --encrypt-to --import --identity '
_vzrun_valued=${_vzrun_valued//$'\n'/ }

_vzrun_verbs='checkpoint console create delete doctor enter events exec features help kill lazy-migrate list
 logs pause ps ready receive restore resume run spec start state stop top update'

_vzrun_flags() {
	local images='--image-path --work-path --tcp-established --ext-unix-sk
		--shell-job --file-locks --manage-cgroups-mode --print-stats --empty-ns --auto-dedup'
	local launch='--bundle --console-socket --pid-file --no-pivot'
	case $1 in
	'') echo '--root --id-record --log --log-format --debug --systemd-cgroup --criu --rootless --version' ;;
	create) echo "$launch --console --pidfd-socket --no-new-keyring --preserve-fds --net" ;;
	run) echo "$launch --pidfd-socket --no-new-keyring --preserve-fds --detach --keep --wait --timeout --no-subreaper --console --escape --net" ;;
	restore) echo "$launch $images --import --identity --detach --no-subreaper --veth --console --escape --lazy-pages --page-server
		--clone-of --hostname --machine-id --net --share-memory --lsm-profile --lsm-mount-context" ;;
	checkpoint) echo "$images --parent-path --leave-running --link-remap --pre-dump --check --end-sessions --format --lazy-pages --page-server --status-fd --tcp-skip-in-flight
		--export --export-format --compression-level --with-rootfs --encrypt-to" ;;
	lazy-migrate) echo '--mode --frozen-budget --link-timeout --compress --bandwidth --dry-run --new-id --net --shared-storage --keep-source --resolve --decide
		--progress --stats --ssh --remote-command --tls-cert --tls-key --tls-ca' ;;
	receive) echo '--listen --bundles --cgroup-parent --tls --allow --tls-cert --tls-key --tls-ca' ;;
	exec) echo '--console-socket --pidfd-socket --cwd --env --tty --user --additional-gids
		--process --detach --pid-file --process-label --apparmor --no-new-privs --cap
		--preserve-fds --cgroup --ignore-paused' ;;
	console) echo '--escape' ;;
	logs) echo '--follow --tail' ;;
	events) echo '--interval --stats --follow' ;;
	update) echo '--resources --blkio-weight --cpu-period --cpu-quota --cpu-burst --cpu-share
		--cpu-rt-period --cpu-rt-runtime --cpuset-cpus --cpuset-mems --cpu-idle --memory
		--memory-reservation --memory-swap --pids-limit --l3-cache-schema --mem-bw-schema' ;;
	list) echo '--format --quiet --output --sort --no-header --system' ;;
	top) echo '--batch --iterations --delay --sort --format' ;;
	ps | doctor) echo '--format' ;;
	ready) echo '--timeout --format' ;;
	stop) echo '--timeout' ;;
	kill) echo '--all' ;;
	delete) echo '--force' ;;
	spec) echo '--bundle --rootless --system --hostname --rootfs --template --image --ram --swap --cpus --ids --features
		--machine-id --dns --hosts --lxcfs --net' ;;
	esac
	echo '--help'
}

# The value of a flag.
_vzrun_value() {
	local verb=$1 flag=$2 current=$3
	case $flag in
	--log-format) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$current") ;;
	--rootless) mapfile -t COMPREPLY < <(compgen -W 'true false auto' -- "$current") ;;
	--manage-cgroups-mode) mapfile -t COMPREPLY < <(compgen -W 'soft full strict ignore' -- "$current") ;;
	--features)
		# The last one of the list; what is before it stays.
		local before=''
		[[ $current == *,* ]] && before=${current%,*},
		mapfile -t COMPREPLY < <(compgen -P "$before" -W 'fuse io_uring keyctl kvm nesting ppp tun' -- "${current##*,}")
		;;
	--format | -f)
		local plain=table
		[[ $verb == ready ]] && plain=text
		mapfile -t COMPREPLY < <(compgen -W "$plain json" -- "$current")
		;;
	--mode) mapfile -t COMPREPLY < <(compgen -W 'lazy pre-copy hybrid cold' -- "$current") ;;
	--compress) mapfile -t COMPREPLY < <(compgen -W 'zstd' -- "$current") ;;
	--decide) mapfile -t COMPREPLY < <(compgen -W 'here there' -- "$current") ;;
	--progress) mapfile -t COMPREPLY < <(compgen -W 'auto json' -- "$current") ;;
	--export-format) mapfile -t COMPREPLY < <(compgen -W 'tar oci' -- "$current") ;;
	--lxcfs) mapfile -t COMPREPLY < <(compgen -W 'auto no' -- "$current") ;;
	--machine-id) mapfile -t COMPREPLY < <(compgen -W 'new keep' -- "$current") ;;
	--dns) mapfile -t COMPREPLY < <(compgen -W 'none host' -- "$current") ;;
	--hosts) mapfile -t COMPREPLY < <(compgen -W 'none self host' -- "$current") ;;
	--sort | -s)
		local orders='cpu memory tasks io uptime id'
		[[ $verb == list ]] && orders=$("${COMP_WORDS[0]}" list --output help 2>/dev/null | cut -d ' ' -f 1)
		mapfile -t COMPREPLY < <(compgen -W "$orders" -- "$current")
		;;
	--output | -o)
		# The last of several.
		mapfile -t COMPREPLY < <(compgen -P "${current%"${current##*,}"}" \
			-W "all help $("${COMP_WORDS[0]}" list --output help 2>/dev/null | cut -d ' ' -f 1)" -- "${current##*,}")
		;;
	--root | --bundle | -b | --image-path | --work-path | --parent-path | --rootfs | --template | --clone-of | --bundles)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "$current")
		;;
	--log | --criu | --export | --import | --identity | --encrypt-to | --image | --console-socket | --pidfd-socket | --pid-file | --process | -p | --resources | -r | --stats | --tls-cert | --tls-key | --tls-ca)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		;;
	esac
}

_vzrun() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	local verb='' id='' i word
	local -a root=()
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $_vzrun_valued == *" $word "* && "$verb $word" != 'delete -f' && "$verb $word" != 'events --stats' ]]; then
			# What belongs to the flag has gone by; a flag at the end wants it now.
			((++i))
			((i == COMP_CWORD)) && {
				_vzrun_value "$verb" "$word" "$current"
				return
			}
			[[ $word == --root ]] && root=(--root "${COMP_WORDS[i]}")
		elif [[ $word == -* ]]; then
			continue
		elif [[ -z $verb ]]; then
			verb=$word
		elif [[ -z $id ]]; then
			id=$word
		fi
	done
	if [[ -n $id && $verb != doctor ]]; then
		# Flags have ended.
		if [[ $verb == kill && $previous == "$id" ]]; then
			mapfile -t COMPREPLY < <(compgen -W 'HUP INT QUIT KILL USR1 USR2 TERM CONT STOP RTMIN+3' -- "${current^^}")
		elif [[ $verb == exec ]]; then
			mapfile -t COMPREPLY < <(compgen -c -- "$current")
		fi
	elif [[ $current == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_vzrun_flags "$verb")" -- "$current")
	elif [[ -z $verb || $verb == help ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$_vzrun_verbs" -- "$current")
	elif [[ $verb == doctor ]]; then
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "$current")
	elif [[ $verb != @(create|run|restore|spec|features|list) ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" "${root[@]}" list --quiet 2>/dev/null)" -- "$current")
	fi
}

complete -F _vzrun vzrun
