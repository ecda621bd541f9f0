#!/bin/sh
# Runs the peer with its default settings until it is ended.
exec "$BIN/outbox-sqs" relay --dsn "postgresql+psycopg2://${DATABASE_URL#*://}"
