//! From fault to conduct: what a failure costs and who pays.
//!
//! Everything here is pure. [`crate::sqs`] says what kind of fault an answer was, [`crate::relay`] carries the conduct out.
//! Delays come from the `backoff` crate, which only this file knows; docs/decisions/0004-backoff.md tells why and how to
//! replace it.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::message::FaultKind;

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Give the message up now, with the reason.
    Bury,
    /// Charge the message an attempt and try again after a growing delay.
    RetryCharged,
    /// Try the same entry again after a growing delay, free of charge; it may be a duplicate.
    Resend,
    /// Stop the destination, try it again with one request after a growing delay, charge nobody, write nothing.
    Halt,
}

/// The conduct for a fault of this kind that meets a message which has failed `attempts` times before.
pub fn conduct(kind: FaultKind, attempts: i16, max_attempts: i16) -> Conduct {
    match kind {
        FaultKind::MessagePermanent => Conduct::Bury,
        FaultKind::MessageTransient if attempts.saturating_add(1) >= max_attempts => Conduct::Bury,
        FaultKind::MessageTransient => Conduct::RetryCharged,
        FaultKind::Ambiguous => Conduct::Resend,
        FaultKind::Destination | FaultKind::Throttle | FaultKind::Outage | FaultKind::ServerError | FaultKind::Ours => {
            Conduct::Halt
        }
    }
}

/// Growing delays with full jitter: each is drawn evenly from 0 to a ceiling that doubles from `initial` to `max`.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// Delays whose first ceiling is `initial` and whose last is `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        // The crate draws from interval ± factor × interval, and adds the jitter after the cap. With a factor of 1 and
        // half of each ceiling as the interval, that is an even draw from 0 to the ceiling, which is never exceeded.
        let mut delays = ExponentialBackoff {
            initial_interval: initial / 2,
            max_interval: max / 2,
            multiplier: 2.0,
            randomization_factor: 1.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        delays.reset();
        Self(delays)
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        // `None` only comes after max_elapsed_time, which is off.
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Starts again from the first ceiling.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// The delay before the attempt that follows the `attempts`-th failed one (from 1), between 0 and `max`.
pub fn delay_after(attempts: i16, initial: Duration, max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(30);
    let ceiling = initial.saturating_mul(2_u32.saturating_pow(doublings)).min(max);
    Delays::new(ceiling, max).next_delay()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_its_conduct() {
        let of = |kind| conduct(kind, 0, 10);
        assert_eq!(of(FaultKind::MessagePermanent), Conduct::Bury);
        assert_eq!(of(FaultKind::MessageTransient), Conduct::RetryCharged);
        assert_eq!(of(FaultKind::Ambiguous), Conduct::Resend);
        assert_eq!(of(FaultKind::Destination), Conduct::Halt);
        assert_eq!(of(FaultKind::Throttle), Conduct::Halt);
        assert_eq!(of(FaultKind::Outage), Conduct::Halt);
        assert_eq!(of(FaultKind::ServerError), Conduct::Halt);
        assert_eq!(of(FaultKind::Ours), Conduct::Halt);
    }

    #[test]
    fn only_a_message_fault_ends_after_the_last_attempt() {
        assert_eq!(conduct(FaultKind::MessageTransient, 8, 10), Conduct::RetryCharged);
        assert_eq!(conduct(FaultKind::MessageTransient, 9, 10), Conduct::Bury);
        assert_eq!(conduct(FaultKind::MessageTransient, i16::MAX, 10), Conduct::Bury);
        assert_eq!(conduct(FaultKind::Ambiguous, 9, 10), Conduct::Resend);
        assert_eq!(conduct(FaultKind::Outage, 9, 10), Conduct::Halt);
    }

    /// The match in `conduct` is exhaustive; this says what may never slip into it.
    #[test]
    fn only_a_message_fault_charges_or_kills() {
        for kind in FaultKind::ALL {
            for attempts in 0..=i16::MAX {
                let what = conduct(kind, attempts, 10);
                match kind {
                    FaultKind::MessagePermanent => assert_eq!(what, Conduct::Bury),
                    FaultKind::MessageTransient => assert_eq!(what == Conduct::RetryCharged, attempts < 9),
                    _ => assert!(matches!(what, Conduct::Resend | Conduct::Halt), "{kind:?}"),
                }
            }
        }
    }

    #[test]
    fn delays_grow_to_the_maximum_and_never_beyond() {
        let (initial, max) = (Duration::from_millis(200), Duration::from_secs(2));
        for attempts in 1..40 {
            let ceiling = (initial * 2_u32.pow(u32::from(attempts.min(10) as u16) - 1)).min(max);
            for _ in 0..200 {
                assert!(delay_after(attempts, initial, max) <= ceiling, "attempt {attempts}");
            }
        }
        let mut delays = Delays::new(initial, max);
        let late = (0..2000).map(|_| delays.next_delay()).max().unwrap();
        assert!(late <= max && late > max.mul_f64(0.9), "the longest of 2000 draws was {late:?}");
        delays.reset();
        assert!(delays.next_delay() <= initial);
    }

    #[test]
    fn delays_are_spread_evenly_from_nothing() {
        let max = Duration::from_secs(1);
        let mut delays = Delays::new(max, max);
        let drawn: Vec<f64> = (0..4000).map(|_| delays.next_delay().as_secs_f64()).collect();
        let mean = drawn.iter().sum::<f64>() / 4000.0;
        assert!((0.45..0.55).contains(&mean), "mean {mean}");
        assert!(drawn.iter().any(|d| *d < 0.05));
    }
}
