#!/usr/bin/env bats
# list and top: what they say of a whole Debian, of small containers beside it,
# and of guests that do not want to be asked.
# suites use what `run` sets; variables in single quotes are jq's or the guest's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() {
	suite_setup
	vz_setup
	BUNDLE=$VZ_TMP/$ID
	export VZ_ROOT VZ_TMP ID BUNDLE
	debian_bundle "$ID" --ram 512M --cpus 1.5 >/dev/null
	edit_config "$BUNDLE" '.process.args[-1] = "systemd.hostname=list-me"'
	vz_up "$BUNDLE" "$ID"
	wait_guest "$ID"
	VZ_APP=app-$RANDOM
	export VZ_APP
	app_bundle "$VZ_APP" sleep 1000 >/dev/null
	app_up "$VZ_TMP/$VZ_APP" "$VZ_APP"
}

teardown_file() {
	vz_teardown
	suite_teardown
}

setup() {
	test_begins
	VZ_SPAWNED=()
}

teardown() {
	local pid
	for pid in "${VZ_SPAWNED[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
}

# of COLUMN prints what list says of the guest, as JSON.
of() { vz list --output "id,$1" --format json | jq -c --arg id "$ID" --arg c "$1" '.[] | select(.id == $id)[$c]'; }

@test "list without flags is runc's" {
	run -0 vz list
	[[ ${#lines[@]} -eq 3 && ${lines[0]} =~ ^ID\ +PID\ +STATUS\ +BUNDLE\ +CREATED\ +OWNER$ ]]
	[[ ${lines[*]} == *"$VZ_APP  "*" running  "* ]]
	vz list --format json | jq -e 'length == 2 and all(keys_unsorted - ["annotations"]
		== ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"])'
	run -0 vz list --quiet
	[[ $output == "$VZ_APP"$'\n'"$ID" ]]
}

@test "list --system shows whole systems and how they are" {
	run -0 vz list --system
	[[ ${#lines[@]} -eq 2 && ${lines[0]} =~ ^ID\ +STATUS\ +INIT\ +HOSTNAME\ +IP\ +MEMORY\ +CPU\ +TASKS\ +UPTIME$ ]]
	[[ ${lines[1]} =~ ^$ID\ +running\ +running\ +list-me\ +-\ +[0-9.]+[KM]iB\ +[0-9.]+\ +[0-9]+\ +[0-9ms]+$ ]]
	run -0 vz list --system --quiet
	[[ $output == "$ID" ]]
	vz list --system --format json | jq -e 'length == 1 and .[0].guest == "systemd" and (.[0] | has("bundle"))'
}

@test "columns are chosen, sorted and named" {
	run -0 vz list -o pid,id -s -pid -H
	[[ ${#lines[@]} -eq 2 && ${lines[0]} =~ ^[0-9]+\ +[^\ ]+$ && ${lines[0]%% *} -gt ${lines[1]%% *} ]]
	run -0 vz list --output help
	[[ ${#lines[@]} -gt 20 && $output == *"init "* ]]
	vz list -o all -f json | jq -e --argjson n "${#lines[@]}" 'all(length == $n)'
	fails 2 'no column "nope"' vz list -o id,nope
	fails 2 'no column "nope"' vz list -s nope
	run -0 vz --root "$VZ_TMP/nowhere" list -o all -f json
	[[ $output == '[]' ]]
}

@test "what is printed is what the kernel and the guest say" {
	local pid netns
	pid=$(pid_of "$ID")
	netns=$(stat -Lc %i "/proc/$pid/ns/net")
	[[ $(of netns) == "$netns" && $(of pid) == "$pid" ]]
	[[ $(of memory_limit) == $((512 << 20)) && $(of cpus) == 1.5 && $(of tasks_limit) == 32768 ]]
	[[ $(of uuid) == "$(jq '.process.env[] | select(startswith("container_uuid=")) | sub(".*="; "")' "$BUNDLE/config.json")" ]]
	[[ $(of os) == "\"$(guest "$ID" sh -c '. /etc/os-release; echo "$PRETTY_NAME"')\"" ]]
	[[ $(of memory) -gt 1000000 && $(of memory) -lt $((512 << 20)) ]]
	[[ $(of tasks) -ge 5 && $(of cpu) != 0 && $(of uptime) != null ]]
	vz list -o id,init,guest,ip,hostname,cpus -f json | jq -e --arg id "$VZ_APP" '.[] | select(.id == $id)
		| .init == null and .guest == null and .ip == null and .cpus == null and .hostname == "busybox"'
}

@test "a limit that update changed is the one shown" {
	vz update --memory 600m "$ID"
	[[ $(of memory_limit) == $((600 << 20)) ]]
	vz update --memory 512m "$ID"
}

@test "addresses are those that others reach it by" {
	local pid
	[[ $(of ip) == null ]]
	pid=$(pid_of "$ID")
	nsenter -t "$pid" -n sh -c 'ip link set lo up; ip link add vzl0 type veth peer name vzl1
		ip addr add 10.99.0.5/24 dev vzl0; ip addr add fd99::5/64 dev vzl0 nodad; ip link set vzl0 up; ip link set vzl1 up'
	[[ $(of ip) == '["10.99.0.5","fd99::5"]' ]]
	run -0 vz list -o ip -s -ip -H
	[[ ${lines[0]} == "10.99.0.5,fd99::5" && ${lines[1]} == - ]]
	nsenter -t "$pid" -n ip link del vzl0
}

@test "a unit that failed shows, and a paused guest is not asked" {
	guest "$ID" systemd-run --quiet --unit broken --property RemainAfterExit=no false
	wait_until 10 eval '[[ $(of init) == \"degraded\" ]]'
	guest "$ID" systemctl reset-failed
	[[ $(of init) == '"running"' ]]
	vz pause "$ID"
	vz list -o id,status,init,hostname,memory -f json | jq -e --arg id "$ID" '.[] | select(.id == $id)
		| .status == "paused" and .init == null and .hostname == "list-me" and .memory > 0'
	vz resume "$ID"
}

@test "host names and os-release of a guest cannot disturb a terminal" {
	local name=$BUNDLE/rootfs/etc/os-release target pid
	pid=$(pid_of "$ID")
	# As a program of the guest could, with sethostname(2).
	nsenter --target "$pid" --uts sh -c 'printf "a\033[2Jb" >/proc/sys/kernel/hostname'
	[[ $(of hostname) == '"a?[2Jb"' ]]
	guest "$ID" hostname list-me
	target=$(readlink "$name")
	rm "$name"
	mkfifo "$name"
	[[ $(of os) == null ]]
	rm "$name"
	ln -s "/proc/$$/root/etc/passwd" "$name"
	[[ $(of os) == null ]]
	rm "$name"
	ln -s "$target" "$name"
}

@test "an init that does not answer holds list up for no longer than two seconds" {
	local pid
	pid=$(pid_of "$ID")
	# Stopped in its tracks, as one that is hostile would be; the others are asked.
	kill -STOP "$pid"
	run -0 timeout "$(slow 30)" "$VZRUN" --root "$VZ_ROOT" list -o id,init,hostname
	kill -CONT "$pid"
	[[ $output == *"no answer"*list-me* && $output == *"$VZ_APP"* ]]
	wait_until 10 eval '[[ $(of init) == \"running\" ]]'
}

### top

@test "top --batch measures what containers use" {
	run -0 vz top --batch --iterations 1 --delay 0.2
	[[ ${lines[0]} =~ ^ID\ +STATUS\ +CPU%\ +MEMORY\ +LIMIT\ +MEM%\ +TASKS\ +READ/s\ +WRITE/s\ +TIME\ +UPTIME$ ]]
	[[ $output =~ "$ID"\ +running\ +[0-9.]+\ +[0-9.]+[KM]iB\ +512MiB\ +[0-9.]+\ +[0-9]+ ]]
	# One that spins is first, and near a whole processor.
	vz exec --detach "$ID" sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1
	vz top -f json -n 2 -d 0.5 >"$VZ_TMP/top.json"
	guest "$ID" pkill -f 'while :'
	jq -se --arg id "$ID" 'length == 2 and all(.interval > 0 and (.containers | length == 2)
		and .containers[0].id == $id and .containers[0].cpu > 10 and .containers[0].tasks > 5)' "$VZ_TMP/top.json"
}

@test "top shows the containers that are named, and names one that is not there" {
	vz top -b -f json -n 1 -d 0.1 "$VZ_APP" | jq -e --arg id "$VZ_APP" '.containers | length == 1 and .[0].id == $id'
	fails 1 'does not exist' vz top -b -n 1 nobody
	fails 2 'no column "nope"' vz top -b -s nope
	fails 2 'no span of time' vz top -b -d 0
	fails 2 'no terminal' vz top
	vz top "$VZ_APP" --batch -n 1 -d 0.1 | grep "$VZ_APP"
}

@test "top in a terminal shows a screen, takes keys and leaves the terminal as it was" {
	mkfifo "$VZ_TMP/keys"
	: >"$VZ_TMP/screen"
	script --quiet --return --flush --log-out "$VZ_TMP/screen" \
		--command "stty rows 20 cols 90; stty -g; '$VZRUN' --root '$VZ_ROOT' top --delay 0.2; stty -g" \
		<"$VZ_TMP/keys" >/dev/null 2>&1 3>&- &
	SPAWNED=$!
	VZ_SPAWNED+=("$SPAWNED")
	exec 7>"$VZ_TMP/keys"
	wait_line "$VZ_TMP/screen" "$ID +running"
	printf 'm' >&7
	printf 'q' >&7
	wait_exit "$SPAWNED" 20
	exec 7>&-
	grep -q $'\e\\[?1049h' "$VZ_TMP/screen"
	grep -q $'\e\\[?1049l' "$VZ_TMP/screen"
	# The same settings before and after.
	[[ $(grep -aoE '[0-9a-f]+(:[0-9a-f]+){30,}' "$VZ_TMP/screen" | sort -u | wc -l) == 1 ]]
}
