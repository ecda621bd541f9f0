//! The heart: looks for work, claims lanes, streams messages to SQS under the claim, and begins again.
//!
//! One [`Relay`] serves one destination, so that a slow or halted queue concerns nobody else. Read [`stream`] next for what
//! happens under a claim, then [`schedule`] for the order of groups. No SQL and no SQS call stands here; those are
//! [`crate::outbox`] and [`crate::sqs`].

mod admit;
mod blocked;
mod database;
pub mod dry_run;
mod feed;
mod group;
mod lookout;
mod outcomes;
mod pace;
mod positions;
mod probe;
mod rest;
mod schedule;
mod settle;
mod steering;
mod stream;
mod sweep;
mod throttle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use crate::config::Tuning;
use crate::health::{Dependency, Pulse};
use crate::message::{LANES, Lane, QueueKind, Settlement};
use crate::metrics::DestinationMetrics;
use crate::outbox::{Keep, LowBounds, Outbox, OutboxError};
use crate::retry::Delays;
use crate::sqs::Queue;

pub use lookout::{Ear, Lookout};
use pace::Pace;
pub use probe::Probe;
use schedule::Remembered;
pub use steering::{Helm, Steersman};
use stream::{Closing, Memory, STREAM_FOR, Stream, StreamEnd};
use sweep::{Round, Sweeping};
use throttle::Throttle;

/// First and longest pause after a database failure.
const DATABASE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Poll intervals between claims that found nothing to send.
const FRUITLESS_PAUSE: u32 = 5;

/// While others hold all lanes with work, how often to look again. In between only the lanes are asked for: a look begins
/// at this relay's own low bounds, and walks all that others have delivered since.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a relay works with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Its name in the database.
    pub name: Arc<str>,
    /// The tables.
    pub outbox: Outbox,
    /// The queue.
    pub queue: Queue,
    /// Its series.
    pub metrics: DestinationMetrics,
    /// What steers the flow.
    pub tuning: Tuning,
    /// What happens to a row at delivery.
    pub keep: Keep,
}

/// Where a relay reports how it is.
#[derive(Clone, Debug)]
pub struct Reports {
    /// What it says of the database, beside all other relays.
    pub database: Arc<Dependency>,
    /// The same as a metric.
    pub database_up: IntGauge,
    /// Its own queue.
    pub queue: Arc<Dependency>,
    /// Its own sign of life.
    pub pulse: Arc<Pulse>,
}

/// When a relay ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never; it drains when told to.
    Drained,
    /// When nothing of the destination is pending.
    Empty,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Messages that SQS accepted.
    pub delivered: u64,
    /// Messages given up.
    pub dead: u64,
    /// Whether messages are left pending because they wait behind dead ones.
    pub is_blocked: bool,
    /// Whether it was told to drain before it had seen that nothing is pending.
    pub is_cut_short: bool,
}

/// Why `--until-empty` did not get there.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The database does not work, and waiting did not help.
    #[error(transparent)]
    Database(#[from] OutboxError),
    /// The queue does not work, and waiting did not help.
    #[error("destination {destination} is halted: {reason}")]
    Halted {
        /// Which one.
        destination: String,
        /// What SQS said.
        reason: String,
    },
    /// An operator has paused it, and waiting did not help.
    #[error("destination {destination} is paused; `outbox-relay status` says by whom")]
    Paused {
        /// Which one.
        destination: String,
    },
}

/// Publishes the messages of one destination.
#[derive(Debug)]
pub struct Relay {
    destination: Destination,
    reports: Reports,
    ear: Ear,
    helm: Helm,
    probe: Probe,
    throttle: Throttle,
    pace: Pace,
    bounds: LowBounds,
    /// Groups of which messages below the low bounds wait in the table.
    remembered: Vec<Remembered>,
    generation: u64,
    is_prepared: bool,
    /// The generation in which it was prepared.
    prepared_in: u64,
    unsettled: Vec<Settlement>,
    most_lanes: usize,
    /// Lanes that had work and were all held by others, and until when not to look whether that is still so.
    contended: Option<(Vec<Lane>, Instant)>,
    sweeping: Sweeping,
    round: Option<Round>,
    /// Whether the bounds were set by a climb; if not, they say nothing.
    is_climbed: bool,
    next_recheck: Instant,
    /// The lookout saw nothing since the last look, so only the sweep is due.
    is_only_sweeping: bool,
    database_delays: Delays,
    failing_since: Option<Instant>,
    ended: Ended,
}

/// What a step found, and so when to take the next one.
enum Step {
    /// Something was done; there may be more.
    Worked,
    /// Nothing to do.
    Idle,
    /// There seemed to be something, but nothing of it could be sent.
    Fruitless,
    /// Nothing is pending at all.
    Empty,
    /// The destination is halted for this long.
    Halted(Duration, String),
    /// An operator has paused it.
    Paused,
}

impl Relay {
    /// A relay that has not looked at anything yet.
    pub fn new(destination: Destination, reports: Reports, ear: Ear, helm: Helm) -> Self {
        let tuning = destination.tuning;
        Self {
            probe: Probe::new(Arc::clone(&reports.queue), tuning.retry_initial, tuning.retry_max),
            throttle: Throttle::new(tuning.max_in_flight),
            pace: Pace::default(),
            reports,
            ear,
            helm,
            bounds: LowBounds::default(),
            remembered: Vec::new(),
            generation: 0,
            is_prepared: false,
            prepared_in: 0,
            unsettled: Vec::new(),
            most_lanes: usize::try_from(LANES).unwrap_or(1),
            contended: None,
            sweeping: Sweeping::default(),
            round: None,
            is_climbed: false,
            next_recheck: Instant::now(),
            is_only_sweeping: false,
            database_delays: Delays::new(DATABASE_RETRY.0, DATABASE_RETRY.1),
            failing_since: None,
            ended: Ended::default(),
            destination,
        }
    }

    /// Publishes until it is told to drain, or until nothing is pending. A failure of database or queue is waited out,
    /// for ever by the daemon, for a minute by `--until-empty`.
    ///
    /// # Errors
    ///
    /// Only with [`Until::Empty`]: when database or queue stayed unusable.
    pub async fn run(mut self, until: Until, drain: CancellationToken) -> Result<Ended, RelayError> {
        self.ended.is_cut_short = true;
        // What SQS accepted is written before leaving, as long as the drain timeout allows.
        while !drain.is_cancelled() || !self.unsettled.is_empty() {
            self.reports.pulse.tick();
            let pause = match self.step(until, &drain).await {
                Ok(step) => {
                    self.database_delays.reset();
                    self.database_answered();
                    match step {
                        Step::Worked => Duration::ZERO,
                        Step::Idle if until == Until::Drained && self.is_quiet() => {
                            self.is_only_sweeping = !self.listen(&drain).await;
                            Duration::ZERO
                        }
                        Step::Idle => self.destination.tuning.poll_interval.mul_f64(0.8 + 0.4 * fastrand::f64()),
                        // What is due behind a dead message that holds up its group would have it claim on and on.
                        Step::Fruitless => self.destination.tuning.poll_interval * FRUITLESS_PAUSE,
                        Step::Empty => {
                            self.ended.is_cut_short = false;
                            break;
                        }
                        Step::Halted(pause, reason) => {
                            let destination = self.destination.name.to_string();
                            self.give_up_after(until, RelayError::Halted { destination, reason })?;
                            pause
                        }
                        Step::Paused => {
                            let destination = self.destination.name.to_string();
                            self.give_up_after(until, RelayError::Paused { destination })?;
                            self.until_resumed(&drain).await;
                            Duration::ZERO
                        }
                    }
                }
                Err(error) => self.database_failed(error, until)?,
            };
            if !pause.is_zero() {
                self.wait(pause, &drain).await;
            }
        }
        self.reports.pulse.finish();
        Ok(self.ended)
    }

    /// Takes over what operators have set.
    fn adjust(&mut self) {
        if let Some(tuning) = self.helm.tuning() {
            self.destination.tuning = tuning;
            self.throttle.set_most(tuning.max_in_flight);
            self.probe.set_delays(tuning.retry_initial, tuning.retry_max);
            if !self.destination.blocks() {
                self.unblock_all();
            }
            self.destination.metrics.in_flight_limit.set(self.throttle.limit() as i64);
        }
    }

    /// One round: write back what could not be written, look, claim, stream.
    async fn step(&mut self, until: Until, drain: &CancellationToken) -> Result<Step, OutboxError> {
        self.settle_the_unsettled().await?;
        if drain.is_cancelled() {
            return Ok(Step::Idle);
        }
        self.prepare().await?;
        self.helm.first_answer().await;
        self.adjust();
        if self.helm.is_paused() {
            // So that a database which goes away in a pause is noticed.
            self.destination.outbox.check_schema().await?;
            let is_done = until == Until::Empty && self.is_all_done().await?;
            return Ok(if is_done { Step::Empty } else { Step::Paused });
        }
        let generation = self.destination.outbox.generation();
        if generation != self.generation {
            self.generation = generation;
            self.forget_bounds();
        }
        if !self.climb(drain).await? {
            return Ok(Step::Idle);
        }
        let ready = match self.contended.take() {
            Some((ready, until)) if Instant::now() < until => {
                self.contended = Some((ready.clone(), until));
                ready
            }
            _ => self.look().await?,
        };
        // Not only after the claim that follows, which may take seconds.
        self.database_answered();
        if ready.is_empty() {
            self.failing_since = None;
            let is_done = until == Until::Empty && self.is_all_done().await?;
            return Ok(if is_done { Step::Empty } else { Step::Idle });
        }
        let all: Vec<Lane> = (0..LANES).collect();
        // An idle relay takes every lane, so that quiet traffic fills requests. A saturated one takes fewer, those with
        // work, and leaves the others free for a moment.
        let wanted = if self.most_lanes < all.len() { &ready } else { &all };
        let limit = STREAM_FOR + self.destination.tuning.request_timeout;
        let claim = self.destination.outbox.claim(&self.destination.name, wanted, self.most_lanes, limit).await?;
        let Some(claim) = claim else {
            // A server that took over and was behind may have no lanes yet.
            self.is_prepared &= self.prepared_in == self.generation;
            // The database answers, and somebody delivers.
            self.failing_since = None;
            let until = Instant::now() + LOOK_AGAIN;
            self.contended.get_or_insert_with(|| (ready.clone(), until));
            // Others have all lanes and much to do. Whoever took all that one of them gives back would only swap places.
            if ready.len() >= all.len() / 2 {
                self.most_lanes = self.most_lanes.min(all.len() / 2);
            }
            return Ok(Step::Idle);
        };
        self.contended = None;
        let held = claim.lanes().len();
        let memory = Memory {
            bounds: &mut self.bounds,
            probe: &mut self.probe,
            throttle: &mut self.throttle,
            pace: &mut self.pace,
            sweeping: &mut self.sweeping,
            remembered: &mut self.remembered,
        };
        let end = Stream::new(&self.destination, claim, memory, &self.helm, &self.reports.pulse).run(drain).await;
        let step = self.after(end, held)?;
        let is_over = matches!(step, Step::Fruitless) && until == Until::Empty && self.is_all_done().await?;
        Ok(if is_over { Step::Empty } else { step })
    }

    fn after(&mut self, end: StreamEnd, held: usize) -> Result<Step, OutboxError> {
        self.ended.delivered += end.delivered;
        self.ended.dead += end.dead;
        self.unsettled.extend(end.unsettled);
        if end.has_dropped {
            self.forget_bounds();
        }
        if end.delivered > 0 {
            self.failing_since = None;
        }
        let all = usize::try_from(LANES).unwrap_or(1);
        self.most_lanes = if end.is_saturated { (held / 2).max(1) } else { all };
        match end.closing {
            Closing::Time | Closing::Shutdown | Closing::Paused => Ok(Step::Worked),
            // A claim that found nothing it could send may find the same again at once.
            Closing::Idle => Ok(if end.delivered > 0 || end.dead > 0 { Step::Worked } else { Step::Fruitless }),
            Closing::Halted(fault) => {
                self.throttle.halted(fault.kind);
                self.destination.metrics.in_flight_limit.set(self.throttle.limit() as i64);
                let pause = self.probe.failed(&self.destination, &fault);
                Ok(Step::Halted(pause, fault.to_string()))
            }
            Closing::Broken(error) => Err(error),
        }
    }

    /// The schema must be there, and the destination's lanes.
    async fn prepare(&mut self) -> Result<(), OutboxError> {
        if !self.is_prepared {
            self.destination.outbox.check_schema().await?;
            self.destination.outbox.create_lanes(&self.destination.name).await?;
            self.is_prepared = true;
            self.prepared_in = self.destination.outbox.generation();
        }
        Ok(())
    }

    /// Lanes with work.
    async fn look(&mut self) -> Result<Vec<Lane>, OutboxError> {
        self.recheck_the_blocked().await?;
        if Instant::now() >= self.sweeping.next() {
            let found = self.sweep().await?;
            if !found.is_empty() || std::mem::take(&mut self.is_only_sweeping) {
                return Ok(found);
            }
        }
        let Destination { name, outbox, .. } = &self.destination;
        let look = outbox.look(name, &self.bounds.lows()).await?;
        // A writer that was overtaken has ended; what it left below the bounds may be the head of a group.
        self.bounds.shows_late_rows(&look.snapshot);
        let are_unswept =
            self.destination.queue.kind() == QueueKind::Fifo && (0..LANES).any(|lane| self.bounds.is_unswept(lane));
        let late = if are_unswept { self.sweep().await? } else { Vec::new() };
        let empty: Vec<Lane> = (0..LANES).filter(|lane| !look.ready.contains(lane) && !late.contains(lane)).collect();
        self.bounds.looked(&empty, &look, Instant::now());
        let now = Instant::now();
        let may_go_on = |group: &&Remembered| group.goes_on.is_now(now);
        let mut ready = look.ready;
        ready.extend(late);
        ready.extend(look.due);
        ready.extend(self.remembered.iter().filter(may_go_on).map(|group| group.lane));
        ready.sort_unstable();
        ready.dedup();
        Ok(ready)
    }

    /// What was learnt may have been about another server.
    fn forget_bounds(&mut self) {
        self.bounds.reset();
        self.is_climbed = false;
        self.round = None;
        self.remembered.clear();
        self.contended = None;
    }
}
