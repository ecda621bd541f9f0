"""Prints the CloudEvents of a queue, one JSON object a line, and deletes each message when it is printed.

    pip install -r requirements.txt
    AWS_DEFAULT_REGION=eu-west-1 QUEUE_URL=https://sqs.… python cloud_events.py

It takes both modes: with attributes ce-… the body is the data (binary), otherwise the body is the whole event (structured).
How events are written this way: docs/patterns.md, "CloudEvents". What prints instead of having an effect needs no inbox; for an
effect see consumer.py.
"""

import argparse
import base64
import os
import sys
from typing import Any

import boto3
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat


def cloud_event(message: dict[str, Any]) -> Any:
    """The event in a message. The attributes have the names of HTTP's headers, so the SDK reads them as those."""
    headers = {name: value["StringValue"] for name, value in message.get("MessageAttributes", {}).items()}
    body = message["Body"].encode()
    if headers.get("content-encoding") == "base64":
        body = base64.b64decode(body)
    return from_http_event(HTTPMessage(headers, body))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the CloudEvents of a queue.")
    parser.add_argument("--until-empty", action="store_true", help="exit when nothing has come for two seconds")
    until_empty = parser.parse_args().until_empty
    queue, url = boto3.client("sqs"), os.environ["QUEUE_URL"]
    while True:
        answer = queue.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=2 if until_empty else 20,
            MessageAttributeNames=["All"],
        )
        messages = answer.get("Messages", [])
        for message in messages:
            print(JSONFormat().write(cloud_event(message)).decode())
            sys.stdout.flush()
            # After the line is out: in the opposite order a crash in between would lose it.
            queue.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        if until_empty and not messages:
            return


if __name__ == "__main__":
    main()
