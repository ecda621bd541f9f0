//! Memory is bounded by the configuration or by the control group, whatever the rows contain.

use anyhow::{Result, ensure};

use support::cgroup::{MemoryGroup, peak};
use support::emulator::Buckets;
use support::eventually;
use support::relay::{Command, Relay};
use support::test_bed::{TestBed, ensure_each_once, numbers};

const MIB: u64 = 1024 * 1024;

/// The limit in the shipped manifest.
const LIMIT: u64 = 160 * MIB;

/// As in a container with this limit; if no control group can be created, the relay is given the limit, and only its
/// usage is checked.
async fn start(command: Command, group: Option<&MemoryGroup>) -> Result<Relay> {
    let command = match group {
        Some(group) => command.after(&group.enter()),
        None => command.env("OUTBOX_RELAY_MEMORY", "160MiB"),
    };
    command.start().await
}

#[tokio::test]
async fn four_hundred_bodies_of_a_megabyte_to_four_destinations_fit_into_the_limit_of_the_manifest() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut queues = Vec::new();
    for name in ["one", "two"] {
        queues.push(bed.fifo(name).await?);
    }
    for name in ["three", "four"] {
        queues.push(bed.standard(name).await?);
    }
    // Random text, which PostgreSQL cannot compress.
    let rows = "WITH pad AS (SELECT string_agg(md5(random()::text), '') AS pad FROM generate_series(1, 31200))
        SELECT count(outbox.enqueue(d, 'TicketPurchased', jsonb_build_object('n', n, 'pad', pad), 'g' || n % 20))
        FROM pad, generate_series(1, 100) AS n, unnest(ARRAY['one', 'two', 'three', 'four']) AS d";
    bed.client.query_one(rows, &[]).await?;
    let group = MemoryGroup::create(LIMIT);
    let relay = start(bed.relay(), group.as_ref()).await?;
    bed.until_drained().await?;
    let most = peak(relay.process_id()?)?;
    ensure!(most < LIMIT, "{} MiB at the peak", most / MIB);
    println!("{} MiB at the peak", most / MIB);
    relay.stop().await?;
    for queue in queues {
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)?;
    }
    Ok(())
}

/// Each destination reads the body of its own message. Two at a time fit, with their copies.
#[tokio::test]
async fn one_large_body_to_a_dozen_buckets_fits_into_the_limit_of_the_manifest() -> Result<()> {
    let bed = TestBed::new().await?;
    let bucket = Buckets::name("bodies");
    bed.buckets.create(&bucket).await?;
    let names: Vec<String> = (1..=12).map(|n| format!("copy-{n}")).collect();
    for name in &names {
        let queue = bed.queues.create_standard(name).await?;
        bed.add_destination(name, &format!("{queue};claim-check={bucket}"));
    }
    let rows = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload)
            SELECT 'T', jsonb_build_object('pad', string_agg(md5(random()::text), '')) FROM generate_series(1, 250000)
            RETURNING position
        )
        INSERT INTO outbox.messages (destination, event_position) SELECT d, position FROM event, unnest($1::text[]) AS d";
    bed.client.execute(rows, &[&names]).await?;
    let group = MemoryGroup::create(LIMIT);
    let relay = start(bed.relay(), group.as_ref()).await?;
    bed.until_nothing_is_pending().await?;
    let most = peak(relay.process_id()?)?;
    println!("{} MiB at the peak", most / MIB);
    ensure!(most < LIMIT, "{} MiB at the peak", most / MIB);
    relay.stop().await?;
    let delivered = bed.count("SELECT count(*) FROM outbox.messages_delivered").await?;
    ensure!(delivered == 12, "{delivered} were delivered");
    Ok(())
}

#[tokio::test]
async fn a_payload_of_a_hundred_megabytes_dies_by_its_size_and_is_never_loaded() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let large =
        "SELECT outbox.enqueue('tickets', 'TicketPurchased', jsonb_build_object('pad', repeat('x', 100000000)), 'g')";
    bed.client.query_one(large, &[]).await?;
    bed.enqueue_many("tickets", 50, 5).await?;
    let group = MemoryGroup::create(LIMIT);
    let relay = start(bed.relay(), group.as_ref()).await?;
    bed.until_nothing_is_pending().await?;
    eventually("the large one is dead", || async {
        Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1)
    })
    .await?;
    let most = peak(relay.process_id()?)?;
    ensure!(most < 80 * MIB, "{} MiB at the peak", most / MIB);
    relay.stop().await.map(drop)
}
