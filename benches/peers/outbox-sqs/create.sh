#!/bin/sh
exec "$PEER_HOME/python/bin/outbox-sqs" create-table --dsn "postgresql+psycopg2://${DATABASE_URL#*://}"
