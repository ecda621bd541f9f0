//! What is asked of the outbox, and what it answers: plain data, no I/O and no decision.
//!
//! [`crate::outbox`] carries the questions to PostgreSQL, [`crate::relay`] decides which to ask. The statements themselves are
//! `sql/queries/*.sql`, whose heads say what each answer guarantees.

mod chunk;
mod snapshot;
mod walk;

use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::Duration;

use crate::message::{LANES, Lane, Message, MessageId, MessageKey, TransactionId};

pub use chunk::{CautiousWidth, ChunkWidth};
pub use snapshot::Snapshot;
pub use walk::{Chunk, FloorWalk, Walk};

/// How many bytes of messages one read may bring at most; what comes after is left for the next read. A batch of the largest
/// messages would otherwise need a gigabyte.
pub const READ_BYTES: usize = 16 * 1024 * 1024;

/// One value for each lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByLane<T>([T; LANES]);

impl<T> ByLane<T> {
    /// The same for every lane.
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

    /// All values, to be changed.
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

/// Whose claim a question is asked under, so that no other server can answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimProof {
    /// The claim's own transaction.
    pub transaction_id: TransactionId,
    /// The run of the server that has it.
    pub server: String,
}

/// From where, and how much, to read of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The lane.
    pub lane: Lane,
    /// Read above this id.
    pub above: MessageId,
    /// Not more messages than this.
    pub most: usize,
}

/// Where to read on in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPosition {
    /// The group.
    pub group: Arc<str>,
    /// Its lane, and the id above which to read.
    pub after: MessageKey,
    /// The id up to which to read: what is above it the lane's reads bring.
    pub upto: MessageId,
    /// Not more messages than this.
    pub most: usize,
}

/// What a read is to bring: first more of some groups, then the next messages of lanes, then a look at what was passed. Each
/// statement sees at least what the one before it saw.
#[derive(Clone, Debug, Default)]
pub struct ReadRequest {
    /// Groups to read on in.
    pub groups: Vec<GroupPosition>,
    /// Lanes to read.
    pub lanes: Vec<Position>,
    /// Where late messages may have appeared.
    pub gap: Option<Rescan>,
    /// How many bytes the server is asked for, as it stores them.
    pub stored_bytes: usize,
    /// How many bytes of messages may come; what comes after is left.
    pub bytes: usize,
    /// How events are looked up.
    pub lookup: Lookup,
    /// Whether, and by what, groups are held up.
    pub order: Order,
}

/// What a read brought.
#[derive(Debug, Default)]
pub struct ReadAnswer {
    /// What had ended before the groups were read, if there were some.
    pub before: Option<Snapshot>,
    /// One batch a group that was asked for.
    pub groups: Vec<Batch>,
    /// What the lanes had.
    pub lanes: Batch,
    /// What a look at the gap saw.
    pub gap: Option<Rescanned>,
}

/// How a read looks events up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    /// All at once, which fails as a whole if PostgreSQL cannot read one of them.
    #[default]
    Together,
    /// Each by itself, so that what cannot be read tells why and stops no other.
    OneByOne,
}

/// What holds a group up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Nothing: the queue keeps no order.
    #[default]
    None,
    /// A deferred message, and one in quarantine.
    Groups,
    /// These, and a dead one.
    GroupsBlockedByDead,
}

impl Order {
    /// Whether groups keep an order at all.
    pub fn is_kept(self) -> bool {
        self != Self::None
    }

    /// Whether a dead message holds up its group.
    pub fn is_blocked_by_dead(self) -> bool {
        self == Self::GroupsBlockedByDead
    }
}

/// What a read brought of some lanes or of a group, in the order of ids.
#[derive(Debug, Default)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Message>,
    /// Every transaction that had begun to write was below this one, when there is a message.
    pub next_xid: Option<TransactionId>,
    /// The highest message id that had been handed out, when there is a message.
    pub last_id: MessageId,
    /// Whether it was cut at the bytes that were allowed.
    pub is_cut: bool,
    /// Lanes of which the server had more than it was asked for in bytes.
    pub lanes_with_more: Vec<Lane>,
}

/// Which deferred messages to read.
#[derive(Clone, Debug, Default)]
pub struct DueRequest {
    /// The lanes.
    pub lanes: Vec<Lane>,
    /// Not more messages than this.
    pub most: usize,
    /// How many bytes the server is asked for, as it stores them.
    pub stored_bytes: usize,
    /// How many bytes of messages may come.
    pub bytes: usize,
    /// Groups whose messages come otherwise than by being due.
    pub groups_to_skip: Vec<Arc<str>>,
    /// The longest delay of a retry; what is further ahead was recorded by a clock that was.
    pub longest_delay: Duration,
    /// How events are looked up.
    pub lookup: Lookup,
    /// What holds a group up.
    pub order: Order,
}

/// Where to look again in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lane.
    pub lane: Lane,
    /// Above this id.
    pub above: MessageId,
    /// Up to and including this one.
    pub upto: MessageId,
    /// Up to and including this one only those count that nothing of their group holds up, because more of them is known to
    /// wait than can be told. Of all others everything counts: who leaves out what waits behind a deferred message will not
    /// know of it when that one goes.
    pub ready_upto: MessageId,
}

impl Range {
    /// A range in which everything counts.
    pub fn new(lane: Lane, above: MessageId, upto: MessageId) -> Self {
        Self { lane, above, upto, ready_upto: MessageId::NONE }
    }

    /// Whether what is held up is left out in some of it.
    pub fn leaves_out(&self) -> bool {
        self.ready_upto > self.above
    }

    /// How many ids it has.
    pub fn width(&self) -> i64 {
        self.upto.0.saturating_sub(self.above.0)
    }
}

/// What to look for again, in case that reads have passed it.
#[derive(Clone, Debug, Default)]
pub struct Rescan {
    /// Where.
    pub ranges: Vec<Range>,
    /// How many messages of each lane at most.
    pub most: usize,
    /// Groups that are known to have messages in the table, and above which id; those do not count.
    pub waiting: Vec<(Arc<str>, MessageId)>,
    /// Groups of which everything counts also where what is held up is left out.
    pub known: Vec<Arc<str>>,
    /// What holds groups up.
    pub order: Order,
    /// After what time the server is to cut it short.
    pub limit: Option<Duration>,
}

impl Rescan {
    /// How many ids the widest range has.
    pub fn width(&self) -> i64 {
        self.ranges.iter().map(Range::width).max().unwrap_or_default()
    }
}

/// What a look found.
#[derive(Clone, Debug)]
pub struct Rescanned {
    /// What had ended when it looked.
    pub snapshot: Snapshot,
    /// Pending messages in the ranges, those already known included.
    pub found: Vec<Found>,
    /// How long the server has worked, without the way there and back.
    pub took: Duration,
}

/// A pending message that a look found.
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
    /// The lowest message in quarantine, or dead one where those hold up their groups.
    pub by: Option<MessageId>,
    /// The lowest deferred message, and how long it waits; nothing when it is due, `None` when nobody knows.
    pub head: Option<(MessageId, Option<Duration>)>,
}

/// What a look at all lanes saw.
#[derive(Clone, Debug)]
pub struct Look {
    /// What had ended when it looked.
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

/// What can be seen of quiet destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watch {
    /// The highest message id handed out so far, committed or not, to any destination.
    pub last_id: MessageId,
    /// The latest time at which a deferred message fell due, in seconds since 1970.
    pub latest_due: Option<f64>,
    /// Grows with everything that operators do to messages.
    pub last_action: i64,
}

/// Transactions that may have written messages and have not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writers {
    /// Their ids.
    pub transaction_ids: Vec<TransactionId>,
    /// Every transaction that had begun to write anything was below this one.
    pub next_xid: Option<TransactionId>,
}

/// The history of the outbox that a lane belongs to; what was learnt under one is worth nothing under another.
pub type Incarnation = Arc<str>;
