//! Settings of the server and of the role do no harm. The test covers every timeout setting of PostgreSQL, whatever its
//! version, so that it also finds new ones.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join;

use support::postgres::PASSWORD;
use support::proxy::Fault;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};

/// Sets every timeout that a role can have to a second.
async fn set_all_to_a_second(bed: &TestBed, role: &str) -> Result<Vec<String>> {
    // deadlock_timeout is how long a waiting statement waits before it looks for a deadlock; it ends nothing.
    let timeouts = "SELECT name::text, unit::text FROM pg_settings
        WHERE name LIKE '%timeout%' AND context IN ('user', 'superuser') AND unit IN ('s', 'ms') ORDER BY name";
    let mut names = Vec::new();
    for row in bed.client.query(timeouts, &[]).await? {
        let name: String = row.get(0);
        bed.client.batch_execute(&format!("ALTER ROLE {role} SET {name} = '1s'")).await?;
        names.push(name);
    }
    Ok(names)
}

#[tokio::test]
async fn no_timeout_of_the_role_gets_in_the_way() -> Result<()> {
    let bed = TestBed::empty().await?;
    let database: String = bed.client.query_one("SELECT current_database()::text", &[]).await?.get(0);
    let role = format!("hurried_{database}");
    let create =
        format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON DATABASE {database} TO {role}");
    bed.client.batch_execute(&create).await?;
    let names = set_all_to_a_second(&bed, &role).await?;
    for expected in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        ensure!(names.iter().any(|name| name == expected), "{names:?}");
    }
    let url = bed.url().replace("//postgres:", &format!("//{role}:"));
    let relay = bed.relay().env("DATABASE_URL", &url);
    // Another migration takes longer than that.
    let other = bed.connect().await?;
    other.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))").await?;
    let waiting = async {
        // Time is the subject, here and below: longer than any of these timeouts.
        tokio::time::sleep(Duration::from_secs(3)).await;
        anyhow::Ok(other.batch_execute("ROLLBACK").await?)
    };
    let (migrated, ()) = try_join(relay.output(&["migrate"]), waiting).await?;
    migrated.ensure_success()?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let relay = bed.relay().env("DATABASE_URL", &url).start().await?;
    // Claims that last, a settling that waits two seconds for a lock, and pauses that are long enough for idle
    // sessions.
    proxy.set(Fault::Delay(Duration::from_millis(1500)));
    bed.enqueue_many("tickets", 100, 5).await?;
    let locked = bed.connect().await?;
    locked.batch_execute("BEGIN; SELECT FROM outbox.messages_pending FOR UPDATE").await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    locked.batch_execute("ROLLBACK").await?;
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    enqueue_range(&bed.client, "tickets", 101..=200, 5).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 200)
}
