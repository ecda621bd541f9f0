//! The throttle: how many requests of a destination may be in flight, after SQS has asked for fewer.
//!
//! Additive increase, multiplicative decrease, as TCP does it: an answer that says "too many" halves the limit, each round of
//! accepted requests adds one to it, up to `OUTBOX_RELAY_MAX_IN_FLIGHT`. Pure.

use crate::message::FaultKind;

/// The limit of one destination, kept from claim to claim.
#[derive(Debug)]
pub(super) struct Throttle {
    limit: f64,
    most: f64,
}

impl Throttle {
    /// No limit but the configured one.
    pub(super) fn new(max_in_flight: usize) -> Self {
        let most = max_in_flight.max(1) as f64;
        Self { limit: most, most }
    }

    /// Another number is configured. A limit that was at the old one goes to the new one at once.
    pub(super) fn set_most(&mut self, max_in_flight: usize) {
        let most = max_in_flight.max(1) as f64;
        self.limit = if self.limit >= self.most { most } else { self.limit.min(most) };
        self.most = most;
    }

    /// Requests that may be in flight now, at least one.
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The destination was halted by this kind of fault. Answers that were under way at that time tell of the same
    /// congestion, so they do not come here again.
    pub(super) fn halted(&mut self, kind: FaultKind) {
        if matches!(kind, FaultKind::Throttle | FaultKind::ServerError) {
            self.limit = (self.limit / 2.0).floor().max(1.0);
        }
    }

    /// A request was accepted.
    pub(super) fn accepted(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_destination_gets_half_and_finds_its_way_back() {
        let mut throttle = Throttle::new(128);
        throttle.halted(FaultKind::Throttle);
        assert_eq!(throttle.limit(), 64);
        throttle.halted(FaultKind::Throttle);
        assert_eq!(throttle.limit(), 32);
        // One round of requests adds about one.
        (0..34).for_each(|_| throttle.accepted());
        assert_eq!(throttle.limit(), 33);
        (0..128 * 128).for_each(|_| throttle.accepted());
        assert_eq!(throttle.limit(), 128);
    }

    #[test]
    fn another_number_counts_at_once_unless_sqs_has_throttled() {
        let mut throttle = Throttle::new(128);
        throttle.set_most(200);
        assert_eq!(throttle.limit(), 200);
        throttle.halted(FaultKind::Throttle);
        throttle.set_most(150);
        assert_eq!(throttle.limit(), 100);
        throttle.set_most(20);
        assert_eq!(throttle.limit(), 20);
    }

    #[test]
    fn one_request_is_always_allowed() {
        let mut throttle = Throttle::new(3);
        (0..10).for_each(|_| throttle.halted(FaultKind::ServerError));
        assert_eq!(throttle.limit(), 1);
        throttle.accepted();
        assert_eq!(throttle.limit(), 2);
    }

    #[test]
    fn what_is_no_sign_of_congestion_changes_nothing() {
        let mut throttle = Throttle::new(10);
        for kind in [FaultKind::Destination, FaultKind::Outage, FaultKind::Ambiguous, FaultKind::Ours] {
            throttle.halted(kind);
        }
        assert_eq!(throttle.limit(), 10);
    }
}
