# shellcheck shell=bash disable=SC2016
# A guest with PostgreSQL, nginx and sshd moves from a to b and back, most of its
# memory after it, while clients on a work with it (tests/workload.bash): pgbench over
# the network and within the guest, an ssh session, a server that numbers lines. No
# connection breaks, and what the guest has in the end is what its clients were told.

id=served
# So that it comes back to where it was.
bundle=/var/lib/vzrun/$id
address=10.9.0.9
clients=(postgres postgres_inside ssh python)

# with_clients COMMANDS runs them on a with the functions of tests/workload.bash,
# which ask the guest where it is: on b if /root/clients/there exists.
with_clients() {
	on a 'bats_require_minimum_version() { :; }
		. tests/helpers.bash; . tests/app.bash; . tests/workload.bash
		ID='$id' BUNDLE='$bundle' ADDRESS='$address' CLIENTS=/root/clients LOAD=/root/load HOLDER=/root/holder
		BATS_TEST_DIRNAME=$PWD/tests VZ_TMP=/var/lib/vzrun VZ_TAG=pair
		client_net() { "$@"; }
		vz() {
			if [[ -e $CLIENTS/there ]]; then
				ssh -o ControlMaster=auto -o ControlPath=/root/.ssh/%C -o ControlPersist=600 b "vzrun $(printf "%q " "$@")"
			else
				vzrun "$@"
			fi
		}
		'"$*"
}

# report NODE FILE prints what a move took.
report() { on "$1" "jq -c 'del(.checks)' /root/logs/$2"; }

step 'the link becomes a bridge for guests, and both sides take in what comes'
bridge_link
receive_tls

step 'a guest with services boots on a'
with_clients 'mkdir -p "$CLIENTS" /var/lib/vzrun
	BATS_FILE_TMPDIR=/root load_build
	services_bundle "$ID" services postgresql nginx ssh
	add_workloads "$BUNDLE/rootfs"
	# A download would end before a move of emulated machines does.
	rm "$BUNDLE/rootfs/var/www/html/big"
	# Nothing else may be in the bundle, which is to go.
	vzrun run --detach --bundle "$BUNDLE" --net "bridge=br0,ip=$ADDRESS/24" "$ID" </dev/null >/root/logs/boot.log 2>&1 ||
		{ cat /root/logs/boot.log; exit 1; }
	wait_guest "$ID"'

step 'clients on a begin to work with it'
with_clients "for name in ${clients[*]}; do"' "${name}_begin"; done'

step 'it moves to b'
on a "vzrun lazy-migrate --stats /root/logs/there.json $id tls://b:7878"
with_clients '[[ ! -e $BUNDLE && -z $(vzrun list --quiet) ]]
	touch "$CLIENTS/there"
	wait_guest "$ID"
	client_goes_on '"${clients[*]}"
report a there.json

step 'it moves back'
on b "vzrun lazy-migrate --stats /root/logs/back.json $id tls://a:7878
	[[ ! -e $bundle && -z \$(vzrun list --quiet) ]]"
with_clients 'rm "$CLIENTS/there"
	wait_guest "$ID"
	client_goes_on '"${clients[*]}"
report b back.json

step 'no connection broke, and nothing is lost'
with_clients "for name in ${clients[*]}; do"' echo "$name"; "${name}_end"; "${name}_check"; done
	vz stop "$ID"
	vz delete "$ID"'
