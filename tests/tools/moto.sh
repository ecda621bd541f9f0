#!/bin/sh
# Prints the path of a Python that has moto's server (pinned by moto/requirements.txt): PYTHON -m moto.server
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

fill() {
    command -v python3 >/dev/null || fail "python3 is missing: moto comes from PyPI; install Python >= 3.10"
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "python3 has no venv, or is older than 3.10; install it, for example by: apt-get install python3-venv"
    python3 -m venv "$1"
    timeout 900 "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --requirement "$here/moto/requirements.txt" >&2 || fail "pip could not install moto (its words are above)"
}
folder=$(install_once moto fill "$here/moto/requirements.txt")
echo "$folder/bin/python"
