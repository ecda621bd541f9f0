#!/bin/sh
# As its README starts it.
export AWS_ENDPOINT_URL_SQS="$ENDPOINT"
exec "$PEER_HOME/python/bin/outbox-sqs" relay --dsn "postgresql+psycopg2://${DATABASE_URL#*://}"
