//! Bodies that could not be stored in time: whose fault that is. Pure.
//!
//! A body can be too large for the way to S3, and then it must not hold up the others for ever. But the way can also be
//! too slow for all. So it counts what was stored meanwhile.

use std::collections::HashMap;

use crate::message::FaultKind;

/// How many bodies are remembered; with more, nothing is known of any.
const MAX_KNOWN: usize = 1000;

/// What is known of bodies that could not be stored in time.
#[derive(Debug, Default)]
pub(super) struct SlowBodies {
    /// The number of bodies stored so far.
    stored: u64,
    /// The keys of bodies whose last attempt took too long, with the number of others stored by then.
    late: HashMap<String, u64>,
}

impl SlowBodies {
    /// The number of bodies stored so far.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// A body was stored.
    pub(super) fn was_stored(&mut self, key: &str) {
        self.stored += 1;
        self.late.remove(key);
    }

    /// A body took too long; `before` is how many had been stored when the attempt began. Returns what that is a fault of: of
    /// the message if others were stored meanwhile, of the way to S3 if several took too long and none was stored. As long as
    /// neither is known, other messages go on.
    pub(super) fn took_too_long(&mut self, key: &str, before: u64) -> FaultKind {
        if self.late.len() >= MAX_KNOWN {
            self.late.clear();
        }
        let last = self.late.insert(key.to_owned(), self.stored);
        let others = self.late.iter().any(|(other, stored)| other != key && *stored == self.stored);
        match last {
            _ if last.unwrap_or(before) < self.stored => FaultKind::MessageTransient,
            // A halt has one message sent at a time. One that took too long before does not renew it, so that the
            // others have their turn.
            None if others => FaultKind::Throttle,
            _ => FaultKind::NotSent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_at_fault_only_if_others_were_stored_meanwhile() {
        let mut bodies = SlowBodies::default();
        assert_eq!(bodies.took_too_long("a", 0), FaultKind::NotSent, "nothing is known");
        assert_eq!(bodies.took_too_long("a", 0), FaultKind::NotSent);
        bodies.was_stored("b");
        assert_eq!(bodies.took_too_long("a", 1), FaultKind::MessageTransient, "since its last attempt");
        assert_eq!(bodies.took_too_long("a", 1), FaultKind::NotSent);
        assert_eq!(bodies.took_too_long("c", 0), FaultKind::MessageTransient, "while it was on its way");
    }

    #[test]
    fn the_way_is_at_fault_if_several_take_too_long_and_none_is_stored() {
        let mut bodies = SlowBodies::default();
        assert_eq!(bodies.took_too_long("a", 0), FaultKind::NotSent);
        assert_eq!(bodies.took_too_long("b", 0), FaultKind::Throttle);
        assert_eq!(bodies.took_too_long("a", 0), FaultKind::NotSent, "the probe does not renew the halt");
        bodies.was_stored("b");
        assert_eq!(bodies.took_too_long("c", 1), FaultKind::NotSent);
    }
}
