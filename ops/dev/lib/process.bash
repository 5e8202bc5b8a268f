# shellcheck shell=bash
# Processes and ports: which processes are alive, whose they are, which one listens, and how to end them.
# It reads /proc, and does not know Postgres or RabbitMQ.

boot_id() {
    cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown
}

# Prints the kernel's start time of a living process. Fails for a dead one and for a zombie.
process_start_ticks() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The command name is in brackets and may contain blanks. After the last bracket come the fields 3, 4, …
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != Z ]] || return 1
    printf '%s\n' "${fields[19]}"
}

process_alive() {
    process_start_ticks "$1" >/dev/null
}

# A pid alone can be reused by another process. (pid, start time, boot) identifies one process permanently.
record_process() {
    local file=$1 pid=$2
    printf '%s %s %s\n' "$pid" "$(process_start_ticks "$pid" || echo gone)" "$(boot_id)" >"$file"
}

# Prints the recorded pid if that same process is still alive.
recorded_process() {
    local pid ticks boot
    [[ -s $1 ]] || return 1
    read -r pid ticks boot <"$1" || return 1
    [[ $boot == "$(boot_id)" && $(process_start_ticks "$pid") == "$ticks" ]] || return 1
    printf '%s\n' "$pid"
}

# Everything started here carries `HARNESS_DEV_PROCESS=<id>` in its environment, and so do its children.
marked_processes() {
    local file
    grep -lsaF "HARNESS_DEV_PROCESS=$1" /proc/[0-9]*/environ 2>/dev/null | while read -r file; do
        file=${file%/environ}
        process_alive "${file#/proc/}" && printf '%s\n' "${file#/proc/}"
    done || true
}

# Prints the pids of the process and all its descendants.
process_tree() {
    local -A children=()
    local file stat fields pid queue=("$1")
    for file in /proc/[0-9]*/stat; do
        { read -r stat <"$file"; } 2>/dev/null || continue
        read -ra fields <<<"${stat##*) }"
        children[${fields[1]}]+=" ${stat%% *}"
    done
    while ((${#queue[@]} > 0)); do
        pid=${queue[0]}
        printf '%s\n' "$pid"
        # shellcheck disable=SC2206 # a list of numbers, to be split
        queue=("${queue[@]:1}" ${children[$pid]:-})
    done
}

# wait_until SECONDS COMMAND…: polls until the command succeeds, or fails at the deadline.
wait_until() {
    local deadline_ms=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        (($(now_ms) < deadline_ms)) || return 1
        sleep 0.05
    done
}

now_ms() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%s\n' "${now%???}"
}

all_gone() {
    local pid
    for pid in "$@"; do
        if process_alive "$pid"; then return 1; fi
    done
}

# end_processes "SIGNAL:SECONDS …" PID…: sends each signal in turn until all are gone.
end_processes() {
    local step steps=$1
    shift
    (($# > 0)) || return 0
    for step in $steps; do
        kill -s "${step%:*}" "$@" 2>/dev/null || true
        if wait_until "${step#*:}" all_gone "$@"; then return 0; fi
    done
    complain "these processes do not end, even by ${step%:*}: $*"
    return 1
}

# Prints the sockets (inode numbers) that listen on a TCP port, in any process.
listening_sockets() {
    local hex
    printf -v hex '%04X' "$1"
    # A machine without IPv6 has no tcp6.
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk -v port="$hex" '$4 == "0A" { split($2, at, ":"); if (at[2] == port) print $10 }'
}

port_free() {
    [[ -z $(listening_sockets "$1") ]]
}

# Whether this process, and not another one, listens on the port.
listens_on() {
    local socket
    for socket in $(listening_sockets "$2"); do
        # shellcheck disable=SC2010 # names of links are in the long listing only
        if ls -l "/proc/$1/fd" 2>/dev/null | grep -qF "socket:[$socket]"; then return 0; fi
    done
    return 1
}

# Prints a free port below the range from which the kernel takes ports for outgoing connections.
# Another program may still take it before we bind it. The caller then starts again with other ports.
pick_port() {
    local port
    for _ in {1..200}; do
        port=$((20000 + RANDOM % 12000))
        if port_free "$port"; then
            printf '%s\n' "$port"
            return 0
        fi
    done
    complain "found no free port between 20000 and 32000 on this machine"
    return 1
}

answers_tcp() {
    # shellcheck disable=SC2016 # expanded by the inner shell, which `timeout` can end
    timeout 3 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$1" "$2" 2>/dev/null
}

# http_get PORT PATH CREDENTIALS: prints the body of a loopback GET, and fails unless it answers 200.
# The request is written by hand, so that a fresh machine needs no HTTP client.
http_get() {
    # shellcheck disable=SC2016 # expanded by the inner shell, which `timeout` can end
    timeout 5 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Basic %s\r\n\r\n" "$2" "$3" >&3
        read -r _ code _ <&3 && [[ $code == 200 ]] || exit 1
        while read -r line <&3 && ((${#line} > 1)); do :; done # up to the blank line (a lone CR)
        cat <&3' _ "$1" "$2" "$(printf '%s' "$3" | base64 -w0)" 2>/dev/null
}
