#!/bin/sh
. "$PEER_FOLDER/server.sh" </dev/null
