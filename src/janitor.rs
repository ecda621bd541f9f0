//! The janitor: periodic duties that no delivery waits for. It measures the backlog, prunes delivered messages, retries
//! recording messages in quarantine, and notices destinations that stand still ([`watchdog`]).
//!
//! The cost of each duty is bounded. A probe counts up to a limit and pauses twenty times as long as it took, or longer if
//! other relays probe as well. [`pruning`] deletes in small chunks and alternates with the probes, lane by lane. A failed
//! duty is retried in the next round; the relays report the state of the database.

mod neighbours;
mod pruning;
mod unserved;
mod watchdog;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::health::Heartbeat;
use crate::message::{MessageId, MessageKey};
use crate::metrics::{DestinationMetrics, HORIZON_KINDS, HORIZON_KINDS_OF_OTHERS, Metrics};
use crate::outbox::{HorizonHolder, Keep, Outbox, OutboxError};
use crate::reading::{ByLane, Order};
use neighbours::Neighbourhood;
use pruning::Pruning;
use unserved::Unserved;
use watchdog::{Change, Sight, Watchdog};

/// How often the backlog is measured.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// The longest interval, however long a probe takes on an overloaded server: that is when an operator needs the
/// numbers.
const PROBE_AT_LEAST_EVERY: Duration = Duration::from_secs(15);

/// The probes of all relays of a database may take one part in this many of the time, unless the longest interval asks for
/// more.
const PROBE_SHARE: u32 = 20;

/// Counting scheduled messages may take one part in this many of the time, and comes once in this interval at least. They
/// may be millions, and nothing waits for them.
const SCHEDULED_SHARE: u32 = 1000;
const SCHEDULED_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// The longest pause between two rounds of pruning.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The shortest pause between two rounds of pruning.
const PRUNE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often the backlog is measured from the bottom; in between it is measured above the floors found there.
const FLOORS_EVERY: Duration = Duration::from_secs(30);

/// The longest interval between two such measurements. A row that was committed late below a floor is not counted until then.
const FLOORS_AT_LEAST_EVERY: Duration = Duration::from_secs(600);

/// How often to retry recording messages in quarantine, for how long (nothing is measured meanwhile), and how many at
/// once. The next turn continues where this one ran out of time.
const QUARANTINE_EVERY: Duration = Duration::from_secs(60);
const QUARANTINE_FOR: Duration = Duration::from_secs(5);
const QUARANTINE_CHUNK: i64 = 100;

/// How often to look for holders of the vacuum horizon.
const HORIZON_EVERY: Duration = Duration::from_secs(10);

/// An id in each lane below which nothing but retries is pending, and how long to rely on it.
#[derive(Debug, Default)]
struct Floors {
    lanes: Option<ByLane<MessageId>>,
    until: Option<Instant>,
}

/// What is kept from probe to probe.
#[derive(Debug)]
struct Probes {
    /// For each destination.
    floors: Vec<Floors>,
    watchdogs: Vec<Watchdog>,
    /// The message in quarantine after which the next turn continues.
    tried: Vec<Option<MessageKey>>,
    next_quarantine: Instant,
    next_scheduled: Instant,
    next_horizon: Instant,
    neighbourhood: Neighbourhood,
    unserved: Unserved,
    /// Whether it was logged that measuring fails.
    is_logged: bool,
    /// Since when each kind of holder has held the same transaction id.
    held_since: HashMap<String, (String, Instant)>,
}

impl Probes {
    fn new(destinations: usize) -> Self {
        let floors = (0..destinations).map(|_| Floors::default()).collect();
        let watchdogs = (0..destinations).map(|_| Watchdog::default()).collect();
        let (tried, now) = (vec![None; destinations], Instant::now());
        Self {
            floors,
            watchdogs,
            tried,
            next_quarantine: now,
            next_scheduled: now,
            next_horizon: now,
            neighbourhood: Neighbourhood::new(),
            unserved: Unserved::new(),
            is_logged: false,
            held_since: HashMap::new(),
        }
    }

    /// How long this holder has held the horizon: as PostgreSQL says, or else since it was first seen.
    fn age(&mut self, holder: &HorizonHolder, now: Instant) -> f64 {
        let since = match self.held_since.get(&holder.kind) {
            Some((transaction_id, since)) if *transaction_id == holder.transaction_id => *since,
            _ => now,
        };
        self.held_since.insert(holder.kind.clone(), (holder.transaction_id.clone(), since));
        holder.seconds.unwrap_or_else(|| now.saturating_duration_since(since).as_secs_f64())
    }
}

/// The least time between two measurements that take this long. Every relay measures, so the more relays there are, the less
/// often each does.
fn pause(took: Duration, relays: u32) -> Duration {
    took * PROBE_SHARE.saturating_mul(relays)
}

/// A destination that the janitor looks after.
#[derive(Debug)]
pub struct Served {
    /// Its name.
    pub name: Arc<str>,
    /// Its metrics.
    pub metrics: DestinationMetrics,
    /// The state of its relay.
    pub relay: Arc<Heartbeat>,
}

/// The janitor and what it works on.
#[derive(Debug)]
pub struct Janitor {
    /// The tables.
    pub outbox: Outbox,
    /// The destinations.
    pub destinations: Vec<Served>,
    /// Receives the time of the last probe.
    pub metrics: Arc<Metrics>,
    /// Receives what is for people to read.
    pub board: Arc<Board>,
    /// How long delivered messages are kept; zero when they are deleted at delivery.
    pub retention: Duration,
    /// The janitor's own heartbeat.
    pub heartbeat: Arc<Heartbeat>,
}

impl Janitor {
    /// Runs its rounds until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut probes = Probes::new(self.destinations.len());
        let mut next_probe = Instant::now();
        let mut next_prune = Instant::now();
        let mut pruning = Pruning::default();
        while !stop.is_cancelled() {
            self.heartbeat.tick();
            let now = Instant::now();
            if now >= next_probe {
                let took = self.probe(&mut probes, &stop).await;
                next_probe = now + pause(took, probes.neighbourhood.relays()).clamp(PROBE_EVERY, PROBE_AT_LEAST_EVERY);
            }
            if now >= next_prune && pruning.turns.is_empty() {
                pruning.turns = self.spots();
                next_prune = now + (self.retention / 10).clamp(PRUNE_AT_MOST_EVERY, PRUNE_EVERY);
            }
            if let Some(spot) = pruning.turns.pop_front() {
                self.prune(spot, &mut pruning, &stop).await;
                continue;
            }
            let wake = next_probe.min(next_prune).max(Instant::now() + Duration::from_millis(10));
            tokio::select! {
                () = tokio::time::sleep_until(wake.min(Instant::now() + PROBE_EVERY).into()) => {}
                () = stop.cancelled() => {}
            }
        }
        self.heartbeat.finish();
    }

    /// Measures all destinations; returns how long that took.
    async fn probe(&self, probes: &mut Probes, stop: &CancellationToken) -> Duration {
        let started = Instant::now();
        let connections = self.outbox.connections();
        self.metrics.set_connections(connections.idle, connections.in_use);
        self.metrics.connections_max.set(connections.max);
        self.board.set_server(self.outbox.server());
        // Before anything is measured, which may fail: a relay that delivers must not seem to be away.
        probes.unserved.serve(&self.outbox, &self.destinations).await;
        let measured = self.measure(probes, stop).await;
        if measured.is_err() {
            self.destinations.iter().zip(&mut probes.watchdogs).for_each(|(served, watchdog)| blind(served, watchdog));
        }
        match measured {
            Ok(true) => {
                self.count_scheduled(probes).await;
                probes.unserved.look(&self.outbox, &self.destinations, (&self.metrics, &self.board)).await;
                self.metrics.has_measured();
                probes.is_logged = false;
                probes.neighbourhood.look(&self.outbox, &self.board).await;
            }
            Ok(false) => {}
            // When the database cannot be used at all, the relays report it.
            Err(error @ (OutboxError::Connect { .. } | OutboxError::NotMigrated { .. })) => {
                tracing::debug!(error = %error, "the backlog cannot be measured");
            }
            Err(error) if !std::mem::replace(&mut probes.is_logged, true) => {
                tracing::warn!(error = %error, "the backlog cannot be measured; trying again");
            }
            Err(error) => tracing::debug!(error = %error, "the backlog still cannot be measured"),
        }
        started.elapsed()
    }

    /// Returns whether everything was measured; that is not so when it is told to stop.
    async fn measure(&self, probes: &mut Probes, stop: &CancellationToken) -> Result<bool, OutboxError> {
        self.look_at_the_horizon(probes).await?;
        let is_quarantine_due = Instant::now() >= probes.next_quarantine;
        let relays = probes.neighbourhood.relays();
        let each = probes.floors.iter_mut().zip(&mut probes.watchdogs).zip(&mut probes.tried);
        for (served, ((floors, watchdog), tried)) in self.destinations.iter().zip(each) {
            let Served { name, metrics, relay } = served;
            self.find_floors(name, floors, relays, stop).await?;
            let Some(lanes) = &mut floors.lanes else { return Ok(false) };
            let (activity, order) = relay.activity().unzip();
            let asked_at = Instant::now();
            let backlog = self.outbox.backlog(name, lanes, order.unwrap_or(Order::GroupsBlockedByDead)).await?;
            for (lane, first) in &backlog.firsts {
                lanes[*lane] = first.previous();
            }
            metrics.lag.set(backlog.lag);
            metrics.backlog.set(backlog.messages);
            metrics.dead.set(backlog.dead);
            metrics.quarantined.set(backlog.quarantined);
            self.board.set_ready_lag(name, backlog.ready_lag);
            let finished = metrics.delivered.get() + metrics.all_dead_lettered() + metrics.quarantined_total.get();
            let (ready_lag, answered_in) = (backlog.ready_lag, asked_at.elapsed());
            watch(served, watchdog, Sight { ready_lag, finished, answered_in, activity });
            if is_quarantine_due && backlog.quarantined > 0 {
                self.record_quarantined(name, tried, stop).await?;
            }
        }
        if is_quarantine_due {
            probes.next_quarantine = Instant::now() + QUARANTINE_EVERY;
        }
        Ok(true)
    }

    /// Counts scheduled messages, if it is time to. Nothing depends on it.
    async fn count_scheduled(&self, probes: &mut Probes) {
        let started = Instant::now();
        if started < probes.next_scheduled {
            return;
        }
        for Served { name, metrics, .. } in &self.destinations {
            self.heartbeat.tick();
            match self.outbox.scheduled(name).await {
                Ok(scheduled) => {
                    metrics.scheduled.set(scheduled.messages);
                    metrics.next_scheduled.set(scheduled.next.unwrap_or(0.0));
                }
                Err(error) => tracing::debug!(destination = %name, %error, "scheduled messages cannot be counted"),
            }
        }
        let pause = started.elapsed() * SCHEDULED_SHARE.saturating_mul(probes.neighbourhood.relays());
        probes.next_scheduled = Instant::now() + pause.clamp(PROBE_EVERY, SCHEDULED_AT_LEAST_EVERY);
    }

    /// Tries again to record what SQS has accepted: the cause may have been fixed.
    async fn record_quarantined(
        &self,
        name: &Arc<str>,
        tried: &mut Option<MessageKey>,
        stop: &CancellationToken,
    ) -> Result<(), OutboxError> {
        let started = Instant::now();
        let keep = if self.retention.is_zero() { Keep::Nothing } else { Keep::Delivered };
        let mut recorded = self.outbox.unquarantine_gone(name).await?;
        while started.elapsed() < QUARANTINE_FOR && !stop.is_cancelled() {
            let messages = self.outbox.unrecorded(name, *tried, QUARANTINE_CHUNK).await?;
            *tried = messages.last().map(|message| message.key);
            if messages.is_empty() {
                break;
            }
            for message in &messages {
                recorded += u64::from(self.outbox.record_quarantined(name, keep, message).await?);
                self.heartbeat.tick();
            }
        }
        if recorded > 0 {
            tracing::info!(destination = %name, messages = recorded, "messages have left the quarantine: their outcomes are recorded");
        }
        Ok(())
    }

    async fn look_at_the_horizon(&self, probes: &mut Probes) -> Result<(), OutboxError> {
        let now = Instant::now();
        if now < probes.next_horizon {
            return Ok(());
        }
        let horizon = self.outbox.horizon().await?;
        probes.next_horizon = now + HORIZON_EVERY;
        for kind in HORIZON_KINDS {
            if !horizon.sees_all_sessions && HORIZON_KINDS_OF_OTHERS.contains(&kind) {
                self.metrics.forget_horizon(kind);
                continue;
            }
            let holder = horizon.holders.iter().find(|holder| holder.kind == kind);
            self.metrics.horizon_age(kind).set(holder.map_or(0.0, |holder| probes.age(holder, now)));
        }
        Ok(())
    }

    /// Scans from the bottom once in a while, so that a row that was committed late below a floor is measured too.
    async fn find_floors(
        &self,
        name: &str,
        floors: &mut Floors,
        relays: u32,
        stop: &CancellationToken,
    ) -> Result<(), OutboxError> {
        let started = Instant::now();
        if floors.until.is_some_and(|until| started < until) {
            return Ok(());
        }
        let go_on = || {
            self.heartbeat.tick();
            !stop.is_cancelled()
        };
        if let Some(lanes) = self.outbox.floors(name, go_on).await? {
            floors.lanes = Some(lanes);
            floors.until =
                Some(Instant::now() + pause(started.elapsed(), relays).clamp(FLOORS_EVERY, FLOORS_AT_LEAST_EVERY));
        }
        Ok(())
    }
}

/// The destination cannot be judged, because the database did not answer.
fn blind(served: &Served, watchdog: &mut Watchdog) {
    watchdog.goes_blind();
    served.relay.set_stalled(None);
    served.metrics.stalled.set(0);
}

/// Logs when a destination stands still without a known reason, and when it goes on.
fn watch(served: &Served, watchdog: &mut Watchdog, sight: Sight) {
    let (now, destination) = (Instant::now(), &served.name);
    let stalled_for = watchdog.stalled_for(now);
    match watchdog.look(sight, now) {
        Some(Change::Stalled) => {
            let activity = sight.activity.map_or_else(|| "unknown".to_owned(), |activity| activity.to_string());
            tracing::error!(%destination, since = ?stalled_for, lag = sight.ready_lag, relay = %activity, "messages are due and nothing is delivered, without a known reason; please report this");
        }
        Some(Change::GoesOn) => {
            tracing::info!(%destination, after = ?stalled_for, "messages are delivered again");
        }
        None => {}
    }
    served.relay.set_stalled(watchdog.is_stalled().then(|| watchdog.stalled_for(now)));
    served.metrics.stalled.set(i64::from(watchdog.is_stalled()));
}
