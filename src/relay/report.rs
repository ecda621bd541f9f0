//! Reporting: turns the reports of the core into metrics, log lines and probe results. Nothing else in the relay logs, except
//! `control.rs` about what operators decided.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;

use super::Destination;
use super::core::{Core, Hot, Report};
use crate::clock::Time;
use crate::config::FifoMode;
use crate::health::{Dependency, Heartbeat};
use crate::message::{Fault, FaultKind, MessageKey, Outcome, Quarantined, Settlement};
use crate::outbox::OutboxError;

/// Where a relay reports its state.
#[derive(Clone, Debug)]
pub struct Reports {
    /// The state of the database, shared with all other relays.
    pub database: Arc<Dependency>,
    /// The same as a metric.
    pub database_up: IntGauge,
    /// The state of its own queue.
    pub queue: Arc<Dependency>,
    /// Its own heartbeat.
    pub heartbeat: Arc<Heartbeat>,
}

/// How often a line is logged at most that is about messages and not about a change of state.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Messages that wait to be logged together.
#[derive(Debug, Default)]
struct Unlogged {
    messages: u64,
    logged_at: Option<Time>,
}

impl Unlogged {
    /// Adds messages; returns how many to log now, if the last line is long ago.
    fn add(&mut self, messages: u64, now: Time) -> Option<u64> {
        self.messages += messages;
        if self.logged_at.is_some_and(|at| now.since(at) < LOG_EVERY) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.messages))
    }
}

/// Publishes the reports of one relay.
#[derive(Debug)]
pub(super) struct Reporter {
    destination: Arc<Destination>,
    reports: Reports,
    repaired: Unlogged,
    order_broken: Unlogged,
}

impl Reporter {
    pub(super) fn new(destination: Arc<Destination>, reports: Reports) -> Self {
        Self { destination, reports, repaired: Unlogged::default(), order_broken: Unlogged::default() }
    }

    /// Records that the loop is alive, and sets its gauges.
    pub(super) fn tick(&self, core: &Core) {
        self.reports.heartbeat.tick();
        let (lanes, in_flight, limit) = core.gauges();
        let metrics = &self.destination.metrics;
        metrics.lanes_held.set(lanes as i64);
        metrics.in_flight.set(in_flight as i64);
        metrics.in_flight_limit.set(limit as i64);
        let Hot { groups, per_second } = core.hot();
        metrics.hot_groups.set(groups as i64);
        metrics.hot_group_rate.set(per_second);
    }

    /// Records that the loop ended normally.
    pub(super) fn finish(&self) {
        self.destination.metrics.lanes_held.set(0);
        self.destination.metrics.hot_groups.set(0);
        self.destination.metrics.hot_group_rate.set(0.0);
        self.reports.heartbeat.finish();
    }

    pub(super) fn report(&mut self, reports: Vec<Report>, core: &Core) {
        for report in reports {
            self.one(report);
        }
        self.reports.heartbeat.set_activity(core.activity(), core.order());
    }

    fn one(&mut self, report: Report) {
        let metrics = &self.destination.metrics;
        match report {
            Report::Accepted { ages, dropped_attributes } => {
                ages.iter().for_each(|age| metrics.latency.observe(age.as_secs_f64()));
                metrics.attributes_left_out.inc_by(dropped_attributes as u64);
            }
            Report::Retried(kind) => metrics.retries(kind).inc(),
            Report::PossibleDuplicates(entries) => metrics.possible_duplicates.inc_by(entries),
            Report::Repaired(messages) => self.repaired(messages),
            Report::OrderBroken(messages) => self.order_broken(&messages),
            Report::Recorded(settlements) => self.recorded(&settlements),
            Report::PublishedTwice(messages) => self.published_twice(messages),
            Report::Unmatched(messages) => self.unmatched(&messages),
            Report::Replaced(messages) => self.replaced(messages),
            Report::Quarantined(messages) => self.quarantined(&messages),
            Report::Late(messages) => metrics.late.inc_by(messages),
            Report::Hot { hot, names, mode } => self.hot(hot, &names, mode),
            Report::Halted(fault) => self.halted(&fault),
            Report::Recovered => self.back(),
            Report::DatabaseAnswered => self.database_answered(),
            Report::DatabaseFailed { error, unsettled } => self.database_failed(&error, unsettled),
            Report::IncarnationChanged => {
                // The connections may go through a pooler to another server, which may have given the same transaction
                // ids to writers.
                self.destination.outbox.forget_connections();
                tracing::warn!(
                    destination = %self.destination.name,
                    "the database is in another state than before (failover, crash or restore); everything known about it is dropped"
                );
            }
        }
    }

    fn recorded(&self, settlements: &[Settlement]) {
        let metrics = &self.destination.metrics;
        metrics.delivered.inc_by(settlements.iter().filter(|settlement| settlement.is_delivered()).count() as u64);
        // One line per kind of fault for all messages that died together; it names the first of them as an example.
        let mut lines: Vec<(FaultKind, u64, i64, &str)> = Vec::new();
        for Settlement { key, outcome, .. } in settlements {
            if let Outcome::Dead { kind, error, .. } = outcome {
                metrics.dead_lettered(*kind).inc();
                match lines.iter_mut().find(|(known, ..)| known == kind) {
                    Some((_, messages, ..)) => *messages += 1,
                    None => lines.push((*kind, 1, key.id.0, error)),
                }
            }
        }
        for (kind, messages, message_id, reason) in lines {
            let (destination, kind) = (&self.destination.name, kind.reason());
            tracing::warn!(%destination, kind, messages, message_id, reason, "messages are dead");
        }
    }

    fn repaired(&mut self, messages: u64) {
        self.destination.metrics.repaired.inc_by(messages);
        if let Some(messages) = self.repaired.add(messages, Time::now()) {
            tracing::warn!(
                destination = %self.destination.name,
                messages,
                "SQS accepted messages before an earlier one of their group, so they are sent again behind it; consumers get them twice"
            );
        }
    }

    fn order_broken(&mut self, messages: &[MessageKey]) {
        self.destination.metrics.order_breaks.inc_by(messages.len() as u64);
        if let Some(count) = self.order_broken.add(messages.len() as u64, Time::now()) {
            tracing::error!(
                destination = %self.destination.name,
                messages = count,
                message_id = messages.first().map(|key| key.id.0),
                "the queue did not put messages behind the earlier ones of their groups: their sequence numbers do not rise"
            );
        }
    }

    fn published_twice(&self, messages: u64) {
        self.destination.metrics.possible_duplicates.inc_by(messages);
        tracing::warn!(
            destination = %self.destination.name,
            messages,
            "messages were settled by another relay meanwhile, so both published them"
        );
    }

    fn unmatched(&self, messages: &[MessageKey]) {
        self.destination.metrics.unmatched.inc_by(messages.len() as u64);
        tracing::warn!(
            destination = %self.destination.name,
            messages = messages.len(),
            message_id = messages.first().map(|key| key.id.0),
            "SQS accepted messages that are not in the outbox any more: the database has lost their transactions, or somebody has deleted them"
        );
    }

    fn replaced(&self, messages: u64) {
        tracing::warn!(
            destination = %self.destination.name,
            messages,
            "ids of delivered messages were assigned again and their records replaced: was the id sequence reset?"
        );
    }

    fn quarantined(&self, messages: &[Quarantined]) {
        let destination = &self.destination.name;
        self.destination.metrics.quarantined_total.inc_by(messages.len() as u64);
        let Some(first) = messages.first() else { return };
        let what = match &first.outcome {
            Some(Outcome::Delivered { .. }) => "SQS accepted them and PostgreSQL refuses to record that",
            Some(_) => "they are dead and PostgreSQL refuses to record that",
            None => "PostgreSQL cannot read them, or refuses to change them",
        };
        tracing::warn!(
            %destination,
            messages = messages.len(),
            message_id = first.key.id.0,
            what,
            reason = %first.reason,
            "messages are in quarantine; outbox-relay quarantine list shows them"
        );
    }

    fn hot(&self, hot: Hot, names: &[Arc<str>], mode: FifoMode) {
        let groups: Vec<String> = names.iter().map(|name| shortened(name)).collect();
        tracing::warn!(
            destination = %self.destination.name,
            mode = mode.word(),
            hot_groups = hot.groups,
            ?groups,
            messages_per_second = format!("{:.1}", hot.per_second),
            remedy = mode.remedy(),
            "groups are hot: the FIFO mode limits them, and their messages wait"
        );
    }

    fn halted(&self, fault: &Fault) {
        let destination = &self.destination.name;
        self.destination.metrics.up.set(0);
        // The same fault is logged once, however often it occurs.
        let is_news = self.reports.queue.report_down(&fault.code);
        self.reports.queue.explain(fault.shown());
        if is_news && fault.kind == FaultKind::Internal {
            tracing::error!(%destination, code = %fault.code, reason = %fault.detail, "destination halted by an error of outbox-relay, please report it; its messages wait");
        } else if is_news {
            tracing::warn!(%destination, code = %fault.code, reason = %fault.detail, "destination halted; its messages wait, no attempt is charged");
        }
    }

    fn back(&self) {
        self.destination.metrics.up.set(1);
        // If the halt was never logged, its end is not logged either.
        if self.reports.queue.report_up() {
            tracing::info!(destination = %self.destination.name, "destination is back");
        }
    }

    fn database_answered(&self) {
        if self.reports.database.report_up() {
            tracing::info!("the database is back");
        }
        self.reports.database_up.set(i64::from(self.reports.database.is_up()));
    }

    fn database_failed(&self, error: &OutboxError, unsettled: usize) {
        // A failure on one connection may affect every connection that is open now.
        self.destination.outbox.forget_connections();
        self.reports.database_up.set(0);
        if self.reports.database.report_down_as(&error.to_string(), &error.shown()) {
            tracing::warn!(error = %error, unsettled, "the database cannot be used; trying again");
        }
    }
}

/// The longest name of a group in a log line, in characters.
const LONGEST_NAME: usize = 80;

/// The beginning of a group's name, which may be of any length.
fn shortened(name: &str) -> String {
    let mut shown: String = name.chars().take(LONGEST_NAME).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}
