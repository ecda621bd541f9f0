#!/bin/sh
# Installs what a recipe for an object mapper in docs/one-table.md needs, and prints where it is:
#
#     sh tests/tools/orm.sh python      # a Python with SQLAlchemy, Django and psycopg
#     sh tests/tools/orm.sh hibernate   # a folder with the jars of Hibernate and of PostgreSQL's driver
#     sh tests/tools/orm.sh drizzle     # a folder with node_modules
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

# The newest plugin that Maven 3.8 can use.
PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

fill_python() {
    command -v python3 >/dev/null || fail "python3 is missing: SQLAlchemy and Django come from PyPI; install Python >= 3.10"
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "python3 has no venv, or is older than 3.10; install it, for example by: apt-get install python3-venv"
    python3 -m venv "$1"
    timeout 900 "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --requirement "$here/orm/requirements.txt" >&2 || fail "pip could not install SQLAlchemy and Django (its words are above)"
}

fill_hibernate() {
    command -v mvn >/dev/null || fail "mvn is missing: Hibernate comes from Maven; install it, for example by: apt-get install maven"
    timeout 900 mvn --batch-mode --quiet --file "$here/orm/hibernate/pom.xml" "$PLUGIN:copy-dependencies" \
        -DincludeScope=runtime -DoutputDirectory="$1" >&2 || fail "Maven could not install Hibernate (its words are above)"
}

case ${1:-} in
python) echo "$(install_once orm-python fill_python "$here/orm/requirements.txt")/bin/python" ;;
hibernate)
    command -v javac >/dev/null || fail "javac is missing: Hibernate needs it; install a JDK >= 17"
    install_once orm-hibernate fill_hibernate "$here/orm/hibernate/pom.xml"
    ;;
drizzle)
    require_node 20 "Drizzle"
    install_locked orm-drizzle "$here/orm/drizzle"
    ;;
*) fail "say which: python, hibernate or drizzle" ;;
esac
