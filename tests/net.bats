#!/usr/bin/env bats
# Network interfaces that vzrun makes (--net, org.vzrun.net). Every test has a
# network namespace of its own in place of the host's.
# $ARGS is jq's.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers
load app

setup_file() { suite_setup; }
teardown_file() { suite_teardown; }

setup() {
	vz_setup
	# Not by spawn: it is needed until the last container is deleted.
	unshare --net sh -c 'echo up; exec sleep infinity' </dev/null >"$VZ_TMP/host" 2>&1 3>&- &
	HOST=$!
	disown
	wait_line "$VZ_TMP/host" up
	host ip link set lo up
	host ip link add vzbr0 type bridge
	host ip addr add 10.1.0.1/24 dev vzbr0
	host ip addr add fd00:1::1/64 dev vzbr0 nodad
	host ip link set vzbr0 up
	host sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

teardown() {
	vz_teardown
	kill -KILL "$HOST"
}

# host CMD... runs a command in what is the host's network for the test.
host() { nsenter --net="/proc/$HOST/ns/net" -- "$@"; }

vz() { host "$VZRUN" --root "$VZ_ROOT" "$@"; }

# net_up ID NET... runs a guest whose root may do with its network what it likes.
net_up() {
	local id=$1 bundle net
	shift
	bundle=$(net_bundle "$id" sleep infinity)
	for net; do
		set -- "$@" --net "$net"
		shift
	done
	app_up "$bundle" "$id" "$@"
}

net_bundle() {
	local bundle
	bundle=$(app_bundle "$1" "${@:2}")
	edit_config "$bundle" '.process.capabilities[] += ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]
		| .linux.namespaces += [{type: "user"}] | .annotations["org.vzrun.rootfs"] = "idmap"
		| .linux.uidMappings = [{containerID: 0, hostID: 1900000000, size: 65536}] | .linux.gidMappings = .linux.uidMappings'
	echo "$bundle"
}

# answers CMD... pings, by the host or a guest: `answers host 10.1.0.5`, or
# `answers guest ID 10.1.0.1`.
answers() { pinged 5 "$@"; }
silent() { ! pinged 1 "$@"; }

pinged() {
	local seconds=$1 ping=(ping)
	shift
	[[ $1 != host ]] || ping=("$VZRUN_BUSYBOX/bin/busybox" ping)
	"${@:1:$#-1}" "${ping[@]}" -c 1 -W "$seconds" "${!#}" >/dev/null
}

# refuses CODE TEXT HINT VERB... holds an error against what it should be.
refuses() {
	local code=$1 text=$2 hint=$3
	shift 3
	run --separate-stderr vz "$@"
	[[ $status -eq $code ]]
	[[ ${stderr_lines[0]} == *"$text"* ]]
	[[ ${stderr_lines[1]} == "hint: "*"$hint"* ]]
	[[ ${#stderr_lines[@]} -eq 2 ]]
}

# host_net_clean: there is what setup made, and nothing else.
host_net_clean() { wait_until 5 host_net_is_clean || { host ip -br link; host nft list ruleset; return 1; }; }

host_net_is_clean() {
	[[ $(host ip -br link | awk '{ print $1 }' | sort | paste -sd ' ') == 'lo vzbr0' ]] &&
		[[ -z $(host nft list ruleset) ]] && ! host ip route show table all | grep vz- &&
		! host ip -6 route show table all | grep vz-
}

# neighbour CMD... runs a command on another machine of the bridge.
neighbour() { nsenter --net="/proc/$NEIGHBOUR/ns/net" -- "$@"; }

@test "an address that another machine on the bridge has is refused, by IPv4 and IPv6" {
	spawn "$VZ_TMP/neighbour" unshare --net sh -c 'echo up; exec sleep infinity'
	NEIGHBOUR=$SPAWNED
	wait_line "$VZ_TMP/neighbour" up
	host ip link add port type veth peer name eth0 netns "$NEIGHBOUR"
	host ip link set port master vzbr0 up
	neighbour ip link set eth0 address 02:00:00:00:00:99 up
	neighbour ip addr add 10.1.0.9/24 dev eth0
	neighbour ip addr add fd00:1::9/64 dev eth0 nodad
	bundle=$(net_bundle "$ID" sleep infinity)
	for ip in 10.1.0.9/24 fd00:1::9/64; do
		refuses 1 "address is in use: ${ip%/*}, by 02:00:00:00:00:99 on bridge vzbr0" 'another ip=' \
			run --detach --bundle "$bundle" --net "bridge=vzbr0,ip=10.1.0.8/24,ip=$ip" "$ID"
		assert_nothing_left
	done
	# One that is gone is free, also when it was there a moment ago.
	neighbour ip addr del 10.1.0.9/24 dev eth0
	app_up "$bundle" "$ID" --net bridge=vzbr0,ip=10.1.0.9/24
	for _ in 1 2 3; do
		vz delete --force "$ID"
		app_up "$bundle" "$ID" --net bridge=vzbr0,ip=10.1.0.9/24
	done
	answers guest "$ID" 10.1.0.1
}

@test "guests on a bridge reach each other and the host, by IPv4 and IPv6" {
	net_up "$ID-a" bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1,ip=fd00:1::5/64,gw=fd00:1::1,mac=02:00:00:00:00:05
	net_up "$ID-b" bridge=vzbr0,ip=10.1.0.6/24,ip=fd00:1::6/64,host=vzb,name=lan0,mtu=1400
	answers host 10.1.0.5
	answers host fd00:1::6
	answers guest "$ID-a" 10.1.0.6
	answers guest "$ID-b" fd00:1::5
	answers guest "$ID-a" 127.0.0.1
	[[ $(guest "$ID-a" ip route | head -n 1) == 'default via 10.1.0.1 dev eth0'* ]]
	[[ $(guest "$ID-a" ip -6 route) == *'default via fd00:1::1 dev eth0'* ]]
	[[ $(guest "$ID-a" cat /sys/class/net/eth0/address) == 02:00:00:00:00:05 ]]
	[[ $(guest "$ID-a" cat /sys/class/net/eth0/mtu) == 1500 ]]
	[[ $(guest "$ID-b" cat /sys/class/net/lan0/mtu) == 1400 ]]
	host ip link show vzb | grep 'master vzbr0'

	# All of it can be read from outside, what was chosen too.
	state=$(vz state "$ID-b" | jq -r '.annotations["org.vzrun.net"]')
	[[ $state == bridge=vzbr0,ip=10.1.0.6/24,ip=fd00:1::6/64,mac=*,mtu=1400,name=lan0,host=vzb,filter=ip ]]
	[[ $state == *"mac=$(guest "$ID-b" cat /sys/class/net/lan0/address)"* ]]

	vz delete --force "$ID-a"
	vz delete --force "$ID-b"
	host_net_clean
	assert_nothing_left
}

@test "routed guests have single addresses; the host is their gateway" {
	net_up "$ID-a" routed,ip=10.2.0.5,ip=fd00:2::5
	net_up "$ID-b" routed,ip=10.3.0.6,ip=fd00:3::6
	answers host 10.2.0.5
	answers host fd00:3::6
	answers guest "$ID-a" 10.3.0.6
	answers guest "$ID-b" fd00:2::5
	answers guest "$ID-a" 10.1.0.1
	# The host speaks to guests with an address of its own.
	[[ $(host ip -o route get 10.2.0.5) == *'src 10.1.0.1'* ]]
	[[ $(guest "$ID-a" ip route) == *'default via 169.254.1.1 dev eth0'* ]]
	vz delete --force "$ID-a"
	vz delete --force "$ID-b"
	host_net_clean
}

@test "several interfaces, from config.json, from flags, and none" {
	bundle=$(busybox_bundle "$ID" sleep infinity)
	edit_config "$bundle" '.annotations["org.vzrun.net"] = "bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1; routed,ip=10.2.0.5"'
	vz_up "$bundle" "$ID"
	answers host 10.1.0.5
	answers host 10.2.0.5
	[[ $(guest "$ID" ip route | grep -c '^default') == 2 ]]
	[[ $(guest "$ID" ip route | grep -m 1 '^default') == *'10.1.0.1'* ]]
	vz delete --force "$ID"

	vz_up "$bundle" "$ID" --net bridge=vzbr0,ip=10.1.0.7/24 --net bridge=vzbr0,ip=10.1.0.8/24,name=back
	[[ $(guest "$ID" ls /sys/class/net | paste -sd ' ') == *'back'*'eth0'*'lo'* ]]
	answers host 10.1.0.7
	vz delete --force "$ID"

	vz_up "$bundle" "$ID" --net none
	[[ $(guest "$ID" ls /sys/class/net) != *eth* ]]
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.net"]') == null ]]
	vz delete --force "$ID"
	host_net_clean
}

@test "spec --system writes the interfaces down, and refuses wrong ones" {
	new_bundle "$VZ_TMP/b" "$VZRUN_BUSYBOX"
	cd "$VZ_TMP/b"
	refuses 1 '"dhcp" is not known; known are bridge=' 'bridge=NAME' spec --system --net dhcp
	[[ ! -e config.json ]]
	refuses 2 '--net is for whole systems' '--system' spec --net routed,ip=10.2.0.5
	vz spec --system --net bridge=vzbr0 --net routed,ip=10.2.0.5
	[[ $(jq -r '.annotations["org.vzrun.net"]' config.json) == 'bridge=vzbr0;routed,ip=10.2.0.5' ]]
}

@test "a guest's root cannot use addresses of others" {
	net_up "$ID-a" bridge=vzbr0,ip=10.1.0.5/24,ip=fd00:1::5/64 routed,ip=10.2.0.5
	net_up "$ID-b" bridge=vzbr0,ip=10.1.0.6/24,ip=fd00:1::6/64
	net_up "$ID-c" bridge=vzbr0,ip=10.1.0.7/24,filter=off
	in_a() { guest "$ID-a" "$@"; }

	# Another IPv4 address, by IP and by ARP.
	in_a ip addr add 10.1.0.66/24 dev eth0
	run ! guest "$ID-a" ping -c 1 -W 1 -I 10.1.0.66 10.1.0.1
	host ip neigh flush dev vzbr0
	silent host 10.1.0.66
	[[ $(host ip neigh show 10.1.0.66) != *lladdr* ]]
	# The victim's own address, told to all.
	in_a ip addr add 10.1.0.6/32 dev eth0
	in_a arping -c 1 -U -I eth0 10.1.0.6 || true
	answers guest "$ID-c" 10.1.0.6
	[[ $(guest "$ID-c" ip neigh show 10.1.0.6) == *"$(guest "$ID-b" cat /sys/class/net/eth0/address)"* ]]
	# IPv6: an address on the same network, and a router that is none.
	in_a ip addr add fd00:1::66/64 dev eth0
	silent host fd00:1::66
	# On the routed one.
	in_a ip addr add 10.2.0.66/32 dev eth1
	host ip route add 10.2.0.66 dev "$(host_end "$ID-a" 1)"
	silent host 10.2.0.66
	# What it may, it still can.
	answers guest "$ID-a" 10.1.0.1
	answers host fd00:1::5
	answers host 10.2.0.5

	# Another MAC.
	in_a ip link set eth0 down
	in_a ip link set eth0 address 02:00:00:00:00:66
	in_a ip link set eth0 up
	silent host 10.1.0.5
	# Renaming the interface inside changes nothing.
	in_a ip link set eth0 down
	in_a ip link set eth0 name eth9
	in_a ip link set eth9 up
	silent host 10.1.0.5
	# The administrator sees what was dropped.
	host nft list ruleset | grep -E 'counter packets [1-9][0-9]* bytes [0-9]+ drop'

	# One that is trusted.
	guest "$ID-c" ip addr add 10.1.0.77/24 dev eth0
	answers host 10.1.0.77
}

# host_end ID INDEX is the host's name of a guest's interface.
host_end() { vz state "$1" | jq -r '.annotations["org.vzrun.net"]' | tr ';' '\n' | sed -n "$(($2 + 1))s/.*host=\([^,]*\).*/\1/p"; }

@test "without an address a guest is held to its MAC only, and can ask for one" {
	net_up "$ID" bridge=vzbr0
	guest "$ID" ip addr add 10.1.0.50/24 dev eth0
	answers host 10.1.0.50
	guest "$ID" ip link set eth0 down
	guest "$ID" ip link set eth0 address 02:00:00:00:00:66
	guest "$ID" ip link set eth0 up
	silent host 10.1.0.50
}

@test "nat hides a guest behind the host" {
	# A world beyond the host that knows nothing of the guests.
	spawn "$VZ_TMP/world" unshare --net sh -c 'echo up; exec sleep infinity'
	wait_line "$VZ_TMP/world" up
	host ip link add up0 type veth peer name world0 netns "$SPAWNED"
	host ip addr add 192.0.2.1/24 dev up0
	host ip link set up0 up
	nsenter --net="/proc/$SPAWNED/ns/net" sh -c 'ip addr add 192.0.2.2/24 dev world0; ip link set world0 up'
	net_up "$ID-a" bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1,nat
	net_up "$ID-b" routed,ip=10.2.0.5,nat
	net_up "$ID-c" bridge=vzbr0,ip=10.1.0.6/24,gw=10.1.0.1
	answers guest "$ID-a" 192.0.2.2
	answers guest "$ID-b" 192.0.2.2
	silent guest "$ID-c" 192.0.2.2
	vz delete --force "$ID-a"
	vz delete --force "$ID-b"
	vz delete --force "$ID-c"
	host ip link del up0
	host_net_clean
}

@test "wrong interfaces: one error, one hint, nothing left" {
	bundle=$(busybox_bundle "$ID" sleep infinity)
	try() { refuses "$1" "$2" "$3" create --bundle "$bundle" --net "$4" "$ID"; }
	host ip link add veth9 type veth peer name veth8
	try 1 'no such network interface: bridge nobr0' 'ip link add' bridge=nobr0
	try 1 'not a bridge: veth9' 'name a bridge' bridge=veth9
	try 1 'interface name is taken: veth9' 'host=' bridge=vzbr0,host=veth9
	try 1 'interface name is taken: lo in the container' 'name=' bridge=vzbr0,name=lo
	try 1 'address is in use: 10.1.0.1, by the host' 'choose another ip=' bridge=vzbr0,ip=10.1.0.1/24
	try 1 'gw=10.9.0.1 is in no network' 'bridge=NAME' bridge=vzbr0,ip=10.1.0.5/24,gw=10.9.0.1
	try 1 'mtu=9 is not' 'bridge=NAME' bridge=vzbr0,mtu=9
	try 1 'dns=9.9.9 is no address' 'bridge=NAME' bridge=vzbr0,dns=9.9.9
	try 5 'dns=: not supported here for a container that is no whole' '/etc/resolv.conf' bridge=vzbr0,dns=9.9.9.9
	try 1 'no such CNI network: nonet' 'NETCONFPATH' cni=nonet
	host ip route add 10.2.0.5/32 dev vzbr0
	try 1 'address is in use: 10.2.0.5, the host has a route' 'ip route' routed,ip=10.2.0.5
	host ip route del 10.2.0.5/32
	# A namespace of an engine is the engine's.
	edit_config "$bundle" '(.linux.namespaces[] | select(.type == "network")).path = $ARGS.positional[0]' "/proc/$HOST/ns/net"
	try 1 'no network namespace of its own' 'leave the interfaces to whoever' bridge=vzbr0
	edit_config "$bundle" 'del(.linux.namespaces[] | select(.type == "network"))'
	try 1 'no network namespace of its own' 'leave the interfaces to whoever' bridge=vzbr0
	host ip link del veth9
	host_net_clean
	assert_nothing_left
}

@test "an address belongs to one container at a time" {
	net_up "$ID-a" bridge=vzbr0,ip=10.1.0.5/24
	net_up "$ID-b" routed,ip=10.2.0.5
	bundle=$(busybox_bundle "$ID" sleep infinity)
	refuses 1 "address is in use: 10.1.0.5, by container $ID-a" 'choose another' create --bundle "$bundle" --net bridge=vzbr0,ip=10.1.0.5/24 "$ID"
	refuses 1 "address is in use: 10.2.0.5, by container $ID-b" 'choose another' create --bundle "$bundle" --net routed,ip=10.2.0.5 "$ID"
	# Another bridge is another network.
	host ip link add vzbr1 type bridge
	app_create "$bundle" "$ID" --net bridge=vzbr1,ip=10.1.0.5/24
	vz delete --force "$ID"
	# One that has stopped needs none.
	vz kill "$ID-a" KILL
	wait_status "$ID-a" stopped
	app_create "$bundle" "$ID" --net bridge=vzbr0,ip=10.1.0.5/24
	vz delete --force "$ID"
	host ip link del vzbr1
}

@test "the packet filter of a stopped container goes with it, and only that" {
	net_up "$ID-a" bridge=vzbr0,ip=10.1.0.5/24
	net_up "$ID-b" bridge=vzbr0,ip=10.1.0.6/24
	vz kill "$ID-a" KILL
	wait_status "$ID-a" stopped
	vz delete "$ID-a"
	[[ $(host nft list tables | grep -c vzrun-) == 1 ]]
	host nft list tables | grep -F "vzrun-$ID-b"
	vz delete --force "$ID-b"
	host_net_clean
}

@test "vzrun killed at any moment leaves no link, route or rule" {
	bundle=$(busybox_bundle "$ID" sleep infinity)
	local delay killed=0
	for delay in 0.02 0.03 0.04 0.05 0.06 0.07 0.08 0.1 0.12 0.15; do
		code=0
		host timeout --foreground --signal=KILL "$delay" "$VZRUN" --root "$VZ_ROOT" create --bundle "$bundle" \
			--net bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1 --net routed,ip=10.2.0.5,ip=fd00:2::5,nat "$ID" </dev/null >"$VZ_TMP/log" 2>&1 3>&- || code=$?
		((code != 137)) || killed=$((killed + 1))
		vz delete --force "$ID"
		host_net_clean
		assert_nothing_left
	done
	((killed > 0))
}

# network_of ID prints what a guest sees of its network, but for what comes a
# second later by itself.
network_of() {
	guest "$1" sh -c 'ip addr; ip route; ip -6 route; cat /sys/class/net/eth*/address' | grep -v fe80::/ |
		sed 's/^\([0-9]*: [^:@]*\)[:@].*/\1/; /inet6 fe80/,+1d; s/ tentative//'
}

@test "a checkpoint keeps interfaces and filters" {
	net_up "$ID" bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1,ip=fd00:1::5/64 routed,ip=10.2.0.5,ip=fd00:2::5
	before=$(vz state "$ID" | jq -r '.annotations["org.vzrun.net"]')
	inside=$(network_of "$ID")
	rules=$(host nft list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+//')
	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	host_net_clean

	app_restore "$VZ_TMP/$ID" "$ID" "$VZ_TMP/images"
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.net"]') == "$before" ]]
	diff <(echo "$inside") <(network_of "$ID")
	[[ $(host nft list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+//') == "$rules" ]]
	answers host 10.1.0.5
	answers host fd00:2::5
	answers guest "$ID" 10.1.0.1
	guest "$ID" ip addr add 10.1.0.66/24 dev eth0
	silent host 10.1.0.66
	vz delete --force "$ID"
	host_net_clean

	# Whoever has the address meanwhile keeps it.
	net_up "$ID-b" bridge=vzbr0,ip=10.1.0.5/24
	refuses 1 "address is in use: 10.1.0.5, by container $ID-b" 'choose another' \
		restore --detach --bundle "$VZ_TMP/$ID" --image-path "$VZ_TMP/images" "$ID"
	vz delete --force "$ID-b"
	host_net_clean
}

@test "a clone on another bridge is held to its addresses, too" {
	net_up "$ID" bridge=vzbr0,ip=10.1.0.5/24
	vz checkpoint --leave-running --image-path "$VZ_TMP/images" "$ID"
	cp -a "$VZ_TMP/$ID" "$VZ_TMP/$ID-c"
	edit_config "$VZ_TMP/$ID-c" '.linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$ID-c")"
	refuses 1 'interface name is taken' '--veth' restore --detach --bundle "$VZ_TMP/$ID-c" --image-path "$VZ_TMP/images" "$ID-c"
	host ip link add vzbr1 type bridge
	host ip link set vzbr1 up
	app_restore "$VZ_TMP/$ID-c" "$ID-c" "$VZ_TMP/images" --veth eth0=vzclone@vzbr1
	[[ $(vz state "$ID-c" | jq -r '.annotations["org.vzrun.net"]') == bridge=vzbr1,*host=vzclone* ]]
	host ip addr del 10.1.0.1/24 dev vzbr0
	host ip addr add 10.1.0.1/24 dev vzbr1
	answers host 10.1.0.5
	guest "$ID-c" ip addr add 10.1.0.66/24 dev eth0
	silent host 10.1.0.66
	vz delete --force "$ID-c"
	vz delete --force "$ID"
	host ip link del vzbr1
	host_net_clean
}

### CNI

# cni_network writes the network "pods" of Debian's plugins.
cni_network() {
	# Where they are installed, as in a VM, nothing has to be fetched for it.
	CNI_PATH=/usr/lib/cni
	if [[ ! -x $CNI_PATH/bridge ]]; then
		require "CNI plugins" "$BATS_TEST_DIRNAME/engines/root" containerd
		CNI_PATH=$("$BATS_TEST_DIRNAME/engines/root" containerd | tail -n 1)/cni
	fi
	NETCONFPATH=$VZ_TMP/cni
	export CNI_PATH NETCONFPATH
	mkdir "$NETCONFPATH"
	jq -n --arg data "$VZ_TMP/ipam" '{cniVersion: "1.0.0", name: "pods", plugins: [{type: "bridge", bridge: "vzbr0",
		ipam: {type: "host-local", dataDir: $data, ranges: [[{subnet: "10.1.0.0/24", rangeStart: "10.1.0.20", gateway: "10.1.0.1"}]],
		routes: [{dst: "0.0.0.0/0"}]}}]}' >"$NETCONFPATH/10-pods.conflist"
}

# leases lists the addresses that the plugin has given.
leases() { find "$VZ_TMP/ipam" -name '10.*' -printf '%f\n' | sort | paste -sd ' '; }

@test "cni= leaves it to plugins, from create to delete and across a checkpoint" {
	cni_network
	net_up "$ID" cni=pods
	answers host 10.1.0.20
	answers guest "$ID" 10.1.0.1
	[[ $(leases) == 10.1.0.20 ]]
	refuses 1 'CNI plugin failed: network pods' 'CNI_PATH' create --bundle "$(net_bundle "$ID-b" true)" --net cni=pods,ip=10.9.0.5/24 "$ID-b"
	[[ $(leases) == 10.1.0.20 ]]

	vz checkpoint --image-path "$VZ_TMP/images" "$ID"
	[[ $(leases) == '' ]]
	host_net_clean
	app_restore "$VZ_TMP/$ID" "$ID" "$VZ_TMP/images"
	answers host 10.1.0.20
	[[ $(leases) == 10.1.0.20 ]]
	# The description may have gone.
	rm "$NETCONFPATH/10-pods.conflist"
	vz delete --force "$ID"
	[[ $(leases) == '' ]]
	host_net_clean
	assert_nothing_left
}

@test "vzrun killed while a plugin works gives the address back" {
	cni_network
	# The plugin hangs after it has done its work.
	mkdir "$VZ_TMP/plugins"
	cat >"$VZ_TMP/plugins/slow" <<-EOF
		#!/bin/sh
		[ "\$CNI_COMMAND" = ADD ] || exit 0
		cat
		echo \$\$ >'$VZ_TMP/added.new'
		mv '$VZ_TMP/added.new' '$VZ_TMP/added'
		exec sleep 60 >/dev/null
	EOF
	chmod +x "$VZ_TMP/plugins/slow"
	CNI_PATH+=:$VZ_TMP/plugins
	jq '.plugins += [{type: "slow"}]' "$NETCONFPATH/10-pods.conflist" >"$NETCONFPATH/new"
	mv "$NETCONFPATH/new" "$NETCONFPATH/10-pods.conflist"
	bundle=$(net_bundle "$ID" sleep infinity)
	spawn "$VZ_TMP/log" nsenter --net="/proc/$HOST/ns/net" -- "$VZRUN" --root "$VZ_ROOT" create --bundle "$bundle" --net cni=pods "$ID"
	wait_file "$VZ_TMP/added"
	VZ_SPAWNED+=("$(<"$VZ_TMP/added")")
	[[ $(leases) == 10.1.0.20 ]]
	kill -KILL "$SPAWNED"
	wait_exit "$SPAWNED"
	[[ $(vz list --quiet) == '' ]]
	[[ $(leases) == '' ]]
	host_net_clean
	assert_nothing_left
}

@test "a CNI network's name servers are the guest's, unless others are named" {
	local bundle said=$'nameserver 10.1.0.7\nsearch pods.example\noptions ndots:3'
	cni_network
	# A resolver of the host's own, as host-local copies it from there, is no use.
	mkdir "$VZ_TMP/plugins"
	cat >"$VZ_TMP/plugins/names" <<-'EOF'
		#!/bin/sh
		[ "$CNI_COMMAND" = ADD ] || exit 0
		jq '.prevResult + {dns: {nameservers: ["127.0.0.53", "10.1.0.7", "bad"], domain: "pods.example", options: ["ndots:3"]}}'
	EOF
	chmod +x "$VZ_TMP/plugins/names"
	CNI_PATH+=:$VZ_TMP/plugins
	jq '.plugins += [{type: "names"}]' "$NETCONFPATH/10-pods.conflist" >"$NETCONFPATH/new"
	mv "$NETCONFPATH/new" "$NETCONFPATH/10-pods.conflist"
	bundle=$(debian_bundle "$ID")
	cp "$bundle/rootfs/etc/resolv.conf" "$VZ_TMP/untouched"
	names() {
		app_create "$bundle" "$ID" "$@"
		vz delete --force "$ID"
		grep -v '^#' "$bundle/rootfs/etc/resolv.conf"
	}
	# The network says it, the interface, the network and the container.
	[[ $(names --net cni=pods) == "$said" ]]
	[[ $(names --net cni=pods,dns=10.1.0.8) == 'nameserver 10.1.0.8' ]]
	edit_config "$bundle" '.annotations["org.vzrun.dns"] = "192.0.2.1,search=vz.example"'
	[[ $(names --net cni=pods) == $'nameserver 10.1.0.7\nnameserver 192.0.2.1\nsearch vz.example' ]]
	edit_config "$bundle" '.annotations["org.vzrun.dns"] = "none"'
	cp "$VZ_TMP/untouched" "$bundle/rootfs/etc/resolv.conf"
	names --net cni=pods || true
	cmp "$VZ_TMP/untouched" "$bundle/rootfs/etc/resolv.conf"
	assert_nothing_left
}

### A whole system

@test "a Debian has its network from the first moment, and keeps it across a checkpoint" {
	local dns=$'nameserver 10.1.0.1\nnameserver fd00:1::1\nnameserver 192.0.2.1\nsearch vz.example'
	bundle=$(debian_bundle "$ID" --net bridge=vzbr0,ip=10.1.0.5/24,gw=10.1.0.1,ip=fd00:1::5/64,dns=10.1.0.1,dns=fd00:1::1 \
		--dns 192.0.2.1,10.1.0.1,search=vz.example)
	app_up "$bundle" "$ID"
	wait_guest "$ID"
	[[ $(guest "$ID" grep -v '^#' /etc/resolv.conf) == "$dns" ]]
	[[ $(guest "$ID" grep '^DNS=' /run/systemd/resolved.conf.d/00-vzrun.conf) == 'DNS=10.1.0.1 fd00:1::1 192.0.2.1' ]]
	answers host 10.1.0.5
	answers host fd00:1::5
	[[ $(host curl -sS --max-time "$(slow 10)" http://10.1.0.5/) == *"vzrun test page"* ]]
	mkfifo "$VZ_TMP/talk.in"
	spawn "$VZ_TMP/talk" sh -c 'exec "$@" <"$0"' "$VZ_TMP/talk.in" \
		nsenter --net="/proc/$HOST/ns/net" -- "$bundle/rootfs/usr/local/bin/vzguest" talk 10.1.0.5:7
	exec {open}>"$VZ_TMP/talk.in"
	wait_line "$VZ_TMP/talk" '^connected$'

	vz checkpoint --tcp-established --image-path "$VZ_TMP/images" "$ID"
	host_net_clean
	app_restore "$bundle" "$ID" "$VZ_TMP/images"
	exec {open}>&-
	wait_line "$VZ_TMP/talk" '^lines='
	[[ $(guest "$ID" grep -v '^#' /etc/resolv.conf) == "$dns" ]]
	[[ $(vz state "$ID" | jq -r '.annotations["org.vzrun.net"]') == *,dns=10.1.0.1,dns=fd00:1::1,* ]]
	answers host fd00:1::5
	[[ $(host curl -sS --max-time "$(slow 10)" http://10.1.0.5/) == *"vzrun test page"* ]]
	[[ $(guest "$ID" systemctl is-system-running) == running ]]
	vz stop "$ID"
	vz delete "$ID"
	host_net_clean
}
