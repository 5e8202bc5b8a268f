# shellcheck shell=bash
# The private Postgres: one data folder, on loopback only, without a Unix socket.

readonly POSTGRES_LOG=$DEV_DIR/postgres.log
readonly POSTGRES_PID=$DEV_DIR/postgres.pid
readonly POSTGRES_PORT=$DEV_DIR/postgres.port
readonly POSTGRES_PLACE=$DEV_DIR/postgres.place
readonly POSTGRES_MARK=$DEV_ID-postgres
readonly POSTGRES_START_S=120

postgres_url() {
    [[ -s $POSTGRES_PORT ]] && printf 'postgres://harness:harness@127.0.0.1:%s/harness\n' "$(<"$POSTGRES_PORT")"
}

postgres_pid() {
    recorded_process "$POSTGRES_PID"
}

# Postgres refuses to run as root. Its user must then be able to reach the data.
as_postgres() {
    if ((EUID == 0)); then
        setpriv --reuid postgres --regid postgres --init-groups -- "$@"
    else
        "$@"
    fi
}

# Prints the data folder: in $DEV_DIR, or, if the user `postgres` cannot reach that, a recorded one in /var/tmp.
postgres_folder() {
    local place
    if [[ -s $POSTGRES_PLACE ]]; then
        place=$(<"$POSTGRES_PLACE")
        # A copied .dev names a folder that is not ours.
        if [[ -r $place/owner && $(<"$place/owner") == "$DEV_DIR" ]]; then
            printf '%s/data\n' "$place"
            return 0
        fi
    fi
    printf '%s/postgres\n' "$DEV_DIR"
}

postgres_make_folder() {
    local folder place
    folder=$(postgres_folder)
    if [[ ! -d $folder ]]; then
        mkdir -m 700 "$folder"
        if ((EUID == 0)); then chown postgres:postgres "$folder"; fi
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    if ! (cd / && as_postgres sh -c 'cd "$1" 2>/dev/null && [ -w . ]' _ "$folder"); then
        [[ -z $(ls -A "$folder") ]] || die "the user 'postgres' can no longer reach $folder: give it the right, or run 'stop --wipe'"
        rmdir "$folder"
        postgres_remove_orphans
        place=$(mktemp -d /var/tmp/harness-dev.XXXXXXXX)
        printf '%s\n' "$DEV_DIR" >"$place/owner"
        chmod 711 "$place"
        folder=$place/data
        mkdir -m 700 "$folder"
        if ((EUID == 0)); then chown postgres:postgres "$folder"; fi
        printf '%s\n' "$place" >"$POSTGRES_PLACE"
        say "Postgres keeps its data in $folder (its user cannot reach $DEV_DIR)"
    fi
}

# Removes folders in /var/tmp whose repository is gone, and in which nothing runs.
postgres_remove_orphans() {
    local place
    for place in /var/tmp/harness-dev.*/; do
        place=${place%/}
        [[ -O $place && ! -L $place && -f $place/owner && ! -e $(<"$place/owner") ]] || continue
        [[ -z $(postgres_processes_in "$place/data") ]] || continue
        rm -rf -- "$place"
    done
}

# The server overwrites its environment with its title, but its current folder is its data folder.
postgres_processes_in() {
    local link at
    for link in /proc/[0-9]*/cwd; do
        at=$(readlink "$link" 2>/dev/null) || continue
        [[ ${at% (deleted)} == "$1" ]] || continue
        link=${link%/cwd}
        if [[ $(readlink "$link/exe" 2>/dev/null) == */bin/postgres* ]] && process_alive "${link#/proc/}"; then
            printf '%s\n' "${link#/proc/}"
        fi
    done
}

postgres_processes() {
    {
        postgres_processes_in "$(postgres_folder)"
        marked_processes "$POSTGRES_MARK"
    } | sort -nu
}

# The part of our environment that Postgres's own processes can see.
postgres_exec() {
    local folder=$1
    shift
    cd "$folder" || exit
    # setpriv and setsid both become the program, so our $! is its pid.
    local drop=()
    if ((EUID == 0)); then drop=(setpriv --reuid postgres --regid postgres --init-groups --); fi
    exec 8>&- 9>&-
    local more=()
    read -ra more <<<"${HARNESS_DEV_POSTGRES_ENV:-}"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$folder" LC_ALL=C.UTF-8 "HARNESS_DEV_PROCESS=$POSTGRES_MARK" "${more[@]}" \
        setsid "${drop[@]}" "$@"
}

postgres_start() {
    local programs folder attempt
    postgres_make_folder
    folder=$(postgres_folder)
    programs=$(postgres_programs)
    if [[ -s $folder/PG_VERSION ]]; then
        programs=/usr/lib/postgresql/$(<"$folder/PG_VERSION")/bin
        [[ -x $programs/postgres ]] ||
            die "the data in $folder belongs to Postgres $(<"$folder/PG_VERSION"), which is not installed: install it, or run 'stop --wipe'"
    fi
    postgres_sweep
    if [[ ! -s $folder/harness.conf ]]; then postgres_initialize "$programs" "$folder"; fi
    # The sweep found no server in this folder, so a pid that is left in it belongs to another process by now.
    rm -f "$folder/postmaster.pid"
    for attempt in {1..5}; do
        if ((attempt > 1)) || [[ ! -s $POSTGRES_PORT ]] || ! port_free "$(<"$POSTGRES_PORT")"; then
            postgres_choose_port
        fi
        if postgres_launch "$programs" "$folder"; then return 0; fi
    done
    fail_with_log "$POSTGRES_LOG" "Postgres's port was taken by another program $attempt times in a row"
}

# Starts it on the same port as before, for restarts.
postgres_start_again() {
    local programs folder
    folder=$(postgres_folder)
    [[ -s $POSTGRES_PORT && -s $folder/harness.conf ]] || die "there is no private Postgres to start again: run 'start' first"
    programs=/usr/lib/postgresql/$(<"$folder/PG_VERSION")/bin
    postgres_sweep
    rm -f "$folder/postmaster.pid"
    wait_until 10 port_free "$(<"$POSTGRES_PORT")" || die "another program has taken Postgres's port $(<"$POSTGRES_PORT") meanwhile"
    postgres_launch "$programs" "$folder" || fail_with_log "$POSTGRES_LOG" "another program has taken Postgres's port $(<"$POSTGRES_PORT") meanwhile"
}

postgres_choose_port() {
    pick_port >"$POSTGRES_PORT.new"
    mv "$POSTGRES_PORT.new" "$POSTGRES_PORT"
}

# A folder without harness.conf is one whose creation was interrupted.
postgres_initialize() {
    local programs=$1 folder=$2 log=$DEV_DIR/postgres.init.log
    find "$folder" -mindepth 1 -delete
    (
        # It contains nothing yet that a crash could lose. The running server does sync.
        postgres_exec "$folder" "$programs/initdb" --pgdata="$folder" --username=harness --auth=trust \
            --encoding=UTF8 --locale=C.UTF-8 --no-sync --no-instructions
    ) </dev/null >"$log" 2>&1 || fail_with_log "$log" "initdb failed"
    (
        postgres_exec "$folder" "$programs/postgres" --single -F -D "$folder" postgres
    ) <<<'CREATE DATABASE harness' >>"$log" 2>&1 || fail_with_log "$log" "creating the database 'harness' failed"
    if grep -q 'ERROR' "$log"; then fail_with_log "$log" "creating the database 'harness' failed"; fi
    printf "\ninclude 'harness.conf'\n" >>"$folder/postgresql.conf"
    postgres_configure "$folder"
}

# Settings for a machine with other work to do. ALTER SYSTEM still overrides them, because they are not on the command
# line.
postgres_configure() {
    cat >"$1/harness.conf" <<SETTINGS
# Written by ops/dev/services at each start.
listen_addresses = '127.0.0.1'
port = $(cat "$POSTGRES_PORT" 2>/dev/null || echo 5432)
unix_socket_directories = ''
max_connections = 400
shared_buffers = 256MB
fsync = on
wal_level = replica
max_wal_size = 2GB
log_line_prefix = '%m [%p] %q%u@%d/%a '
log_min_messages = warning
${HARNESS_DEV_POSTGRES_CONF:-}
SETTINGS
    chmod 644 "$1/harness.conf"
}

# Fails (with 1) only when the port was taken; every other failure ends the program.
postgres_launch() {
    local programs=$1 folder=$2 pid
    postgres_configure "$folder"
    # On ext4, a new file passes by every inode of its group that was freed in the last minutes. Tests drop and make many
    # databases, so each gets a group of its own: that saves a third of the server's time.
    chattr +T "$folder/base" 2>/dev/null || true
    if [[ -e $POSTGRES_LOG ]]; then mv -f "$POSTGRES_LOG" "$POSTGRES_LOG.1"; fi
    (postgres_exec "$folder" "$programs/postgres" -D "$folder") </dev/null >"$POSTGRES_LOG" 2>&1 &
    pid=$!
    record_process "$POSTGRES_PID" "$pid"
    if wait_until "$POSTGRES_START_S" postgres_settled "$pid" && process_alive "$pid"; then return 0; fi
    if ! process_alive "$pid" && grep -q 'Address already in use' "$POSTGRES_LOG"; then return 1; fi
    if process_alive "$pid"; then
        postgres_stop
        fail_with_log "$POSTGRES_LOG" "Postgres did not answer within $POSTGRES_START_S s"
    fi
    fail_with_log "$POSTGRES_LOG" "Postgres ended while it started"
}

postgres_settled() {
    ! process_alive "$1" || postgres_answers "$1"
}

# Whether the server listens on its port and answers a query.
postgres_answers() {
    local pid=$1 programs
    [[ $(sed -n 8p "$(postgres_folder)/postmaster.pid" 2>/dev/null) == ready* ]] || return 1
    listens_on "$pid" "$(<"$POSTGRES_PORT")" || return 1
    programs=$(postgres_programs) || return 1
    PGCONNECT_TIMEOUT=3 timeout 5 "$programs/psql" -XqtA -d "$(postgres_url)" -c 'SELECT 1' >/dev/null 2>&1 </dev/null
}

postgres_version() {
    PGCONNECT_TIMEOUT=3 timeout 5 "$(postgres_programs)/psql" -XqtA -d "$(postgres_url)" -c 'SHOW server_version' 2>/dev/null </dev/null |
        cut -d' ' -f1
}

postgres_stop() {
    local pid
    # INT: roll back and disconnect. QUIT: end at once; the log is replayed at the next start.
    if pid=$(postgres_pid); then end_processes "INT:20 QUIT:10 KILL:10" "$pid"; fi
    postgres_sweep
    rm -f "$POSTGRES_PID"
}

postgres_end() {
    postgres_stop
}

postgres_kill() {
    local pid
    if pid=$(postgres_pid); then end_processes "KILL:10" "$pid"; fi
    postgres_sweep
    rm -f "$POSTGRES_PID"
}

# Children end by themselves once the server is gone. Those that do not are killed.
postgres_sweep() {
    local left
    mapfile -t left < <(postgres_processes)
    if ((${#left[@]} == 0)) || wait_until 5 all_gone "${left[@]}"; then return 0; fi
    end_processes "QUIT:5 KILL:10" "${left[@]}"
}

postgres_wipe() {
    local folder
    folder=$(postgres_folder)
    rm -rf -- "$folder"
    if [[ $folder == /var/tmp/harness-dev.*/data ]]; then rm -rf -- "${folder%/data}"; fi
    rm -f -- "$POSTGRES_LOG" "$POSTGRES_LOG.1" "$POSTGRES_PID" "$POSTGRES_PORT" "$POSTGRES_PLACE" "$DEV_DIR/postgres.init.log"
}
