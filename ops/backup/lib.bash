# shellcheck shell=bash
# What the backup commands share: their settings, and the stores of backups.
#
# A backup is two files: NAME.dump.age (NAME.dump without encryption) and, written last, NAME.facts. A dump without its
# facts is incomplete, and does not count as a backup.

# Ranges of letters, sort order and number formats are then the same on every machine.
export LC_ALL=C

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$@"
    exit 1
}

wrong() {
    say "$@"
    exit 2
}

# needs PROGRAM PACKAGE…: checks that the program is installed. PACKAGE is its package in Debian.
needs() {
    command -v "$1" >/dev/null || wrong "$1 is not installed (Debian's package $2)"
}

# --- what a killed process leaves ---

# work_folder: makes a folder in TMPDIR, as $work, that is removed when this process ends. The folder of a process that
# was killed (SIGKILL) is no longer locked, and is removed by the next process.
work_folder() {
    local left
    umask 077
    for left in "${TMPDIR:-/tmp}"/harness-backup.*; do
        [[ -d $left && -O $left && ! -L $left ]] || continue
        # A folder without a lock file is just being made.
        [[ -e $left/lock || -n $(find "$left" -maxdepth 0 -mmin +10) ]] || continue
        (flock --nonblock 9 && rm -rf -- "$left") 9>>"$left/lock" || true
    done
    work=$(mktemp -d "${TMPDIR:-/tmp}/harness-backup.XXXXXXXX")
    trap 'rm -rf -- "$work"' EXIT
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    # Its children hold the lock as well, so a folder that they still write to is not removed.
    exec 9>"$work/lock"
    flock 9
}

running=

# interruptible COMMAND…: runs it so that a signal interrupts it. A shell handles a signal only after a foreground
# command has ended, but at once while it waits for a background one.
interruptible() {
    set -m
    "$@" &
    running=$!
    set +m
    wait "$running" || return
    running=
}

stop() {
    trap '' INT TERM HUP
    if [[ -n $running ]]; then
        kill -TERM -- "-$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    fi
    exit "$1"
}

# Rewrites DATABASE_URL so that it means to pg_dump and psql what it means to the programs
# (docs/supported-environments.md). Those two read more than the programs do, and verify less. So only one form is
# accepted, without anything that would have to be decoded. A wrong address is refused, and is not shown.
check_database() {
    local expected='expected postgres://user:password@host:5432/database'
    local form='^(postgres(ql)?://[^?#/[:space:]]*)/([A-Za-z0-9_.-]+)(\?([^[:space:]]*))?$'
    local name value parameter mode='' own='' attributes='' kept=''
    local -a parameters=()
    for name in "${!PG@}"; do unset "$name"; done
    export PGPASSFILE=/dev/null
    # Only libpq 16 and newer have a name for the system's authorities.
    local authorities=${TLS_CA_FILE:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}

    read -rd '' DATABASE_URL <<<"${DATABASE_URL:-}" || true
    [[ -n $DATABASE_URL ]] || wrong "DATABASE_URL: not set, $expected"
    [[ $DATABASE_URL =~ $form ]] || wrong "DATABASE_URL: a backup takes one form of address, $expected"
    local server=${BASH_REMATCH[1]} database=${BASH_REMATCH[3]}
    IFS='&' read -ra parameters <<<"${BASH_REMATCH[5]}"
    for parameter in "${parameters[@]}"; do
        name=${parameter%%=*} value=${parameter#*=}
        case $name in
            sslmode)
                case $value in
                    # To libpq, these two accept any certificate.
                    require | prefer) mode=verify-full ;;
                    disable | verify-ca | verify-full) mode=$value ;;
                    *) wrong 'DATABASE_URL: sslmode: expected disable, prefer, require, verify-ca or verify-full' ;;
                esac
                ;;
            sslrootcert) own=$value ;;
            # As the programs interpret it.
            target_session_attrs) attributes=${value/#read-write/primary} ;;
            # These are for long-running processes; libpq has other names or units for them.
            keepalives | keepalives_* | tcp_user_timeout) ;;
            application_name | channel_binding | connect_timeout | options) kept+="&$parameter" ;;
            *) wrong "DATABASE_URL: a backup takes no parameters but sslmode, sslrootcert, target_session_attrs, connect_timeout, options, application_name and channel_binding" ;;
        esac
    done
    if [[ -n $own ]]; then
        mode=${mode:-verify-full}
        [[ $mode != disable ]] || wrong 'DATABASE_URL: sslrootcert is given, and sslmode=disable: leave one of them out'
    fi
    mode=${mode:-disable}
    if [[ -z $own || $own == system ]]; then export PGSSLROOTCERT=$authorities; else kept+="&sslrootcert=$own"; fi
    # Of several servers the programs use the primary. A standby may lack what was accepted last.
    if [[ $server == *,* ]]; then attributes=${attributes:-primary}; fi
    kept+=${attributes:+&target_session_attrs=$attributes}
    DATABASE_URL="$server/$database?sslmode=$mode$kept"
}

# Prints the address of another database on the server that DATABASE_URL names.
other_database() {
    local address=${DATABASE_URL%%\?*}
    printf '%s/%s?%s\n' "${address%/*}" "$1" "${DATABASE_URL#*\?}"
}

database_name() {
    local address=${DATABASE_URL%%\?*}
    printf '%s\n' "${address##*/}"
}

sql() {
    psql --quiet --no-psqlrc --tuples-only --no-align --set ON_ERROR_STOP=1 "$@"
}

# make_database NAME: creates an empty database on the server of DATABASE_URL.
make_database() {
    sql "$(other_database postgres)" -c "CREATE DATABASE \"$1\" ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"
}

drop_database() {
    sql "$(other_database postgres)" -c "DROP DATABASE IF EXISTS \"$1\" WITH (FORCE)" || say "the database $1 could not be dropped"
}

# --- encryption ---

# Encrypts for the public keys in the file BACKUP_RECIPIENTS. Only a restore needs the secret half.
check_encryption() {
    if [[ ${BACKUP_ENCRYPTION:-age} == none ]]; then return 0; fi
    [[ ${BACKUP_ENCRYPTION:-age} == age ]] ||
        wrong "BACKUP_ENCRYPTION: got \"$BACKUP_ENCRYPTION\", expected age or none"
    needs age age
    [[ -r ${BACKUP_RECIPIENTS:-} ]] ||
        wrong "BACKUP_RECIPIENTS: got \"${BACKUP_RECIPIENTS:-}\", expected a file of age's public keys (age-keygen -y KEY), or BACKUP_ENCRYPTION=none"
}

encrypt() {
    if [[ ${BACKUP_ENCRYPTION:-age} == none ]]; then cat; else age --encrypt --recipients-file "$BACKUP_RECIPIENTS"; fi
}

check_decryption() {
    if [[ $1 != *.age ]]; then return 0; fi
    needs age age
    [[ -r ${BACKUP_IDENTITY:-} ]] ||
        wrong "BACKUP_IDENTITY: got \"${BACKUP_IDENTITY:-}\", expected the file with age's secret key that this backup was made for"
}

# decrypt NAME: stdin to stdout.
decrypt() {
    if [[ $1 == *.age ]]; then age --decrypt --identity "$BACKUP_IDENTITY"; else cat; fi
}

# --- where backups are kept ---

check_target() {
    case ${BACKUP_TARGET:-} in
        s3://?*)
            if ! command -v aws >/dev/null && ! command -v rclone >/dev/null; then
                wrong "BACKUP_TARGET: $BACKUP_TARGET needs aws (Debian's package awscli) or rclone; neither is installed"
            fi
            ;;
        # A new folder is readable by this user only. The rights of an existing folder are left as they are.
        /*) (umask 077 && mkdir -p -- "$BACKUP_TARGET") || wrong "BACKUP_TARGET: $BACKUP_TARGET cannot be created" ;;
        *) wrong "BACKUP_TARGET: got \"${BACKUP_TARGET:-}\", expected a folder (/…) or s3://bucket/prefix" ;;
    esac
}

s3() {
    if [[ -n ${BACKUP_S3_ENDPOINT:-} ]]; then
        aws --endpoint-url "$BACKUP_S3_ENDPOINT" s3 "$@"
    else
        aws s3 "$@"
    fi
}

# Credentials come from the environment, as with aws.
clone() {
    rclone --s3-provider Other --s3-env-auth ${BACKUP_S3_ENDPOINT:+--s3-endpoint "$BACKUP_S3_ENDPOINT"} "$@"
}

# keep NAME FILE: stores the file as a whole or not at all.
keep() {
    case $BACKUP_TARGET in
        s3://*)
            if command -v aws >/dev/null; then
                s3 cp --only-show-errors "$2" "${BACKUP_TARGET%/}/$1"
            else
                clone copyto "$2" ":s3:${BACKUP_TARGET#s3://}/$1"
            fi
            ;;
        *)
            # Left by a process that was killed a day ago or more.
            find "$BACKUP_TARGET" -maxdepth 1 -type f -name '.harness-*.partial' -mmin +1440 -delete
            install -m 600 -- "$2" "$BACKUP_TARGET/.$1.partial"
            sync -- "$BACKUP_TARGET/.$1.partial"
            mv -- "$BACKUP_TARGET/.$1.partial" "$BACKUP_TARGET/$1"
            ;;
    esac
}

# fetch NAME: writes the file to stdout.
fetch() {
    case $BACKUP_TARGET in
        s3://*)
            if command -v aws >/dev/null; then
                s3 cp --only-show-errors "${BACKUP_TARGET%/}/$1" -
            else
                clone cat ":s3:${BACKUP_TARGET#s3://}/$1"
            fi
            ;;
        *) cat -- "$BACKUP_TARGET/$1" ;;
    esac
}

forget() {
    case $BACKUP_TARGET in
        s3://*)
            if command -v aws >/dev/null; then
                s3 rm --only-show-errors "${BACKUP_TARGET%/}/$1"
            else
                clone deletefile ":s3:${BACKUP_TARGET#s3://}/$1"
            fi
            ;;
        *) rm -f -- "$BACKUP_TARGET/$1" ;;
    esac
}

files() {
    case $BACKUP_TARGET in
        s3://*)
            if command -v aws >/dev/null; then
                # If nothing is stored, the list is empty and the exit code is 1.
                s3 ls "${BACKUP_TARGET%/}/" | awk '{ print $4 }' || true
            else
                clone lsf ":s3:${BACKUP_TARGET#s3://}/"
            fi
            ;;
        *) find "$BACKUP_TARGET" -maxdepth 1 -type f -printf '%f\n' ;;
    esac
}

# Prints the names of complete backups, oldest first.
backups() {
    files | sed -nE 's/^(harness-[0-9]{8}T[0-9]{6}Z)\.facts$/\1/p' | sort
}

# which_backup [NAME|latest]: prints the backup's name.
which_backup() {
    local name=${1:-latest} all
    all=$(backups)
    [[ -n $all ]] || die "there is no backup in $BACKUP_TARGET"
    if [[ $name == latest ]]; then
        tail -n 1 <<<"$all"
    else
        grep -Fx -- "$name" <<<"$all" || die "there is no backup $name in $BACKUP_TARGET; there are: ${all//$'\n'/ }"
    fi
}

# fact NAME KEY: prints a value from the backup's facts.
fact() {
    fetch "$1.facts" | sed -n "s/^$2=//p"
}

# fetch_whole NAME FOLDER: fetches the dump, checks its sha256, and prints the file's name.
fetch_whole() {
    local file sum
    file=$(fact "$1" file)
    sum=$(fact "$1" sha256)
    fetch "$file" >"$2/$file" || die "$file cannot be read"
    [[ $(sha256sum <"$2/$file") == "$sum  -" ]] || die "$file has changed since it was written: its sha256 differs from $1.facts"
    printf '%s\n' "$file"
}
