//! The dry run: what the relay computes for each message, without PostgreSQL and without SQS.
//!
//! `make test` counts its instructions and compares them with a committed figure, because a clock is too noisy to show
//! a change of ten percent (`benches/instructions.rs`). It runs the same steps as a claim session: composing,
//! scheduling, packing, building requests, and planning the settling.

use super::core::{MemoryBudget, Schedule, ScheduleLimits, compose_item};
use crate::config::FifoMode;
use crate::message::{Fault, FaultKind, Message, Outcome, QueueKind};
use crate::outbox::SettlePlan;
use crate::sqs::build_request;

/// Entries of a request.
const REQUEST_SIZE: usize = 10;

/// The result of a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// Requests that would have been sent.
    pub requests: usize,
    /// Rows that would have been written.
    pub rows: usize,
}

/// Takes messages from the read to the settling, as if SQS accepted each at once.
///
/// # Errors
///
/// A message that SQS can never accept, or a request that cannot be built.
pub fn dry_run(messages: Vec<Message>, kind: QueueKind) -> Result<DryRun, Fault> {
    let memory = MemoryBudget::new(usize::MAX / 2).share();
    let mut schedule = Schedule::new(ScheduleLimits::new(REQUEST_SIZE, FifoMode::Strict));
    let mut outcomes = Vec::with_capacity(messages.len());
    let mut requests = 0;
    for message in messages {
        schedule.admit(compose_item(message, kind, &mut memory.reserve(0))?);
    }
    while let Some(items) = schedule.next_request() {
        requests += 1;
        let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
        let request = build_request(&entries)
            .map_err(|error| Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string()))?;
        for (item, entry) in items.iter().zip(request) {
            let outcome = Outcome::Delivered { sqs_message_id: entry.id().to_owned(), sequence_number: None };
            outcomes.push(item.with_outcome(outcome));
        }
        schedule.finish(&items, Vec::new());
    }
    let rows = SettlePlan::of(&outcomes).rows();
    outcomes.iter().for_each(|settled| schedule.forget(settled.key));
    Ok(DryRun { requests, rows })
}
