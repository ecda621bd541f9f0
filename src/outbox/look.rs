//! Looking: whether anything is pending, in which lanes, and which writers are running. [`super::read`] reads it.

use std::sync::Arc;
use std::time::Duration;

use super::connect::Object;
use tokio_postgres::types::Type;

use super::row::wait;
use super::{Outbox, OutboxError, Parameter, column, lane};
use crate::message::{Lane, MessageId, MessageKey, TransactionId};
use crate::reading::{
    Chunk, ClaimProof, Found, HeldGroup, Look, Order, Rescan, Rescanned, Snapshot, Walk, Watch, Writers,
};

/// What is left of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// Only messages that are held up, by a dead message, by one in quarantine or by one that an operator holds back,
    /// and the messages that hold them up.
    OnlyHeld,
    /// Something that can be sent.
    Some,
}

impl Pending {
    /// Combines two parts of a destination: messages that can be sent outweigh held ones, and those outweigh nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some, _) | (_, Self::Some) => Self::Some,
            (Self::OnlyHeld, _) | (_, Self::OnlyHeld) => Self::OnlyHeld,
            (Self::Nothing, Self::Nothing) => Self::Nothing,
        }
    }
}

/// The numbers of lanes in PostgreSQL.
pub(super) fn numbers(lanes: impl IntoIterator<Item = Lane>) -> Vec<i16> {
    lanes.into_iter().map(Lane::number).collect()
}

fn lanes(statement: &'static str, row: &tokio_postgres::Row, index: usize) -> Result<Vec<Lane>, OutboxError> {
    let numbers: Vec<i16> = column(statement, row, index)?;
    Ok(numbers.into_iter().filter_map(Lane::new).collect())
}

impl Outbox {
    /// Whether there may be new messages since the last look, for any destination, and whether a retry of these is due.
    /// Beside it, for each, the time until the next scheduled message falls due, zero if it has.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn watch(&self, destinations: &[&str]) -> Result<(Watch, Vec<Option<Duration>>), OutboxError> {
        let row = self.query_one("watch", &self.sql.watch, &[(&destinations, Type::TEXT_ARRAY)]).await?;
        let watch = Watch {
            last_id: MessageId(column("watch", &row, 0)?),
            latest_due: column("watch", &row, 1)?,
            last_action: column("watch", &row, 2)?,
        };
        let scheduled_in: Vec<Option<f64>> = column("watch", &row, 3)?;
        let in_time = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        Ok((watch, scheduled_in.into_iter().map(|seconds| seconds.map(in_time)).collect()))
    }

    /// Which lanes have work above their low watermarks.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn look(
        &self,
        destination: &str,
        lows: &[(Lane, MessageId)],
        order: Order,
        longest_delay: Duration,
    ) -> Result<Look, OutboxError> {
        const NAME: &str = "look";
        let of_lanes = numbers(lows.iter().map(|(lane, _)| *lane));
        let lows: Vec<i64> = lows.iter().map(|(_, low)| low.0).collect();
        let (is_ordered, is_blocked) = (order.is_kept(), order.is_blocked_by_dead());
        let seconds = longest_delay.as_secs_f64();
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&of_lanes, Type::INT2_ARRAY),
            (&lows, Type::INT8_ARRAY),
            (&is_blocked, Type::BOOL),
            (&seconds, Type::FLOAT8),
            (&is_ordered, Type::BOOL),
        ];
        let row = self.probe_one(NAME, &self.sql.look, &parameters).await?;
        Ok(Look {
            snapshot: self.snapshot(NAME, column(NAME, &row, 0)?)?,
            next_xid: TransactionId(column(NAME, &row, 1)?),
            last_id: MessageId(column(NAME, &row, 2)?),
            ready: lanes(NAME, &row, 3)?,
            due: lanes(NAME, &row, 4)?,
        })
    }

    /// The transactions that may have written messages and are still running.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn writers(&self) -> Result<Writers, OutboxError> {
        const NAME: &str = "look for writers";
        let row = self.query_one(NAME, &self.sql.writers, &[]).await?;
        let next_xid: i64 = column(NAME, &row, 0)?;
        let ids: Vec<i64> = column(NAME, &row, 1)?;
        let transaction_ids = ids.into_iter().map(|id| TransactionId(with_epoch(id, next_xid))).collect();
        Ok(Writers { transaction_ids, next_xid: Some(TransactionId(next_xid)) })
    }

    /// Looks for pending messages between two ids of each lane; with a proof, only under that claim. `None` when it
    /// exceeded its time limit and was cut short.
    ///
    /// # Errors
    ///
    /// When the statement fails, or when a server other than the claim's answers.
    pub async fn rescan(
        &self,
        destination: &str,
        rescan: &Rescan,
        proof: Option<&ClaimProof>,
    ) -> Result<Option<Rescanned>, OutboxError> {
        let connection = self.connection().await?;
        let rescanned = self.rescan_on(&connection, destination, rescan, proof);
        let result = self.cut_short_after(rescan.timeout, "rescan", &connection, rescanned).await;
        self.keep_if_ok(connection, result).await
    }

    /// Which transactions have ended by now.
    pub(super) async fn snapshot_on(&self, connection: &Object) -> Result<Snapshot, OutboxError> {
        const NAME: &str = "look at transactions";
        let rows = self.bounded(NAME, connection.query_typed(&self.sql.snapshot, &[])).await?;
        self.snapshot(NAME, column(NAME, &super::one(NAME, rows)?, 0)?)
    }

    pub(super) async fn rescan_on(
        &self,
        connection: &Object,
        destination: &str,
        rescan: &Rescan,
        proof: Option<&ClaimProof>,
    ) -> Result<Rescanned, OutboxError> {
        const NAME: &str = "rescan";
        let of_lanes = numbers(rescan.ranges.iter().map(|range| range.lane));
        let above: Vec<i64> = rescan.ranges.iter().map(|range| range.above.0).collect();
        let upto: Vec<i64> = rescan.ranges.iter().map(|range| range.upto.0).collect();
        let limit = i64::try_from(rescan.limit).unwrap_or(i64::MAX);
        let groups: Vec<&str> = rescan.waiting.iter().map(|(group, _)| group.as_ref()).collect();
        let afters: Vec<String> = rescan.waiting.iter().map(|(_, after)| after.0.to_string()).collect();
        let ready_upto: Vec<i64> = rescan.ranges.iter().map(|range| range.ready_upto.0).collect();
        let is_blocked = rescan.order.is_blocked_by_dead();
        let transaction_id = proof.map(|proof| proof.transaction_id.0.to_string());
        let server = proof.map(|proof| proof.server.as_str());
        let known: Vec<&str> = rescan.known.iter().map(AsRef::as_ref).collect();
        let parameters: [Parameter<'_>; 12] = [
            (&destination, Type::TEXT),
            (&of_lanes, Type::INT2_ARRAY),
            (&above, Type::INT8_ARRAY),
            (&upto, Type::INT8_ARRAY),
            (&limit, Type::INT8),
            (&groups, Type::TEXT_ARRAY),
            (&afters, Type::TEXT_ARRAY),
            (&ready_upto, Type::INT8_ARRAY),
            (&is_blocked, Type::BOOL),
            (&transaction_id, Type::TEXT),
            (&server, Type::TEXT),
            (&known, Type::TEXT_ARRAY),
        ];
        let rows = self.bounded(NAME, connection.query_typed(&self.sql.rescan, &parameters)).await?;
        let (mut seen, mut found, mut took) = (None, Vec::with_capacity(rows.len()), Duration::ZERO);
        for row in &rows {
            match (column::<Option<&str>>(NAME, row, 0)?, column::<Option<f64>>(NAME, row, 5)?) {
                (Some(_), _) if !column::<bool>(NAME, row, 1)? => return Err(OutboxError::ClaimLost),
                (Some(text), _) => seen = Some(self.snapshot(NAME, text)?),
                (None, Some(millis)) => took = Duration::from_secs_f64(millis.max(0.0) / 1000.0),
                (None, None) => {
                    let key = MessageKey { lane: lane(NAME, row, 2)?, id: MessageId(column(NAME, row, 3)?) };
                    found.push(Found { key, group: column::<Option<&str>>(NAME, row, 4)?.map(Arc::from) });
                }
            }
        }
        let snapshot = seen.ok_or(OutboxError::Answer { statement: NAME, problem: "no snapshot".to_owned() })?;
        Ok(Rescanned { snapshot, found, took })
    }

    /// What holds these groups up.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn held_groups(
        &self,
        destination: &str,
        groups: &[Arc<str>],
        order: Order,
    ) -> Result<Vec<HeldGroup>, OutboxError> {
        const NAME: &str = "look at held groups";
        let names: Vec<&str> = groups.iter().map(AsRef::as_ref).collect();
        let is_blocked = order.is_blocked_by_dead();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&names, Type::TEXT_ARRAY), (&is_blocked, Type::BOOL)];
        let held = |row: &tokio_postgres::Row| {
            let head: Option<i64> = column(NAME, row, 2)?;
            let wait = wait(column(NAME, row, 3)?);
            Ok(HeldGroup {
                group: Arc::from(column::<&str>(NAME, row, 0)?),
                by: column::<Option<i64>>(NAME, row, 1)?.map(MessageId),
                head: head.map(|head| (MessageId(head), wait)),
            })
        };
        self.probe(NAME, &self.sql.held_groups, &parameters).await?.iter().map(held).collect()
    }

    /// What is pending of the destination, including deferred messages.
    ///
    /// # Errors
    ///
    /// When a statement fails, or when this role cannot see everything that is pending.
    pub async fn pending(&self, destination: &str, order: Order) -> Result<Pending, OutboxError> {
        self.check_suitable().await?;
        let mut walk = Walk::new(self.watch(&[]).await?.0.last_id);
        let mut pending = Pending::Nothing;
        while let Some(chunk) = walk.next_chunk() {
            match self.pending_in(destination, order, &chunk).await? {
                Some((Pending::Some, _)) => return Ok(Pending::Some),
                Some((found, took)) => {
                    pending = pending.or(found);
                    walk.took(&chunk, took);
                }
                None => walk.was_cut_short(&chunk),
            }
        }
        // Above the last id handed out there is little: only rows with ids written by hand.
        let beyond = Chunk { above: walk.top(), upto: MessageId::MAX, timeout: None };
        let found = self.pending_in(destination, order, &beyond).await?;
        Ok(found.map_or(pending, |(found, _)| pending.or(found)))
    }

    /// The same for a chunk of ids, with the time that the server worked. `None` when it was cut short.
    async fn pending_in(
        &self,
        destination: &str,
        order: Order,
        chunk: &Chunk,
    ) -> Result<Option<(Pending, Duration)>, OutboxError> {
        const NAME: &str = "look for pending messages";
        let (is_blocked, is_ordered, lanes) = (order.is_blocked_by_dead(), order.is_kept(), numbers(Lane::all()));
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&is_blocked, Type::BOOL),
            (&is_ordered, Type::BOOL),
            (&lanes, Type::INT2_ARRAY),
            (&chunk.above.0, Type::INT8),
            (&chunk.upto.0, Type::INT8),
        ];
        let connection = self.connection().await?;
        let rows = self.bounded(NAME, connection.query_typed(&self.sql.pending, &parameters));
        let rows = self.cut_short_after(chunk.timeout, NAME, &connection, rows).await;
        let Some(rows) = self.keep_if_ok(connection, rows).await? else { return Ok(None) };
        let row = super::one(NAME, rows)?;
        let found = match (column(NAME, &row, 0)?, column(NAME, &row, 1)?) {
            (false, _) => Pending::Nothing,
            (true, false) => Pending::OnlyHeld,
            (true, true) => Pending::Some,
        };
        let millis: f64 = column(NAME, &row, 2)?;
        Ok(Some((found, Duration::from_secs_f64(millis.max(0.0) / 1000.0))))
    }
}

/// Completes a transaction id of which only the lower 32 bits are known and which is below the next one (PostgreSQL,
/// "Transactions and Identifiers").
fn with_epoch(id: i64, next_xid: i64) -> i64 {
    let whole = (next_xid & !0xffff_ffff) | (id & 0xffff_ffff);
    if whole < next_xid { whole } else { whole - (1 << 32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_gets_the_epoch_that_puts_it_below_the_next_one() {
        assert_eq!(with_epoch(5, 10), 5);
        let next = (3 << 32) + 10;
        assert_eq!(with_epoch(5, next), (3 << 32) + 5);
        assert_eq!(with_epoch(0xffff_fff0, next), (2 << 32) + 0xffff_fff0);
    }
}
