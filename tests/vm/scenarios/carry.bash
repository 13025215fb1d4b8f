# shellcheck shell=bash disable=SC2016
# A whole Debian is checkpointed on a, its files and images are copied to b, and
# it goes on there: no step of its counter lost or repeated, its clients served.

bundle=/var/lib/carry

step 'a guest boots on a'
on a "mkdir -m 0700 $bundle && cp -a \$DEBIAN $bundle/rootfs && cd $bundle && vzrun spec --system --hostname carried
	vzrun run --detach --bundle $bundle carried </dev/null >$bundle/console.log 2>&1 && vzrun ready --timeout 180s carried ||
	{ cat $bundle/console.log; exit 1; }"

step 'it is checkpointed'
on a "vzrun checkpoint --image-path $bundle/images carried && vzrun delete --force carried && ! vzrun state carried 2>/dev/null"

step 'its files and images are copied to b'
on a "rsync -aHAXS --numeric-ids --delete $bundle/ b:$bundle/"

step 'it is restored on b'
on b "vzrun restore --detach --bundle $bundle --image-path $bundle/images carried </dev/null >$bundle/console.log 2>&1 ||
	{ cat $bundle/console.log; mkdir -p /root/logs; cp -r $bundle/images/*.log /root/logs/; exit 1; }
	vzrun ready --timeout 180s carried"

step 'it goes on where it was'
on b "cd $bundle/rootfs; lines=\$(wc -l <var/lib/vzcount/log); for _ in \$(seq 100); do
		((\$(wc -l <var/lib/vzcount/log) > lines + 5)) && break; sleep 0.1; done
	((\$(wc -l <var/lib/vzcount/log) > lines + 5)) && usr/local/bin/vzguest verify var/lib/vzcount/log
	vzrun exec carried systemctl restart nginx
	vzrun exec carried bash -c 'exec 3<>/dev/tcp/127.0.0.1/80; printf \"GET / HTTP/1.0\r\n\r\n\" >&3; grep -q \"vzrun test page\" <&3'
	vzrun stop carried && vzrun delete carried"
