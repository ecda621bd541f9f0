//! The watchdog: notices that messages are due, nothing is delivered, and no known reason explains it. Pure.
//!
//! It should never be needed: when it reports something, a destination stands still and no other probe shows it.

use std::time::{Duration, Instant};

use crate::health::Activity;

/// How long this may last when the database answers at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many questions a relay asks one after another before the first message goes out after a pause. With a slow
/// database, standing still may last as long as that many answers.
const QUESTIONS: u32 = 20;

/// The result of one look at a destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// Age of the oldest message that nothing holds up, in seconds; 0 when there is none.
    pub(super) ready_lag: f64,
    /// Messages that this relay has delivered or declared dead since it started.
    pub(super) finished: u64,
    /// How long the database took to answer.
    pub(super) answered_in: Duration,
    /// What the relay is doing.
    pub(super) activity: Option<Activity>,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The destination stands still.
    Stalled,
    /// The destination goes on.
    GoesOn,
}

/// Watches one destination.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    /// Since when nothing was delivered although something was due, and what was seen at that time.
    since: Option<(Instant, Sight)>,
    is_stalled: bool,
}

impl Watchdog {
    /// Whether the destination stands still.
    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// For how long it has stood still.
    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(since))
    }

    /// The database did not answer, which explains everything.
    pub(super) fn goes_blind(&mut self) {
        *self = Self::default();
    }

    /// Whether something was delivered; if others hold the lanes, whether the oldest message has changed.
    fn goes_on(&self, sight: Sight, now: Instant) -> bool {
        let Some((since, before)) = self.since else { return true };
        let is_others = sight.activity == Some(Activity::LanesAreElsewhere);
        let same_oldest = before.ready_lag + now.saturating_duration_since(since).as_secs_f64();
        before.finished != sight.finished || (is_others && sight.ready_lag < same_oldest - 1.0)
    }

    /// Applies the result of a look.
    pub(super) fn look(&mut self, sight: Sight, now: Instant) -> Option<Change> {
        let is_explained = matches!(sight.activity, Some(Activity::Halted | Activity::Paused) | None);
        if sight.ready_lag <= 0.0 || is_explained || self.goes_on(sight, now) {
            let is_due = sight.ready_lag > 0.0 && !is_explained;
            self.since = is_due.then_some((now, sight));
            return std::mem::take(&mut self.is_stalled).then_some(Change::GoesOn);
        }
        let patience = PATIENCE + sight.answered_in * QUESTIONS;
        let is_too_long = self.stalled_for(now) >= patience && sight.ready_lag >= patience.as_secs_f64();
        let is_news = is_too_long && !self.is_stalled;
        self.is_stalled |= is_too_long;
        is_news.then_some(Change::Stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(ready_lag: f64, finished: u64, activity: Activity) -> Sight {
        Sight { ready_lag, finished, answered_in: Duration::ZERO, activity: Some(activity) }
    }

    #[test]
    fn messages_due_and_undelivered_for_thirty_seconds_without_a_reason_are_reported_once() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watchdog.look(sight(100.0, 5, Activity::Idle), at(0)), None, "it has only begun to look");
        assert_eq!(watchdog.look(sight(129.0, 5, Activity::Idle), at(29)), None);
        assert_eq!(watchdog.look(sight(130.0, 5, Activity::Idle), at(30)), Some(Change::Stalled));
        assert_eq!(watchdog.look(sight(140.0, 5, Activity::Idle), at(40)), None);
        assert!(watchdog.is_stalled());
        assert_eq!(watchdog.look(sight(141.0, 6, Activity::Idle), at(41)), Some(Change::GoesOn));
        assert!(!watchdog.is_stalled());
    }

    #[test]
    fn a_known_reason_or_a_delivery_restarts_the_time() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..100 {
            let activity = if second % 25 == 0 { Activity::Halted } else { Activity::Idle };
            assert_eq!(watchdog.look(sight(500.0, 5, activity), at(second)), None);
        }
        for second in 100..200 {
            assert_eq!(watchdog.look(sight(500.0, second, Activity::Idle), at(second)), None);
        }
    }

    #[test]
    fn lanes_that_others_hold_explain_it_while_the_oldest_message_changes() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let others = |lag| sight(lag, 5, Activity::LanesAreElsewhere);
        for second in 0..100 {
            assert_eq!(watchdog.look(others(100.0), at(second)), None, "as old as before, so it is a younger message");
        }
        assert_eq!(watchdog.look(others(101.0), at(100)), None);
        assert_eq!(
            watchdog.look(others(200.0), at(199)),
            Some(Change::Stalled),
            "another relay holds them and does nothing"
        );
    }

    #[test]
    fn an_outage_of_the_database_restarts_the_time() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watchdog.look(sight(100.0, 5, Activity::Idle), at(0)), None);
        watchdog.goes_blind();
        assert_eq!(watchdog.look(sight(200.0, 5, Activity::Idle), at(100)), None, "the database has only come back");
        assert_eq!(watchdog.look(sight(230.0, 5, Activity::Idle), at(130)), Some(Change::Stalled));
    }

    #[test]
    fn a_slow_database_is_given_the_time_for_some_questions() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let slow = |lag| Sight { answered_in: Duration::from_secs(2), ..sight(lag, 5, Activity::Idle) };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watchdog.look(slow(100.0), at(0)), None);
        assert_eq!(watchdog.look(slow(169.0), at(69)), None);
        assert_eq!(watchdog.look(slow(170.0), at(70)), Some(Change::Stalled));
    }

    #[test]
    fn a_message_younger_than_that_is_not_reported() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        for second in 0..100 {
            let lag = (second % 20) as f64;
            assert_eq!(watchdog.look(sight(lag, 5, Activity::Idle), start + Duration::from_secs(second)), None);
        }
    }
}
