//! Questions to the outbox and their answers: plain data, no I/O and no decisions.
//!
//! [`crate::outbox`] sends the questions to PostgreSQL, and [`crate::relay`] decides which to ask. The statements are
//! `sql/queries/*.sql`; their head comments say what each answer guarantees.

mod chunk;
mod snapshot;
mod steering;
mod walk;

use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::Duration;

use crate::message::{LANES, Lane, Message, MessageId, MessageKey, TransactionId};

pub use chunk::{CautiousWidth, ChunkWidth};
pub use snapshot::Snapshot;
pub use steering::{ALL_DESTINATIONS, Pause, Replay, Setting, Steering};
pub use walk::{Chunk, FloorWalk, Walk};

/// The most bytes of messages that one read may return; the rest is left for the next read. Otherwise a batch of the
/// largest messages would need a gigabyte.
pub const READ_BYTES: usize = 16 * 1024 * 1024;

/// Where counting stops: beyond this number an operator asks how fast it shrinks, not for the exact number.
pub const COUNT_LIMIT: i64 = 100_000;

/// One value for each lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByLane<T>([T; LANES]);

impl<T> ByLane<T> {
    /// The same value for every lane.
    pub fn all(value: T) -> Self
    where
        T: Clone,
    {
        Self(std::array::from_fn(|_| value.clone()))
    }

    /// All values, in the order of lanes.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, &T)> {
        Lane::all().zip(&self.0)
    }

    /// All values, mutable.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }
}

impl<T> Index<Lane> for ByLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        &self.0[lane.index()]
    }
}

impl<T> IndexMut<Lane> for ByLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        &mut self.0[lane.index()]
    }
}

/// The claim under which a question is asked, so that no other server can answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimProof {
    /// The claim's own transaction.
    pub transaction_id: TransactionId,
    /// Identifies the server, and the run of it, that has that transaction.
    pub server: String,
}

/// Where to read in one lane, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The lane.
    pub lane: Lane,
    /// Read above this id.
    pub above: MessageId,
    /// The most messages to read.
    pub limit: usize,
}

/// Where to continue reading one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPosition {
    /// The group.
    pub group: Arc<str>,
    /// Its lane, and the id above which to read.
    pub after: MessageKey,
    /// The id up to which to read; the reads of the lane return what is above it.
    pub upto: MessageId,
    /// The most messages to read.
    pub limit: usize,
}

/// What to read: first more of some groups, then the next messages of lanes, then a rescan of the gap. Each statement
/// sees at least what the one before it saw.
#[derive(Clone, Debug, Default)]
pub struct ReadRequest {
    /// Groups to continue reading.
    pub groups: Vec<GroupPosition>,
    /// Lanes to read.
    pub lanes: Vec<Position>,
    /// Where late messages may have appeared.
    pub gap: Option<Rescan>,
    /// How many bytes to ask the server for, of groups and of lanes, as stored.
    pub stored_bytes: usize,
    /// The most bytes of messages to return; the rest is left.
    pub bytes: usize,
    /// How events are looked up.
    pub lookup: Lookup,
    /// What holds groups up.
    pub order: Order,
    /// The largest body that can be sent; a message with a larger one comes without its content.
    pub max_body_bytes: usize,
}

/// The answer to a read.
#[derive(Debug, Default)]
pub struct ReadAnswer {
    /// The snapshot before the groups were read, if there were any.
    pub before: Option<Snapshot>,
    /// One batch for each group of the request.
    pub groups: Vec<Batch>,
    /// The messages of the lanes.
    pub lanes: Batch,
    /// The result of the rescan of the gap.
    pub gap: Option<Rescanned>,
}

/// How a read looks up events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    /// All at once; this fails as a whole if PostgreSQL cannot read one of them.
    #[default]
    Together,
    /// One by one, so that an unreadable event reports its error and stops no other.
    OneByOne,
}

/// What holds a group up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Nothing: the queue keeps no order.
    #[default]
    None,
    /// A deferred message, or one in quarantine.
    Groups,
    /// The same, or a dead message.
    GroupsBlockedByDead,
}

impl Order {
    /// Whether the order within groups is kept at all.
    pub fn is_kept(self) -> bool {
        self != Self::None
    }

    /// Whether a dead message holds up its group.
    pub fn is_blocked_by_dead(self) -> bool {
        self == Self::GroupsBlockedByDead
    }
}

/// The messages read of some lanes or of a group, in the order of ids.
#[derive(Debug, Default)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Message>,
    /// Every transaction that had begun to write was below this one; set if there is a message.
    pub next_xid: Option<TransactionId>,
    /// The highest message id that had been handed out; set if there is a message.
    pub last_id: MessageId,
    /// Whether the batch was cut at the byte limit.
    pub is_cut: bool,
    /// Lanes of which the server had more bytes than it was asked for.
    pub lanes_with_more: Vec<Lane>,
}

/// Which deferred messages to read.
#[derive(Clone, Debug, Default)]
pub struct DueRequest {
    /// The lanes.
    pub lanes: Vec<Lane>,
    /// The most messages to read.
    pub limit: usize,
    /// How many bytes to ask the server for, as stored.
    pub stored_bytes: usize,
    /// The most bytes of messages to return.
    pub bytes: usize,
    /// Groups whose messages are read in another way than by falling due.
    pub groups_to_skip: Vec<Arc<str>>,
    /// The longest delay of a retry; a time further ahead was recorded by a clock that was wrong.
    pub longest_delay: Duration,
    /// How events are looked up.
    pub lookup: Lookup,
    /// What holds groups up.
    pub order: Order,
    /// The largest body that can be sent; a message with a larger one comes without its content.
    pub max_body_bytes: usize,
}

/// Where to rescan in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lane.
    pub lane: Lane,
    /// Above this id.
    pub above: MessageId,
    /// Up to and including this one.
    pub upto: MessageId,
    /// Up to and including this id only messages that nothing of their group holds up count, because more held-up
    /// messages are known than can be listed. Above it everything counts: a message behind a deferred one that is left
    /// out would still be unknown when the deferred one goes.
    pub ready_upto: MessageId,
}

impl Range {
    /// A range in which everything counts.
    pub fn new(lane: Lane, above: MessageId, upto: MessageId) -> Self {
        Self { lane, above, upto, ready_upto: MessageId::NONE }
    }

    /// Whether held-up messages are left out in some part of it.
    pub fn filters_held(&self) -> bool {
        self.ready_upto > self.above
    }

    /// How many ids it has.
    pub fn width(&self) -> i64 {
        self.upto.0.saturating_sub(self.above.0)
    }
}

/// Where to look again for messages that reads may have passed.
#[derive(Clone, Debug, Default)]
pub struct Rescan {
    /// The ranges.
    pub ranges: Vec<Range>,
    /// The most messages of each lane to return.
    pub limit: usize,
    /// Groups known to have messages in the table, each with the id above which they are; those messages do not count.
    pub waiting: Vec<(Arc<str>, MessageId)>,
    /// Groups of which everything counts even where held-up messages are left out.
    pub known: Vec<Arc<str>>,
    /// What holds groups up.
    pub order: Order,
    /// After what time the server is to cut the rescan short.
    pub timeout: Option<Duration>,
}

impl Rescan {
    /// How many ids the widest range has.
    pub fn width(&self) -> i64 {
        self.ranges.iter().map(Range::width).max().unwrap_or_default()
    }
}

/// The result of a rescan.
#[derive(Clone, Debug)]
pub struct Rescanned {
    /// The snapshot of the rescan.
    pub snapshot: Snapshot,
    /// Pending messages in the ranges, those already known included.
    pub found: Vec<Found>,
    /// How long the server worked, without the round trip.
    pub took: Duration,
}

/// A pending message that a rescan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Lane and id.
    pub key: MessageKey,
    /// Its group.
    pub group: Option<Arc<str>>,
}

/// What holds a group up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldGroup {
    /// The group.
    pub group: Arc<str>,
    /// The lowest message in quarantine, or the lowest dead one where dead messages block their group.
    pub by: Option<MessageId>,
    /// The lowest deferred message, and how long it waits; zero when it is due, `None` when that is not known.
    pub head: Option<(MessageId, Option<Duration>)>,
}

/// The result of a look at all lanes.
#[derive(Clone, Debug)]
pub struct Look {
    /// The snapshot of the look.
    pub snapshot: Snapshot,
    /// Every transaction that had begun to write was below this one.
    pub next_xid: TransactionId,
    /// The highest message id handed out so far, committed or not.
    pub last_id: MessageId,
    /// Lanes with messages above their low watermark.
    pub ready: Vec<Lane>,
    /// Lanes with a retry that is due.
    pub due: Vec<Lane>,
}

/// What the poller sees of quiet destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watch {
    /// The highest message id handed out so far, committed or not, to any destination.
    pub last_id: MessageId,
    /// The latest time at which a deferred message fell due, in seconds since 1970.
    pub latest_due: Option<f64>,
    /// Grows with every change that operators make to messages.
    pub last_action: i64,
}

/// Transactions that may have written messages and are still running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writers {
    /// Their ids.
    pub transaction_ids: Vec<TransactionId>,
    /// Every transaction that had begun to write anything was below this one.
    pub next_xid: Option<TransactionId>,
}

/// The history of the outbox that a lane belongs to; knowledge of one incarnation does not apply to another.
pub type Incarnation = Arc<str>;
