//! A small SQS for development: queues in memory behind the JSON protocol of the AWS SDKs. Not for anything else.
//!
//! [`state`] decides, [`server`] does the waiting and the network. What SQS has and this has not: dead-letter queues,
//! policies, encryption, tags, retention, `ReceiveRequestAttemptId`, and checks of signatures.

mod arrival;
mod deduplication;
mod digest;
mod message;
mod queue;
mod refusal;
mod server;
mod settings;
mod state;

pub(crate) use arrival::Arrival;
pub(crate) use server::Server;
