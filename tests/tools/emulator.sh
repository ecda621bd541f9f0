#!/bin/sh
# Prints the path of the SQS emulator's cli.js (fauxqs, pinned by emulator/package-lock.json).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

require_node 20 "the SQS emulator fauxqs"
folder=$(install_locked emulator "$here/emulator")
cli="$folder/node_modules/fauxqs/dist/cli.js"
[ -f "$cli" ] || fail "$cli is missing; remove $folder and run this again"
echo "$cli"
