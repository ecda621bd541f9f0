//! What is wanted of `dev`.

use std::net::SocketAddr;
use std::path::PathBuf;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The names of the queues; a name without `.fifo` is the destination.
    pub queues: Vec<String>,
    /// Where the queues listen.
    pub sqs_listen: SocketAddr,
    /// The folder of PostgreSQL's programs, if not those that are found.
    pub postgres: Option<PathBuf>,
    /// Where the database is kept, if it is.
    pub data: Option<PathBuf>,
    /// How the relay runs.
    pub relay: RelayBy,
    /// Ends after this many messages.
    pub until_messages: Option<u64>,
    /// What to do if the database of DATABASE_URL has an outbox that others use.
    pub served: Served,
}

/// Who starts the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayBy {
    /// This command.
    Us,
    /// The user, in another terminal.
    User,
}

/// A database whose destinations other relays have served, or whose schema is of another release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Is not used: its messages would be delivered to queues that are soon gone.
    Refused,
    /// Is used.
    Taken,
}
