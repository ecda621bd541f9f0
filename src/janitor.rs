//! The janitor: periodic duties that no delivery waits for. It measures the backlog, prunes what was delivered, tries again to
//! record what is in quarantine, and notices when something stands still ([`watchdog`]).
//!
//! Both are bounded in what they cost: a probe counts up to a limit and pauses twenty times as long as it took; a prune
//! deletes in small chunks and takes turns with the probes, lane by lane. A failure is left for the next round; the relays
//! report the database's state.

mod watchdog;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::health::Heartbeat;
use crate::message::{Lane, MessageId, MessageKey};
use crate::metrics::{DestinationMetrics, HORIZON_KINDS, HORIZON_KINDS_OF_OTHERS, Metrics};
use crate::outbox::{HorizonHolder, Keep, Outbox, OutboxError};
use crate::reading::{ByLane, Order};
use watchdog::{Change, Sight, Watchdog};

/// How often the backlog is measured.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// However long a probe takes, on a server that is overloaded: an operator needs to know just then.
const PROBE_AT_LEAST_EVERY: Duration = Duration::from_secs(15);

/// A probe may take one part in so many of the time.
const PROBE_SHARE: u32 = 20;

/// Rows looked at in one statement: a few milliseconds of locks and WAL at most.
const CHUNK: i64 = 1000;

/// Chunks of one lane before it is another's turn.
const CHUNKS_A_TURN: u32 = 20;

/// The longest pause between two rounds of pruning.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The shortest.
const PRUNE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Pause between two chunks, so that pruning a large remainder leaves room for deliveries.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// How often the backlog is measured from the bottom; in between it is measured above what was found there.
const FLOORS_EVERY: Duration = Duration::from_secs(30);

/// How often to try again to record what is in quarantine, for how long, since nothing is measured meanwhile, and how much of it
/// at once. What there was no time for comes next.
const QUARANTINE_EVERY: Duration = Duration::from_secs(60);
const QUARANTINE_FOR: Duration = Duration::from_secs(5);
const QUARANTINE_CHUNK: i64 = 100;

/// How often to look at who holds the vacuum horizon.
const HORIZON_EVERY: Duration = Duration::from_secs(10);

/// An id in each lane below which nothing waits but retries, and how long to believe that.
#[derive(Debug, Default)]
struct Floors {
    lanes: Option<ByLane<MessageId>>,
    until: Option<Instant>,
}

/// What is remembered from probe to probe.
#[derive(Debug)]
struct Probes {
    /// For each destination.
    floors: Vec<Floors>,
    watchdogs: Vec<Watchdog>,
    /// Behind which message in quarantine to go on.
    tried: Vec<Option<MessageKey>>,
    next_quarantine: Instant,
    next_horizon: Instant,
    /// Whether it has been logged that measuring fails.
    is_logged: bool,
    /// Since when a kind of holder has held the same transaction id.
    held_since: HashMap<String, (String, Instant)>,
}

impl Probes {
    fn new(destinations: usize) -> Self {
        let floors = (0..destinations).map(|_| Floors::default()).collect();
        let watchdogs = (0..destinations).map(|_| Watchdog::default()).collect();
        let (tried, now) = (vec![None; destinations], Instant::now());
        let (next_quarantine, next_horizon) = (now, now);
        Self { floors, watchdogs, tried, next_quarantine, next_horizon, is_logged: false, held_since: HashMap::new() }
    }

    /// How long this holder has held the horizon: as PostgreSQL says, or since this was seen first.
    fn age(&mut self, holder: &HorizonHolder, now: Instant) -> f64 {
        let since = match self.held_since.get(&holder.kind) {
            Some((transaction_id, since)) if *transaction_id == holder.transaction_id => *since,
            _ => now,
        };
        self.held_since.insert(holder.kind.clone(), (holder.transaction_id.clone(), since));
        holder.seconds.unwrap_or_else(|| now.saturating_duration_since(since).as_secs_f64())
    }
}

/// A destination that the janitor looks after.
#[derive(Debug)]
pub struct Served {
    /// Its name.
    pub name: Arc<str>,
    /// Its series.
    pub metrics: DestinationMetrics,
    /// What its relay says of itself.
    pub relay: Arc<Heartbeat>,
}

/// What the janitor looks after.
#[derive(Debug)]
pub struct Janitor {
    /// The tables.
    pub outbox: Outbox,
    /// The destinations.
    pub destinations: Vec<Served>,
    /// For the time of the last probe.
    pub metrics: Arc<Metrics>,
    /// How long delivered messages are kept; zero when they are deleted at delivery.
    pub retention: Duration,
    /// Sign of life.
    pub heartbeat: Arc<Heartbeat>,
}

/// One lane of one destination, by its place in [`Janitor::destinations`].
type Spot = (usize, Lane);

/// How far pruning has got.
#[derive(Default)]
struct Pruning {
    /// Whose turn it is in this round, and who comes next.
    turns: VecDeque<Spot>,
    /// The id up to which a lane was looked at, where that was not all there may be.
    looked_to: HashMap<Spot, i64>,
    /// Whether it has been logged that pruning fails.
    is_logged: bool,
}

impl Janitor {
    /// Does its rounds until told to stop.
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
                next_probe = now + (took * PROBE_SHARE).clamp(PROBE_EVERY, PROBE_AT_LEAST_EVERY);
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
        self.metrics.connections_max.set(connections.most);
        let measured = self.measure(probes, stop).await;
        if measured.is_err() {
            self.destinations.iter().zip(&mut probes.watchdogs).for_each(|(served, watchdog)| blind(served, watchdog));
        }
        match measured {
            Ok(true) => {
                self.metrics.has_measured();
                probes.is_logged = false;
            }
            Ok(false) => {}
            // Where the database cannot be used at all, the relays say so.
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

    /// Returns whether it has measured everything; told to stop, it does not.
    async fn measure(&self, probes: &mut Probes, stop: &CancellationToken) -> Result<bool, OutboxError> {
        self.look_at_the_horizon(probes).await?;
        let is_quarantine_due = Instant::now() >= probes.next_quarantine;
        let each = probes.floors.iter_mut().zip(&mut probes.watchdogs).zip(&mut probes.tried);
        for (served, ((floors, watchdog), tried)) in self.destinations.iter().zip(each) {
            let Served { name, metrics, relay } = served;
            self.find_floors(name, floors, stop).await?;
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

    /// The cause may have been mended: tries again to record what SQS has accepted.
    async fn record_quarantined(
        &self,
        name: &Arc<str>,
        tried: &mut Option<MessageKey>,
        stop: &CancellationToken,
    ) -> Result<(), OutboxError> {
        let started = Instant::now();
        let keep = if self.retention.is_zero() { Keep::Nothing } else { Keep::Delivered };
        let mut recorded = 0;
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
            tracing::info!(destination = %name, messages = recorded, "messages have left the quarantine: what became of them is recorded");
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

    /// Now and then looks from the bottom, so that a row that committed late below a floor is measured too.
    async fn find_floors(&self, name: &str, floors: &mut Floors, stop: &CancellationToken) -> Result<(), OutboxError> {
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
            floors.until = Some(Instant::now() + FLOORS_EVERY.max(started.elapsed() * PROBE_SHARE));
        }
        Ok(())
    }

    /// All there is to prune in a round.
    fn spots(&self) -> VecDeque<Spot> {
        if self.retention.is_zero() {
            return VecDeque::new();
        }
        // Each relay starts elsewhere, so that several of them seldom meet.
        let first = fastrand::usize(0..Lane::all().count());
        let lanes = |destination| {
            let lanes = Lane::all().cycle().skip(first).take(Lane::all().count());
            lanes.map(move |lane| (destination, lane))
        };
        (0..self.destinations.len()).flat_map(lanes).collect()
    }

    async fn prune(&self, spot: Spot, pruning: &mut Pruning, stop: &CancellationToken) {
        let destination = &self.destinations[spot.0].name;
        match self.prune_lane(spot, pruning, stop).await {
            Ok(()) => {
                // A lane with nothing to prune does not tell that pruning works; a whole round does.
                pruning.is_logged &= !pruning.turns.is_empty();
                return;
            }
            // Where the database cannot be used at all, the relays say so.
            Err(error @ (OutboxError::Statement { .. } | OutboxError::Timeout { .. }))
                if !std::mem::replace(&mut pruning.is_logged, true) =>
            {
                tracing::warn!(destination = %destination, error = %error, "delivered messages cannot be pruned; trying again");
            }
            Err(error) => tracing::debug!(destination = %destination, error = %error, "pruning is put off"),
        }
        pruning.turns.clear();
    }

    /// Looks on where the last turn ended. A lane that still had old messages gets another turn in this round; one where
    /// many low ids were delivered late, and so are to stay, is looked at further in the next round.
    async fn prune_lane(&self, spot: Spot, pruning: &mut Pruning, stop: &CancellationToken) -> Result<(), OutboxError> {
        let (destination, lane) = spot;
        let Served { name, metrics, .. } = &self.destinations[destination];
        let mut above = pruning.looked_to.remove(&spot).unwrap_or(0);
        let mut deleted = 0;
        for _ in 0..CHUNKS_A_TURN {
            let pruned = self.outbox.prune(name, lane, above, self.retention, CHUNK).await?;
            metrics.pruned.inc_by(u64::try_from(pruned.deleted).unwrap_or(0));
            let Some(highest) = pruned.highest.filter(|_| pruned.may_be_old) else { return Ok(()) };
            above = highest;
            deleted += pruned.deleted;
            tokio::select! {
                () = tokio::time::sleep(CHUNK_PAUSE) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        pruning.looked_to.insert(spot, above);
        if deleted > 0 {
            pruning.turns.push_back(spot);
        }
        Ok(())
    }
}

/// Nobody knows whether a destination stands still.
fn blind(served: &Served, watchdog: &mut Watchdog) {
    watchdog.goes_blind();
    served.relay.set_stalled(None);
    served.metrics.stalled.set(0);
}

/// Tells when a destination stands still without a known reason, and when it goes on.
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
