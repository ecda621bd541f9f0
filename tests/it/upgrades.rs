//! Releases follow each other in either order: the schema first or the relays first, forward and back
//! (docs/upgrading.md). The next release is made up: two more migrations.

use anyhow::{Result, ensure};
use outbox_relay::config::Flags;
use outbox_relay::outbox::{MIGRATIONS, Migration, Outbox};

use support::eventually;
use support::test_bed::{TestBed, ensure_each_once, numbers};

/// The schema version of this release.
const NOW: i32 = MIGRATIONS.len() as i32;

/// What the next release adds. Programs that do not know it go on.
const EXPAND: Migration = Migration {
    version: NOW + 1,
    name: "expand",
    sql: "ALTER TABLE outbox.events ADD COLUMN later jsonb NOT NULL DEFAULT '{}';
        ALTER TABLE outbox.messages ADD COLUMN later text;
        CREATE TABLE outbox.later (destination text PRIMARY KEY);",
    needs: 1,
};

/// What the release after it takes away. Programs that know nothing of the replacement must be gone by then.
const CONTRACT: Migration = Migration {
    version: NOW + 2,
    name: "contract",
    sql: "ALTER TABLE outbox.events DROP COLUMN later;",
    needs: NOW + 1,
};

/// What `outbox-relay migrate` of another release does.
async fn migrate_to(bed: &TestBed, migrations: &[Migration]) -> Result<usize> {
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    Ok(Outbox::new(&flags.database()?, 1)?.migrate_to(migrations).await?.len())
}

#[tokio::test]
async fn a_running_relay_goes_on_while_the_next_release_migrates_and_can_be_restarted_after_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    let work = bed.trickle("audit").await?;
    eventually("it delivers", || async { Ok(bed.delivered().await? > 20) }).await?;
    ensure!(migrate_to(&bed, &[&MIGRATIONS[..], &[EXPAND]].concat()).await? == 1);
    let before = bed.delivered().await?;
    eventually("it still delivers", || async { Ok(bed.delivered().await? > before + 50) }).await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    // A rollout that is taken back starts the old one again, with its init container.
    bed.relay().output(&["migrate"]).await?.ensure_success()?;
    let relay = bed.relay().start().await?;
    let before = bed.delivered().await?;
    eventually("the old one delivers again", || async { Ok(bed.delivered().await? > before + 50) }).await?;
    drop(work);
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?.len();
    ensure!(i64::try_from(arrived)? == bed.delivered().await?, "{arrived} arrived");
    Ok(())
}

#[tokio::test]
async fn a_relay_that_comes_before_its_schema_says_so_and_delivers_once_it_is_there() -> Result<()> {
    let bed = TestBed::empty().await?;
    let queue = bed.standard("audit").await?;
    ensure!(migrate_to(&bed, &MIGRATIONS[..MIGRATIONS.len() - 1]).await? == MIGRATIONS.len() - 1);
    bed.enqueue_many("audit", 20, 0).await?;
    let relay = bed.relay().start().await?;
    let log = relay.wait_for_log("run `outbox-relay migrate`").await?;
    ensure!(log.contains(&format!("schema version {}, {NOW} is needed", NOW - 1)), "{log}");
    // It waits, so a pod is not restarted again and again.
    ensure!(relay.get("/livez").await?.0 == 200);
    ensure!(bed.pending().await? == 20);
    bed.relay().output(&["migrate"]).await?.ensure_success()?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn a_relay_that_is_too_old_for_the_schema_is_refused_with_the_remedy_and_loses_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    ensure!(migrate_to(&bed, &[&MIGRATIONS[..], &[EXPAND, CONTRACT]].concat()).await? == 2);
    bed.enqueue_many("audit", 20, 0).await?;
    let refused = bed.relay().until_empty().await?;
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(refused.stderr.contains(&format!("schema version {} or newer", NOW + 1)), "{refused:?}");
    ensure!(refused.stderr.contains("install a newer outbox-relay"), "{refused:?}");
    ensure!(bed.pending().await? == 20);
    Ok(())
}

#[tokio::test]
async fn a_schema_that_another_build_made_is_refused_by_run_and_check() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute("UPDATE outbox.migrations SET checksum = 'x' WHERE version = 2").await?;
    for arguments in [&["run", "--until-empty"][..], &["check"], &["status"]] {
        let refused = bed.relay().output(arguments).await?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(refused.code == Some(1) && said.contains("migration 2 (messages)"), "{refused:?}");
    }
    Ok(())
}
