#!/bin/sh
# sizing.sh [MESSAGES] [BYTES]: what a message costs in PostgreSQL's storage and write-ahead log, for docs/sizing.md.
#
# It starts a private PostgreSQL and the SQS emulator, writes MESSAGES (20000) events with a payload of BYTES (450) and one
# message each, delivers them with target/release/outbox-relay or RELAY, and prints what the tables and the log have grown.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
messages=${1:-20000}
bytes=${2:-450}
relay=${RELAY:-$here/../../target/release/outbox-relay}
[ -x "$relay" ] || { echo "$(basename "$0"): there is no $relay: run make build, or set RELAY" >&2; exit 1; }
. "$here/private-postgres.sh"
cli=$(sh "$here/emulator.sh")

data=$(mktemp -d)
chmod 755 "$data"
mkfifo "$data/leash"
finish() {
    exec 3>&- # The emulator ends with its standard input.
    stop_postgres "$data"
    wait
    rm -rf "$data"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

start_postgres "$data" -c full_page_writes=off -c autovacuum=off
node "$here/emulator/serve.mjs" "$cli" <"$data/leash" >"$data/sqs" &
exec 3>"$data/leash"
tries=0
until [ -s "$data/sqs" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { echo "$(basename "$0"): the emulator does not answer" >&2; exit 1; }
    sleep 0.1
done

export DATABASE_URL="postgres://relay@127.0.0.1:$port/postgres"
sqs=$(cat "$data/sqs")
export OUTBOX_RELAY_DESTINATIONS="audit=$sqs/000000000000/audit" AWS_ENDPOINT_URL_SQS="$sqs" AWS_REGION=us-east-1 \
    AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:0 RUST_LOG=warn
curl -fsS "$sqs" -H 'content-type: application/x-amz-json-1.0' -H 'x-amz-target: AmazonSQS.CreateQueue' \
    -d '{"QueueName":"audit"}' >/dev/null
"$relay" migrate >/dev/null
sql() { psql -XqAt "$DATABASE_URL" -c "$1"; }

wal() { sql "SELECT pg_current_wal_insert_lsn() - '0/0'"; }
size() { sql "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r' AND relname LIKE '$1'"; }
# Bytes a message, rounded.
each() { echo $((($1 + messages / 2) / messages)); }

events=$(size events) pending=$(size messages_pending) delivered=$(size messages_delivered) log=$(wal)
sql "SELECT outbox.enqueue('audit', 'TicketPurchased', jsonb_build_object('n', n, 'text', repeat('x', $bytes - 30)))
     FROM generate_series(1, $messages) AS n" >/dev/null
echo "$messages messages with a payload of about $bytes bytes; bytes a message, indexes included:"
echo "  event                     $(each $(($(size events) - events)))"
echo "  message while it waits    $(each $(($(size messages_pending) - pending)))"
echo "  log to write both         $(each $(($(wal) - log)))"
log=$(wal)
"$relay" run --until-empty
echo "  delivered message         $(each $(($(size messages_delivered) - delivered)))"
echo "  log to record a delivery  $(each $(($(wal) - log)))"
