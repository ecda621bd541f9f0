#!/bin/sh
# main.rs has the settings.
export AWS_ENDPOINT_URL_SQS="$ENDPOINT"
exec "$PEER_HOME/build/release/peer-outbox-pattern-processor" defaults
