//! The view `outbox.outboxevent`: one table in Debezium's layout, written as object mappers and Debezium's users do.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use support::chosen_schema;
use support::postgres::PASSWORD;
use support::roles::Roles;
use support::test_bed::{TestBed, connect};

const ID: &str = "4d47e190-0402-4048-bc2c-89dd54343cdc";

/// Orders go to two destinations, one of them without groups.
const ROUTES: &str = "INSERT INTO outbox.routes (aggregatetype, destination) VALUES ('Order', 'orders');
    INSERT INTO outbox.routes (aggregatetype, destination, is_grouped) VALUES ('Order', 'audit', false)";

/// A row of the view; what is left out of the five columns cannot be.
fn insert(aggregate_type: &str, aggregate_id: &str) -> String {
    format!(
        "INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type, payload)
        VALUES ('{aggregate_type}', '{aggregate_id}', 'OrderCreated', '{{\"id\": 1}}')"
    )
}

/// A bed whose orders have routes.
async fn routed() -> Result<TestBed> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute(ROUTES).await?;
    Ok(bed)
}

/// What PostgreSQL says about a statement that it must refuse.
async fn refused(client: &Client, statement: &str) -> Result<DbError> {
    let error = client.batch_execute(statement).await.err().with_context(|| format!("accepted: {statement}"))?;
    Ok(error.as_db_error().with_context(|| format!("no error of the server: {error}"))?.clone())
}

/// How many rows the view shows to this session.
async fn shown(client: &Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM outbox.outboxevent", &[]).await?.get(0))
}

#[tokio::test]
async fn a_row_of_the_view_is_sent_to_every_destination_of_its_type_with_its_id() -> Result<()> {
    let bed = routed().await?;
    let (orders, audit) = (bed.fifo("orders").await?, bed.standard("audit").await?);
    let row = format!(
        "INSERT INTO outbox.outboxevent (id, aggregatetype, aggregateid, type, payload, metadata)
        VALUES ('{ID}', 'Order', '7', 'OrderCreated', '{{\"id\": 7}}', '{{\"traceparent\": \"00-1-2-01\"}}')"
    );
    ensure!(bed.client.execute(&row, &[]).await? == 1);
    bed.relay().deliver_all().await?;
    for (queue, group) in [(&orders, Some("7")), (&audit, None)] {
        let arrived = bed.queues.contents(queue).await?;
        let [message] = &arrived[..] else { anyhow::bail!("{} messages arrived", arrived.len()) };
        ensure!(message.body == "{\"id\": 7}" && message.group_id.as_deref() == group, "{message:?}");
        for (name, value) in [
            ("event_id", ID),
            ("event_type", "OrderCreated"),
            ("aggregatetype", "Order"),
            ("aggregateid", "7"),
            ("traceparent", "00-1-2-01"),
        ] {
            ensure!(message.attributes.get(name).is_some_and(|has| has == value), "{name}: {message:?}");
        }
        ensure!(message.attributes.len() == 5, "{message:?}");
    }
    // A replay knows where it went.
    let routes = r#"SELECT count(*) FROM outbox.events WHERE destinations = '{"orders": "7", "audit": null}'"#;
    ensure!(bed.count(routes).await? == 1);
    Ok(())
}

#[tokio::test]
async fn the_row_is_returned_with_the_id_that_it_got() -> Result<()> {
    let bed = routed().await?;
    let returned = bed.client.query_one(&format!("{} RETURNING id::text", insert("Order", "1")), &[]).await?;
    let id: String = returned.get(0);
    let stored = format!("SELECT count(*) FROM outbox.events WHERE event_id = '{id}' AND payload = '{{\"id\": 1}}'");
    ensure!(bed.count(&stored).await? == 1, "{id} is not stored");
    // A payload may be null, as in Debezium's table.
    let null =
        "INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type) VALUES ('Order', '1', 'Gone') RETURNING *";
    let row = bed.client.query_one(null, &[]).await?;
    ensure!(row.get::<_, Option<String>>("aggregateid").as_deref() == Some("1"));
    ensure!(bed.count("SELECT count(*) FROM outbox.events WHERE payload = 'null'").await? == 1);
    Ok(())
}

#[tokio::test]
async fn a_type_without_a_route_is_refused_unless_there_is_one_for_all() -> Result<()> {
    let bed = routed().await?;
    let error = refused(&bed.client, &insert("Customer", "1")).await?;
    ensure!(error.message() == "impossible row: aggregatetype 'Customer' has no route", "{error:?}");
    let hint = error.hint().unwrap_or_default();
    let remedy = chosen_schema()?.sql("INSERT INTO outbox.routes (aggregatetype, destination) VALUES ('Customer', ");
    ensure!(hint.starts_with(&*remedy) && error.code().code() == "23514", "{error:?}");
    ensure!(bed.pending().await? == 0 && bed.count("SELECT count(*) FROM outbox.events").await? == 0);
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('*', 'rest')").await?;
    bed.client.batch_execute(&insert("Customer", "1")).await?;
    bed.client.batch_execute(&insert("Order", "1")).await?;
    let went = "SELECT string_agg(destination, ' ' ORDER BY id) FROM outbox.messages";
    let went: String = bed.client.query_one(went, &[]).await?.get(0);
    let mut went: Vec<&str> = went.split(' ').collect();
    ensure!(went.remove(0) == "rest", "{went:?}");
    went.sort_unstable();
    ensure!(went == ["audit", "orders"], "a type with routes of its own also went to the others: {went:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_row_lacks_is_named_with_the_remedy_and_nothing_is_written() -> Result<()> {
    let bed = routed().await?;
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('*', 'rest')").await?;
    let all = "id, aggregatetype, aggregateid, type, payload, metadata";
    let long = "x".repeat(256);
    for (values, code, part, has_hint) in [
        ("NULL, NULL, '1', 'T', '1', NULL", "23514", "aggregatetype is empty", true),
        ("NULL, '', '1', 'T', '1', NULL", "23514", "aggregatetype is empty", true),
        ("NULL, 'Order', NULL, 'T', '1', NULL", "23514", "aggregateid is null", true),
        ("NULL, 'Order', '', 'T', '1', NULL", "23514", "a group of 0 bytes", true),
        ("NULL, 'Order', '1', '', '1', NULL", "23514", "type is empty", true),
        ("NULL, 'Order', '1', NULL, '1', NULL", "23514", "type is empty", true),
        ("NULL, 'Order', '1', 'T', '1', '[]'", "23514", "metadata is a JSON array", true),
        (&format!("NULL, 'Order', '{long}', 'T', '1', NULL"), "22001", "too long", false),
    ] {
        let statement = format!("INSERT INTO outbox.outboxevent ({all}) VALUES ({values})");
        let error = refused(&bed.client, &statement).await?;
        ensure!(error.code().code() == code && error.message().contains(part), "{values}: {error:?}");
        ensure!(error.hint().is_some() == has_hint, "{values}: {error:?}");
    }
    ensure!(bed.pending().await? == 0 && bed.count("SELECT count(*) FROM outbox.events").await? == 0);
    Ok(())
}

#[tokio::test]
async fn an_id_that_is_there_already_is_refused() -> Result<()> {
    let bed = routed().await?;
    let row = format!(
        "INSERT INTO outbox.outboxevent (id, aggregatetype, aggregateid, type) VALUES ('{ID}', 'Order', '1', 'T')"
    );
    bed.client.batch_execute(&row).await?;
    let error = refused(&bed.client, &row).await?;
    ensure!(error.code().code() == "23505" && error.detail().is_some_and(|said| said.contains(ID)), "{error:?}");
    ensure!(bed.pending().await? == 2);
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_deleted_where_it_was_written_is_sent_all_the_same() -> Result<()> {
    let bed = routed().await?;
    let queue = bed.fifo("orders").await?;
    bed.standard("audit").await?;
    bed.client.batch_execute("BEGIN").await?;
    let id: String = bed.client.query_one(&format!("{} RETURNING id::text", insert("Order", "1")), &[]).await?.get(0);
    // Object mappers count what was deleted.
    let delete = format!("DELETE FROM outbox.outboxevent WHERE id = '{id}'");
    ensure!(bed.client.execute(&delete, &[]).await? == 1);
    bed.client.batch_execute("COMMIT").await?;
    bed.relay().deliver_all().await?;
    let arrived = bed.queues.contents(&queue).await?;
    ensure!(arrived.len() == 1 && arrived[0].attributes.get("event_id") == Some(&id), "{arrived:?}");
    // A job that empties the table finds it empty, and so comes to an end.
    ensure!(bed.client.execute("DELETE FROM outbox.outboxevent", &[]).await? == 0);
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == 1);
    Ok(())
}

#[tokio::test]
async fn a_change_of_a_row_is_refused_with_a_hint() -> Result<()> {
    let bed = routed().await?;
    bed.client.batch_execute("BEGIN").await?;
    bed.client.batch_execute(&insert("Order", "1")).await?;
    let error = refused(&bed.client, "UPDATE outbox.outboxevent SET payload = '2'").await?;
    ensure!(error.code().code() == "23001" && error.message().contains("events are facts"), "{error:?}");
    ensure!(error.hint().is_some_and(|hint| hint.contains("when it is inserted")), "{error:?}");
    bed.client.batch_execute("ROLLBACK").await?;
    ensure!(bed.client.execute("UPDATE outbox.outboxevent SET payload = '2'", &[]).await? == 0);
    Ok(())
}

#[tokio::test]
async fn the_view_shows_a_transaction_its_own_rows_with_their_values() -> Result<()> {
    let bed = routed().await?;
    bed.client.batch_execute("BEGIN").await?;
    let row = format!(
        "INSERT INTO outbox.outboxevent (id, aggregatetype, aggregateid, type, payload, metadata, deliver_at)
        VALUES ('{ID}', 'Order', '7', 'T', '{{\"a\": 1}}', '{{\"b\": \"2\"}}', '2100-01-01 00:00+00')"
    );
    bed.client.batch_execute(&row).await?;
    let same = format!(
        "SELECT count(*) FROM outbox.outboxevent WHERE id = '{ID}' AND aggregatetype = 'Order' AND aggregateid = '7'
            AND type = 'T' AND payload = '{{\"a\": 1}}' AND metadata = '{{\"b\": \"2\"}}'
            AND deliver_at = '2100-01-01 00:00+00'"
    );
    ensure!(bed.count(&same).await? == 1);
    bed.client.batch_execute("COMMIT").await?;
    ensure!(shown(&bed.client).await? == 0);
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_scheduled").await? == 2);
    Ok(())
}

/// Rows of others lie between its own, some of them by writers that began earlier and some by later ones.
#[tokio::test]
async fn the_view_shows_rows_of_savepoints_and_none_of_other_transactions() -> Result<()> {
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        let bed = routed().await?;
        let (older, younger) = (bed.connect().await?, bed.connect().await?);
        older.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let own = &bed.client;
        own.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        ensure!(shown(own).await? == 0);
        own.batch_execute(&format!("SAVEPOINT lost; {}", insert("Order", "0"))).await?;
        ensure!(shown(own).await? == 1);
        own.batch_execute("ROLLBACK TO lost").await?;
        ensure!(shown(own).await? == 0, "what was rolled back is shown");
        own.batch_execute(&insert("Order", "1")).await?;
        younger.batch_execute(&insert("Order", "2")).await?;
        own.batch_execute(&format!("SAVEPOINT kept; {}; RELEASE kept", insert("Order", "3"))).await?;
        older.batch_execute(&format!("{}; COMMIT", insert("Order", "4"))).await?;
        younger.batch_execute(&format!("BEGIN; {}", insert("Order", "5"))).await?;
        own.batch_execute(&format!("SAVEPOINT open; {}", insert("Order", "6"))).await?;
        let own_ids = "SELECT string_agg(aggregateid, ' ' ORDER BY aggregateid) FROM outbox.outboxevent";
        let own_ids: String = own.query_one(own_ids, &[]).await?.get(0);
        ensure!(own_ids == "1 3 6", "{level}: {own_ids}");
        own.batch_execute("COMMIT").await?;
        ensure!(shown(own).await? == 0 && shown(&older).await? == 0 && shown(&younger).await? == 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_login_that_may_only_write_to_the_view_needs_no_right_on_the_tables_and_sees_no_rows_of_others() -> Result<()>
{
    let bed = routed().await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let rights = format!(
        "CREATE ROLE writer_of_{database} LOGIN PASSWORD '{PASSWORD}';
        CREATE SCHEMA own AUTHORIZATION writer_of_{database};
        GRANT USAGE ON SCHEMA outbox TO writer_of_{database};
        GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.outboxevent TO writer_of_{database}"
    );
    bed.client.batch_execute(&rights).await?;
    let writer = connect(&bed.url().replace("//postgres:", &format!("//writer_of_{database}:"))).await?;
    let others = bed.connect().await?;
    others.batch_execute(&insert("Order", "secret")).await?;
    writer.batch_execute("BEGIN").await?;
    writer.batch_execute(&insert("Order", "1")).await?;
    others.batch_execute(&insert("Order", "secret")).await?;
    ensure!(shown(&writer).await? == 1);
    // A function that is cheaper than the conditions of the view would be called before them, but for its barrier.
    let spy = "SET LOCAL client_min_messages = error;
        CREATE TABLE own.seen (id text);
        CREATE FUNCTION own.spy(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
            AS $$ BEGIN INSERT INTO own.seen VALUES ($1); RETURN true; END $$;
        SELECT FROM outbox.outboxevent WHERE own.spy(aggregateid)";
    writer.batch_execute(spy).await?;
    let seen: String = writer.query_one("SELECT string_agg(id, ' ') FROM own.seen", &[]).await?.get(0);
    ensure!(seen == "1", "{seen}");
    ensure!(writer.execute("DELETE FROM outbox.outboxevent", &[]).await? == 1);
    writer.batch_execute("COMMIT").await?;
    for statement in [
        "SELECT FROM outbox.events",
        "SELECT FROM outbox.routes",
        "INSERT INTO outbox.routes VALUES ('Order', 'elsewhere')",
        "INSERT INTO outbox.events (event_type, payload) VALUES ('T', '1')",
        "SELECT outbox.enqueue('elsewhere', 'T', '1')",
        // Its owner's rights by a view of one's own.
        "CREATE VIEW own.v AS SELECT 1 AS id;
            CREATE TRIGGER t INSTEAD OF INSERT ON own.v FOR EACH ROW EXECUTE FUNCTION outbox.write_event()",
    ] {
        let error = refused(&writer, statement).await?;
        ensure!(error.code().code() == "42501", "{statement}: {error:?}");
    }
    ensure!(bed.pending().await? == 6);
    Ok(())
}

#[tokio::test]
async fn functions_and_operators_of_a_login_do_not_make_the_view_show_rows_of_others() -> Result<()> {
    let bed = routed().await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let rights = format!(
        "CREATE ROLE curious_of_{database} LOGIN PASSWORD '{PASSWORD}';
        CREATE SCHEMA own AUTHORIZATION curious_of_{database};
        GRANT USAGE ON SCHEMA outbox TO curious_of_{database};
        GRANT SELECT, INSERT ON outbox.outboxevent TO curious_of_{database}"
    );
    bed.client.batch_execute(&rights).await?;
    bed.client.batch_execute(&insert("Order", "secret")).await?;
    let curious = connect(&bed.url().replace("//postgres:", &format!("//curious_of_{database}:"))).await?;
    let in_front =
        "CREATE FUNCTION own.pg_xact_status(xid8) RETURNS text LANGUAGE sql AS 'SELECT ''in progress''::text';
        CREATE FUNCTION own.nothing(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
        CREATE OPERATOR own.& (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = own.nothing);
        SET search_path = own, pg_catalog;
        BEGIN";
    curious.batch_execute(in_front).await?;
    curious.batch_execute(&insert("Order", "1")).await?;
    // Whoever sets this sees more of the own rows at most.
    let all = "SELECT set_config('outbox.written_above', pg_current_xact_id()::text || ' 0', true)";
    curious.batch_execute(all).await?;
    let seen = "SELECT coalesce(string_agg(aggregateid, ' '), '') FROM outbox.outboxevent";
    let seen: String = curious.query_one(seen, &[]).await?.get(0);
    ensure!(seen == "1", "{seen}");
    Ok(())
}

#[tokio::test]
async fn the_role_of_an_application_writes_through_the_view() -> Result<()> {
    let bed = routed().await?;
    // What PUBLIC may do by default is granted by the script as well.
    bed.client.batch_execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC").await?;
    let roles = Roles::create(&bed).await?;
    let application = connect(&roles.application_url).await?;
    application.batch_execute("BEGIN").await?;
    application.batch_execute(&insert("Order", "1")).await?;
    ensure!(shown(&application).await? == 1);
    ensure!(application.execute("DELETE FROM outbox.outboxevent", &[]).await? == 1);
    let error = refused(&application, "UPDATE outbox.outboxevent SET type = 'T'").await?;
    ensure!(error.code().code() == "23001", "{error:?}");
    application.batch_execute("ROLLBACK").await?;
    application.batch_execute(&insert("Order", "1")).await?;
    ensure!(bed.pending().await? == 2);
    let error = refused(&application, "INSERT INTO outbox.routes VALUES ('Order', 'elsewhere')").await?;
    ensure!(error.code().code() == "42501", "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_view_with_another_name_writes_as_well() -> Result<()> {
    let bed = routed().await?;
    bed.client.batch_execute("CREATE VIEW outboxevent AS SELECT * FROM outbox.outboxevent").await?;
    bed.client.batch_execute("BEGIN").await?;
    let insert = insert("Order", "1").replace("outbox.outboxevent", "outboxevent");
    let id: String = bed.client.query_one(&format!("{insert} RETURNING id::text"), &[]).await?.get(0);
    ensure!(bed.client.execute(&format!("DELETE FROM outboxevent WHERE id = '{id}'"), &[]).await? == 1);
    bed.client.batch_execute("COMMIT").await?;
    ensure!(bed.pending().await? == 2);
    Ok(())
}

/// Events that this session has read.
async fn read(client: &Client) -> Result<i64> {
    let query = "SELECT (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
        WHERE relid = 'outbox.events'::regclass";
    Ok(client.query_one(query, &[]).await?.get(0))
}

#[tokio::test]
async fn looking_at_the_view_walks_no_events_of_others_and_finds_each_by_its_id() -> Result<()> {
    let bed = routed().await?;
    bed.enqueue_many("orders", 30_000, 100).await?;
    bed.client.batch_execute("ANALYZE").await?;
    bed.client.batch_execute("BEGIN").await?;
    let before = read(&bed.client).await?;
    ensure!(shown(&bed.client).await? == 0);
    ensure!(read(&bed.client).await? - before < 10, "{} events were read", read(&bed.client).await? - before);
    let many = insert("Order", "1").split("VALUES").next().unwrap_or_default().to_owned()
        + "SELECT 'Order', n::text, 'T', '{}' FROM generate_series(1, 500) AS n RETURNING id::text";
    let ids: Vec<String> = bed.client.query(&many, &[]).await?.iter().map(|row| row.get(0)).collect();
    let before = read(&bed.client).await?;
    let delete = bed.client.prepare("DELETE FROM outbox.outboxevent WHERE id = $1::text::uuid").await?;
    for id in &ids {
        ensure!(bed.client.execute(&delete, &[id]).await? == 1);
    }
    let each = (read(&bed.client).await? - before) / 500;
    ensure!(each <= 4, "{each} events were read for each row");
    Ok(())
}

#[tokio::test]
async fn the_statements_of_the_page_write_and_grant() -> Result<()> {
    let bed = TestBed::new().await?;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/one-table.md"))?;
    let blocks: Vec<&str> = page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [first, routes, grants] = blocks[..] else { anyhow::bail!("{} blocks", blocks.len()) };
    bed.client.batch_execute(first).await?;
    let written = format!(
        "SELECT count(*) FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE e.event_id = '{ID}' AND m.destination = 'orders' AND m.group_id = '7'"
    );
    ensure!(bed.count(&written).await? == 1);
    bed.client.batch_execute(routes).await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.routes").await? == 3);
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let login = format!("CREATE ROLE writes_in_{database} LOGIN PASSWORD '{PASSWORD}'");
    bed.client.batch_execute(&login).await?;
    bed.client.batch_execute(&grants.replace("TO shop", &format!("TO writes_in_{database}"))).await?;
    let writer = connect(&bed.url().replace("//postgres:", &format!("//writes_in_{database}:"))).await?;
    writer.batch_execute(&insert("Ticket", "1")).await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages WHERE destination = 'everything-else'").await? == 1);
    // What the page says of COPY.
    let copy = "COPY outbox.outboxevent (aggregatetype, aggregateid, type, payload)
        FROM PROGRAM 'echo Order,1,T,1' WITH (FORMAT csv)";
    bed.client.batch_execute(copy).await?;
    ensure!(bed.pending().await? == 4);
    Ok(())
}
