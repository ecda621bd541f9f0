//! `outbox-relay dev`: its flags. [`crate::dev`] does the work.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use clap::Args;

use super::{Failure, say};
use crate::config::{ConfigError, Flags};
use crate::dev::{self, Plan, RelayBy, Served, Unusable};

/// Where the queues listen by default: the port that emulators of SQS use.
const LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9324));

/// What to start.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  outbox-relay dev\n  outbox-relay dev --queues orders.fifo,mails --data ./dev-data\n  \
    DATABASE_URL=postgres://localhost/test outbox-relay dev\n\n\
    Without DATABASE_URL it starts a PostgreSQL of its own from the programs on this machine. The queues are in memory, are \
    reached from this machine only, and check no credentials."
)]
pub(super) struct Dev {
    /// The queues; a name with .fifo is a FIFO queue, and the name without it is the destination
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "tickets.fifo,audit")]
    queues: Vec<String>,
    /// Where the queues listen, an address of this machine; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value_t = LISTEN)]
    sqs_listen: SocketAddr,
    /// The folder of initdb and postgres, if not those that are found
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// Keep the database in this folder; by default it is temporary
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Start no relay; `outbox-relay run` in another terminal is the relay then
    #[arg(long)]
    no_relay: bool,
    /// End when this many messages have arrived
    #[arg(long, value_name = "N")]
    until_messages: Option<u64>,
    /// Use the database of DATABASE_URL although its outbox has these destinations, whose messages go to the queues
    /// here, or is of another release; an older one is migrated
    #[arg(long)]
    take_messages: bool,
}

pub(super) async fn run(flags: &Flags, dev: Dev) -> Result<(), Failure> {
    let Dev { queues, sqs_listen, postgres, data, no_relay, until_messages, take_messages } = dev;
    let plan = Plan {
        queues: queues.into_iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
        sqs_listen,
        postgres,
        data,
        relay: if no_relay { RelayBy::User } else { RelayBy::Us },
        until_messages,
        served: if take_messages { Served::Taken } else { Served::Refused },
    };
    dev::run(flags, &plan, say).await.map_err(|error| match error.downcast::<Unusable>() {
        Ok(Unusable(sentence)) => Failure::Configuration(ConfigError(vec![sentence])),
        Err(error) => error.into(),
    })
}
