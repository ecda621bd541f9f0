#!/bin/sh
# The README's "Configuration": Relay(session_factory, publisher, batch_size, poll_interval, claim_timeout), embedded as
# it shows, because the command has no claim_timeout; and its "Multiple relay instances". A FIFO queue gets one: the
# README says that order needs a consistent group_id, but two relays may send rows of a group at the same time.
export AWS_ENDPOINT_URL_SQS="$ENDPOINT"
case $QUEUE_URL in *.fifo) relays=1 ;; *) relays=4 ;; esac
relay=1
while [ "$relay" -le "$relays" ]; do
    "$PEER_HOME/python/bin/python" -c '
import os
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from outbox_sqs import Relay, SQSPublisher
engine = create_engine("postgresql+psycopg2://" + os.environ["DATABASE_URL"].split("://")[1], pool_pre_ping=True)
sessions = sessionmaker(bind=engine, expire_on_commit=False)
Relay(sessions, SQSPublisher(), batch_size=100, poll_interval=0.05, claim_timeout=10.0).run_forever()
' &
    relay=$((relay + 1))
done
wait
