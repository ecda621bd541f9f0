# Starts the server in a folder of its own, $WORK, with the properties that it reads from its standard input after those
# that have no default. The first ones are from the distribution's config/application.properties.example and the pages
# "Debezium Server" (sink, format) and "Outbox Event Router" (transform; the payload as JSON, not as text in JSON).
# pgoutput is PostgreSQL's own decoder. The certificate of the stand-in goes where Java looks for certificates.
set -e
mkdir -p "$WORK/config" "$WORK/data"
for part in "$PEER_HOME/debezium-server"/*; do
    [ "$(basename "$part")" = config ] || ln -sfn "$part" "$WORK/$(basename "$part")"
done
ln -sfn "$PEER_HOME/debezium-server/config/lib" "$WORK/config/lib"
cat >"$WORK/config/application.properties" <<END
debezium.sink.type=sqs
debezium.sink.sqs.region=$AWS_REGION
debezium.sink.sqs.endpoint=$ENDPOINT
debezium.sink.sqs.queue.url=$QUEUE_URL
debezium.format.schemas.enable=false
debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.plugin.name=pgoutput
debezium.source.offset.storage.file.filename=data/offsets.dat
debezium.source.offset.flush.interval.ms=0
debezium.source.database.hostname=$PGHOST
debezium.source.database.port=$PGPORT
debezium.source.database.user=$PGUSER
debezium.source.database.password=$PGPASSWORD
debezium.source.database.dbname=$PGDATABASE
debezium.source.topic.prefix=peer
debezium.source.table.include.list=public.outbox
debezium.transforms=outbox
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
debezium.transforms.outbox.table.expand.json.payload=true
quarkus.log.console.json=false
quarkus.http.port=0
END
cat >>"$WORK/config/application.properties"
export JAVA_HOME="$PEER_HOME/java"
rm -f "$WORK/truststore"
"$JAVA_HOME/bin/keytool" -importcert -noprompt -alias stand-in -file "$AWS_CA_BUNDLE" \
    -keystore "$WORK/truststore" -storepass stand-in
export JAVA_OPTS="$JAVA_OPTS -Djavax.net.ssl.trustStore=$WORK/truststore -Djavax.net.ssl.trustStorePassword=stand-in"
cd "$WORK"
exec bash ./run.sh
