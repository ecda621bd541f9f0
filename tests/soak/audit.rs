//! What the database contains at the end, and what it may legitimately have lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio_postgres::{Client, Row};

use crate::chronicle::Chronicle;
use crate::destinations::{Destination, Kind, ODD, names};
use crate::writers::Attempt;
use support::lottery::ledger::{OrderBreak, Receipt, Sale};

/// Messages that are still pending or scheduled.
pub async fn pending(client: &Client) -> Result<i64> {
    let query = "SELECT count(*) FROM outbox.messages AS m
        WHERE m.status IN ('pending', 'scheduled') AND m.destination = ANY ($1) AND NOT EXISTS (
            SELECT FROM outbox.quarantine AS z
            WHERE z.destination = m.destination AND (z.group_id = m.group_id OR z.lane = m.lane AND z.message_id = m.id)
        )";
    let served = [names(|_| true), vec![ODD]].concat();
    Ok(client.query_one(query, &[&served]).await?.try_get(0)?)
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

/// One moment on this process's clock and on PostgreSQL's, which is that of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub began_at: Instant,
    pub wall_clock: SystemTime,
}

impl Clocks {
    pub fn now() -> Clocks {
        Clocks { began_at: Instant::now(), wall_clock: SystemTime::now() }
    }

    /// The beginning, in seconds since 1970.
    fn start(self) -> Result<f64> {
        Ok(self.wall_clock.duration_since(UNIX_EPOCH)?.as_secs_f64())
    }

    /// The time of a row, which is in seconds since 1970, on this process's clock.
    fn instant(self, row: &Row, column: usize) -> Result<Instant> {
        Ok(self.began_at + Duration::from_secs_f64((row.get::<_, f64>(column) - self.start()?).max(0.0)))
    }
}

/// When the outbox recorded that a ticket's message to a destination was delivered.
pub async fn recorded_at(client: &Client, kind: Kind, clocks: Clocks) -> Result<HashMap<u64, Instant>> {
    let query = "SELECT coalesce(e.payload ->> 'ticket', e.metadata ->> 'ticket')::bigint,
            extract(epoch FROM m.delivered_at)::float8
        FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.status = 'delivered' AND m.destination = $1";
    let rows = client.query(query, &[&kind.name()]).await?;
    rows.iter().map(|row| Ok((row.get::<_, i64>(0).cast_unsigned(), clocks.instant(row, 1)?))).collect()
}

/// What the business knows about a reminder.
#[derive(Debug, Clone, Copy)]
pub struct Reminder {
    pub deliver_at: Instant,
    pub is_cancelled: bool,
}

/// All reminders, by ticket.
pub async fn reminders(client: &Client, clocks: Clocks) -> Result<HashMap<u64, Reminder>> {
    let query = "SELECT ticket, extract(epoch FROM deliver_at)::float8, cancelled FROM lottery.reminders";
    let reminder = |row: &Row| {
        let reminder = Reminder { deliver_at: clocks.instant(row, 1)?, is_cancelled: row.get(2) };
        Ok((row.get::<_, i64>(0).cast_unsigned(), reminder))
    };
    client.query(query, &[]).await?.iter().map(reminder).collect()
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
    destination: &Destination,
    order_break: &OrderBreak,
    clocks: Clocks,
) -> Result<String> {
    let OrderBreak { draw, version, behind } = order_break;
    let query = "SELECT t.number_in_draw, t.ticket,
            format('message %s, lane %s, event %s, %s attempts, enqueued at %s s, delivered at %s s', m.id, m.lane,
                m.event_position, m.attempts, round((extract(epoch FROM m.enqueued_at) - $4::float8)::numeric, 3),
                round((extract(epoch FROM m.delivered_at) - $4::float8)::numeric, 3))
        FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        JOIN lottery.tickets AS t ON t.ticket = coalesce(e.payload ->> 'ticket', e.metadata ->> 'ticket')::bigint
        WHERE m.destination = $5 AND t.draw = $1 AND t.number_in_draw BETWEEN $2 AND $3
        ORDER BY t.number_in_draw";
    let (first, last) = (version.saturating_sub(2).cast_signed(), (behind + 2).cast_signed());
    let name = destination.kind.name();
    let mut lines = vec![format!("{name}, {draw}: number {version} came behind number {behind}")];
    for row in client.query(query, &[draw, &first, &last, &clocks.start()?, &name]).await? {
        lines.push(format!("  number {}: {}", row.get::<_, i64>(0), row.get::<_, String>(2)));
        let sends = destination.sends.told(row.get::<_, i64>(1).cast_unsigned(), clocks.began_at);
        lines.extend(sends.into_iter().map(|send| format!("    {send}")));
    }
    Ok(lines.join("\n  "))
}
