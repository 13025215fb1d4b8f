# shellcheck shell=bash
# Variables not set here are those of contrib/rootfs, which reads this file.
# shellcheck disable=SC2154
# Guests with other inits and other releases, each with
# the counter and the echo server of contrib/guest started in the init's own way.

# Of Debian 11, 12 and unstable only systemd itself is wanted; what else runs on
# it is the same everywhere. In unstable no package needs mount, and systemd calls
# it for /tmp.
systemd_packages=(systemd systemd-sysv dbus libpam-systemd bash login passwd procps iproute2 mount)
base_packages=(bash login passwd procps iproute2)

# services are started with these arguments of vzguest.
guest_services=("vzcount count /var/lib/vzcount/log" "vzecho echo :7")

build_debian11() { systemd_guest "$1" bullseye; }
build_debian12() { systemd_guest "$1" bookworm; }
build_sid() { systemd_guest "$1" sid; }

# systemd_guest ROOT SUITE
systemd_guest() {
	debootstrap_guest "$1" "$2" "${systemd_packages[@]}"
	add_guest_program "$1"
	add_services "$1"
}

build_sysvinit() {
	debootstrap_guest "$1" trixie sysvinit-core sysv-rc "${base_packages[@]}"
	add_guest_program "$1"
	each_service install_sysv "$1"
}

# OpenRC's services, and sysvinit as the first process: what Debian's openrc is
# made for.
build_openrc() {
	debootstrap_guest "$1" trixie sysvinit-core openrc "${base_packages[@]}"
	leave_configfs "$1"
	add_guest_program "$1"
	each_service install_openrc "$1"
}

# OpenRC alone. Debian's scripts for runlevels of inittab(5) are not used then:
# the first process runs the three runlevels itself.
build_openrc-init() {
	debootstrap_guest "$1" trixie openrc sysvinit-utils initscripts "${base_packages[@]}"
	leave_configfs "$1"
	add_guest_program "$1"
	each_service install_openrc "$1"
}

# leave_configfs ROOT takes out a service that fails in any container, where the host
# has configfs.
leave_configfs() {
	rm -f "$1"/etc/runlevels/*/mount-configfs
}

build_runit() {
	debootstrap_guest "$1" trixie runit-init "${base_packages[@]}"
	add_guest_program "$1"
	each_service install_runit "$1"
}

build_busybox-init() {
	local root=$1
	build_busybox "$root"
	ln -sfn ../bin/busybox "$root/sbin/init"
	mkdir -p "$root/etc/init.d"
	cp "$here/guest/init/inittab" "$root/etc/inittab"
	install -m 0755 "$here/guest/init/rcS" "$root/etc/init.d/rcS"
	echo busybox-init >"$root/etc/hostname"
}

# debootstrap_guest ROOT SUITE PACKAGE... is a small Debian without services.
debootstrap_guest() {
	local root=$1 of=$2
	shift 2
	fetch_debian "$root" "$of" "$@"
	tidy_debian "$root"
	echo "$kind" >"$root/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost\n' "$kind" >"$root/etc/hosts"
}

# each_service INSTALL ROOT calls INSTALL ROOT NAME ARGUMENTS for each service.
each_service() {
	local service
	for service in "${guest_services[@]}"; do
		"$1" "$2" "${service%% *}" "${service#* }"
	done
}

# from_template FILE NAME ARGUMENTS
from_template() { sed "s|@NAME@|$2|g; s|@ARGS@|$3|g" "$here/guest/init/$1"; }

install_sysv() {
	from_template sysv "$2" "$3" >"$1/etc/init.d/$2"
	chmod 0755 "$1/etc/init.d/$2"
	chroot "$1" update-rc.d "$2" defaults >&2
}

install_openrc() {
	from_template openrc "$2" "$3" >"$1/etc/init.d/$2"
	chmod 0755 "$1/etc/init.d/$2"
	chroot "$1" rc-update --quiet add "$2" default >&2
}

install_runit() {
	local dir=$1/etc/sv/$2
	mkdir -p "$dir"
	from_template runit "$2" "$3" >"$dir/run"
	chmod 0755 "$dir/run"
	# As update-service does it.
	ln -s "/run/runit/supervise/$2" "$dir/supervise"
	ln -s "/etc/sv/$2" "$1/etc/runit/runsvdir/default/$2"
}
