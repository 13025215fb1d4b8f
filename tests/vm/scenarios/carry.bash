# shellcheck shell=bash disable=SC2016
# A whole Debian is checkpointed on a, its files and images are copied to b, and
# it goes on there: no step of its counter lost or repeated, its clients served.

bundle=/var/lib/carry

step 'a guest boots on a'
on a "mkdir -m 0700 $bundle
	cp -a \$DEBIAN $bundle/rootfs
	cd $bundle
	vzrun spec --system --hostname carried
	vzrun run --detach --bundle $bundle carried </dev/null >$bundle/console.log 2>&1 && vzrun ready --timeout 180s carried ||
	{ cat $bundle/console.log; exit 1; }"

step 'it is checkpointed'
on a "vzrun checkpoint --image-path $bundle/images carried
	[[ -z \$(vzrun list --quiet) ]]"

step 'its files and images are copied to b'
on a "rsync -aHAXS --numeric-ids --delete $bundle/ b:$bundle/"

step 'it is restored on b'
on b "vzrun restore --detach --bundle $bundle --image-path $bundle/images carried </dev/null >$bundle/console.log 2>&1 ||
	{ cat $bundle/console.log; mkdir -p /root/logs; cp -r $bundle/images/*.log /root/logs/; exit 1; }"

step 'it goes on where it was'
goes_on b carried "$bundle/rootfs"
on b "vzrun exec carried systemctl restart nginx
	vzrun exec carried bash -c 'exec 3<>/dev/tcp/127.0.0.1/80; printf \"GET / HTTP/1.0\r\n\r\n\" >&3; grep -q \"vzrun test page\" <&3'
	vzrun stop carried
	vzrun delete carried"
