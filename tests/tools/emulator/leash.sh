# Runs a server until standard input ends: sh leash.sh PROGRAM ARGUMENTS
#
# When the owner dies for whatever reason, the pipe ends, and the server is killed. The server's output and errors go to
# standard output.
"$@" 2>&1 </dev/null &
server=$!
# Only the server holds the output from now on, so that it ends with the server.
exec >/dev/null
trap 'kill -KILL "$server" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
while read -r _; do :; done
