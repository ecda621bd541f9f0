# shellcheck shell=sh disable=SC2154 # here: the folder of the script that sources this
# To be sourced by scripts that measure: a PostgreSQL of their own, which ends with them.
#
# start_postgres FOLDER [OPTION...]: starts it with these options of the server and waits until it answers; sets `port`. The
# role is relay, and needs no password.
# stop_postgres FOLDER: ends it.

start_postgres() {
    folder=$1
    shift
    # PostgreSQL refuses to run as root.
    as=
    if [ "$(id -u)" = 0 ]; then
        account=nobody
        ! id postgres >/dev/null 2>&1 || account=postgres
        as="setpriv --reuid=$account --regid=$account --clear-groups"
        install -d -o "$account" "$folder/pg"
    fi
    bin=$(sh "$here/postgres.sh")
    port=$(node -e 's=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})')
    $as "$bin/initdb" -D "$folder/pg" -A trust -U relay -E UTF8 >"$folder/log" 2>&1
    $as "$bin/postgres" -D "$folder/pg" -p "$port" -k "$folder/pg" -c listen_addresses=127.0.0.1 -c fsync=off "$@" \
        >>"$folder/log" 2>&1 &
    tries=0
    until psql -XqAt "postgres://relay@127.0.0.1:$port/postgres" -c '' 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { cat "$folder/log" >&2; exit 1; }
        sleep 0.1
    done
}

stop_postgres() {
    [ ! -f "$1/pg/postmaster.pid" ] || kill -INT "$(head -n 1 "$1/pg/postmaster.pid")"
}
