# shellcheck shell=bash disable=SC2016
# A whole Debian moves over ssh from a to b with its memory sent ahead in rounds, and
# back with the rest after it, while a client on a has one connection to it. No step
# of its counter and no line of the client's is lost or repeated.

address=10.9.0.9
declare -A bundle=([a]=/var/lib/mover [b]=/var/lib/vzrun/mover)

step 'the link becomes a bridge for guests on both'
bridge_link
for node in a b; do
	on "$node" 'sysctl -qw vm.unprivileged_userfaultfd=1; mkdir -p /root/logs; uname -r'
done

step 'a guest boots on a'
on a "mkdir -m 0700 ${bundle[a]}
	cp -a \$DEBIAN ${bundle[a]}/rootfs
	cd ${bundle[a]}
	vzrun spec --system --hostname mover --net bridge=br0,ip=$address/24
	vzrun run --detach --bundle ${bundle[a]} mover </dev/null >/root/logs/boot.log 2>&1 && vzrun ready --timeout 180s mover ||
	{ cat /root/logs/boot.log; exit 1; }"

step 'a client on a talks to it'
on a "cp \$DEBIAN/usr/local/bin/vzguest /usr/local/bin/
	systemd-run --quiet --unit talk sh -c 'tail -f /dev/null | vzguest talk $address:7 >/root/logs/talk 2>&1'
	for _ in \$(seq 300); do grep -qs ^connected /root/logs/talk && exit; sleep 0.1; done; cat /root/logs/talk; exit 1"

# moves FROM TO MODE
moves() {
	on "$1" "vzrun lazy-migrate --mode $3 --stats /root/logs/$3.json mover ssh://$2 ||
			{ cp ${bundle[$1]}/migration/*.log /root/logs/; exit 1; }
		jq -c 'del(.checks)' /root/logs/$3.json"
	goes_on "$2" mover /var/lib/vzrun/mover/rootfs
	[[ $(on "$1" 'vzrun list --quiet') == '' ]]
}

step 'it moves to b, its memory before it'
moves a b pre-copy

step 'it moves back, the rest of its memory after it'
moves b a hybrid

step 'its client has noticed nothing but pauses'
on a 'systemctl stop talk
	cat /root/logs/talk
	grep -q ^lines= /root/logs/talk
	vzrun exec mover systemctl restart nginx
	vzrun stop mover
	vzrun delete mover'
