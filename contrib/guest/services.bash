# shellcheck shell=bash
# Variables not set here are those of contrib/rootfs, which reads this file.
# shellcheck disable=SC2154
# Debians with services for tests of workloads, all of them off: a test enables
# what it is about. They listen on all addresses and know no passwords.

service_packages=("${packages[@]}" postgresql redis-server memcached openssh-server cron tmux python3)
more_service_packages=(mariadb-server apache2 php-fpm nodejs openjdk-21-jre-headless rhino)

build_services() {
	local root=$1 dir
	services_guest "$root" "${service_packages[@]}"
	# PostgreSQL's compiler of expressions, a third of the tree.
	rm -rf "$root"/usr/lib/x86_64-linux-gnu/lib{LLVM,z3}.so.* "$root"/usr/lib/postgresql/*/lib/bitcode
	for dir in "$root"/etc/postgresql/*/main; do
		echo 'jit = off' >>"$dir/conf.d/test.conf"
	done
}

build_services-full() { services_guest "$1" "${service_packages[@]}" "${more_service_packages[@]}"; }

# services_guest ROOT PACKAGE...
services_guest() {
	local root=$1
	shift
	fetch_debian "$root" trixie "$@"
	configure_debian "$root"
	add_guest_program "$root"
	add_services "$root"
	configure_postgresql "$root"
	configure_small "$root"
	[[ ! -d $root/etc/mysql ]] || configure_more "$root"
	disable_services "$root"
}

configure_postgresql() {
	local dir
	for dir in "$1"/etc/postgresql/*/main; do
		printf '%s\n' "listen_addresses = '*'" 'max_connections = 50' >"$dir/conf.d/test.conf"
		printf '%s\n' 'local all all trust' 'host all all samenet trust' >"$dir/pg_hba.conf"
	done
}

configure_small() {
	local root=$1
	printf '%s\n' 'bind * -::*' 'protected-mode no' 'appendonly yes' 'appendfsync everysec' >>"$root/etc/redis/redis.conf"
	sed -i 's/^-l .*/-l 0.0.0.0/' "$root/etc/memcached.conf"
	install -d -m 0700 "$root/root/.ssh"
	# A connection that is kept is kept.
	echo 'keepalive_requests 1000000;' >"$root/etc/nginx/conf.d/test.conf"
}

configure_more() {
	local root=$1 dir
	printf '%s\n' '[mariadbd]' 'bind-address = 0.0.0.0' 'skip-name-resolve' >"$root/etc/mysql/mariadb.conf.d/99-test.cnf"
	printf '%s\n' 'MaxKeepAliveRequests 0' 'KeepAliveTimeout 300' >"$root/etc/apache2/conf-enabled/test.conf"
	# nginx has port 80.
	sed -i 's/^Listen 80$/Listen 8080/' "$root/etc/apache2/ports.conf"
	sed -i 's/\*:80>/*:8080>/' "$root/etc/apache2/sites-available/000-default.conf"
	chroot "$root" a2enmod -q proxy_fcgi setenvif >&2
	chroot "$root" sh -c 'a2enconf -q php*-fpm' >&2
	cp "$here/guest/answer.php" "$root/var/www/html/"
	# Debian has it off.
	for dir in "$root"/etc/php/*/fpm; do
		printf '%s\n' 'opcache.enable = 1' 'opcache.jit = tracing' 'opcache.jit_buffer_size = 32M' >"$dir/conf.d/99-test.ini"
	done
}

disable_services() {
	local root=$1 unit
	for unit in nginx postgresql redis-server memcached ssh cron mariadb apache2; do
		[[ ! -e $root/usr/lib/systemd/system/$unit.service ]] || systemctl_of "$root" disable "$unit"
	done
	for unit in "$root"/usr/lib/systemd/system/php*-fpm.service; do
		[[ ! -e $unit ]] || systemctl_of "$root" disable "$(basename "$unit")"
	done
	# Work of the distribution that would disturb what is measured.
	for unit in "$root"/etc/systemd/system/timers.target.wants/*.timer; do
		[[ ! -L $unit ]] || rm "$unit"
	done
}

systemctl_of() { chroot "$1" systemctl --quiet "${@:2}" >&2; }
