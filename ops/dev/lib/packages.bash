# shellcheck shell=bash
# The system's packages: which programs are used, and how they are installed on a fresh machine.

readonly POSTGRES_OLDEST=15
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK='# written by ops/dev/services while it installs packages'

# Prints the folder of the Postgres programs: version 15 if it is installed, otherwise the oldest newer one.
postgres_programs() {
    local folder version
    while read -r version; do
        folder=/usr/lib/postgresql/$version/bin
        if [[ -x $folder/postgres && -x $folder/initdb && -x $folder/psql ]]; then
            printf '%s\n' "$folder"
            return 0
        fi
    done < <(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null |
        awk -v oldest="$POSTGRES_OLDEST" '/^[0-9]+$/ && $1 >= oldest' | sort -n)
    return 1
}

# Debian's /usr/sbin/rabbitmq-server insists on the user `rabbitmq`. The script that it calls does not.
broker_programs() {
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] && command -v erl epmd >/dev/null || return 1
    printf '%s\n' /usr/lib/rabbitmq/bin
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

missing_packages() {
    local service
    for service in "$@"; do
        case $service in
            postgres) postgres_programs >/dev/null || printf 'postgresql-%s\n' "$POSTGRES_OLDEST" ;;
            broker) broker_programs >/dev/null || echo rabbitmq-server ;;
        esac
    done
}

# install_packages SERVICE…: installs what these services need, once per machine.
install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0
    command -v apt-get >/dev/null ||
        die "these are needed and not installed: ${missing[*]} (names of Debian's packages; this machine has no apt-get)." \
            "Install them, or set AMQP_URL and DATABASE_URL to services that run elsewhere."
    if ((EUID != 0)) && ! { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; }; then
        die "these packages are needed and not installed: ${missing[*]}" \
            "This user is not root and there is no sudo, so please run as root:" \
            "    apt-get update && apt-get install --no-install-recommends ${missing[*]}" \
            "or set AMQP_URL and DATABASE_URL to services that run elsewhere."
    fi
    say "installing ${missing[*]} (once per machine) …"
    # In a subshell, which has its own traps for cleaning up.
    (install_with_apt "$@") 8>&- 9>&- || die "installing ${missing[*]} failed (the whole output is in $DEV_DIR/apt.log)"
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} == 0)) || die "apt-get reported success, yet these do not work: ${missing[*]}"
}

install_with_apt() {
    local missing log=$DEV_DIR/apt.log
    # Two copies of this repository may get here at once: take one lock for the machine, and look again.
    as_root touch /run/lock/harness-dev-install
    exec 7</run/lock/harness-dev-install
    flock -w 900 7 || die "another installation has held /run/lock/harness-dev-install for 15 minutes"
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0

    forbid_daemons
    trap allow_daemons EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    apt_get update >"$log" 2>&1 || warn_with_log "$log" "apt-get update failed; trying with the existing lists"
    if ! apt_offers "postgresql-$POSTGRES_OLDEST"; then
        # A newer system: use its own Postgres.
        missing=("${missing[@]/postgresql-$POSTGRES_OLDEST/postgresql}")
    fi
    # One test has a client in Python that uses pika. If pika is not installed, the test gets it with pip.
    if apt_offers python3-pika; then missing+=(python3-pika); fi
    apt_get install --yes --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || fail_with_log "$log" "apt-get install ${missing[*]} failed"
    if [[ -d /run/systemd/system ]]; then
        # The system's services must not start at the next boot either, because ours are private.
        as_root systemctl disable --quiet --now postgresql.service rabbitmq-server.service epmd.socket epmd.service 2>/dev/null || true
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" </dev/null 7>&-
}

# The output is read to its end. `grep -q` would leave early, apt-cache would fail because of that, and pipefail would
# make the failure the result.
apt_offers() {
    [[ $(apt-cache policy "$1") == *'Candidate: '[0-9]* ]]
}

# Debian's packages start their daemons when installed, unless this policy forbids it. An existing policy is left as it
# is.
forbid_daemons() {
    if [[ -e $POLICY ]] && grep -qsF "$POLICY_MARK" "$POLICY"; then as_root rm -f "$POLICY"; fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" |
        as_root sh -c 'set -C; [ ! -e "$1" ] && cat >"$1" && chmod 755 "$1"' _ "$POLICY" 2>/dev/null || true
}

allow_daemons() {
    if grep -qsF "$POLICY_MARK" "$POLICY"; then as_root rm -f "$POLICY"; fi
}
