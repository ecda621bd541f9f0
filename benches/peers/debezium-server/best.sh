#!/bin/sh
# poll.interval.ms (500 by default) and snapshot.mode: the page "Debezium connector for PostgreSQL". quarkus.log.level:
# "Debezium Server"; the sink logs each message at INFO. JAVA_OPTS is run.sh's variable; Java's own limit of memory is a
# quarter of the machine's.
export JAVA_OPTS=-Xmx256m
. "$PEER_FOLDER/server.sh" <<END
debezium.source.poll.interval.ms=10
debezium.source.snapshot.mode=no_data
quarkus.log.level=WARN
END
