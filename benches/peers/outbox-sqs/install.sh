#!/bin/sh
# A virtual environment with the package and what its README says that SQS and PostgreSQL need.
set -e
python3 -m venv --clear "$PEER_HOME/python" ||
    { echo "python3 cannot make a virtual environment (python3-venv)" >&2; exit 1; }
"$PEER_HOME/python/bin/pip" install --quiet "outbox-sqs==$VERSION" boto3==1.44.8 psycopg2-binary==2.9.11 ||
    { echo "pip cannot install outbox-sqs $VERSION" >&2; exit 1; }
