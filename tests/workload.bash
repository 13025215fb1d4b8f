# shellcheck shell=bash
# Suites use what is set here.
# shellcheck disable=SC2016,SC2034,SC2153,SC2154
# Services under load, for suites that checkpoint, restore or move a whole guest
# (beside helpers.bash and app.bash):
#
#   services_bundle ID KIND UNIT...   a guest of contrib/rootfs KIND with these units
#                       on, and on_guest_net for its flags of the network
#   load_build          builds the clients, $LOAD and $HOLDER; once, in setup_file
#   NAME_begin          a client of NAME starts to work, and has had an answer
#   NAME_end            it ends; fails if an answer was wrong, or its connection broke
#   NAME_check          what the service has is what the client was told; called
#                       after NAME_end
#
# for each NAME of ${WORKLOADS[@]} and ${MORE_WORKLOADS[@]} (those of services-full).
# A client's output, log and pid are in $CLIENTS/NAME. Set before:
#
#   CLIENTS             a directory
#   ADDRESS             of the guest
#   ID, BUNDLE          of the guest; after a move, those it has then
#   client_net CMD...   a function that runs a command where the guest is reached
#
# Nothing but files says who runs, so tests may follow each other.

WORKLOADS=(postgres postgres_inside redis memcached nginx download ssh tmux python threads holder)
MORE_WORKLOADS=(mariadb apache php node java)

### The guest

services_bundle() {
	local id=$1 kind=$2 bundle=$VZ_TMP/$1 unit wants
	shift 2
	new_bundle "$bundle" "$("$BATS_TEST_DIRNAME/../contrib/rootfs" "$kind" | tail -n 1)"
	(cd "$bundle" && vz spec --system --hostname "$id")
	edit_config "$bundle" '.process.terminal = false | .linux.cgroupsPath = $ARGS.positional[0]' "$(cgroup_of "$id")"
	wants=$bundle/rootfs/etc/systemd/system/multi-user.target.wants
	for unit; do
		ln -s "/usr/lib/systemd/system/$unit.service" "$wants/$unit.service"
	done
	echo "$bundle"
}

load_build() {
	LOAD=$(build_command load)
	HOLDER=$(build_command holder)
	export LOAD HOLDER
}

# add_workloads ROOTFS puts into a guest what the workloads need there.
add_workloads() {
	local rootfs=$1
	cp "$LOAD" "$HOLDER" "$rootfs/usr/local/bin/"
	ssh-keygen -q -t ed25519 -N '' -f "$CLIENTS/key"
	cp "$CLIENTS/key.pub" "$rootfs/root/.ssh/authorized_keys"
	# Every line differs, so that one that is missing is noticed.
	seq 10000000 30000000 >"$rootfs/var/www/html/big"
	cp "$BATS_TEST_DIRNAME"/workloads/echo.* "$rootfs/srv/"
	cp "$BATS_TEST_DIRNAME"/workloads/jit.php "$rootfs/var/www/html/"
	service_unit "$rootfs" python '/usr/bin/python3 /srv/echo.py 7001'
	service_unit "$rootfs" threads '/usr/local/bin/load serve :7002 200'
	service_unit "$rootfs" node '/usr/bin/node /srv/echo.js 7003'
	service_unit "$rootfs" java '/usr/bin/java -cp /usr/share/java/rhino.jar org.mozilla.javascript.tools.shell.Main /srv/echo.rhino 7004'
	service_unit "$rootfs" holder '/usr/local/bin/holder /srv/holder' KillMode=mixed
}

# service_unit ROOTFS NAME COMMAND [SETTING...]: off until a workload begins.
service_unit() {
	printf '%s\n' '[Service]' Type=exec "ExecStart=$3" "${@:4}" >"$1/etc/systemd/system/$2.service"
}

### Clients

# client NAME CMD... starts a client in the background; it has answered when this
# returns.
client() {
	local name=$1
	shift
	mkdir -p "$CLIENTS/$name"
	: >"$CLIENTS/$name/out"
	: >"$CLIENTS/$name/log"
	# Standard input that is open and says nothing: its end would be the client's.
	[[ -p $CLIENTS/$name/in ]] || mkfifo "$CLIENTS/$name/in"
	client_net "${own_pid[@]}" "$CLIENTS/$name/pid" "$@" <>"$CLIENTS/$name/in" >"$CLIENTS/$name/out" 2>&1 3>&- &
	disown
	wait_line "$CLIENTS/$name/out" '^connected'
}

# own_pid PATH CMD... writes the pid that a command gets: the shell's is that of who
# waits for it.
own_pid=(sh -c 'echo $$ >"$0"; exec "$@"')

# log_of NAME is the log that a client is to write.
log_of() { echo "$CLIENTS/$1/log"; }

# client_end NAME [SIGNAME] tells it to end.
client_end() {
	local pid
	pid=$(<"$CLIENTS/$1/pid")
	kill "-${2:-TERM}" "$pid" || {
		tail -n 20 "$CLIENTS/$1/out"
		return 1
	}
	wait_exit "$pid"
	cat "$CLIENTS/$1/out"
	grep -Eq "${3:-^steps=}" "$CLIENTS/$1/out"
}

# clients_kill ends what a failed test has left.
clients_kill() {
	local file pid
	for file in "$CLIENTS"/*/pid; do
		[[ -e $file ]] || continue
		pid=$(<"$file")
		! client_runs "$pid" || kill -KILL "$pid"
	done
}

# client_runs PID: whoever has that number is one of ours.
client_runs() { grep -qaF "$CLIENTS" "/proc/$1/environ" 2>/dev/null; }

# client_goes_on NAME...: each gets five more answers.
client_goes_on() {
	local name
	for name; do
		if declare -F "${name}_goes_on" >/dev/null; then
			"${name}_goes_on"
		else
			wait_lines "$(log_of "$name")" $(($(wc -l <"$(log_of "$name")") + 5))
		fi
	done
}

# talker NAME PORT is a client of a server that numbers lines.
talker() {
	guest "$ID" systemctl start "$1"
	wait_port "$2"
	client "$1" "$LOAD" talk "$(log_of "$1")" "$ADDRESS:$2"
}

talker_check() { [[ $(guest "$ID" systemctl is-active "$1") == active ]]; }

# wait_port PORT: a service that was started listens when it likes.
wait_port() { wait_until "$VZ_PATIENCE" client_net bash -c "exec 3<>/dev/tcp/$ADDRESS/$1"; }

# from_rootfs PROGRAM ARG... runs a program of the guest here, with its libraries.
from_rootfs() {
	local root=$BUNDLE/rootfs
	echo "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$@"
}

### PostgreSQL

# Each client numbers its transactions; the number is a key, with that of the client.
# Those within the guest are 100 to 103, and have accounts of their own.
sql() { guest "$ID" psql --no-psqlrc --quiet --tuples-only --no-align --username postgres --dbname "${2:-bench}" --command "$1"; }

postgres_tables() {
	wait_until "$VZ_PATIENCE" sql 'SELECT 1' postgres
	[[ -z $(sql "SELECT 1 FROM pg_database WHERE datname = 'bench'" postgres) ]] || return 0
	sql 'CREATE DATABASE bench' postgres
	sql 'CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE history (client int, n int, account int REFERENCES account, delta int, PRIMARY KEY (client, n));
		INSERT INTO account SELECT i, 0 FROM generate_series(1, 600) AS i'
	cat >"$BUNDLE/rootfs/srv/transaction.sql" <<-'END'
		\set n :n + 1
		\set account :base * 3 + random(1, 300)
		\set delta random(-5000, 5000)
		BEGIN;
		UPDATE account SET balance = balance + :delta WHERE id = :account;
		INSERT INTO history VALUES (:client_id + :base, :n, :account, :delta);
		COMMIT;
	END
}

bench_flags=(--no-vacuum --username postgres --define n=0 --client 4 --time 36000 --log --rate "$((200 / ${VZ_SLOW:-1}))")

postgres_begin() {
	local dir=$CLIENTS/postgres program
	postgres_tables
	sql 'DELETE FROM history WHERE client < 100; UPDATE account SET balance = 0 WHERE id <= 300'
	mkdir -p "$dir"
	rm -f "$dir"/log.*
	program=$(from_rootfs "$BUNDLE"/rootfs/usr/lib/postgresql/*/bin/pgbench)
	# shellcheck disable=SC2086 # words
	client_net "${own_pid[@]}" "$dir/pid" $program "${bench_flags[@]}" --define base=0 --log-prefix "$dir/log" --file "$BUNDLE/rootfs/srv/transaction.sql" \
		--host "$ADDRESS" bench </dev/null >"$dir/out" 2>&1 3>&- &
	disown
	wait_transactions 'client < 100' 20
}

# wait_transactions CONDITION N waits for N more.
wait_transactions() {
	local from
	from=$(sql "SELECT count(*) FROM history WHERE $1")
	wait_until "$VZ_PATIENCE" more_transactions "$1" $((from + $2))
}

more_transactions() { (($(sql "SELECT count(*) FROM history WHERE $1") >= $2)); }

postgres_goes_on() { wait_transactions 'client < 100' 20; }

# pgbench ends its time at SIGALRM, and the transactions that it has begun.
postgres_end() { client_end postgres ALRM '^number of failed transactions: 0 '; }

postgres_check() { postgres_compare 'client < 100' "$CLIENTS"/postgres/log.*; }

# postgres_compare CONDITION LOG...: a transaction that a client was told of is there,
# and no other.
postgres_compare() {
	local condition=$1
	shift
	awk '{ print $1 " " ++n[$1] }' "$@" | sort >"$CLIENTS/told"
	sql "SELECT client % 100 || ' ' || n FROM history WHERE $condition" | sort >"$CLIENTS/stored"
	(($(wc -l <"$CLIENTS/told") > 20))
	cmp "$CLIENTS/told" "$CLIENTS/stored"
	[[ $(sql "SELECT count(*) FROM account WHERE balance <> (SELECT coalesce(sum(delta), 0) FROM history WHERE account = id)") == 0 ]]
}

# The same within the guest, over a unix socket: service and client are saved.
postgres_inside_begin() {
	postgres_tables
	sql 'DELETE FROM history WHERE client >= 100; UPDATE account SET balance = 0 WHERE id > 300'
	rm -rf "$BUNDLE/rootfs/srv/inside"
	guest "$ID" install -d -o postgres /srv/inside
	guest "$ID" systemctl reset-failed bench 2>/dev/null || true
	guest "$ID" systemd-run --quiet --unit bench --uid postgres --property StandardOutput=file:/srv/inside/out --property RemainAfterExit=yes \
		sh -c 'exec /usr/lib/postgresql/*/bin/pgbench "$@"' bench "${bench_flags[@]}" --define base=100 \
		--log-prefix /srv/inside/log --file /srv/transaction.sql bench
	wait_transactions 'client >= 100' 20
}

postgres_inside_goes_on() { wait_transactions 'client >= 100' 20; }

postgres_inside_end() {
	guest "$ID" systemctl kill --signal ALRM bench
	wait_line "$BUNDLE/rootfs/srv/inside/out" '^number of failed transactions: 0 '
	guest "$ID" systemctl stop bench
}

postgres_inside_check() { postgres_compare 'client >= 100' "$BUNDLE"/rootfs/srv/inside/log.*; }

### Redis, memcached

redis_begin() {
	wait_port 6379
	guest "$ID" redis-cli del numbers
	client redis "$LOAD" redis "$(log_of redis)" "$ADDRESS:6379" numbers
}
redis_end() { client_end redis; }
redis_numbers() { guest "$ID" redis-cli lrange numbers 0 -1 | "$LOAD" check "$(log_of redis)"; }
redis_check() {
	redis_numbers
	# What is in its append-only file is the same.
	guest "$ID" systemctl restart redis-server
	wait_until "$VZ_PATIENCE" redis_numbers
}

memcached_begin() {
	wait_port 11211
	client memcached "$LOAD" memcached "$(log_of memcached)" "$ADDRESS:11211"
}
memcached_end() { client_end memcached; }
memcached_check() { talker_check memcached; }

### Web servers

nginx_begin() {
	wait_port 80
	client nginx "$LOAD" http "$(log_of nginx)" "http://$ADDRESS:80/" 'vzrun test page'
}
nginx_end() { client_end nginx; }
nginx_check() {
	guest "$ID" systemctl reload nginx
	[[ $(client_net curl -fsS --max-time "$(slow 20)" "http://$ADDRESS/") == *'vzrun test page'* ]]
}

download_begin() {
	wait_port 80
	client download "$LOAD" download "$(log_of download)" "http://$ADDRESS:80/big"
}
download_end() { client_end download; }
download_check() { grep -qx "sha256=$(sha256sum <"$BUNDLE/rootfs/var/www/html/big" | cut -d ' ' -f 1)" "$CLIENTS/download/out"; }

apache_begin() {
	wait_port 8080
	client apache "$LOAD" http "$(log_of apache)" "http://$ADDRESS:8080/" 'vzrun test page'
}
apache_end() { client_end apache; }
apache_check() { talker_check apache2; }

# PHP through Apache.
php_begin() {
	wait_port 8080
	client php "$LOAD" http "$(log_of php)" "http://$ADDRESS:8080/answer.php?n=%d" 'answer %d '
}
php_end() { client_end php; }
php_check() {
	talker_check "$(basename "$BUNDLE"/rootfs/usr/lib/systemd/system/php*-fpm.service)"
	# It was its just-in-time compiler that was saved, too.
	[[ $(client_net curl -fsS --max-time "$(slow 20)" "http://$ADDRESS:8080/jit.php") == 'compiler: on' ]]
}

### MariaDB

# One session of its shell: each answer comes after the row is committed.
mariadb_begin() {
	local program
	wait_until "$VZ_PATIENCE" guest "$ID" mariadb --execute 'SELECT 1'
	guest "$ID" mariadb --execute "CREATE OR REPLACE DATABASE bench; CREATE TABLE bench.history (n int PRIMARY KEY) ENGINE=InnoDB;
		CREATE USER IF NOT EXISTS bench; GRANT ALL ON bench.* TO bench"
	program=$(from_rootfs "$BUNDLE/rootfs/usr/bin/mariadb")
	# shellcheck disable=SC2086 # words
	client mariadb "$LOAD" lines "$(log_of mariadb)" 'INSERT INTO history VALUES (%d); SELECT CONCAT("stored ", MAX(n)) FROM history;' 'stored %d' \
		$program --no-defaults --skip-ssl --unbuffered --batch --skip-column-names --user bench --host "$ADDRESS" bench
}
mariadb_end() { client_end mariadb; }
mariadb_numbers() { guest "$ID" mariadb --batch --skip-column-names --execute 'SELECT n FROM bench.history ORDER BY n' | "$LOAD" check "$(log_of mariadb)"; }
mariadb_check() {
	mariadb_numbers
	guest "$ID" mariadb-check --check bench
	guest "$ID" systemctl restart mariadb
	wait_until "$VZ_PATIENCE" mariadb_numbers
}

### Sessions

ssh_to_guest() {
	echo ssh -F /dev/null -i "$CLIENTS/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
		-o ServerAliveInterval=0 "root@$ADDRESS"
}

# ssh is a login with a terminal, in whose shell somebody types.
ssh_begin() {
	wait_port 22
	# shellcheck disable=SC2046 # words
	client ssh "$LOAD" lines "$(log_of ssh)" 'n=$((n + 1)); echo answer $n' 'answer %d' $(ssh_to_guest) -tt PS1= TERM=dumb bash --norc --noprofile
}
ssh_end() { client_end ssh; }
ssh_check() {
	# shellcheck disable=SC2046 # words
	[[ $(client_net $(ssh_to_guest) echo again </dev/null) == again ]]
}

tmux_do() { guest "$ID" tmux -L vz "$@"; }

# tmux has a window where something counts, and one with a shell.
tmux_begin() {
	rm -f "$BUNDLE"/rootfs/srv/tmux.*
	guest "$ID" systemd-run --quiet --unit tmux --property Type=forking --setenv TERM=xterm \
		tmux -L vz new-session -d -s s -x 100 -y 30 'i=0; while :; do i=$((i + 1)); echo $i | tee -a /srv/tmux.log; sleep 0.02; done'
	tmux_do new-window -t s:9 'bash --norc'
	tmux_do send-keys -t s:9 'n=42; echo before' Enter
	wait_line "$BUNDLE/rootfs/srv/tmux.log" '^5$'
	mkdir -p "$CLIENTS/tmux"
	ln -sf "$BUNDLE/rootfs/srv/tmux.log" "$(log_of tmux)"
}
tmux_end() {
	tmux_do send-keys -t s:9 'echo after $n | tee /srv/tmux.said' Enter
	wait_line "$BUNDLE/rootfs/srv/tmux.said" '^after 42$'
	tmux_do capture-pane -p -t s:9 | grep -qx before
	tmux_do kill-server
}
tmux_check() { seq "$(wc -l <"$BUNDLE/rootfs/srv/tmux.log")" | cmp - "$BUNDLE/rootfs/srv/tmux.log"; }

### Servers that number lines

python_begin() { talker python 7001; }
python_end() { client_end python; }
python_check() { talker_check python; }

threads_begin() { talker threads 7002; }
threads_end() { client_end threads; }
threads_check() { talker_check threads; }

node_begin() { talker node 7003; }
node_end() { client_end node; }
node_check() { talker_check node; }

java_begin() { talker java 7004; }
java_end() { client_end java; }
java_check() { talker_check java; }

### What the kernel keeps for a process

holder_begin() {
	rm -rf "$BUNDLE/rootfs/srv/holder"
	guest "$ID" systemctl restart holder
	wait_file "$BUNDLE/rootfs/srv/holder/ready"
}
# All of it is looked at in the end.
holder_goes_on() { [[ $(guest "$ID" systemctl is-active holder) == active ]]; }

holder_end() { guest "$ID" systemctl stop holder; }
holder_check() {
	cat "$BUNDLE/rootfs/srv/holder/report"
	(($(grep -c '^ok ' "$BUNDLE/rootfs/srv/holder/report") > 30))
	run ! grep '^failed' "$BUNDLE/rootfs/srv/holder/report"
}
