//! Outcomes: what an answer means for each message, writing it back, and what is left when the claim ends.
//!
//! The conduct for each fault is [`crate::retry`]'s; this file carries it out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Item;
use super::schedule::{Leftover, Leftovers};
use super::stream::{Closing, Event, Stream, StreamEnd};
use crate::message::{Fault, FaultKind};
use crate::message::{MessageKey, Outcome, Settlement};
use crate::outbox::OutboxError;
use crate::retry::{Conduct, Delays, conduct, delay_after};
use crate::sqs::Published;

/// Outcomes are written when there are this many, or when the oldest has waited [`SETTLE_AFTER`] or, with a backlog, [`SETTLE_AFTER_BUSY`].
const SETTLE_SIZE: usize = 500;

/// See [`SETTLE_SIZE`].
const SETTLE_AFTER: Duration = Duration::from_millis(5);

/// The same while more waits than is read at once. One of several relays settles few at a time otherwise, and a statement
/// costs as much as a hundred rows of it.
const SETTLE_AFTER_BUSY: Duration = Duration::from_millis(20);

/// First and longest pause between attempts to write the last outcomes of a claim.
const SETTLE_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Groups remembered from claim to claim; beyond that they are read again from the table.
const MOST_REMEMBERED: usize = 10_000;

/// After so many requests in a row without an answer the destination is taken as down.
const FAILURES_IN_A_ROW: u32 = 3;

impl Stream<'_> {
    pub(super) fn start_settling(&mut self, now: Instant) {
        for item in self.schedule.take_charged() {
            self.defer(&item, None);
        }
        let is_due = self.outcomes.len() >= SETTLE_SIZE
            || self.publishing == 0
            || self.oldest_outcome.is_some_and(|since| now.saturating_duration_since(since) >= self.settle_after());
        if self.settling > 0 || self.outcomes.is_empty() || !is_due || matches!(self.closing, Some(Closing::Broken(_)))
        {
            return;
        }
        let most = self.outcomes.len().min(self.memory.pace.most_written());
        let mut settlements: Vec<Settlement> = self.outcomes.drain(..most).collect();
        self.oldest_outcome = self.oldest_outcome.filter(|_| !self.outcomes.is_empty());
        self.drop_what_needs_the_claim(&mut settlements);
        if settlements.is_empty() {
            return;
        }
        self.settling = settlements.len();
        let destination = self.destination.clone();
        self.tasks.push(Box::pin(async move {
            let (took, result) = destination.settle(&mut settlements).await;
            Event::Settled { settlements, took, result }
        }));
    }

    /// How long an outcome may wait for others.
    pub(super) fn settle_after(&self) -> Duration {
        if self.feed.was_full() { SETTLE_AFTER_BUSY } else { SETTLE_AFTER }
    }

    pub(super) fn published(&mut self, items: Vec<Item>, published: Published) {
        let now = Instant::now();
        self.publishing -= 1;
        self.publishing_bytes -= items.iter().map(|item| item.entry.bytes()).sum::<usize>();
        self.publishing_entries -= items.len();
        self.touch(now);
        let metrics = &self.destination.metrics;
        metrics.in_flight.set(self.publishing as i64);
        metrics.requests.inc();
        metrics.request_duration.observe(published.duration.as_secs_f64());
        metrics.request_entries.observe(items.len() as f64);
        self.failures_in_a_row = match &published.request_fault {
            None => 0,
            Some(fault) => {
                metrics.request_failures(fault.kind).inc();
                self.failures_in_a_row + 1
            }
        };
        // A whole request is refused for what one entry holds: sent one by one, only that entry is refused again.
        let is_refused = |fault: &Fault| fault.kind == FaultKind::MessagePermanent;
        let is_split = items.len() > 1 && published.request_fault.as_ref().is_some_and(is_refused);
        let (mut done, mut again, mut dead) = (Vec::with_capacity(items.len()), Vec::new(), Vec::new());
        for (mut item, result) in items.into_iter().zip(published.results) {
            match result {
                Ok(sqs_message_id) => {
                    metrics.attributes_left_out.inc_by(item.left_out as u64);
                    metrics.latency.observe((item.age_when_read + (now - item.read_at)).as_secs_f64());
                    self.outcomes
                        .push_back(Settlement { key: item.key(), outcome: Outcome::Delivered { sqs_message_id } });
                    done.push(item);
                }
                Err(_) if is_split => {
                    item.is_alone = true;
                    again.push((item, None));
                }
                Err(fault) => match self.failed(&mut item, &fault, now) {
                    Some(until) => again.push((item, until)),
                    None => {
                        dead.extend(item.group.clone().map(|group| (group, item.key())));
                        done.push(item);
                    }
                },
            }
        }
        self.record_early(&mut again, now);
        let accepted = (done.len() - dead.len()) as u64;
        if self.outcomes.is_empty() {
            self.oldest_outcome = None;
        } else {
            self.oldest_outcome.get_or_insert(now);
        }
        self.schedule.finish(&done, again);
        if self.destination.blocks() {
            for (group, key) in &dead {
                self.block(group, *key);
            }
        }
        self.count_accepted(accepted);
    }

    /// A retry that comes after the claim will not be sent under it, so nothing is gained by waiting, and a crash would lose
    /// it. Only the head of a group: what is recorded with a time is taken for that.
    fn record_early(&mut self, again: &mut [(Item, Option<Instant>)], now: Instant) {
        let mut groups: HashSet<Arc<str>> = HashSet::new();
        for (item, until) in again {
            let is_head = item.group.as_ref().is_none_or(|group| groups.insert(Arc::clone(group)));
            if let Some(until) = until.filter(|until| is_head && item.charged.is_some() && *until >= self.closes_at()) {
                item.is_recorded = true;
                self.defer(item, Some(until.saturating_duration_since(now)));
            }
        }
    }

    /// Records a failed attempt.
    fn defer(&mut self, item: &Item, wait: Option<Duration>) {
        if let Some(error) = item.charged.clone() {
            let outcome = Outcome::Deferred { attempts: item.attempts, wait, error };
            self.outcomes.push_back(Settlement { key: item.key(), outcome });
            self.oldest_outcome.get_or_insert_with(Instant::now);
        }
    }

    /// Once the claim is over another relay may have the lanes. It has asked which groups have to wait, and would go on
    /// with those that are held up now; that SQS accepted a message is always right to say.
    fn drop_what_needs_the_claim(&mut self, settlements: &mut Vec<Settlement>) {
        if self.claim.is_lost() || Instant::now() >= self.claim_ends_at() {
            settlements.retain(|settlement| {
                let is_delivered = matches!(settlement.outcome, Outcome::Delivered { .. });
                self.has_dropped |= !is_delivered;
                is_delivered
            });
        }
    }

    fn count_accepted(&mut self, accepted: u64) {
        if accepted > 0 && self.failures_in_a_row == 0 {
            self.memory.probe.passed(self.destination);
            self.memory.throttle.accepted();
            self.destination.metrics.in_flight_limit.set(self.memory.throttle.limit() as i64);
        }
    }

    /// What happens to a message that was not accepted: when it is sent again (`Some`, with a time or at once), or never.
    fn failed(&mut self, item: &mut Item, fault: &Fault, now: Instant) -> Option<Option<Instant>> {
        let tuning = &self.destination.tuning;
        let what = conduct(fault.kind, item.attempts, tuning.max_attempts);
        if fault.kind.may_have_been_accepted() {
            self.destination.metrics.possible_duplicates.inc();
        }
        if what != Conduct::Bury {
            self.destination.metrics.retries(fault.kind).inc();
        }
        match what {
            Conduct::Bury => {
                item.attempts = item.attempts.saturating_add(1);
                self.bury(item.key(), item.attempts, fault);
                None
            }
            Conduct::RetryCharged => {
                item.attempts = item.attempts.saturating_add(1);
                item.charged = Some(fault.to_string());
                Some(Some(now + delay_after(item.attempts, tuning.retry_initial, tuning.retry_max)))
            }
            Conduct::Resend => {
                item.resends = item.resends.saturating_add(1);
                if self.failures_in_a_row >= FAILURES_IN_A_ROW
                    || (self.memory.probe.is_on() && self.failures_in_a_row > 0)
                {
                    self.halt(fault);
                }
                Some(Some(now + delay_after(item.resends, tuning.retry_initial, tuning.retry_max)))
            }
            Conduct::Halt => {
                self.halt(fault);
                Some(None)
            }
        }
    }

    fn halt(&mut self, fault: &Fault) {
        if !matches!(self.closing, Some(Closing::Halted(_) | Closing::Broken(_))) {
            self.closing = Some(Closing::Halted(fault.clone()));
        }
    }

    /// Gives a message up.
    pub(super) fn bury(&mut self, key: MessageKey, attempts: i16, fault: &Fault) {
        self.burying += 1;
        self.burials += 1;
        let outcome = Outcome::Dead { attempts, kind: fault.kind, error: fault.to_string() };
        self.outcomes.push_back(Settlement { key, outcome });
        self.oldest_outcome.get_or_insert_with(Instant::now);
    }

    pub(super) fn settled(&mut self, settlements: Vec<Settlement>, took: Duration, result: Result<u64, OutboxError>) {
        self.settling = 0;
        self.memory.pace.note(settlements.len(), took, &result);
        match result {
            Ok(published_twice) => {
                self.count_settled(&settlements, published_twice);
                let is_dead = |settlement: &&Settlement| matches!(settlement.outcome, Outcome::Dead { .. });
                self.burying = self.burying.saturating_sub(settlements.iter().filter(is_dead).count());
                // A read that is under way may have seen these messages pending, so they stay known until it is over.
                // What is deferred stays in memory until the claim ends.
                let is_over = |settlement: &&Settlement| !matches!(settlement.outcome, Outcome::Deferred { .. });
                let ids = settlements.iter().filter(is_over).map(|settlement| settlement.key.id).collect();
                self.settled_ids.push((self.feed.reads_under_way(), ids));
                self.forget_settled(0);
            }
            Err(error) => {
                // Before what came meanwhile: of two failures of one message the later counts.
                settlements.into_iter().rev().for_each(|settlement| self.outcomes.push_front(settlement));
                self.closing = Some(Closing::Broken(error));
            }
        }
    }

    /// Forgets what is settled once all reads have ended that were under way then.
    pub(super) fn forget_settled(&mut self, ended: u8) {
        let schedule = &mut self.schedule;
        self.settled_ids.retain_mut(|(reads, ids)| {
            *reads &= !ended;
            if *reads == 0 {
                ids.iter().for_each(|id| schedule.forget(*id));
            }
            *reads != 0
        });
    }

    fn count_settled(&mut self, settlements: &[Settlement], published_twice: u64) {
        let is_delivered = |settlement: &&Settlement| matches!(settlement.outcome, Outcome::Delivered { .. });
        let delivered = settlements.iter().filter(is_delivered).count() as u64;
        self.delivered += delivered;
        self.destination.metrics.delivered.inc_by(delivered);
        // One line for all that died together of the same kind of fault, with the first of them as an example.
        let mut lines: Vec<(FaultKind, u64, i64, &str)> = Vec::new();
        for Settlement { key, outcome } in settlements {
            if let Outcome::Dead { kind, error, .. } = outcome {
                self.dead += 1;
                self.destination.metrics.dead_lettered(*kind).inc();
                match lines.iter_mut().find(|(known, ..)| known == kind) {
                    Some((_, messages, ..)) => *messages += 1,
                    None => lines.push((*kind, 1, key.id, error)),
                }
            }
        }
        for (kind, messages, message_id, reason) in lines {
            let destination = &self.destination.name;
            let kind = kind.reason();
            tracing::warn!(%destination, kind, messages, message_id, reason, "messages are dead");
        }
        if published_twice > 0 {
            self.destination.metrics.possible_duplicates.inc_by(published_twice);
            tracing::warn!(
                destination = %self.destination.name,
                messages = published_twice,
                "messages were settled by another relay meanwhile, so both published them"
            );
        }
    }

    /// Writes the last outcomes while the claim keeps others away: should it be released before, they would publish again
    /// what SQS has accepted. A failure is tried again for as long as the claim lives.
    async fn settle_before_release(&mut self, unsettled: &mut Vec<Settlement>) -> Result<(), OutboxError> {
        let destination = self.destination;
        let mut delays = Delays::new(SETTLE_RETRY.0, SETTLE_RETRY.1);
        loop {
            self.drop_what_needs_the_claim(unsettled);
            if unsettled.is_empty() {
                return Ok(());
            }
            match destination.settle_first(unsettled, self.memory.pace).await {
                Ok((settled, published_twice)) => self.count_settled(&settled, published_twice),
                Err(error) if self.claim.is_lost() || Instant::now() >= self.claim_ends_at() => return Err(error),
                Err(_) => {
                    // What failed on one connection may fail on all that were made before.
                    destination.outbox.forget_connections();
                    tokio::time::sleep(delays.next_delay()).await;
                }
            }
            self.pulse.tick();
        }
    }

    /// Everything has come back: records what waits for a retry, releases the claim, and says what was left.
    pub(super) async fn end(mut self) -> StreamEnd {
        let now = Instant::now();
        let Leftovers { items, remembered } = self.schedule.take_leftovers();
        for Leftover { item, until, is_head } in items {
            if item.charged.is_some() && is_head {
                if !item.is_recorded {
                    let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                    self.defer(&item, Some(wait));
                }
            } else {
                self.defer(&item, None);
                self.memory.bounds.rewind(item.key().lane, item.key().id);
            }
        }
        for remembered in remembered {
            if self.memory.remembered.len() < MOST_REMEMBERED {
                self.memory.remembered.push(remembered);
            } else {
                self.memory.bounds.rewind(remembered.lane, remembered.after + 1);
            }
        }
        let mut closing = self.closing.take().unwrap_or(Closing::Time);
        let mut unsettled: Vec<Settlement> = self.outcomes.drain(..).collect();
        self.drop_what_needs_the_claim(&mut unsettled);
        let is_over = self.claim.is_lost() || Instant::now() >= self.claim_ends_at();
        if !(matches!(closing, Closing::Broken(_)) && is_over)
            && let Err(error) = self.settle_before_release(&mut unsettled).await
        {
            closing = Closing::Broken(error);
        }
        // They are written when the database is back, and the claim is not.
        let before = unsettled.len();
        unsettled.retain(|settlement| matches!(settlement.outcome, Outcome::Delivered { .. }));
        self.has_dropped |= unsettled.len() < before;
        let is_saturated = matches!(closing, Closing::Time) && self.is_saturated;
        // Of a database that failed nobody waits for an answer: dropping the claim ends it as well.
        if !matches!(closing, Closing::Broken(_))
            && let Err(error) = self.claim.release().await
            && !matches!(closing, Closing::Halted(_))
        {
            closing = Closing::Broken(error);
        }
        self.destination.metrics.lanes_held.set(0);
        let Self { has_dropped, delivered, dead, .. } = self;
        StreamEnd { closing, unsettled, has_dropped, is_saturated, delivered, dead }
    }
}
