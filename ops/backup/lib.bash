# shellcheck shell=bash
# What the backup commands share: their settings, and where backups are kept.
#
# A backup is two files: NAME.dump.age (NAME.dump without encryption) and, written last, NAME.facts. One without its facts was
# cut short and is none.

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

# needs PROGRAM PACKAGE…: what Debian calls it.
needs() {
    command -v "$1" >/dev/null || wrong "$1 is not installed (Debian's package $2)"
}

# --- what a killed process leaves ---

# work_folder: makes a folder in TMPDIR that goes with this process, as $work. One whose process was killed (SIGKILL) is not locked
# any more, and goes with the next process.
work_folder() {
    local left
    umask 077
    for left in "${TMPDIR:-/tmp}"/harness-backup.*; do
        [[ -d $left && -O $left && ! -L $left ]] || continue
        # One without a lock is being made just now.
        [[ -e $left/lock || -n $(find "$left" -maxdepth 0 -mmin +10) ]] || continue
        (flock --nonblock 9 && rm -rf -- "$left") 9>>"$left/lock" || true
    done
    work=$(mktemp -d "${TMPDIR:-/tmp}/harness-backup.XXXXXXXX")
    trap 'rm -rf -- "$work"' EXIT
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    # Its children have it as well: what they still write to is not taken away.
    exec 9>"$work/lock"
    flock 9
}

running=

# interruptible COMMAND…: a shell hears of a signal only when its command has ended, unless it waits for it.
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

# The address as the programs read it (docs/supported-environments.md): whitespace around it is none of it, and so is the
# environment of libpq; where there is TLS, the certificate is verified.
check_database() {
    local name expected='expected postgres://user:password@host:5432/database'
    # Of pg_dump and psql, which would read more than the programs do.
    for name in "${!PG@}"; do unset "$name"; done
    read -rd '' DATABASE_URL <<<"${DATABASE_URL:-}" || true
    case $DATABASE_URL in
        '') wrong "DATABASE_URL: not set, $expected" ;;
        postgres://* | postgresql://*) ;;
        *://*) wrong "DATABASE_URL: got no Postgres address, $expected" ;;
        *dbname*=*) ;;
        *) wrong "DATABASE_URL: got no Postgres address, $expected" ;;
    esac
    # What `require` means to libpq lets any certificate pass, and so does `prefer`.
    DATABASE_URL=${DATABASE_URL/sslmode=require/sslmode=verify-full}
    DATABASE_URL=${DATABASE_URL/sslmode=prefer/sslmode=verify-full}
    # Only from libpq 16 on the authorities of the system have a name.
    local authorities=${TLS_CA_FILE:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
    DATABASE_URL=${DATABASE_URL/sslrootcert=system/sslrootcert=$authorities}
    case $DATABASE_URL in
        *sslmode=verify-*) export PGSSLROOTCERT=$authorities ;;
        *sslmode=*) ;;
        *) export PGSSLMODE=disable ;;
    esac
}

# The server that DATABASE_URL names, with another database.
other_database() {
    local address=${DATABASE_URL%%\?*} parameters=
    if [[ $DATABASE_URL != *://* ]]; then
        # The last one counts.
        printf "%s dbname='%s'\n" "$DATABASE_URL" "$1"
        return
    fi
    if [[ $DATABASE_URL == *\?* ]]; then parameters="?${DATABASE_URL#*\?}"; fi
    printf '%s/%s%s\n' "${address%/*}" "$1" "$parameters"
}

database_name() {
    local address=${DATABASE_URL%%\?*}
    if [[ $DATABASE_URL != *://* ]]; then
        sed -nE "s/.*dbname *= *'?([^' ]+).*/\1/p" <<<"$DATABASE_URL"
        return
    fi
    printf '%s\n' "${address##*/}"
}

# --- encryption ---

# To whom: the public keys in the file BACKUP_RECIPIENTS. Only a restore needs the other half.
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
        # Nobody else's to read. Where the folder is there already, its rights are somebody's decision.
        /*) (umask 077 && mkdir -p -- "$BACKUP_TARGET") || wrong "BACKUP_TARGET: $BACKUP_TARGET cannot be made" ;;
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

# keep NAME FILE: as a whole or not at all.
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
            # Of a process that was killed, a day ago or more.
            find "$BACKUP_TARGET" -maxdepth 1 -type f -name '.harness-*.partial' -mmin +1440 -delete
            install -m 600 -- "$2" "$BACKUP_TARGET/.$1.partial"
            sync -- "$BACKUP_TARGET/.$1.partial"
            mv -- "$BACKUP_TARGET/.$1.partial" "$BACKUP_TARGET/$1"
            ;;
    esac
}

# fetch NAME: to stdout.
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
                # Its list is empty, and its exit code 1, where nothing is.
                s3 ls "${BACKUP_TARGET%/}/" | awk '{ print $4 }' || true
            else
                clone lsf ":s3:${BACKUP_TARGET#s3://}/"
            fi
            ;;
        *) find "$BACKUP_TARGET" -maxdepth 1 -type f -printf '%f\n' ;;
    esac
}

# The names of whole backups, oldest first.
backups() {
    files | sed -nE 's/^(harness-[0-9]{8}T[0-9]{6}Z)\.facts$/\1/p' | sort
}

# which_backup [NAME|latest]: its name.
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

# fact NAME KEY: what was written down of a backup.
fact() {
    fetch "$1.facts" | sed -n "s/^$2=//p"
}

# fetch_whole NAME FOLDER: its dump, as it was written; prints the file's name.
fetch_whole() {
    local file sum
    file=$(fact "$1" file)
    sum=$(fact "$1" sha256)
    fetch "$file" >"$2/$file" || die "$file cannot be read"
    [[ $(sha256sum <"$2/$file") == "$sum  -" ]] || die "$file is not what was written: its sha256 differs from $1.facts"
    printf '%s\n' "$file"
}
