#!/bin/sh
# Creates the peer's tables. $BIN: its programs; $DATABASE_URL: where.
exec "$BIN/outbox-sqs" create-table --dsn "postgresql+psycopg2://${DATABASE_URL#*://}"
