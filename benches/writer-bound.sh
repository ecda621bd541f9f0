#!/bin/sh
# The fastest that event and message can be beside one fat row: the same two rows without anything that protects them (no
# trigger, a random UUID, one lane), which is no outbox any more.
#
#     sh benches/writer-bound.sh      # needs pgbench, and cargo build --release --bin outbox-relay
#
# Four sessions of pgbench write in turns, each statement prepared and sent with BEGIN and COMMIT at once; the middle of
# seven rounds, as parts of the fat row's rate.
set -eu
cd "$(dirname "$0")/.."

relay=${RELAY:-target/release/outbox-relay}
rounds=${ROUNDS:-7}
command -v pgbench >/dev/null || { echo "pgbench is missing: apt-get install postgresql-contrib" >&2; exit 1; }
[ -x "$relay" ] || { echo "$relay is missing: run: make build" >&2; exit 1; }
bin=$(sh tests/tools/postgres.sh)
folder=$(mktemp -d)
# PostgreSQL refuses to run as root.
as_postgres() { (cd "$folder" && su postgres -s /bin/sh -c "$1"); }
trap 'as_postgres "$bin/pg_ctl -D $folder/data -m immediate stop" >/dev/null; rm -rf "$folder"' EXIT
chown postgres "$folder"
export PGHOST="$folder" PGUSER=postgres PGOPTIONS="-c client_min_messages=warning"
sql() { psql -qX --set ON_ERROR_STOP=1 "$@"; }

as_postgres "$bin/initdb -D $folder/data -A trust -U postgres" >/dev/null
printf '%s\n' "unix_socket_directories = '$folder'" "listen_addresses = ''" "shared_buffers = 1GB" "max_wal_size = 8GB" \
    "checkpoint_timeout = 30min" >>"$folder/data/postgresql.conf"
as_postgres "$bin/pg_ctl -D $folder/data -w -l $folder/log start" >/dev/null
"$relay" migrate --print >"$folder/schema.sql"
cat >>"$folder/schema.sql" <<'SQL'
CREATE TABLE tickets (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, draw text, numbers text);
CREATE TABLE fat_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
    event_type text NOT NULL, payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
SQL
for database in shipped bare; do
    sql -c "CREATE DATABASE $database" postgres
    sql -f "$folder/schema.sql" "$database" >/dev/null
done
sql bare <<'SQL'
CREATE OR REPLACE FUNCTION outbox.time_ordered_uuid() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT gen_random_uuid()';
DROP TRIGGER fence ON outbox.events;
DROP TRIGGER check_event ON outbox.events;
DROP TRIGGER transaction_id_first ON outbox.messages;
DROP TRIGGER check_message ON outbox.messages_pending;
DROP TRIGGER check_change ON outbox.messages_pending;
ALTER TABLE outbox.messages ALTER lane SET DEFAULT 3;
SQL

# script NAME STATEMENT: a transaction with a business row and this statement.
script() {
    printf '%s\n' '\set g random(1, 1000)' '\startpipeline' 'BEGIN;' \
        "INSERT INTO tickets (draw, numbers) VALUES ('draw-7', repeat('x', 416));" "$2" 'COMMIT;' '\endpipeline' >"$folder/$1"
}
payload="jsonb_build_object('n', n, 'ticket', repeat('x', 416))"
for rows in 1 20; do
    from="FROM generate_series(1, $rows) AS n"
    script "fat-$rows" "INSERT INTO fat_outbox (aggregate_type, aggregate_id, event_type, payload)
        SELECT 'ticket', 'g' || :g + n, 'TicketPurchased', $payload $from;"
    script "both-$rows" "WITH event AS (
            INSERT INTO outbox.events (event_type, payload) SELECT 'TicketPurchased', $payload $from RETURNING position
        )
        INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT 'tickets', position, 'g' || :g + row_number() OVER (ORDER BY position) FROM event ORDER BY position;"
done
script function-1 "SELECT outbox.enqueue('tickets', 'TicketPurchased', $payload, 'g' || :g) FROM (VALUES (1)) AS one (n);"

# rate DATABASE SCRIPT: transactions a second.
rate() {
    pgbench -n -M prepared -c 4 -j 1 -T 2 -f "$folder/$2" "$1" 2>"$folder/said" | sed -n 's/^tps = \([0-9]*\).*/\1/p' | grep . ||
        { cat "$folder/said" >&2; exit 1; }
}
# part NAME DATABASE SCRIPT FAT: the middle of its parts of the fat row's rate.
part() {
    for round in $(seq "$rounds"); do
        echo "$(rate shipped "$4") $(rate "$2" "$3")"
    done | awk '{ print $2 / $1 }' | sort -n | awk -v name="$1" '{ part[NR] = $1 } END { printf "%-44s %.2f\n", name, part[int((NR + 1) / 2)] }'
}
part "event and message, by INSERT" shipped both-1 fat-1
part "the same without any protection" bare both-1 fat-1
part "event and message, by function" shipped function-1 fat-1
part "the same without any protection" bare function-1 fat-1
part "20 events and messages, by INSERT" shipped both-20 fat-20
part "the same without any protection" bare both-20 fat-20
