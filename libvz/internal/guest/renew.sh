#!/bin/sh
# Written by vzrun into a clone, and run there once by its init: makes anew what
# the clone has in common with its origin and must not. Programs of your own in
# /etc/vzrun/clone.d run after it, in the order of their names, with ID,
# GENERATION and HOSTNAME of /run/vzrun/clone in their environment.
set -u
GENERATION='' HOSTNAME='' # that a file sets below

failed=0
complain() {
	echo "vzrun: $*" >&2
	failed=1
}

# Host keys of OpenSSH. A key that cannot be replaced is removed: better none
# than one that others have.
renew_ssh_keys() {
	for key in /etc/ssh/ssh_host_*_key; do
		[ -f "$key" ] || continue
		kind=${key##*/ssh_host_}
		kind=${kind%_key}
		rm -f "$key.new" "$key.new.pub"
		if ssh-keygen -q -t "$kind" -N '' -C "root@$HOSTNAME" -f "$key.new" </dev/null; then
			mv -f "$key.new.pub" "$key.pub" || complain "$key.pub is not replaced"
			mv -f "$key.new" "$key" || complain "$key is not replaced"
		else
			rm -f "$key" "$key.pub" "$key.new" "$key.new.pub"
			complain "$key is removed, as no new one could be made"
		fi
	done
}

# What a next boot would feed the kernel with. The kernel of the host, which is
# the guest's, is not concerned now.
renew_seeds() {
	for seed in /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/misc/random-seed \
		/var/lib/random-seed /var/lib/seedrng/seed.credit /var/lib/seedrng/seed.no-credit; do
		[ -f "$seed" ] || continue
		head -c 512 /dev/urandom >"$seed" || complain "$seed is not replaced"
	done
}

# By these a DHCP server knows the origin.
forget_leases() {
	rm -f /var/lib/dhcp/*.leases /var/lib/dhcp/duid* /var/lib/dhcpcd/duid /var/lib/dhcpcd/*.lease* \
		/var/lib/NetworkManager/*.lease /var/lib/NetworkManager/secret_key || complain "DHCP leases are not removed"
}

# Restored processes are others to PID 1 than those that it knew, until it reloads
# (see libvz/settle_in.go); likewise to the managers of users, which reload when they
# get a signal.
reload_systemd() {
	[ -d /run/systemd/system ] || return 0
	systemctl daemon-reload || complain "systemd did not reload: services with a watchdog may be restarted in some minutes"
	users=$(systemctl list-units --plain --no-legend --state=active 'user@*.service' | cut -d ' ' -f 1)
	# shellcheck disable=SC2086 # names, one word each
	[ -z "$users" ] || systemctl kill --kill-who=main --signal=HUP $users || : # one may have ended
}

# What has read the old ones at its start reads the new ones.
restart_services() {
	if [ -d /run/systemd/system ]; then
		units=$(systemctl list-units --plain --no-legend --state=active systemd-journald.service systemd-networkd.service systemd-resolved.service \
			ssh.service sshd.service dhcpcd.service NetworkManager.service | cut -d ' ' -f 1)
		# shellcheck disable=SC2086 # names, one word each
		[ -z "$units" ] || systemctl --no-block try-restart $units || complain "not restarted:" $units
	elif command -v rc-service >/dev/null; then
		for service in sshd dhcpcd; do
			rc-service --ifstarted "$service" restart || complain "$service is not restarted"
		done
	elif [ -x /etc/init.d/ssh ]; then
		/etc/init.d/ssh try-restart || complain "ssh is not restarted"
	fi
}

run_hooks() {
	for hook in /etc/vzrun/clone.d/*; do
		if [ -f "$hook" ] && [ -x "$hook" ]; then
			"$hook" || complain "$hook failed"
		fi
	done
}

set -a
# shellcheck source=/dev/null
. /run/vzrun/clone
set +a
renew_ssh_keys
renew_seeds
forget_leases
reload_systemd
restart_services
run_hooks
# Who waits for the end of this finds the generation here.
echo "$GENERATION" >/run/vzrun/.renewed && mv /run/vzrun/.renewed /run/vzrun/renewed
exit "$failed"
