//! Consumers whose effects depend on the order of a stream: which forms of `outbox.accept` lose nothing and double
//! nothing, whatever a relay and its operators let arrive.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use support::test_bed::TestBed;

/// Versions of the stream.
const VERSIONS: i64 = 4;

/// The versions of one stream as they arrive.
type Arrivals = Vec<i64>;

/// All subsets of these versions.
fn subsets(versions: &[i64]) -> Vec<BTreeSet<i64>> {
    let of =
        |mask: u32| (0..).zip(versions).filter(move |(bit, _)| mask & (1 << bit) != 0).map(|(_, version)| *version);
    (0..1 << versions.len()).map(|mask| of(mask).collect()).collect()
}

/// What arrives when these versions are sent in one request and each subset of them fails, and so on with what is sent
/// again: everything from the first failed one on, the failed one by itself.
fn batched(sent: &[i64], failures_left: u32) -> Vec<Arrivals> {
    let mut all = Vec::new();
    for failed in subsets(sent) {
        let arrived: Arrivals = sent.iter().copied().filter(|version| !failed.contains(version)).collect();
        let Some(from) = failed.first() else {
            all.push(arrived);
            continue;
        };
        if failures_left == 0 {
            continue;
        }
        let behind: Vec<i64> = sent.iter().copied().filter(|version| version > from).collect();
        let rest = batched(&behind, failures_left - 1);
        // The failed one is accepted at the second attempt, alone.
        all.extend(rest.into_iter().map(|rest| [arrived.clone(), vec![*from], rest].concat()));
    }
    all
}

/// The same in strict mode: only copies of single messages.
fn strict(versions: &[i64]) -> Vec<Arrivals> {
    let twice = |copied: BTreeSet<i64>| {
        let times = |version: &i64| vec![*version; 1 + usize::from(copied.contains(version))];
        versions.iter().flat_map(times).collect()
    };
    subsets(versions).into_iter().map(twice).collect()
}

/// Everything that may arrive: each mode, with a message that dies or does not go to this queue, which may be redriven
/// at any later time, and with a crash or a replay after which everything from some version on comes again.
fn everything() -> BTreeSet<Arrivals> {
    let versions: Vec<i64> = (1..=VERSIONS).collect();
    let mut all: BTreeSet<Arrivals> = BTreeSet::new();
    for missing in 0..=VERSIONS {
        let sent: Vec<i64> = versions.iter().copied().filter(|version| *version != missing).collect();
        all.extend(batched(&sent, 2));
        for arrivals in batched(&sent, 1).into_iter().chain(strict(&sent)) {
            for redriven_at in 0..=arrivals.len() {
                let mut redriven = arrivals.clone();
                redriven.insert(redriven_at, missing.max(1));
                all.insert(redriven);
            }
            for from in 1..=VERSIONS {
                let again = sent.iter().copied().filter(|version| *version >= from);
                all.insert(arrivals.iter().copied().chain(again).collect());
            }
            all.insert(arrivals);
        }
    }
    all
}

/// The answers to the arrivals of a stream, each in a transaction of its own; those for which `takes` is false are
/// rolled back.
async fn consume(
    client: &mut Client,
    stream: &str,
    arrivals: &[i64],
    takes: impl Fn(&str) -> bool,
) -> Result<Vec<(i64, String)>> {
    let mut taken = Vec::new();
    for version in arrivals {
        let transaction = client.transaction().await?;
        let accept = "SELECT outbox.accept_in_order('c', $1, $2)";
        let said: String = transaction.query_one(accept, &[&stream, version]).await?.get(0);
        if takes(&said) {
            transaction.commit().await?;
            taken.push((*version, said));
        } else {
            transaction.rollback().await?;
        }
    }
    Ok(taken)
}

fn versions(taken: &[(i64, String)]) -> Vec<i64> {
    taken.iter().map(|(version, _)| *version).collect()
}

#[tokio::test]
async fn each_effect_happens_once_whatever_arrives_and_in_whatever_order() -> Result<()> {
    let mut bed = TestBed::new().await?;
    bed.client.batch_execute("SET synchronous_commit = off").await?;
    let all = everything();
    ensure!(all.len() > 500, "only {} cases", all.len());
    for (number, arrivals) in all.iter().enumerate() {
        let stream = format!("s-{number}");
        let taken = consume(&mut bed.client, &stream, arrivals, |said| said != "duplicate").await?;
        let mut once = versions(&taken);
        once.sort_unstable();
        let expected: Vec<i64> = arrivals.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        ensure!(once == expected, "{arrivals:?} took effect as {taken:?}");
        let (mut highest, mut accepted) = (0, BTreeSet::new());
        for (version, said) in &taken {
            let right = match () {
                () if *version == highest + 1 => "accepted",
                () if *version > highest => "early",
                () => "late",
            };
            ensure!(said == right, "{arrivals:?}: {version} is {said} and not {right}");
            highest = highest.max(*version);
            accepted.insert(*version);
        }
        let missing: i64 = highest - accepted.len() as i64;
        let gaps = "SELECT coalesce(sum(last_version - first_version + 1), 0)::bigint FROM outbox.inbox_gaps WHERE stream_id = $1";
        let gaps: i64 = bed.client.query_one(gaps, &[&stream]).await?.get(0);
        ensure!(gaps == missing, "{arrivals:?}: {gaps} versions in gaps instead of {missing}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_does_not_take_what_is_early_gets_each_stream_in_order_in_both_modes() -> Result<()> {
    let mut bed = TestBed::new().await?;
    bed.client.batch_execute("SET synchronous_commit = off").await?;
    let sent: Vec<i64> = (1..=VERSIONS).collect();
    let all: BTreeSet<Arrivals> = batched(&sent, 3).into_iter().chain(strict(&sent)).collect();
    for (number, arrivals) in all.iter().enumerate() {
        let takes = |said: &str| said == "accepted";
        let taken = consume(&mut bed.client, &format!("s-{number}"), arrivals, takes).await?;
        ensure!(versions(&taken) == sent, "{arrivals:?} took effect as {taken:?}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.inbox_gaps").await? == 0);
    Ok(())
}

#[tokio::test]
async fn of_two_consumers_of_a_stream_at_a_time_the_second_waits_and_sees_what_the_first_accepted() -> Result<()> {
    let bed = TestBed::new().await?;
    for (first, second, expected) in [(1, 1, "duplicate"), (1, 2, "accepted"), (3, 2, "late"), (2, 4, "early")] {
        let accept = move |version: i64| format!("SELECT outbox.accept_in_order('c', 's-{first}-{second}', {version})");
        let (one, other) = (bed.connect().await?, bed.connect().await?);
        one.batch_execute("BEGIN").await?;
        one.batch_execute(&accept(first)).await?;
        let waiting =
            tokio::spawn(async move { anyhow::Ok(other.query_one(&accept(second), &[]).await?.get::<_, String>(0)) });
        let locks =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        support::eventually("the second waits", || async { Ok(bed.count(locks).await? == 1) }).await?;
        one.batch_execute("COMMIT").await?;
        let said = waiting.await??;
        ensure!(said == expected, "{second} after {first}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn gaps_that_are_filled_from_both_ends_and_from_the_middle_disappear() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let taken = consume(&mut bed.client, "s", &[1, 1_000_000_000, 500, 2, 999_999_999, 500, 3], |_| true).await?;
    let said: Vec<&str> = taken.iter().map(|(_, said)| said.as_str()).collect();
    ensure!(said == ["accepted", "early", "late", "late", "late", "duplicate", "late"], "{said:?}");
    let gaps =
        "SELECT string_agg(first_version || '-' || last_version, ' ' ORDER BY first_version) FROM outbox.inbox_gaps";
    let gaps: String = bed.client.query_one(gaps, &[]).await?.get(0);
    ensure!(gaps == "4-499 501-999999998", "{gaps}");
    bed.client.batch_execute("UPDATE outbox.inbox_gaps SET noticed_at = noticed_at - interval '16 days'").await?;
    ensure!(bed.count("SELECT outbox.prune_inbox(max_count => 1) + outbox.prune_inbox()").await? == 2);
    let taken = consume(&mut bed.client, "s", &[400], |_| true).await?;
    ensure!(taken[0].1 == "duplicate", "nobody waits for it any more");
    Ok(())
}
