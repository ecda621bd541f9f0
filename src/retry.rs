//! From fault to conduct: what a failure costs and who pays.
//!
//! Everything here is pure. [`crate::sqs`] says what kind of fault an answer was, [`crate::relay`] carries the conduct out.
//! Delays come from the `backoff` crate, which only this file knows; docs/decisions/0004-backoff.md tells why and how to
//! replace it.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Whose fault a failure was. Each kind has its own conduct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The message can never be accepted: characters, size, an empty body.
    MessagePermanent,
    /// The entry failed, and another attempt may succeed: SQS's per-entry InternalError, an unknown code.
    MessageTransient,
    /// The queue cannot be used by anyone here: missing, access denied, key, credentials.
    Destination,
    /// SQS asks for fewer requests.
    Throttle,
    /// SQS cannot be reached; nothing was accepted.
    Outage,
    /// SQS failed with HTTP 5xx and may have accepted the request before it did.
    ServerError,
    /// The request may have been accepted: a timeout after sending, a reset, an unreadable answer.
    Ambiguous,
    /// The request itself was wrong, which is never the message's fault.
    Ours,
}

impl FaultKind {
    /// All kinds, so that every series of a metric can be born at 0.
    pub const ALL: [Self; 8] = [
        Self::MessagePermanent,
        Self::MessageTransient,
        Self::Destination,
        Self::Throttle,
        Self::Outage,
        Self::ServerError,
        Self::Ambiguous,
        Self::Ours,
    ];

    /// The value of the metric label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::MessagePermanent => "message_permanent",
            Self::MessageTransient => "message_transient",
            Self::Destination => "destination",
            Self::Throttle => "throttle",
            Self::Outage => "outage",
            Self::ServerError => "server_error",
            Self::Ambiguous => "ambiguous",
            Self::Ours => "ours",
        }
    }

    /// Whether SQS may have accepted the entry although the answer does not say so.
    pub fn may_have_been_accepted(self) -> bool {
        matches!(self, Self::Ambiguous | Self::ServerError)
    }
}

/// A failure with what an operator needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault it was.
    pub kind: FaultKind,
    /// SQS's code, or a word of ours where SQS gave none.
    pub code: String,
    /// The sentence that goes with it.
    pub detail: String,
}

impl Fault {
    /// A fault from its parts.
    pub fn new(kind: FaultKind, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, code: code.into(), detail: detail.into() }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.code) } else { write!(f, "{}: {}", self.code, self.detail) }
    }
}

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
