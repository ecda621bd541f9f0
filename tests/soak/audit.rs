//! What the database contains at the end, and what it may legitimately have lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio_postgres::{Client, Row};

use crate::by_hand::ODD;
use crate::chronicle::Chronicle;
use crate::writers::Attempt;
use support::lottery::ledger::{OrderBreak, Receipt, Sale};

/// Messages that are still pending.
pub async fn pending(client: &Client) -> Result<i64> {
    let query = "SELECT count(*) FROM outbox.messages_pending AS m
        WHERE m.destination = ANY ($1) AND NOT EXISTS (
            SELECT FROM outbox.quarantine AS z
            WHERE z.destination = m.destination AND (z.group_id = m.group_id OR z.lane = m.lane AND z.message_id = m.id)
        )";
    Ok(client.query_one(query, &[&[ODD, "tickets", "audit"].as_slice()]).await?.try_get(0)?)
}

/// Messages that are dead or in quarantine, although nothing was wrong with them.
pub async fn stopped(client: &Client) -> Result<[i64; 2]> {
    let query = "SELECT (SELECT count(*) FROM outbox.messages_dead WHERE destination <> $1),
        (SELECT count(*) FROM outbox.quarantine WHERE destination <> $1)";
    let row = client.query_one(query, &[&ODD]).await?;
    Ok([row.try_get(0)?, row.try_get(1)?])
}

/// What was sold, according to the database.
pub async fn sales(client: &Client) -> Result<HashMap<u64, Sale>> {
    let rows = client.query("SELECT ticket, draw, number_in_draw FROM lottery.tickets", &[]).await?;
    let sale = |row: &Row| {
        let (draw, version) = (row.get(1), row.get::<_, i64>(2).cast_unsigned());
        (row.get::<_, i64>(0).cast_unsigned(), Sale { draw, version, committed_at: Duration::ZERO })
    };
    Ok(rows.iter().map(sale).collect())
}

/// When the outbox recorded that a ticket's message to a destination was delivered, on this process's clock.
pub async fn recorded_at(
    client: &Client,
    destination: &str,
    began_at: Instant,
    wall_clock: SystemTime,
) -> Result<HashMap<u64, Instant>> {
    let query = "SELECT (e.payload ->> 'ticket')::bigint, extract(epoch FROM m.delivered_at)::float8
        FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.status = 'delivered' AND m.destination = $1";
    let start = wall_clock.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let rows = client.query(query, &[&destination]).await?;
    let recorded_at = |row: &Row| {
        let after = Duration::from_secs_f64((row.get::<_, f64>(1) - start).max(0.0));
        (row.get::<_, i64>(0).cast_unsigned(), began_at + after)
    };
    Ok(rows.iter().map(recorded_at).collect())
}

/// Purchases that the database does not contain any more.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// A lost server had them, or may have had them.
    excused: HashMap<u64, Attempt>,
    /// The database had confirmed their commit, and nothing excuses their absence.
    pub unexcused: usize,
}

impl Forgotten {
    pub fn of(attempts: &HashMap<u64, Attempt>, sales: &HashMap<u64, Sale>, chronicle: &Chronicle) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for (ticket, attempt) in attempts.iter().filter(|(ticket, _)| !sales.contains_key(ticket)) {
            if chronicle.may_have_lost(attempt.ended_at) {
                forgotten.excused.insert(*ticket, attempt.clone());
            } else if attempt.is_heard {
                forgotten.unexcused += 1;
            }
        }
        forgotten
    }

    /// How many commits the database had confirmed and lost with its server.
    pub fn heard(&self) -> usize {
        self.excused.values().filter(|attempt| attempt.is_heard).count()
    }

    /// The receipts without those of purchases that the database legitimately lost; those may have been sent before.
    pub fn without(&self, receipts: &[Receipt]) -> Vec<Receipt> {
        let is_of = |receipt: &&Receipt| {
            self.excused
                .get(&receipt.ticket)
                .is_some_and(|attempt| attempt.draw == receipt.draw && attempt.number_in_draw == receipt.version)
        };
        receipts.iter().filter(|receipt| !is_of(receipt)).cloned().collect()
    }
}

/// Tickets that the outbox records as delivered and that never arrived.
pub fn never_sent(recorded_at: &HashMap<u64, Instant>, receipts: &[Receipt]) -> usize {
    let arrived: HashSet<u64> = receipts.iter().map(|receipt| receipt.ticket).collect();
    recorded_at.keys().filter(|ticket| !arrived.contains(ticket)).count()
}

/// Everything about a message that came after a later one of its draw, and about its neighbours.
pub async fn told(
    client: &Client,
    order_break: &OrderBreak,
    wall_clock: SystemTime,
    sends: impl Fn(u64) -> Vec<String>,
) -> Result<String> {
    let OrderBreak { draw, version, behind } = order_break;
    let start = wall_clock.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let query = "SELECT e.stream_version, (e.payload ->> 'ticket')::bigint,
            format('message %s, lane %s, event %s, %s attempts, enqueued at %s s, delivered at %s s', m.id, m.lane,
                m.event_position, m.attempts, round((extract(epoch FROM m.enqueued_at) - $4::float8)::numeric, 3),
                round((extract(epoch FROM m.delivered_at) - $4::float8)::numeric, 3))
        FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.destination = 'tickets' AND e.stream_id = $1 AND e.stream_version BETWEEN $2 AND $3
        ORDER BY e.stream_version";
    let (first, last) = (version.saturating_sub(2).cast_signed(), (behind + 2).cast_signed());
    let mut lines = vec![format!("{draw}: number {version} came behind number {behind}")];
    for row in client.query(query, &[draw, &first, &last, &start]).await? {
        lines.push(format!("  number {}: {}", row.get::<_, i64>(0), row.get::<_, String>(2)));
        let sends = sends(row.get::<_, i64>(1).cast_unsigned());
        lines.extend(sends.into_iter().map(|send| format!("    {send}")));
    }
    Ok(lines.join("\n  "))
}
