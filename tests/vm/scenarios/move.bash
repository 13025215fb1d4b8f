# shellcheck shell=bash disable=SC2016
# A whole Debian moves from a to b and back while it runs, over TLS, with its files
# and its address: no step of its counter is lost or repeated, and a client's
# connection stays open.

bundle=/var/lib/vzrun/moved
address=10.9.0.9

step 'the link becomes a bridge for guests, and both sides take in what comes'
bridge_link
receive_tls

step 'a guest boots on a'
on a "mkdir -p $bundle
	chmod 0700 $bundle
	cp -a \$DEBIAN $bundle/rootfs
	cd $bundle
	vzrun spec --system --hostname moved --net bridge=br0,ip=$address/24
	vzrun run --detach --bundle $bundle moved </dev/null >/root/logs/boot.log 2>&1 && vzrun ready --timeout 180s moved ||
	{ cat /root/logs/boot.log; exit 1; }"

step 'a client on b talks to it'
on b "cp \$DEBIAN/usr/local/bin/vzguest /usr/local/bin/
	systemd-run --quiet --unit talk sh -c 'tail -f /dev/null | vzguest talk $address:7 >/root/logs/talk 2>&1'
	for _ in \$(seq 300); do grep -qs ^connected /root/logs/talk && exit; sleep 0.1; done; cat /root/logs/talk; exit 1"

step 'it moves to b, most of its memory after it'
on a 'vzrun lazy-migrate --stats /root/logs/there.json moved tls://b:7878'
goes_on b moved "$bundle/rootfs"

step 'a has nothing left of it, and it moves back there, all of its memory before it'
on a "[[ ! -e $bundle && -z \$(vzrun list --quiet) ]]"
on b 'vzrun lazy-migrate --mode cold --stats /root/logs/back.json moved tls://a:7878'
goes_on a moved "$bundle/rootfs"

step 'its client has noticed nothing but pauses, and b has nothing left of it'
on b "systemctl stop talk
	cat /root/logs/talk
	grep -q ^lines= /root/logs/talk
	jq -c 'del(.checks)' /root/logs/back.json
	[[ ! -e $bundle && -z \$(vzrun list --quiet) ]]"
on a 'jq -c "del(.checks)" /root/logs/there.json
	vzrun stop moved
	vzrun delete moved'
