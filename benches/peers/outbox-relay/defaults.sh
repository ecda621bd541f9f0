#!/bin/sh
# As installed: only what has no default.
export OUTBOX_RELAY_DESTINATIONS="tickets=$QUEUE_URL" AWS_ENDPOINT_URL_SQS="$ENDPOINT"
export OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:0
exec "$RELAY" run
