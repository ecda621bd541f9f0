#!/bin/sh
# several-databases.sh [DATABASES...]: what each database of a process costs, for docs/limits.md.
#
# It starts a private PostgreSQL with as many databases as the largest number (1 2 4 8), and target/release/outbox-relay or
# RELAY with one idle destination for each of them, and prints the memory of the process and its connections after 10 seconds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- 1 2 4 8
relay=${RELAY:-$here/../../target/release/outbox-relay}
[ -x "$relay" ] || { echo "$(basename "$0"): there is no $relay: run make build, or set RELAY" >&2; exit 1; }
. "$here/private-postgres.sh"
data=$(mktemp -d)
chmod 755 "$data"
finish() {
    stop_postgres "$data"
    wait
    rm -rf "$data"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
start_postgres "$data"
sql() { psql -XqAt "postgres://relay@127.0.0.1:$port/postgres" -c "$1"; }

export OUTBOX_RELAY_DESTINATIONS=audit=https://sqs.us-east-1.amazonaws.com/111122223333/audit AWS_REGION=us-east-1 \
    AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:0 RUST_LOG=warn \
    DATABASE_URLS_FILE="$data/databases"
echo "databases  memory (VmRSS)  connections"
for number in "$@"; do
    : >"$data/databases"
    for n in $(seq "$number"); do
        sql "SELECT 1 FROM pg_database WHERE datname = 'd$n'" | grep -q 1 || sql "CREATE DATABASE d$n"
        echo "d$n postgres://relay@127.0.0.1:$port/d$n" >>"$data/databases"
    done
    "$relay" migrate >/dev/null
    "$relay" run &
    process=$!
    sleep 10
    connections=$(sql "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outbox-relay%'")
    memory=$(awk '/^VmRSS/ { print int($2 / 1024 * 10) / 10 }' "/proc/$process/status")
    printf '%9s  %10s MiB  %11s\n' "$number" "$memory" "$connections"
    kill "$process"
    wait "$process"
done
