//! Scenarios: what applications and operators do, what fails, and when. Proptest generates and shrinks them.

use std::time::Duration;

use proptest::prelude::*;

use super::queue::QueueFault;
use crate::config::{FifoMode, OnDead};
use crate::message::DestinationKind;

/// One step of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A transaction writes `count` messages and commits. Group 0 means no group.
    Put { group: u8, count: u8 },
    /// A writer begins a long transaction, without a message so far.
    Begin { writer: u8 },
    /// The writer's transaction writes a message; it begins if it has not.
    Write { writer: u8, group: u8 },
    /// The writer's transaction commits or is rolled back.
    End { writer: u8, commits: bool },
    /// A transaction that writes no messages stays open for `millis`.
    Report { millis: u16 },
    /// A transaction writes a message whose id was set by hand, far above the sequence.
    PutFarAhead { group: u8 },
    /// An operator holds back a pending message, for `millis` or indefinitely.
    Hold { nth: u8, millis: Option<u16> },
    /// An operator makes a deferred message due now.
    Unhold { nth: u8 },
    /// An operator redrives a dead message.
    Redrive { nth: u8 },
    /// An operator discards a dead message.
    Discard { nth: u8 },
    /// The database refuses the outcomes of `count` pending messages, beginning with the nth one.
    Refuse { nth: u8, count: u8 },
    /// The database cannot read a pending message.
    Unreadable { nth: u8 },
    /// SQS can never accept a pending message.
    Poison { nth: u8 },
    /// SQS accepts a pending message only at attempt number `times`, counted from now.
    Failing { nth: u8, times: u8 },
    /// The queue fails in this way for `millis`.
    Queue { fault: QueueFault, millis: u16 },
    /// Every statement fails for `millis`.
    DatabaseFails { millis: u16 },
    /// The database answers nothing for `millis`.
    DatabaseStalls { millis: u16 },
    /// For `millis`, each round trip to the database takes `by_millis` longer.
    DatabaseIsSlow { by_millis: u16, millis: u16 },
    /// All connections to the database are closed.
    Disconnect,
    /// The server crashes and restarts.
    Restart,
    /// From now on the standby receives nothing more.
    Lag,
    /// The standby is promoted.
    Promote { behind_pooler: bool },
    /// An operator sets the sequence of ids back by this many.
    SetBack { by: u8 },
    /// A relay's process is stopped for `millis` and then goes on.
    Freeze { process: u8, millis: u16 },
    /// A relay's process is killed, and another one starts.
    Kill { process: u8 },
    /// An operator pauses the destination for `millis`.
    Pause { millis: u16 },
}

/// Everything that determines a run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) kind: DestinationKind,
    pub(super) fifo_mode: FifoMode,
    pub(super) on_dead: OnDead,
    pub(super) relays: u8,
    pub(super) batch_size: usize,
    pub(super) request_size: usize,
    /// The longest round trip to the database while nothing slows it, in milliseconds.
    pub(super) database_millis: u16,
    /// The longest round trip to SQS, in milliseconds; one in 200 requests takes longer.
    pub(super) queue_millis: u16,
    pub(super) seed: u64,
    /// An application that goes on after the last fault: how often it begins a transaction, and how long each stays
    /// open, in milliseconds. Each writes a message as soon as it begins.
    pub(super) long_writers: Option<(u16, u16)>,
    /// The actions, each with the milliseconds since the one before it.
    pub(super) actions: Vec<(u16, Action)>,
}

impl Scenario {
    /// How long the relays may take to deliver everything after the last fault. Each relay that gets a lane reads its
    /// batches one after another, hot groups may be read message by message, and messages of one group are sent one
    /// after another.
    pub(super) fn deadline(&self) -> Duration {
        let count = |action: &Action| match action {
            Action::Put { count, .. } => u32::from(*count),
            _ => 1,
        };
        let messages: u32 = self.actions.iter().map(|(_, action)| count(action)).sum();
        // Refused outcomes are written again in halves.
        let refused = |action: &Action| if let Action::Refuse { count, .. } = action { u32::from(*count) } else { 0 };
        let refused: u32 = self.actions.iter().map(|(_, action)| refused(action)).sum();
        let relays = u32::from(self.relays);
        let batches = relays * messages / u32::try_from(self.batch_size).unwrap_or(1);
        let database =
            Duration::from_millis(u64::from(self.database_millis)) * (80 + 3 * batches + 4 * refused + messages);
        let queue = Duration::from_millis(u64::from(self.queue_millis)) * (10 + messages);
        Duration::from_secs(60) + database + queue
    }

    /// Whether entries fail at random. Then a message may fail often without being at fault.
    pub(super) fn has_failing_entries(&self) -> bool {
        let fails = |fault: &QueueFault| {
            let (entries, mixed) =
                (matches!(fault, QueueFault::Entries { .. }), matches!(fault, QueueFault::EntriesMixed { .. }));
            entries || mixed || matches!(fault, QueueFault::LosesAnswers { .. })
        };
        self.actions.iter().any(|(_, action)| matches!(action, Action::Queue { fault, .. } if fails(fault)))
    }

    /// Whether a message may be accepted before an earlier one of its group, so that another copy of it is sent.
    pub(super) fn may_repair(&self) -> bool {
        let fails_entries = |action: &Action| match action {
            Action::Failing { .. } => true,
            Action::Poison { .. } => self.on_dead == OnDead::Block,
            Action::Queue { fault, .. } => matches!(
                fault,
                QueueFault::Entries { .. }
                    | QueueFault::EntriesThrottled { .. }
                    | QueueFault::EntriesMixed { .. }
                    | QueueFault::LosesAnswers { .. }
            ),
            _ => false,
        };
        self.fifo_mode == FifoMode::Batched && self.actions.iter().any(|(_, action)| fails_entries(action))
    }

    /// Whether anything happens after which SQS may get a message twice. A failing database is no reason if there is
    /// only one relay and it is neither killed nor stopped: it records what SQS accepted when the database is back,
    /// before it reads anything.
    pub(super) fn may_duplicate(&self) -> bool {
        let is_survived = |action: &Action| {
            let is_of_database = matches!(
                action,
                Action::DatabaseFails { .. }
                    | Action::DatabaseStalls { .. }
                    | Action::DatabaseIsSlow { .. }
                    | Action::Disconnect
                    | Action::Restart
                    | Action::Refuse { .. }
                    | Action::Unreadable { .. }
            );
            is_of_database && self.relays == 1
        };
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
                            | QueueFault::EntriesThrottled { .. }
                            | QueueFault::EntriesMixed { .. },
                        ..
                    }
                    | Action::Pause { .. }
            ) || is_survived(action)
        };
        self.queue_millis > 250
            || (self.database_millis > 500 && self.relays > 1)
            || !self.actions.iter().all(|(_, action)| is_mild(action))
    }
}

/// What applications do.
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

fn message_faults() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => any::<u8>().prop_map(|nth| Action::Poison { nth }),
        3 => (any::<u8>(), 1..8_u8).prop_map(|(nth, times)| Action::Failing { nth, times }),
        1 => (any::<u8>(), 1..40_u8).prop_map(|(nth, count)| Action::Refuse { nth, count }),
        1 => any::<u8>().prop_map(|nth| Action::Unreadable { nth }),
    ]
}

fn queue_faults() -> impl Strategy<Value = Action> {
    let fault = prop_oneof![
        Just(QueueFault::NotConnected),
        Just(QueueFault::Denied),
        Just(QueueFault::Throttled),
        any::<bool>().prop_map(|accepts| QueueFault::ServerError { accepts }),
        any::<bool>().prop_map(|accepts| QueueFault::Silent { accepts }),
        (1..100_u8).prop_map(|percent| QueueFault::Entries { percent }),
        (1..100_u8).prop_map(|percent| QueueFault::EntriesThrottled { percent }),
        (1..100_u8).prop_map(|percent| QueueFault::EntriesMixed { percent }),
    ];
    (fault, 0..8000_u16).prop_map(|(fault, millis)| Action::Queue { fault, millis })
}

fn database_faults() -> impl Strategy<Value = Action> {
    let slow = (0..2000_u16, 0..15_000_u16);
    prop_oneof![
        10 => (0..6000_u16).prop_map(|millis| Action::DatabaseFails { millis }),
        10 => (0..15_000_u16).prop_map(|millis| Action::DatabaseStalls { millis }),
        10 => slow.prop_map(|(by_millis, millis)| Action::DatabaseIsSlow { by_millis, millis }),
        10 => Just(Action::Disconnect),
        10 => Just(Action::Restart),
        10 => Just(Action::Lag),
        10 => any::<bool>().prop_map(|behind_pooler| Action::Promote { behind_pooler }),
        1 => (0..100_u8).prop_map(|by| Action::SetBack { by }),
    ]
}

fn process_faults() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..2_u8, 0..15_000_u16).prop_map(|(process, millis)| Action::Freeze { process, millis }),
        (0..2_u8).prop_map(|process| Action::Kill { process }),
    ]
}

fn waits() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0..40_u16, 2 => 0..400_u16, 1 => 0..4000_u16]
}

/// Scenarios with these actions and these kinds of queue.
fn with(
    action: impl Strategy<Value = Action>,
    kind: impl Strategy<Value = DestinationKind>,
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
        // A relay must read faster than the long writers write, even from a distant database.
        batch_size: if long_writers.is_some() { sizes.1.max(20) } else { sizes.1 },
        request_size: sizes.2,
        database_millis: times.0,
        queue_millis: times.1,
        seed,
        long_writers,
        actions,
    })
}

fn kinds() -> impl Strategy<Value = DestinationKind> {
    prop_oneof![4 => Just(DestinationKind::Fifo), 1 => Just(DestinationKind::Standard)]
}

/// Applications write and operators act; nothing fails.
pub(super) fn ordinary_scenarios() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![5 => writing(), 1 => operating()], kinds())
}

/// Few groups, each with more messages in the table than a relay keeps in memory. Their writers do not wait for each
/// other.
pub(super) fn hot_groups() -> impl Strategy<Value = Scenario> {
    let hot = prop_oneof![
        3 => (1..3_u8, 15..60_u8).prop_map(|(group, count)| Action::Put { group, count }),
        3 => (1..6_u8, 1..3_u8).prop_map(|(group, count)| Action::Put { group, count }),
        2 => (0..4_u8).prop_map(|writer| Action::Begin { writer }),
        4 => (0..4_u8, 1..6_u8).prop_map(|(writer, group)| Action::Write { writer, group }),
        3 => (0..4_u8).prop_map(|writer| Action::End { writer, commits: true }),
    ];
    with(hot, Just(DestinationKind::Fifo))
}

/// Groups with messages that operators hold back and make due again. Their writers do not wait for each other. Where a
/// relay remembers only few groups one by one, the others form crowds.
pub(super) fn groups_held_back() -> impl Strategy<Value = Scenario> {
    let held = prop_oneof![
        3 => (1..7_u8, 1..8_u8).prop_map(|(group, count)| Action::Put { group, count }),
        2 => (0..4_u8).prop_map(|writer| Action::Begin { writer }),
        4 => (0..4_u8, 1..7_u8).prop_map(|(writer, group)| Action::Write { writer, group }),
        3 => (0..4_u8).prop_map(|writer| Action::End { writer, commits: true }),
        3 => (any::<u8>(), prop::option::of(0..2000_u16)).prop_map(|(nth, millis)| Action::Hold { nth, millis }),
        3 => any::<u8>().prop_map(|nth| Action::Unhold { nth }),
    ];
    with(held, Just(DestinationKind::Fifo))
}

/// Few groups in batched mode, of which any entries of a request fail and answers are lost, while relays are stopped or
/// killed and operators redrive.
pub(super) fn failing_entries() -> impl Strategy<Value = Scenario> {
    let fault = prop_oneof![
        4 => (1..100_u8).prop_map(|percent| QueueFault::Entries { percent }),
        2 => (1..100_u8).prop_map(|percent| QueueFault::EntriesMixed { percent }),
        1 => (1..100_u8).prop_map(|percent| QueueFault::LosesAnswers { percent }),
        1 => any::<bool>().prop_map(|accepts| QueueFault::Silent { accepts }),
    ];
    let failing = prop_oneof![
        6 => (1..4_u8, 2..20_u8).prop_map(|(group, count)| Action::Put { group, count }),
        4 => (fault, 0..4000_u16).prop_map(|(fault, millis)| Action::Queue { fault, millis }),
        2 => (any::<u8>(), 1..8_u8).prop_map(|(nth, times)| Action::Failing { nth, times }),
        1 => any::<u8>().prop_map(|nth| Action::Poison { nth }),
        1 => any::<u8>().prop_map(|nth| Action::Redrive { nth }),
        1 => any::<u8>().prop_map(|nth| Action::Discard { nth }),
        1 => (0..2000_u16).prop_map(|millis| Action::DatabaseFails { millis }),
        1 => process_faults(),
    ];
    with(failing, Just(DestinationKind::Fifo)).prop_map(|scenario| Scenario {
        fifo_mode: FifoMode::Batched,
        request_size: 10,
        ..scenario
    })
}

/// Few groups in which many messages die, are quarantined and are redriven, while relays are stopped or killed.
pub(super) fn dead_letters() -> impl Strategy<Value = Scenario> {
    let dying = prop_oneof![
        6 => (1..3_u8, 1..6_u8).prop_map(|(group, count)| Action::Put { group, count }),
        3 => any::<u8>().prop_map(|nth| Action::Poison { nth }),
        1 => (any::<u8>(), 1..8_u8).prop_map(|(nth, times)| Action::Failing { nth, times }),
        2 => any::<u8>().prop_map(|nth| Action::Unreadable { nth }),
        1 => (any::<u8>(), 1..4_u8).prop_map(|(nth, count)| Action::Refuse { nth, count }),
        4 => any::<u8>().prop_map(|nth| Action::Redrive { nth }),
        1 => any::<u8>().prop_map(|nth| Action::Discard { nth }),
        1 => (0..2000_u16, 0..15_000_u16).prop_map(|(by_millis, millis)| Action::DatabaseIsSlow { by_millis, millis }),
        1 => (0..6000_u16).prop_map(|millis| Action::DatabaseFails { millis }),
        1 => Just(Action::Disconnect),
        2 => process_faults(),
    ];
    let slow = prop::option::of(20..400_u16);
    (with(dying, Just(DestinationKind::Fifo)), slow)
        .prop_map(|(scenario, slow)| Scenario { database_millis: slow.unwrap_or(scenario.database_millis), ..scenario })
}

/// Messages and queues fail.
pub(super) fn failing_messages_and_queues() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![6 => writing(), 1 => operating(), 2 => message_faults(), 2 => queue_faults()], kinds())
}

/// Databases and processes fail.
pub(super) fn failing_databases_and_processes() -> impl Strategy<Value = Scenario> {
    with(prop_oneof![8 => writing(), 1 => operating(), 2 => database_faults(), 1 => process_faults()], kinds())
}

/// Everything fails.
pub(super) fn everything_at_once() -> impl Strategy<Value = Scenario> {
    let all = prop_oneof![
        8 => writing(),
        1 => operating(),
        1 => message_faults(),
        1 => queue_faults(),
        1 => database_faults(),
        1 => process_faults(),
    ];
    with(all, kinds())
}
