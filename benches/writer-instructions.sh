#!/bin/sh
# What PostgreSQL executes for a transaction that writes to the outbox, in thousands of instructions: a count is the same
# on a busy machine, where times are not. It says nothing about system calls and waiting.
#
#     sh benches/writer-instructions.sh      # needs valgrind, and cargo build --release --bin outbox-relay
#
# A backend in single-user mode runs under callgrind, once with 20 transactions and once with 80; the difference is what
# 60 cost. Each transaction has a business row; what it costs alone is subtracted.
set -eu
cd "$(dirname "$0")/.."

relay=${RELAY:-target/release/outbox-relay}
command -v valgrind >/dev/null || { echo "valgrind is missing: install it, for example by: apt-get install valgrind" >&2; exit 1; }
[ -x "$relay" ] || { echo "$relay is missing: run: make build" >&2; exit 1; }
bin=$(sh tests/tools/postgres.sh)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# PostgreSQL refuses to run as root.
chown postgres "$folder"
as_postgres() { (cd "$folder" && su postgres -s /bin/sh -c "$1"); }

as_postgres "$bin/initdb -D $folder/data -A trust -U postgres" >/dev/null
printf '%s\n' "unix_socket_directories = '$folder'" "listen_addresses = ''" "autovacuum = off" >>"$folder/data/postgresql.conf"
"$relay" migrate --print >"$folder/schema.sql"
cat >>"$folder/schema.sql" <<'SQL'
CREATE TABLE tickets (n bigint PRIMARY KEY, draw text, numbers text);
CREATE TABLE fat_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
    event_type text NOT NULL, payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO outbox.routes VALUES ('ticket', 'tickets');
SQL
as_postgres "$bin/pg_ctl -D $folder/data -w -l $folder/log start" >/dev/null
as_postgres "psql -q --set ON_ERROR_STOP=1 -h $folder -U postgres -f $folder/schema.sql postgres" >/dev/null
as_postgres "$bin/pg_ctl -D $folder/data -w -m fast stop" >/dev/null

payload="jsonb_build_object('n', \$1::bigint, 'ticket', repeat('x', 416))"
group="'g' || \$1::bigint % 1000"
business="PREPARE business(bigint) AS INSERT INTO tickets VALUES (\$1, 'draw-7', repeat('x', 416));"
next=1

# The instructions of this many transactions with this other statement, if any.
count() {
    {
        printf '%s\n' "$business"
        [ -z "$2" ] || printf 'PREPARE other(bigint) AS %s;\n' "$(printf '%s' "$2" | tr '\n' ' ')"
        for n in $(seq "$next" "$((next + $1 - 1))"); do
            printf 'BEGIN;\nEXECUTE business(%s);\n' "$n"
            [ -z "$2" ] || printf 'EXECUTE other(%s);\n' "$n"
            printf 'COMMIT;\n'
        done
    } >"$folder/statements"
    next=$((next + $1))
    as_postgres "valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        $bin/postgres --single -D $folder/data postgres <$folder/statements" >"$folder/said" 2>&1
    if grep -a -m 1 ERROR "$folder/said" >&2; then exit 1; fi
    counted=$(sed -n 's/.*Collected : //p' "$folder/said")
}

plain=0
tell() {
    count 20 "$2"
    few=$counted
    count 80 "$2"
    each=$(((counted - few) / 60000))
    printf '%-32s %6d\n' "$1" "$((each - plain))"
}
tell "the business row alone" ""
plain=$each
tell "and a fat row" "INSERT INTO fat_outbox (aggregate_type, aggregate_id, event_type, payload)
    VALUES ('ticket', $group, 'TicketPurchased', $payload)"
tell "and event" "INSERT INTO outbox.events (event_type, payload) VALUES ('TicketPurchased', $payload)"
tell "and event and message, INSERT" "WITH event AS (INSERT INTO outbox.events (event_type, payload)
    VALUES ('TicketPurchased', $payload) RETURNING position) INSERT INTO outbox.messages
    (destination, event_position, group_id) SELECT 'tickets', position, $group FROM event"
tell "and event and message, function" "SELECT outbox.enqueue('tickets', 'TicketPurchased', $payload, $group)"
tell "and event and message, view" "INSERT INTO outbox.outboxevent (id, aggregatetype, aggregateid, type, payload)
    VALUES (outbox.time_ordered_uuid(), 'ticket', $group, 'TicketPurchased', $payload)"
