//! Scenarios: what applications, operators and misfortune do, and when. Made and shrunk by proptest.

use std::time::Duration;

use proptest::prelude::*;

use super::queue::QueueFault;
use crate::config::{FifoMode, OnDead};
use crate::message::QueueKind;

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A transaction of its own writes messages. Group 0 is none.
    Put { group: u8, count: u8 },
    /// One of some long transactions begins with something else than messages.
    Begin { writer: u8 },
    /// One of these transactions writes a message, and begins if it has not.
    Write { writer: u8, group: u8 },
    /// One of these transactions ends.
    End { writer: u8, commits: bool },
    /// A transaction that writes no messages runs for so long.
    Report { millis: u16 },
    /// A message with an id of its own, far beyond the sequence.
    PutFarAhead { group: u8 },
    /// An operator holds a pending message back, for a time or until told otherwise.
    Hold { nth: u8, millis: Option<u16> },
    /// An operator lets a message go that was held back.
    Unhold { nth: u8 },
    /// An operator sends a dead message again.
    Redrive { nth: u8 },
    /// An operator gives a dead message up for good.
    Discard { nth: u8 },
    /// The database refuses what becomes of a pending message and of so many that follow it.
    Refuse { nth: u8, count: u8 },
    /// The database cannot read a pending message.
    Unreadable { nth: u8 },
    /// SQS can never accept a pending message.
    Poison { nth: u8 },
    /// SQS fails so many times at a pending message.
    Failing { nth: u8, times: u8 },
    /// The queue fails for a while.
    Queue { fault: QueueFault, millis: u16 },
    /// The database refuses everything for a while.
    DatabaseFails { millis: u16 },
    /// The database answers nothing for a while.
    DatabaseStalls { millis: u16 },
    /// Each statement takes so long for a while.
    DatabaseIsSlow { by_millis: u16, millis: u16 },
    /// All connections are closed.
    Disconnect,
    /// The server crashes and is started again.
    Restart,
    /// From now on the standby gets nothing more.
    Lag,
    /// The standby takes over.
    Promote,
    /// Somebody sets the sequence of ids back.
    SetBack { by: u8 },
    /// A relay's process is stopped for a while, and goes on.
    Freeze { process: u8, millis: u16 },
    /// A relay's process is killed, and another one started.
    Kill { process: u8 },
    /// An operator pauses the destination for a while.
    Pause { millis: u16 },
}

/// Everything that a run depends on.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) kind: QueueKind,
    pub(super) fifo_mode: FifoMode,
    pub(super) on_dead: OnDead,
    pub(super) relays: u8,
    pub(super) batch_size: usize,
    pub(super) request_size: usize,
    /// One statement takes up to so many milliseconds.
    pub(super) database_millis: u16,
    /// One request takes up to so many.
    pub(super) queue_millis: u16,
    pub(super) seed: u64,
    /// An application that never ends begins a transaction every so many milliseconds, writes a message at once, and commits
    /// after so many.
    pub(super) long_writers: Option<(u16, u16)>,
    /// Each after so many milliseconds.
    pub(super) actions: Vec<(u16, Action)>,
}

impl Scenario {
    /// How long it may take until everything is delivered once nothing fails any more: batches are read one after another, by each
    /// relay that gets to a lane, and messages of one group are sent one after another.
    pub(super) fn deadline(&self) -> Duration {
        let count = |action: &Action| match action {
            Action::Put { count, .. } => u32::from(*count),
            _ => 1,
        };
        let messages: u32 = self.actions.iter().map(|(_, action)| count(action)).sum();
        // What is refused is written again in halves.
        let refused = |action: &Action| if let Action::Refuse { count, .. } = action { u32::from(*count) } else { 0 };
        let refused: u32 = self.actions.iter().map(|(_, action)| refused(action)).sum();
        let relays = u32::from(self.relays);
        let batches = relays * messages / u32::try_from(self.batch_size).unwrap_or(1);
        let database = Duration::from_millis(u64::from(self.database_millis)) * (80 + 3 * batches + 4 * refused);
        let queue = Duration::from_millis(u64::from(self.queue_millis)) * (10 + messages);
        Duration::from_secs(60) + database + queue
    }

    /// Whether entries fail at random, so that a message may fail often without being at fault.
    pub(super) fn has_failing_entries(&self) -> bool {
        self.actions.iter().any(|(_, action)| matches!(action, Action::Queue { fault: QueueFault::Entries { .. }, .. }))
    }

    /// Whether anything happens after which SQS may get a message twice.
    pub(super) fn may_duplicate(&self) -> bool {
        let is_mild = |action: &Action| {
            matches!(
                action,
                Action::Put { .. }
                    | Action::Begin { .. }
                    | Action::Write { .. }
                    | Action::End { .. }
                    | Action::Report { .. }
                    | Action::PutFarAhead { .. }
                    | Action::Hold { .. }
                    | Action::Unhold { .. }
                    | Action::Redrive { .. }
                    | Action::Discard { .. }
                    | Action::Poison { .. }
                    | Action::Failing { .. }
                    | Action::Queue {
                        fault: QueueFault::NotConnected
                            | QueueFault::Denied
                            | QueueFault::Throttled
                            | QueueFault::Entries { .. }
                            | QueueFault::EntriesThrottled { .. },
                        ..
                    }
                    | Action::Pause { .. }
            )
        };
        self.queue_millis > 250 || self.database_millis > 500 || !self.actions.iter().all(|(_, action)| is_mild(action))
    }
}

/// What applications do on an ordinary day.
fn writing() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..7_u8, 1..30_u8).prop_map(|(group, count)| Action::Put { group, count }),
        2 => (0..4_u8).prop_map(|writer| Action::Begin { writer }),
        3 => (0..4_u8, 0..7_u8).prop_map(|(writer, group)| Action::Write { writer, group }),
        3 => (0..4_u8, prop::bool::weighted(0.8)).prop_map(|(writer, commits)| Action::End { writer, commits }),
    ]
}

/// What operators do.
fn operating() -> impl Strategy<Value = Action> {
    prop_oneof![
        (any::<u8>(), prop::option::of(0..8000_u16)).prop_map(|(nth, millis)| Action::Hold { nth, millis }),
        any::<u8>().prop_map(|nth| Action::Unhold { nth }),
        any::<u8>().prop_map(|nth| Action::Redrive { nth }),
        any::<u8>().prop_map(|nth| Action::Discard { nth }),
        (0..6000_u16).prop_map(|millis| Action::Report { millis }),
        (0..7_u8).prop_map(|group| Action::PutFarAhead { group }),
        (0..3000_u16).prop_map(|millis| Action::Pause { millis }),
    ]
}

fn messages_at_fault() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => any::<u8>().prop_map(|nth| Action::Poison { nth }),
        3 => (any::<u8>(), 1..8_u8).prop_map(|(nth, times)| Action::Failing { nth, times }),
        1 => (any::<u8>(), 1..40_u8).prop_map(|(nth, count)| Action::Refuse { nth, count }),
        1 => any::<u8>().prop_map(|nth| Action::Unreadable { nth }),
    ]
}

fn queue_at_fault() -> impl Strategy<Value = Action> {
    let fault = prop_oneof![
        Just(QueueFault::NotConnected),
        Just(QueueFault::Denied),
        Just(QueueFault::Throttled),
        any::<bool>().prop_map(|accepts| QueueFault::ServerError { accepts }),
        any::<bool>().prop_map(|accepts| QueueFault::Silent { accepts }),
        (1..100_u8).prop_map(|percent| QueueFault::Entries { percent }),
        (1..100_u8).prop_map(|percent| QueueFault::EntriesThrottled { percent }),
    ];
    (fault, 0..8000_u16).prop_map(|(fault, millis)| Action::Queue { fault, millis })
}

fn database_at_fault() -> impl Strategy<Value = Action> {
    let slow = (0..2000_u16, 0..15_000_u16);
    prop_oneof![
        10 => (0..6000_u16).prop_map(|millis| Action::DatabaseFails { millis }),
        10 => (0..15_000_u16).prop_map(|millis| Action::DatabaseStalls { millis }),
        10 => slow.prop_map(|(by_millis, millis)| Action::DatabaseIsSlow { by_millis, millis }),
        10 => Just(Action::Disconnect),
        10 => Just(Action::Restart),
        10 => Just(Action::Lag),
        10 => Just(Action::Promote),
        1 => (0..100_u8).prop_map(|by| Action::SetBack { by }),
    ]
}

fn processes() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..2_u8, 0..15_000_u16).prop_map(|(process, millis)| Action::Freeze { process, millis }),
        (0..2_u8).prop_map(|process| Action::Kill { process }),
    ]
}

fn waits() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0..40_u16, 2 => 0..400_u16, 1 => 0..4000_u16]
}

/// Runs with these actions.
fn with(
    action: impl Strategy<Value = Action>,
    kind: impl Strategy<Value = QueueKind>,
) -> impl Strategy<Value = Scenario> {
    let modes = (
        kind,
        prop_oneof![Just(FifoMode::Strict), Just(FifoMode::Batched)],
        prop_oneof![Just(OnDead::Skip), Just(OnDead::Block)],
    );
    let sizes = (1..=2_u8, prop_oneof![Just(2_usize), Just(20), Just(500)], prop_oneof![Just(1_usize), Just(10)]);
    let times = (prop_oneof![4 => 1..5_u16, 1 => 1..2000_u16], prop_oneof![4 => 1..20_u16, 1 => 1..4000_u16]);
    let long_writers = prop::option::weighted(0.1, (200..2000_u16, 2500..6000_u16));
    let actions = prop::collection::vec((waits(), action), 1..60);
    let all = (modes, sizes, times, any::<u64>(), long_writers, actions);
    all.prop_map(|(modes, sizes, times, seed, long_writers, actions)| Scenario {
        kind: modes.0,
        fifo_mode: modes.1,
        on_dead: modes.2,
        relays: sizes.0,
        // So that a database that is far away can be read faster than these write.
        batch_size: if long_writers.is_some() { sizes.1.max(20) } else { sizes.1 },
        request_size: sizes.2,
        database_millis: times.0,
        queue_millis: times.1,
        seed,
        long_writers,
        actions,
    })
}

fn kinds() -> impl Strategy<Value = QueueKind> {
    prop_oneof![4 => Just(QueueKind::Fifo), 1 => Just(QueueKind::Standard)]
}

/// Applications and operators.
pub(super) fn ordinary_days() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![5 => writing(), 1 => operating()], kinds())
}

/// Few groups with more in the table than is read of them at once, whose writers do not wait for each other.
pub(super) fn hot_days() -> impl Strategy<Value = Scenario> {
    let hot = prop_oneof![
        3 => (1..3_u8, 15..60_u8).prop_map(|(group, count)| Action::Put { group, count }),
        3 => (1..6_u8, 1..3_u8).prop_map(|(group, count)| Action::Put { group, count }),
        2 => (0..4_u8).prop_map(|writer| Action::Begin { writer }),
        4 => (0..4_u8, 1..6_u8).prop_map(|(writer, group)| Action::Write { writer, group }),
        3 => (0..4_u8).prop_map(|writer| Action::End { writer, commits: true }),
    ];
    with(hot, Just(QueueKind::Fifo))
}

/// Messages and queues that fail.
pub(super) fn queues_at_fault() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![6 => writing(), 1 => operating(), 2 => messages_at_fault(), 2 => queue_at_fault()], kinds())
}

/// Databases that fail, and processes.
pub(super) fn databases_at_fault() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![8 => writing(), 1 => operating(), 2 => database_at_fault(), 1 => processes()], kinds())
}

/// Everything at once.
pub(super) fn bad_days() -> impl Strategy<Value = Scenario> {
    let all = prop_oneof![
        8 => writing(),
        1 => operating(),
        1 => messages_at_fault(),
        1 => queue_at_fault(),
        1 => database_at_fault(),
        1 => processes(),
    ];
    with(all, kinds())
}
