"""Counts what each draw has sold, from a queue: the effect happens exactly once, although SQS delivers at least once.

    pip install -r requirements.txt
    AWS_DEFAULT_REGION=eu-west-1 DATABASE_URL=postgres://… QUEUE_URL=https://sqs.… python consumer.py --init

What a draw has sold does not depend on the order of its tickets, so outbox.accept by event_id is right, in both modes of
OUTBOX_RELAY_FIFO_MODE: with batched a queue may hold an event, an earlier one, and the first one again. An effect that
depends on the events before it uses outbox.accept_in_order instead (docs/patterns.md, "Consuming in order").

Its messages are tickets: {"draw": "draw-7", "price": 5}. The database is the one that has the effect. It needs `outbox-relay migrate` as well, for outbox.inbox.
"""

import argparse
import json
import logging
import os
import signal
import threading
import time
from typing import Any

import boto3
import psycopg

LOG = logging.getLogger("consumer")

# How long each replica holds a receive open; a signal waits for it. SQS allows 20 s, and fewer receives cost less.
LONG_POLL_SECONDS = 5
PRUNE_EVERY_SECONDS = 3600

TABLE = """
CREATE TABLE IF NOT EXISTS sales (draw text PRIMARY KEY, tickets bigint NOT NULL, revenue bigint NOT NULL)
"""

SELL = """
INSERT INTO sales AS s (draw, tickets, revenue) VALUES (%s, 1, %s)
ON CONFLICT (draw) DO UPDATE SET tickets = s.tickets + 1, revenue = s.revenue + excluded.revenue
"""


class Consumer:
    """One queue, one effect. Any number of them may run at the same time."""

    def __init__(self, database_url: str, queue_url: str, name: str) -> None:
        self.queue_url = queue_url
        # The name identifies the effect: another effect of the same events, or a rebuilt one, has another name.
        self.name = name
        self.queue = boto3.client("sqs")
        # Autocommit, so that no transaction is open while waiting for the queue; each effect opens its own.
        self.database = psycopg.connect(database_url, autocommit=True)
        self.next_prune = time.monotonic()

    def init(self) -> None:
        with self.database.transaction():
            # Two replicas that start at once would both find no table, and one of them would fail.
            self.database.execute("SELECT pg_advisory_xact_lock(hashtext('create table sales'))")
            self.database.execute(TABLE)

    def receive(self, seconds: int) -> list[dict[str, Any]]:
        answer = self.queue.receive_message(
            QueueUrl=self.queue_url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=seconds,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["MessageGroupId"],
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def accept(self, message: dict[str, Any]) -> None:
        """Applies the effect of an event, unless this consumer has done so before."""
        attributes = {name: value.get("StringValue") for name, value in message["MessageAttributes"].items()}
        # Both are committed, or neither. Another consumer with the same event at the same time waits here, and then
        # gets false.
        with self.database.transaction():
            row = self.database.execute("SELECT outbox.accept(%s, %s)", (self.name, attributes["event_id"])).fetchone()
            if row is not None and row[0] and attributes["event_type"] == "TicketPurchased":
                ticket = json.loads(message["Body"])
                self.database.execute(SELL, (ticket["draw"], ticket["price"]))

    def take(self, batch: list[dict[str, Any]]) -> None:
        """Processes one message after the other, and leaves failed ones to SQS."""
        failed_groups: set[str] = set()
        for message in batch:
            # A standard queue has no groups, and so no order to keep.
            group = message.get("Attributes", {}).get("MessageGroupId")
            if group in failed_groups:
                continue  # It would overtake the one that failed. SQS delivers both again, in order.
            try:
                self.accept(message)
                # After the commit: in the opposite order a crash in between would lose the event.
                self.queue.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
            except Exception as error:
                # SQS delivers it again, and in the end moves it to its dead-letter queue. The error's text may quote
                # the body, and logs have more readers than tickets.
                LOG.error("message %s failed: %s", message["MessageId"], type(error).__name__)
                if group is not None:
                    failed_groups.add(group)
                if self.database.closed:
                    # Without it nothing works any more: the process ends, and its supervisor restarts it.
                    raise SystemExit("the connection to the database is lost") from None

    def prune(self) -> None:
        if time.monotonic() >= self.next_prune:
            # In chunks, each in a short transaction.
            while self.database.execute("SELECT outbox.prune_inbox()").fetchone() != (0,):
                pass
            self.next_prune = time.monotonic() + PRUNE_EVERY_SECONDS

    def run(self, stop: threading.Event, until_empty: bool) -> None:
        while not stop.is_set():
            self.prune()
            batch = self.receive(2 if until_empty else LONG_POLL_SECONDS)
            self.take(batch)
            if until_empty and not batch:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts what each draw has sold.")
    parser.add_argument("--init", action="store_true", help="create the table sales if it is missing")
    parser.add_argument("--until-empty", action="store_true", help="exit when nothing has come for two seconds")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    consumer = Consumer(os.environ["DATABASE_URL"], os.environ["QUEUE_URL"], os.environ.get("CONSUMER", "sales"))
    if arguments.init:
        consumer.init()
    consumer.run(stop, arguments.until_empty)


if __name__ == "__main__":
    main()
