# shellcheck shell=bash disable=SC2016
# Two machines see each other, and are two.

step 'both answer'
[[ $(on a hostname) == a ]]
[[ $(on b hostname) == b ]]

step 'they differ in what tells machines apart'
for file in /etc/machine-id /sys/class/net/eth1/address; do
	[[ $(on a "cat $file") != "$(on b "cat $file")" ]]
done

step 'they reach each other, and nothing else'
on a 'ping -c 1 -W 5 b >/dev/null'
on b 'ping -c 1 -W 5 a >/dev/null'
[[ $(on a 'ip route show default') == '' ]]

step 'ssh works between them'
[[ $(on a 'ssh b hostname') == b ]]

step 'each has a key pair that the other trusts'
on b 'openssl s_server -quiet -accept 4433 -cert /etc/vzrun-test/cert.pem -key /etc/vzrun-test/key.pem \
	-CAfile /etc/vzrun-test/ca.pem -Verify 1 -naccept 1 -www >/dev/null 2>&1 &'
on a 'cd /etc/vzrun-test; for _ in $(seq 50); do
	curl -fsS --max-time 20 --cacert ca.pem --cert cert.pem --key key.pem https://b:4433/ >/dev/null && exit; sleep 0.2; done; exit 1'

step 'a disk is its own'
on a 'echo a >/var/tmp/mine'
on b '[[ ! -e /var/tmp/mine ]]'
on a 'mkdir -p /root/logs; cp /var/tmp/mine /root/logs/'
