//! From fault to policy: whether a failed message is retried, and whether the attempt counts.
//!
//! Everything here is pure. [`crate::publisher`] says which kind of fault an answer was, and [`crate::relay`] carries out the
//! policy. Delays come from the `backoff` crate, which only this file uses; docs/decisions/0004-backoff.md says why,
//! and how to replace it.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::message::FaultKind;

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Declare the message dead now, with the reason.
    DeadLetter,
    /// Charge the message an attempt if other messages are accepted, and retry after a growing delay.
    RetryCharged,
    /// Retry the same entry after a growing delay without charging an attempt; it may become a duplicate.
    Resend,
    /// Halt the destination, probe it with one request after a growing delay, charge no message, write nothing.
    Halt,
}

/// The policy for a fault of this kind, for a message that has failed `attempts` times before.
pub fn policy(kind: FaultKind, attempts: i16, max_attempts: usize) -> Policy {
    match kind {
        FaultKind::MessagePermanent => Policy::DeadLetter,
        FaultKind::MessageTransient if usize::try_from(attempts).unwrap_or(0) + 1 >= max_attempts => Policy::DeadLetter,
        FaultKind::MessageTransient => Policy::RetryCharged,
        FaultKind::Ambiguous | FaultKind::NotSent => Policy::Resend,
        FaultKind::Destination
        | FaultKind::Throttle
        | FaultKind::Outage
        | FaultKind::ServerError
        | FaultKind::Internal => Policy::Halt,
    }
}

/// Growing delays with full jitter: each is drawn evenly from 0 to a ceiling that doubles from `initial` to `max`.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// Delays whose first ceiling is `initial` and whose last is `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        // The crate's own jitter is added after the cap, and its random source cannot be seeded. So the crate only
        // grows the ceilings.
        let mut delays = ExponentialBackoff {
            initial_interval: initial,
            max_interval: max,
            multiplier: 2.0,
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        delays.reset();
        Self(delays)
    }

    /// The next delay, drawn from this random source.
    pub fn next_delay(&mut self, dice: &mut fastrand::Rng) -> Duration {
        // `None` only comes after max_elapsed_time, which is off.
        let ceiling = self.0.next_backoff().unwrap_or(self.0.max_interval);
        ceiling.min(self.0.max_interval).mul_f64(dice.f64())
    }

    /// Starts again from the first ceiling.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// The delay before the attempt that follows the `attempts`-th failed one (from 1), between 0 and `max`, drawn from
/// this random source.
pub fn delay_after(attempts: i16, initial: Duration, max: Duration, dice: &mut fastrand::Rng) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(30);
    let ceiling = initial.saturating_mul(2_u32.saturating_pow(doublings)).min(max);
    Delays::new(ceiling, max).next_delay(dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_its_policy() {
        let of = |kind| policy(kind, 0, 10);
        assert_eq!(of(FaultKind::MessagePermanent), Policy::DeadLetter);
        assert_eq!(of(FaultKind::MessageTransient), Policy::RetryCharged);
        assert_eq!(of(FaultKind::Ambiguous), Policy::Resend);
        assert_eq!(of(FaultKind::NotSent), Policy::Resend);
        assert_eq!(of(FaultKind::Destination), Policy::Halt);
        assert_eq!(of(FaultKind::Throttle), Policy::Halt);
        assert_eq!(of(FaultKind::Outage), Policy::Halt);
        assert_eq!(of(FaultKind::ServerError), Policy::Halt);
        assert_eq!(of(FaultKind::Internal), Policy::Halt);
    }

    #[test]
    fn only_a_message_fault_ends_after_the_last_attempt() {
        assert_eq!(policy(FaultKind::MessageTransient, 8, 10), Policy::RetryCharged);
        assert_eq!(policy(FaultKind::MessageTransient, 9, 10), Policy::DeadLetter);
        assert_eq!(policy(FaultKind::MessageTransient, i16::MAX, 10), Policy::DeadLetter);
        assert_eq!(policy(FaultKind::Ambiguous, 9, 10), Policy::Resend);
        assert_eq!(policy(FaultKind::Outage, 9, 10), Policy::Halt);
    }

    /// The match in `policy` is exhaustive; this test says what it must never contain.
    #[test]
    fn only_a_message_fault_charges_or_kills() {
        for kind in FaultKind::ALL {
            for attempts in 0..=i16::MAX {
                let what = policy(kind, attempts, 10);
                match kind {
                    FaultKind::MessagePermanent => assert_eq!(what, Policy::DeadLetter),
                    FaultKind::MessageTransient => assert_eq!(what == Policy::RetryCharged, attempts < 9),
                    _ => assert!(matches!(what, Policy::Resend | Policy::Halt), "{kind:?}"),
                }
            }
        }
    }

    #[test]
    fn delays_grow_to_the_maximum_and_never_beyond() {
        let (initial, max) = (Duration::from_millis(200), Duration::from_secs(2));
        let mut dice = fastrand::Rng::with_seed(1);
        for attempts in 1..40 {
            let ceiling = (initial * 2_u32.pow(u32::from(attempts.min(10) as u16) - 1)).min(max);
            for _ in 0..200 {
                assert!(delay_after(attempts, initial, max, &mut dice) <= ceiling, "attempt {attempts}");
            }
        }
        let mut delays = Delays::new(initial, max);
        let late = (0..2000).map(|_| delays.next_delay(&mut dice)).max().unwrap();
        assert!(late <= max && late > max.mul_f64(0.9), "the longest of 2000 draws was {late:?}");
        delays.reset();
        assert!(delays.next_delay(&mut dice) <= initial);
    }

    #[test]
    fn delays_are_spread_evenly_from_nothing() {
        let max = Duration::from_secs(1);
        let (mut delays, mut dice) = (Delays::new(max, max), fastrand::Rng::with_seed(1));
        let drawn: Vec<f64> = (0..4000).map(|_| delays.next_delay(&mut dice).as_secs_f64()).collect();
        let mean = drawn.iter().sum::<f64>() / 4000.0;
        assert!((0.45..0.55).contains(&mean), "mean {mean}");
        assert!(drawn.iter().any(|d| *d < 0.05));
    }
}
