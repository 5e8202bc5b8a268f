# shellcheck shell=bash
# The private RabbitMQ: one node and its own epmd, on loopback only, with the management plugin.

readonly BROKER_DIR=$DEV_DIR/broker
readonly BROKER_BIN=/usr/lib/rabbitmq/bin
readonly BROKER_CODE=$BROKER_DIR/code
readonly BROKER_LOG=$BROKER_DIR/log/broker.log
readonly BROKER_OUT=$BROKER_DIR/log/output.log
readonly BROKER_PID=$DEV_DIR/broker.pid
readonly BROKER_PORTS=$DEV_DIR/broker.ports
readonly BROKER_MARK=$DEV_ID-broker
readonly BROKER_NODE=harness-$DEV_ID@localhost
readonly BROKER_USER=harness:harness
readonly BROKER_START_S=120
readonly EPMD_PID=$DEV_DIR/epmd.pid
readonly EPMD_MARK=$DEV_ID-epmd

# broker_port amqp|management|distribution|epmd
broker_port() {
    local amqp management distribution epmd
    [[ -s $BROKER_PORTS ]] || return 1
    # shellcheck disable=SC2034 # chosen by name below
    read -r amqp management distribution epmd <"$BROKER_PORTS"
    printf '%s\n' "${!1}"
}

broker_url() {
    local port
    port=$(broker_port amqp) && printf 'amqp://%s@127.0.0.1:%s/%%2f\n' "$BROKER_USER" "$port"
}

broker_management_url() {
    local port
    port=$(broker_port management) && printf 'http://%s@127.0.0.1:%s\n' "$BROKER_USER" "$port"
}

broker_pid() {
    recorded_process "$BROKER_PID"
}

# The node gets nothing from the caller's environment or from /etc/rabbitmq. The node's tools get the same environment.
broker_environment() {
    printf '%s\n' PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME="$BROKER_DIR" ERL_CRASH_DUMP_SECONDS=0 \
        ERL_EPMD_PORT="$(broker_port epmd)" ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME="$BROKER_NODE" \
        RABBITMQ_CONF_ENV_FILE="$BROKER_DIR/rabbitmq-env.conf" \
        RABBITMQ_CONFIG_FILE="$BROKER_DIR/rabbitmq.conf" \
        RABBITMQ_CONFIG_FILES="$BROKER_DIR/conf.d" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$BROKER_DIR/advanced.config" \
        RABBITMQ_GENERATED_CONFIG_DIR="$BROKER_DIR/generated" \
        RABBITMQ_SCHEMA_DIR="$BROKER_DIR/schema" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$BROKER_DIR/enabled_plugins" \
        RABBITMQ_MNESIA_BASE="$BROKER_DIR/data" \
        RABBITMQ_LOG_BASE="$BROKER_DIR/log" \
        RABBITMQ_LOGS="$BROKER_LOG" \
        RABBITMQ_PID_FILE="$BROKER_DIR/node.pid" \
        RABBITMQ_DIST_PORT="$(broker_port distribution)" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false'
}

# broker_exec MARK PROGRAM…: replaces this shell with the program.
broker_exec() {
    local mark=$1 environment
    shift
    mapfile -t environment < <(broker_environment)
    cd "$BROKER_DIR" || exit
    # A node sizes its tables by this limit, so "unlimited" costs gigabytes.
    ulimit -Sn 65536 2>/dev/null || ulimit -Sn "$(ulimit -Hn)"
    exec 8>&- 9>&-
    exec env -i "${environment[@]}" "HARNESS_DEV_PROCESS=$mark" "$@"
}

broker_configure() {
    mkdir -p "$BROKER_DIR"/{log,data,conf.d}
    if [[ ! -s $BROKER_DIR/.erlang.cookie ]]; then
        (umask 077 && head -c 24 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' >"$BROKER_DIR/.erlang.cookie")
        chmod 400 "$BROKER_DIR/.erlang.cookie"
    fi
    : >"$BROKER_DIR/rabbitmq-env.conf"
    printf '[rabbitmq_management].\n' >"$BROKER_DIR/enabled_plugins"
    printf '[].\n' >"$BROKER_DIR/advanced.config"
    cat >"$BROKER_DIR/rabbitmq.conf" <<SETTINGS
# Written by ops/dev/services at each start.
listeners.tcp.local = 127.0.0.1:$(broker_port amqp)
management.tcp.ip = 127.0.0.1
management.tcp.port = $(broker_port management)
default_user = ${BROKER_USER%:*}
default_pass = ${BROKER_USER#*:}
default_user_tags.administrator = true
cluster_name = harness-dev
disk_free_limit.absolute = 200MB
vm_memory_high_watermark.relative = 0.4
collect_statistics_interval = 10000
log.console = false
log.file.level = info
${HARNESS_DEV_BROKER_CONF:-}
SETTINGS
}

# A node looks for each of its modules in every folder of its code path, and the package has sixty plugins. With only
# what the management plugin needs (as the .app files declare it), a start takes half as long. The tools keep all of
# them.
broker_select_code() {
    local plugins app folder todo=(rabbit rabbitmq_prelaunch rabbitmq_management)
    plugins=$(readlink -f "$BROKER_BIN/rabbitmq-server")
    plugins=${plugins%/*/*}/plugins
    if [[ -e $BROKER_CODE/origin && $(<"$BROKER_CODE/origin") == "$plugins" ]]; then return 0; fi
    rm -rf -- "$BROKER_CODE"
    mkdir -p "$BROKER_CODE"/{bin,plugins}
    ln -s "$(readlink -f "$BROKER_BIN/rabbitmq-defaults")" "$BROKER_CODE/bin/rabbitmq-defaults"
    while ((${#todo[@]} > 0)); do
        app=${todo[0]}
        todo=("${todo[@]:1}")
        for folder in "$plugins/$app"-[0-9]*/; do
            folder=${folder%/}
            # Erlang's own applications are not in that folder.
            [[ -f $folder/ebin/$app.app && ! -e $BROKER_CODE/plugins/${folder##*/} ]] || continue
            ln -s "$folder" "$BROKER_CODE/plugins/"
            mapfile -t -O "${#todo[@]}" todo < <(
                tr -d '[:space:]' <"$folder/ebin/$app.app" | grep -o '{applications,\[[^]]*' | tr -c 'a-z0-9_\n' '\n'
            )
        done
    done
    printf '%s\n' "$plugins" >"$BROKER_CODE/origin"
}

broker_choose_ports() {
    local port ports=()
    while ((${#ports[@]} < 4)); do
        port=$(pick_port)
        [[ " ${ports[*]} " == *" $port "* ]] || ports+=("$port")
    done
    printf '%s\n' "${ports[*]}" >"$BROKER_PORTS"
}

broker_ports_free() {
    local port ports
    [[ -s $BROKER_PORTS ]] || return 1
    read -ra ports <"$BROKER_PORTS"
    for port in "${ports[@]}"; do port_free "$port" || return 1; done
}

broker_start() {
    local attempt
    broker_sweep
    epmd_stop
    for attempt in {1..5}; do
        if ((attempt > 1)) || ! broker_ports_free; then broker_choose_ports; fi
        if broker_launch; then return 0; fi
        epmd_stop
    done
    fail_with_log "$BROKER_OUT" "one of RabbitMQ's ports was taken by another program $attempt times in a row"
}

# Starts it on the same ports as before, for restarts. Its epmd has kept running.
broker_start_again() {
    local what
    [[ -s $BROKER_PORTS ]] || die "there is no private RabbitMQ to start again: run 'start' first"
    broker_sweep
    for what in amqp management distribution; do
        wait_until 10 port_free "$(broker_port "$what")" ||
            die "another program has taken RabbitMQ's $what port $(broker_port "$what") meanwhile"
    done
    broker_launch || fail_with_log "$BROKER_OUT" "another program has taken one of RabbitMQ's ports meanwhile: $(<"$BROKER_PORTS")"
}

# Fails (with 1) only when a port was taken; every other failure ends the program.
broker_launch() {
    local pid
    broker_configure
    broker_select_code
    epmd_start || return 1
    if [[ -e $BROKER_LOG ]]; then mv -f "$BROKER_LOG" "$BROKER_LOG.1"; fi
    # With `detached` the script becomes the node, so that no shell above it waits and calls rabbitmqctl.
    # The script's folder is relative, because the script does not quote it.
    (broker_exec "$BROKER_MARK" setsid env detached=true \
        RABBITMQ_SCRIPTS_DIR=code/bin RABBITMQ_PLUGINS_DIR="$BROKER_CODE/plugins" "$BROKER_BIN/rabbitmq-server") \
        </dev/null >"$BROKER_OUT" 2>&1 &
    pid=$!
    record_process "$BROKER_PID" "$pid"
    if wait_until "$BROKER_START_S" broker_settled "$pid" && process_alive "$pid"; then return 0; fi
    if ! process_alive "$pid"; then
        broker_sweep
        if grep -qsE 'eaddrinuse|already in use|port_already_used' "$BROKER_OUT" "$BROKER_LOG"; then return 1; fi
        fail_with_log "$BROKER_OUT" "RabbitMQ ended while it started (its log is $BROKER_LOG)"
    fi
    broker_kill
    epmd_stop
    fail_with_log "$BROKER_LOG" "RabbitMQ did not answer within $BROKER_START_S s"
}

broker_settled() {
    ! process_alive "$1" || broker_answers "$1"
}

# Whether the node listens on its ports, the management API answers, and it lists the AMQP listener (which opens last).
broker_answers() {
    local amqp management
    amqp=$(broker_port amqp) && management=$(broker_port management) || return 1
    listens_on "$1" "$amqp" && listens_on "$1" "$management" || return 1
    http_get "$management" "/api/health/checks/port-listener/$amqp" "$BROKER_USER" >/dev/null
}

broker_version() {
    http_get "$(broker_port management)" /api/overview "$BROKER_USER" |
        grep -o '"rabbitmq_version":"[^"]*"' | cut -d'"' -f4
}

# Stops the node cleanly. Its epmd stays, so that the node comes back under its name and port.
broker_stop() {
    local pid
    if pid=$(broker_pid); then end_processes "${1:-TERM:30 KILL:10}" "$pid"; fi
    broker_sweep
    rm -f "$BROKER_PID"
}

# 3.10 with the management plugin closes connections and stores at once, and then waits 5 s for itself
# (rabbit_mgmt_db_handler calls its own event manager). If everything is to end, there is no need to wait for that.
broker_end() {
    broker_stop "TERM:2 KILL:10"
    epmd_stop
}

broker_kill() {
    local pid
    if pid=$(broker_pid); then end_processes "KILL:10" "$pid"; fi
    broker_sweep
    rm -f "$BROKER_PID"
}

# erl_child_setup and inet_gethost end by themselves once the node is gone. Those that do not are killed.
broker_sweep() {
    local left
    mapfile -t left < <(marked_processes "$BROKER_MARK")
    if ((${#left[@]} == 0)) || wait_until 2 all_gone "${left[@]}"; then return 0; fi
    end_processes "TERM:5 KILL:10" "${left[@]}"
}

broker_wipe() {
    rm -rf -- "$BROKER_DIR"
    rm -f -- "$BROKER_PID" "$BROKER_PORTS" "$EPMD_PID"
}

# broker_tool PROGRAM…: replaces this shell with rabbitmqctl or a similar tool, talking to this node.
broker_tool() {
    [[ -s $BROKER_PORTS ]] || die "RabbitMQ has never been started here: run 'start' first"
    broker_exec tool "$BROKER_BIN/$1" "${@:2}"
}

# Starts Erlang's name service. Fails if it does not get its port.
epmd_start() {
    local pid port
    port=$(broker_port epmd)
    if pid=$(recorded_process "$EPMD_PID") && listens_on "$pid" "$port"; then return 0; fi
    epmd_stop
    (broker_exec "$EPMD_MARK" setsid epmd -port "$port" -address 127.0.0.1) </dev/null >"$BROKER_DIR/log/epmd.log" 2>&1 &
    pid=$!
    record_process "$EPMD_PID" "$pid"
    wait_until 10 epmd_settled "$pid" "$port" && listens_on "$pid" "$port"
}

epmd_settled() {
    ! process_alive "$1" || listens_on "$1" "$2"
}

epmd_stop() {
    local left
    mapfile -t left < <(marked_processes "$EPMD_MARK")
    end_processes "TERM:5 KILL:5" "${left[@]}"
    rm -f "$EPMD_PID"
}
