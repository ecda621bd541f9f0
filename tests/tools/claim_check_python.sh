#!/bin/sh
# Prints the path of a Python that has Amazon's SQS Extended Client Library (pinned by claim_check/requirements.txt).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

fill() {
    command -v python3 >/dev/null || fail "python3 is missing: the library comes from PyPI; install Python >= 3.10"
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "python3 has no venv, or is older than 3.10; install it, for example by: apt-get install python3-venv"
    python3 -m venv "$1"
    timeout 900 "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --requirement "$here/claim_check/requirements.txt" >&2 || fail "pip could not install the library (its words are above)"
}
folder=$(install_once claim-check-python fill "$here/claim_check/requirements.txt")
echo "$folder/bin/python"
