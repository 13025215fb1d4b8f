#!/usr/bin/env bats
# What engines and administrators say to CRIU: runc's flags beside the common ones,
# and CRIU's configuration files.
# Suites use what `run` sets.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

# bats file_tags=short

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }

setup() {
	vz_setup
	IMAGES=$VZ_TMP/images
}

teardown() { vz_teardown; }

@test "org.criu.config names a configuration file of CRIU's" {
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	edit_config "$bundle" '.annotations["org.criu.config"] = $ARGS.positional[0]' "$VZ_TMP/criu.conf"
	echo 'log-file annotated.log' >"$VZ_TMP/criu.conf"
	app_up "$bundle" "$ID"
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	[[ -s $IMAGES/annotated.log ]]
	# One that is not there is none; the restore reads it anew.
	rm "$VZ_TMP/criu.conf"
	vz checkpoint --image-path "$IMAGES-2" "$ID"
	[[ -s $IMAGES-2/dump.log ]]
	echo 'log-file restored.log' >"$VZ_TMP/criu.conf"
	app_restore "$bundle" "$ID" "$IMAGES-2"
	[[ -s $IMAGES-2/restored.log ]]
	# What it says wins, and what it asks wrongly is CRIU's error.
	echo 'no-such-option' >"$VZ_TMP/criu.conf"
	run -1 vz checkpoint --image-path "$IMAGES-3" "$ID"
	[[ $(status_of "$ID") == running ]]
}

@test "--empty-ns leaves out what is in the network namespace" {
	local bundle
	bundle=$(app_bundle "$ID" sh -c 'ip addr add 192.0.2.7/32 dev lo; touch /ready; sleep 1000')
	edit_config "$bundle" '.process.capabilities[] += ["CAP_NET_ADMIN"]'
	app_up "$bundle" "$ID"
	wait_file "$bundle/rootfs/ready"
	vz checkpoint --empty-ns network --image-path "$IMAGES" "$ID"
	jq -e '.empty_network' "$IMAGES/vzrun.json"
	app_restore "$bundle" "$ID" "$IMAGES"
	run -1 grep 192.0.2.7 <<<"$(guest "$ID" ip addr show dev lo)"
	guest "$ID" ip addr add 192.0.2.7/32 dev lo
	vz checkpoint --image-path "$IMAGES-2" "$ID"
	app_restore "$bundle" "$ID" "$IMAGES-2"
	guest "$ID" ip addr show dev lo | grep 192.0.2.7
	vz delete --force "$ID"
	app_restore "$bundle" "$ID" "$IMAGES-2" --empty-ns network
	run -1 grep 192.0.2.7 <<<"$(guest "$ID" ip addr show dev lo)"
}

@test "--tcp-skip-in-flight leaves out a connection that nobody has accepted" {
	local bundle
	bundle=$(app_bundle "$ID" /inflight)
	cp "$(build_command inflight)" "$bundle/rootfs/inflight"
	edit_config "$bundle" '.process.capabilities[] += ["CAP_NET_BIND_SERVICE"]'
	app_up "$bundle" "$ID"
	wait_file "$bundle/rootfs/ready"
	fails 1 'has not accepted connections' vz checkpoint --tcp-established --image-path "$IMAGES" "$ID"
	[[ $(status_of "$ID") == running ]]
	vz checkpoint --tcp-established --tcp-skip-in-flight --image-path "$IMAGES" "$ID"
	fails 1 'does not exist' vz state "$ID"
}

@test "what is on its way in a paused container: the hint is to resume it" {
	local bundle
	bundle=$(app_bundle "$ID" /inflight message)
	cp "$(build_command inflight)" "$bundle/rootfs/inflight"
	app_up "$bundle" "$ID"
	wait_file "$bundle/rootfs/ready"
	vz pause "$ID"
	fails 1 'a descriptor or credentials are on their way' vz checkpoint --image-path "$IMAGES" "$ID"
	[[ ${stderr_lines[-1]} == 'hint: resume the container, pause it again '* ]]
	[[ $(status_of "$ID") == paused ]]
	vz resume "$ID"
	fails 1 'a descriptor or credentials are on their way' vz checkpoint --image-path "$IMAGES" "$ID"
	[[ ${stderr_lines[-1]} == 'hint: try again' ]]
	vz kill "$ID" USR1
	wait_file "$bundle/rootfs/arrived"
	vz checkpoint --image-path "$IMAGES" "$ID"
}

@test "--auto-dedup gives the images back, and they are used up" {
	local bundle before after
	bundle=$(app_bundle "$ID" /memory 32 /log)
	cp "$(build_command memory)" "$bundle/rootfs/memory"
	app_up "$bundle" "$ID"
	wait_file "$bundle/rootfs/log"
	wait_lines "$bundle/rootfs/log" 3
	vz checkpoint --auto-dedup --image-path "$IMAGES" "$ID"
	before=$(du -sk "$IMAGES" | cut -f 1)
	app_restore "$bundle" "$ID" "$IMAGES" --auto-dedup
	after=$(du -sk "$IMAGES" | cut -f 1)
	echo "$before KiB before, $after after"
	((after + 30000 < before))
	wait_lines "$bundle/rootfs/log" $(($(wc -l <"$bundle/rootfs/log") + 3))
	vz delete --force "$ID"
	fails 1 'used up' vz restore --detach --bundle "$bundle" --image-path "$IMAGES" "$ID"
}

@test "--lsm-profile is CRIU's to judge" {
	local bundle
	[[ ! -e /sys/kernel/security/apparmor ]] || skip "this kernel has AppArmor"
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	vz checkpoint --image-path "$IMAGES" "$ID"
	run -1 vz restore --detach --lsm-profile apparmor:unconfined --bundle "$bundle" --image-path "$IMAGES" "$ID"
	[[ $output == *apparmor* ]]
	fails 1 'does not exist' vz state "$ID"
	app_restore "$bundle" "$ID" "$IMAGES"
}

@test "a parent that is none is refused, and the container goes on" {
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	fails 1 'parent' vz checkpoint --parent-path ../nowhere --image-path "$IMAGES" "$ID"
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	fails 1 'no pre-dump' vz checkpoint --parent-path ../images --image-path "$IMAGES-2" "$ID"
	fails 1 'not relative' vz checkpoint --parent-path "$IMAGES" --image-path "$IMAGES-2" "$ID"
	fails 2 'empty-ns' vz checkpoint --empty-ns pid --image-path "$IMAGES-2" "$ID"
	[[ $(status_of "$ID") == running && ! -e $IMAGES-2 ]]
}

# kept prints what is known of CRIU's NAME, data or version.
kept() { find "$VZ_ROOT/@/criu" -mindepth 2 -name "$1"; }

@test "CRIU's look at the kernel is kept, and one that is damaged is none" {
	local bundle tmpfs='' garbage
	[[ $(stat -f -c %T /run) != tmpfs ]] || tmpfs=1
	bundle=$(app_bundle "$ID" sleep 1000)
	app_up "$bundle" "$ID"
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	[[ $(kept version | wc -l) -eq 1 ]]
	vz checkpoint --image-path "$IMAGES-2" "$ID"
	grep 'Loaded kdat cache' "$IMAGES-2/dump.log"
	app_restore "$bundle" "$ID" "$IMAGES-2"
	grep 'Loaded kdat cache' "$IMAGES-2/restore.log"
	run -1 grep criu.kdat /proc/self/mountinfo
	# A tmpfs is CRIU's own business.
	[[ -z $tmpfs ]] || {
		[[ ! -s $(kept data) ]]
		return 0
	}
	for garbage in '' x; do
		printf %s "$garbage" >"$(kept data)"
		printf %s "$garbage" >"$(kept version)"
		vz checkpoint --image-path "$IMAGES-3$garbage" "$ID"
		app_restore "$bundle" "$ID" "$IMAGES-3$garbage"
	done
	printf x >"$(kept data)"
	vz checkpoint --image-path "$IMAGES-4" "$ID"
	run -1 grep 'Loaded kdat cache' "$IMAGES-4/dump.log"
	# Where it cannot be kept it is looked at each time.
	app_restore "$bundle" "$ID" "$IMAGES-4"
	rm -r "$VZ_ROOT/@/criu"
	touch "$VZ_ROOT/@/criu"
	vz checkpoint --image-path "$IMAGES-5" "$ID"
	app_restore "$bundle" "$ID" "$IMAGES-5"
	rm "$VZ_ROOT/@/criu"
}

@test "what each network namespace has by itself is not restored by programs" {
	local bundle
	bundle=$(app_bundle "$ID" sleep 1000)
	edit_config "$bundle" '.process.capabilities[] += ["CAP_NET_ADMIN"]'
	app_up "$bundle" "$ID"
	vz checkpoint --leave-running --image-path "$IMAGES" "$ID"
	run -1 compgen -G "$IMAGES/ru*-*.img"
	guest "$ID" ip rule add from 192.0.2.7 table 99
	guest "$ID" ip link set lo up
	guest "$ID" ip route add 192.0.2.0/24 dev lo
	vz checkpoint --image-path "$IMAGES-2" "$ID"
	app_restore "$bundle" "$ID" "$IMAGES-2"
	[[ $(guest "$ID" ip rule | wc -l) -eq 4 ]]
	guest "$ID" ip rule | grep 'from 192.0.2.7'
	guest "$ID" ip route | grep 192.0.2.0/24
	vz checkpoint --image-path "$IMAGES-3" "$ID"
	vz delete --force "$ID" 2>/dev/null || true
	app_restore "$bundle" "$ID" "$IMAGES"
	[[ $(guest "$ID" ip rule | wc -l) -eq 3 ]]
}
