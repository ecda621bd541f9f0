//! The pace of the database: how many messages may be sent and not yet written back.
//!
//! A database that writes slowly (a trigger, a full disk queue) must not be given more than it can write while the claim
//! lives, or another relay would send again what SQS has accepted. How fast it writes is what it last showed. Pure.

use std::time::Duration;

/// No more outcomes are written in one transaction, so that each ends well before a statement's time is over.
const MOST_WRITTEN: usize = 2000;

/// Outcomes a second of a database that has not written any yet.
const FIRST: f64 = 2000.0;

/// What may always be under way: ten full requests.
const LEAST: usize = 100;

/// What is under way shall be written within this time; a claim lasts for several times as long.
const WITHIN: Duration = Duration::from_secs(1);

/// The pace of one destination, kept from claim to claim.
#[derive(Debug)]
pub(super) struct Pace {
    /// Outcomes a second, as the last transaction wrote them.
    per_second: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { per_second: FIRST }
    }
}

impl Pace {
    /// So many outcomes were written in this time, or were not.
    pub(super) fn note<T, E>(&mut self, outcomes: usize, time: Duration, result: &Result<T, E>) {
        let rate = outcomes as f64 / time.max(Duration::from_millis(1)).as_secs_f64();
        self.per_second = match result {
            Ok(_) => rate,
            // What failed at once says nothing; what failed after a while shows that it is no faster than that.
            Err(_) => self.per_second.min(rate),
        };
    }

    /// How many messages may be sent and not yet written back.
    pub(super) fn most_under_way(&self) -> usize {
        // Saturates: a rate that is too high to count is no limit.
        ((self.per_second * WITHIN.as_secs_f64()) as usize).max(LEAST)
    }

    /// How many outcomes may be written in one transaction.
    pub(super) fn most_written(&self) -> usize {
        self.most_under_way().min(MOST_WRITTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: Result<(), ()> = Ok(());
    const FAILED: Result<(), ()> = Err(());

    #[test]
    fn a_slow_database_is_given_no_more_than_it_writes_in_a_second() {
        let mut pace = Pace::default();
        assert_eq!((pace.most_under_way(), pace.most_written()), (2000, 2000));
        pace.note(500, Duration::from_secs(1), &WRITTEN);
        assert_eq!((pace.most_under_way(), pace.most_written()), (500, 500));
        pace.note(500, Duration::from_millis(10), &WRITTEN);
        assert_eq!((pace.most_under_way(), pace.most_written()), (50_000, 2000));
    }

    #[test]
    fn some_messages_may_be_under_way_however_slow_it_is() {
        let mut pace = Pace::default();
        pace.note(1, Duration::from_secs(5), &WRITTEN);
        assert_eq!((pace.most_under_way(), pace.most_written()), (100, 100));
    }

    #[test]
    fn what_was_not_written_in_time_slows_down_and_what_failed_at_once_says_nothing() {
        let mut pace = Pace::default();
        pace.note(2000, Duration::from_millis(3), &FAILED);
        assert_eq!(pace.most_under_way(), 2000);
        pace.note(1000, Duration::from_secs(1), &WRITTEN);
        pace.note(2000, Duration::from_millis(3), &FAILED);
        assert_eq!(pace.most_under_way(), 1000);
        pace.note(2000, Duration::from_secs(9), &FAILED);
        assert_eq!(pace.most_under_way(), 222);
    }
}
