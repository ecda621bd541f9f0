# Watches over one private PostgreSQL cluster: $1 is the folder of binaries, $2 the cluster's own folder.
#
# The owner sends orders through standard input, one per line, and gets one line as answer to each. When the owner has
# ended for any reason, the pipe closes: then the server stops at once and the folder is removed.
binaries=$1
home=$2
cd "$home" || exit 1

obey() {
    case $1 in
    create)
        "$binaries/initdb" -D "$home/data" --username=postgres --pwfile="$home/password" --auth-local=trust \
            --auth-host=scram-sha-256 --encoding=UTF8 --locale=C --no-sync >>"$home/initdb.log" 2>&1 </dev/null
        ;;
    start) "$binaries/pg_ctl" start -w -t 60 -D "$home/data" -l "$home/log" >>"$home/pg_ctl.log" 2>&1 </dev/null ;;
    stop) "$binaries/pg_ctl" stop -w -t 60 -m "$2" -D "$home/data" >>"$home/pg_ctl.log" 2>&1 </dev/null ;;
    esac
}

finish() {
    trap '' HUP TERM PIPE
    if [ -f "$home/data/postmaster.pid" ]; then
        server=$(head -n 1 "$home/data/postmaster.pid")
        obey stop immediate || kill -KILL "$server"
    fi
    cd /
    rm -rf "$home" 2>/dev/null
    exit 0
}

# PIPE: the owner may have ended before it reads the answer.
trap finish HUP TERM PIPE
while read -r order mode; do
    if obey "$order" "$mode"; then
        echo done
    else
        echo failed
    fi
done
finish
