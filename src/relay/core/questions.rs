//! Questions that are asked periodically: which groups are still held up, whether more lanes are free. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::work::Work;
use crate::clock::Time;
use crate::message::Lane;
use crate::reading::Order;

/// How often to ask whether a blocked group may go on.
const HELD_EVERY: Duration = Duration::from_secs(1);

/// The most groups in one question, and the delay until the question about the next ones.
const MAX_HELD: usize = 1000;
const HELD_NEXT: Duration = Duration::from_millis(50);

/// How often to ask for lanes that this relay left free or that others held: a saturated relay leaves half of its lanes
/// free for this long.
const WIDEN_EVERY: Duration = Duration::from_millis(100);

/// How many lanes to take at a time. Free lanes may belong to a busy relay that is about to claim again; taking all of
/// them would leave that relay without work until the next claim ends.
const WIDEN_BY: usize = 2;

/// Which groups are still held up: asks about all groups known to be blocked, some at a time.
#[derive(Debug)]
pub(super) struct HeldCheck {
    next: Time,
    /// The last group of the last question.
    behind: Option<Arc<str>>,
    is_asking: bool,
}

impl HeldCheck {
    /// The first question is due after the usual interval.
    pub(super) fn new(now: Time) -> Self {
        Self { next: now + HELD_EVERY, behind: None, is_asking: false }
    }

    /// An operator has changed something.
    pub(super) fn hurry(&mut self, now: Time) {
        self.next = self.next.min(now);
        self.behind = None;
    }

    /// When the next question is due.
    pub(super) fn due_at(&self) -> Time {
        self.next
    }

    /// The next question about these groups, if one is due and there are any groups.
    pub(super) fn due<'a>(
        &mut self,
        blocked: impl Iterator<Item = &'a Arc<str>>,
        order: Order,
        deaths: u64,
        now: Time,
    ) -> Option<Work> {
        if self.is_asking || now < self.next {
            return None;
        }
        let behind = self.behind.take();
        let mut groups: Vec<Arc<str>> =
            blocked.filter(|name| behind.as_ref().is_none_or(|behind| *name > behind)).cloned().collect();
        groups.sort_unstable();
        groups.dedup();
        self.next = now + HELD_EVERY;
        if groups.len() > MAX_HELD {
            groups.truncate(MAX_HELD);
            self.behind = groups.last().cloned();
            self.next = now + HELD_NEXT;
        }
        self.is_asking = !groups.is_empty();
        self.is_asking.then_some(Work::CheckHeld { groups, order, deaths })
    }

    /// The question was answered.
    pub(super) fn answered(&mut self) {
        self.is_asking = false;
    }
}

/// When to ask for more lanes.
#[derive(Debug)]
pub(super) struct Widening {
    next: Time,
    is_asking: bool,
}

impl Widening {
    /// A claim was taken at this time.
    pub(super) fn new(claimed_at: Time) -> Self {
        Self { next: claimed_at + WIDEN_EVERY, is_asking: false }
    }

    /// When the next question is due, while lanes are missing.
    pub(super) fn due_at(&self, held: &[Lane]) -> Option<Time> {
        let is_missing = held.len() < Lane::all().count();
        (is_missing && !self.is_asking).then_some(self.next)
    }

    /// The next question.
    pub(super) fn due(&mut self, held: &[Lane], now: Time) -> Option<Work> {
        self.due_at(held).filter(|at| now >= *at)?;
        self.is_asking = true;
        self.next = now + WIDEN_EVERY;
        let lanes = Lane::all().filter(|lane| !held.contains(lane)).collect();
        Some(Work::Widen { lanes, max_lanes: WIDEN_BY })
    }

    /// The question was answered.
    pub(super) fn answered(&mut self) {
        self.is_asking = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(work: Option<Work>) -> Vec<Arc<str>> {
        match work {
            Some(Work::CheckHeld { groups, .. }) => groups,
            _ => Vec::new(),
        }
    }

    #[test]
    fn all_blocked_groups_are_asked_about_some_at_a_time() {
        let names: Vec<Arc<str>> = (0..2500).map(|n| Arc::from(format!("{n:04}"))).collect();
        let mut now = Time::default();
        let mut check = HeldCheck::new(now);
        let mut all = Vec::new();
        for _ in 0..3 {
            now = check.due_at();
            let groups = asked(check.due(names.iter(), Order::Groups, 0, now));
            assert!(check.due(names.iter(), Order::Groups, 0, now + HELD_EVERY).is_none(), "one question at a time");
            check.answered();
            all.extend(groups);
        }
        assert_eq!(all, names);
        assert_eq!(check.due_at().since(now), HELD_EVERY, "then it starts over");
    }

    #[test]
    fn nothing_is_asked_when_nothing_is_blocked() {
        let now = Time::default() + HELD_EVERY;
        let mut check = HeldCheck::new(Time::default());
        assert!(check.due(std::iter::empty(), Order::Groups, 0, now).is_none());
        assert_eq!(check.due_at().since(now), HELD_EVERY);
    }
}
