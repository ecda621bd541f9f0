"""Receives everything from a queue by Amazon's SQS Extended Client Library: receive.py QUEUE_URL BUCKET ENDPOINT

Prints for each message its attribute event_id and the length and SHA-256 of its body. Deletes nothing.
"""

import hashlib
import sys

import boto3
import sqs_extended_client  # noqa: F401  It extends boto3's client.

queue, bucket, endpoint = sys.argv[1:]
settings = {
    "endpoint_url": endpoint,
    "region_name": "us-east-1",
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
}
sqs = boto3.client("sqs", **settings)
sqs.large_payload_support = bucket
sqs.s3_client = boto3.client("s3", **settings)
while messages := sqs.receive_message(
    QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
).get("Messages"):
    for message in messages:
        body = message["Body"].encode()
        event_id = message["MessageAttributes"]["event_id"]["StringValue"]
        print(event_id, len(body), hashlib.sha256(body).hexdigest())
