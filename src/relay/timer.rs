//! The timer: it makes scheduled messages pending when they fall due. Relays know nothing of them before.
//!
//! The poller tells it when the next message of each destination falls due. Destinations do not wait for each other's
//! failures, and a message that PostgreSQL refuses to make pending does not keep those behind it from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::health::Heartbeat;
use crate::message::MessageId;
use crate::outbox::{Enqueued, MOST_DUE, MOST_REFUSED, Outbox, OutboxError, is_in_parts};

/// When the next scheduled message of each destination falls due, as far as that is known.
pub(super) type NextDue = Vec<Option<Instant>>;

/// First and longest pause after a statement that failed, or found only messages that somebody has locked.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The longest pause while the earliest messages that are due cannot be taken: others may fall due behind them.
const HIDDEN_PAUSE: Duration = Duration::from_millis(500);

/// How long to wait for the poller to tell what is due next.
const AFTER_SUCCESS: Duration = Duration::from_millis(20);

/// Messages that are passed over, because PostgreSQL refuses them, are tried again this often.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// The longest sleep, so that the heart beats.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Makes scheduled messages pending, for all destinations of the process.
#[derive(Debug)]
pub struct Timer {
    outbox: Outbox,
    destinations: Vec<Scheduled>,
    next_due: watch::Receiver<NextDue>,
    news: Arc<Notify>,
    heartbeat: Arc<Heartbeat>,
}

/// One destination.
#[derive(Debug)]
struct Scheduled {
    name: Arc<str>,
    /// Nothing is done before.
    not_before: Instant,
    pause: Duration,
    /// How many messages the next statement takes.
    most: i64,
    /// Messages that it passes over, because PostgreSQL refused each of them alone, and until when.
    passed_over: Vec<MessageId>,
    pass_until: Instant,
    /// Whether it was logged that it fails.
    is_logged: bool,
}

impl Timer {
    /// A timer for these destinations; it tells `news` when there is something for the relays.
    pub(super) fn new(
        outbox: Outbox,
        destinations: &[Arc<str>],
        next_due: watch::Receiver<NextDue>,
        news: Arc<Notify>,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        let now = Instant::now();
        let destinations = destinations.iter().map(|name| Scheduled::new(Arc::clone(name), now)).collect();
        Self { outbox, destinations, next_due, news, heartbeat }
    }

    /// Works until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wake = self.work(&stop).await;
            tokio::select! {
                () = tokio::time::sleep_until(wake.into()) => {}
                // An error means that the poller has ended, which it does only with the process.
                Ok(()) = self.next_due.changed() => {}
                () = stop.cancelled() => {}
            }
        }
        self.heartbeat.finish();
    }

    /// Does what is due; returns when to look again.
    async fn work(&mut self, stop: &CancellationToken) -> Instant {
        let next_due = self.next_due.borrow_and_update().clone();
        let mut wake = Instant::now() + LONGEST_SLEEP;
        for (scheduled, at) in self.destinations.iter_mut().zip(next_due) {
            self.heartbeat.tick();
            let now = Instant::now();
            if at.is_none_or(|at| at > now) {
                scheduled.rest(now);
            }
            let Some(at) = at else { continue };
            if at.max(scheduled.not_before) <= now && !stop.is_cancelled() {
                let answer = self.outbox.enqueue_due(&scheduled.name, scheduled.most, &scheduled.passed_over).await;
                if matches!(answer, Ok(Enqueued { messages: 1.., .. })) {
                    self.news.notify_one();
                }
                scheduled.apply(answer, Instant::now());
            }
            wake = wake.min(at.max(scheduled.not_before));
        }
        self.heartbeat.tick();
        wake
    }
}

impl Scheduled {
    fn new(name: Arc<str>, now: Instant) -> Self {
        let (pause, most, passed_over) = (PAUSE.0, MOST_DUE, Vec::new());
        Self { name, not_before: now, pause, most, passed_over, pass_until: now, is_logged: false }
    }

    /// Applies an answer.
    fn apply(&mut self, answer: Result<Enqueued, OutboxError>, now: Instant) {
        if now >= self.pass_until {
            self.passed_over.clear();
        }
        match answer {
            Ok(Enqueued { refused: Some((id, error)), .. }) => {
                let has_place = error.is_about_a_row() && self.passed_over.len() < MOST_REFUSED;
                // Without a place for it, all wait.
                self.is_logged &= has_place;
                self.say(&error);
                if has_place {
                    if self.passed_over.is_empty() {
                        self.pass_until = now + TRY_AGAIN;
                    }
                    self.passed_over.push(id);
                    self.not_before = now;
                } else {
                    self.back_off(now, PAUSE.1);
                }
            }
            // Those that are passed over or locked hide from the poller when the next one falls due.
            Ok(Enqueued { messages: 0, .. }) => self.back_off(now, HIDDEN_PAUSE),
            Ok(Enqueued { messages, .. }) => {
                self.is_logged &= !self.passed_over.is_empty();
                self.pause = PAUSE.0;
                self.not_before = if messages >= self.most { now } else { now + AFTER_SUCCESS };
                self.most = (self.most * 2).min(MOST_DUE);
            }
            Err(error) => {
                self.say(&error);
                if self.most > 1 && is_in_parts(&error) {
                    // One of them is refused, or they take too long: the others go in ever smaller parts.
                    self.most /= 2;
                    self.not_before = now;
                } else {
                    self.back_off(now, PAUSE.1);
                }
            }
        }
    }

    fn say(&mut self, error: &OutboxError) {
        if !std::mem::replace(&mut self.is_logged, true) {
            tracing::warn!(
                destination = %self.name,
                %error,
                "scheduled messages that are due cannot be enqueued; trying again"
            );
        }
    }

    /// Nothing is due, so whatever kept it from becoming pending is over, or another relay has done it.
    fn rest(&mut self, now: Instant) {
        self.pause = PAUSE.0;
        self.not_before = now;
    }

    fn back_off(&mut self, now: Instant, longest: Duration) {
        self.pause = self.pause.min(longest);
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Result<Enqueued, OutboxError> {
        Err(OutboxError::of_code("23514"))
    }

    fn refused_alone(id: i64) -> Result<Enqueued, OutboxError> {
        Ok(Enqueued { messages: 0, refused: Some((MessageId(id), OutboxError::of_code("23514"))) })
    }

    fn enqueued(messages: i64) -> Result<Enqueued, OutboxError> {
        Ok(Enqueued { messages, refused: None })
    }

    #[test]
    fn a_refused_message_is_found_passed_over_by_its_id_and_tried_again_later() {
        let start = Instant::now();
        let mut scheduled = Scheduled::new(Arc::from("tickets"), start);
        let mut tries = 0;
        while scheduled.most > 1 {
            scheduled.apply(refused(), start);
            tries += 1;
        }
        assert_eq!(tries, 12, "5000 are halved twelve times");
        scheduled.apply(refused_alone(7), start);
        assert_eq!(
            (&scheduled.passed_over[..], scheduled.not_before),
            (&[MessageId(7)][..], start),
            "the others go on"
        );
        scheduled.apply(enqueued(1), start);
        assert_eq!((&scheduled.passed_over[..], scheduled.most), (&[MessageId(7)][..], 2));
        scheduled.apply(enqueued(0), start + TRY_AGAIN);
        assert_eq!(scheduled.passed_over, []);
    }

    #[test]
    fn a_lack_of_privilege_passes_nothing_over() {
        let start = Instant::now();
        let mut scheduled = Scheduled::new(Arc::from("tickets"), start);
        for _ in 0..1000 {
            scheduled.apply(Err(OutboxError::of_code("42501")), start);
        }
        assert_eq!((scheduled.passed_over.len(), scheduled.most), (0, 1));
        assert_eq!(scheduled.not_before, start + PAUSE.1, "it is tried ever less often");
    }

    #[test]
    fn what_cannot_be_done_now_is_tried_ever_less_often() {
        let start = Instant::now();
        let mut scheduled = Scheduled::new(Arc::from("tickets"), start);
        for _ in 0..10 {
            scheduled.apply(enqueued(0), start);
        }
        assert_eq!(scheduled.not_before, start + HIDDEN_PAUSE, "others may fall due behind what is locked");
        scheduled.rest(start);
        assert_eq!(scheduled.not_before, start, "the next one is sent in time");
        scheduled.apply(enqueued(MOST_DUE), start);
        assert_eq!(scheduled.not_before, start, "there may be more");
        scheduled.apply(enqueued(3), start);
        assert_eq!(scheduled.not_before, start + AFTER_SUCCESS);
    }

    #[test]
    fn what_takes_too_long_is_done_in_smaller_parts_which_grow_again() {
        let start = Instant::now();
        let mut scheduled = Scheduled::new(Arc::from("tickets"), start);
        scheduled.apply(Err(OutboxError::of_code("57014")), start);
        assert_eq!((scheduled.most, scheduled.not_before), (MOST_DUE / 2, start));
        scheduled.apply(enqueued(MOST_DUE / 2), start);
        assert_eq!(scheduled.most, MOST_DUE);
        scheduled.apply(Err(OutboxError::of_code("08006")), start);
        assert_eq!(
            (scheduled.most, scheduled.not_before),
            (MOST_DUE, start + PAUSE.0),
            "it says nothing about messages"
        );
    }
}
