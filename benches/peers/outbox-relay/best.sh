#!/bin/sh
# Delivered rows are deleted instead of kept for a day: a tenth of the write-ahead log (docs/sizing.md).
export OUTBOX_RELAY_DESTINATIONS="tickets=$QUEUE_URL" AWS_ENDPOINT_URL_SQS="$ENDPOINT"
export OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:0 OUTBOX_RELAY_DELIVERED_RETENTION=0s
exec "$RELAY" run
