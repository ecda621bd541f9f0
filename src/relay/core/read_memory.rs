//! How much memory a read needs, so that what it brings fits into the budget that all destinations share. Pure, but for
//! the budget.

use super::destination::DestinationState;
use super::limits::Reserved;
use crate::reading::READ_BYTES;

/// A read with less memory than this is not worth its round trip; the first message always comes.
const MIN_READ_BYTES: usize = 256 * 1024;

/// Memory for a read: as much as it may return, or what is left. A destination that holds nothing always gets enough for
/// one message.
pub(super) fn memory_for(destination: &DestinationState, statements: usize) -> Option<Reserved> {
    let budget = &destination.memory;
    let share = READ_BYTES.min(budget.max() / 4).max(MIN_READ_BYTES);
    let least = least(destination, statements);
    let half = (share / 2).max(least);
    let memory = budget.try_reserve(share.max(least)).or_else(|| budget.try_reserve(half));
    let memory = memory.or_else(|| budget.try_reserve(least));
    memory.or_else(|| match destination.accepts.claim_check {
        _ if budget.held() > 0 => None,
        None => Some(budget.reserve(least)),
        // One message can be so large that not every destination may hold one beyond the budget.
        Some(_) => budget.reserve_as_exception(least),
    })
}

/// The least memory for a read. With a claim check each statement may bring one body of the largest size, and the bytes
/// from PostgreSQL are there beside the text that is made of them.
fn least(destination: &DestinationState, statements: usize) -> usize {
    let bodies = (statements + 1).saturating_mul(destination.accepts.max_offloaded());
    bodies.min(destination.memory.max()).max(MIN_READ_BYTES)
}

/// How many bytes of messages a statement may keep of this memory.
pub(super) fn bytes_to_keep(destination: &DestinationState, memory: &Reserved, statements: usize) -> usize {
    let copy = destination.accepts.max_offloaded();
    let bytes = memory.bytes().saturating_sub(copy);
    if copy == 0 { bytes } else { (bytes / statements).min(READ_BYTES) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::limits::MemoryBudget;
    use super::*;
    use crate::clock::Time;
    use crate::config::Tuning;
    use crate::message::{Accepts, ClaimCheck, DestinationKind};

    const MIB: usize = 1024 * 1024;

    fn destination(budget: &Arc<MemoryBudget>, max_bytes: usize) -> DestinationState {
        let claim_check =
            ClaimCheck { bucket: "b".to_owned(), prefix: String::new(), relay: String::new(), above: 1024, max_bytes };
        let claim_check = (max_bytes > 0).then(|| Arc::new(claim_check));
        let accepts = Accepts { claim_check, ..Accepts::queue(DestinationKind::Standard) };
        let rng = fastrand::Rng::with_seed(1);
        DestinationState::new(accepts, Tuning::default(), budget.share(), rng, Time::default())
    }

    #[test]
    fn destinations_that_may_have_large_bodies_read_only_as_many_at_a_time_as_fit() {
        let budget = MemoryBudget::new(64 * MIB);
        let destinations: Vec<_> = (0..20).map(|_| destination(&budget, 8 * MIB)).collect();
        let mut reads: Vec<_> = destinations.iter().filter_map(|one| memory_for(one, 1)).collect();
        assert_eq!((reads.len(), budget.used()), (5, 80 * MIB), "four, and one beyond the budget");
        assert_eq!(bytes_to_keep(&destinations[0], &reads[0], 1), 8 * MIB);
        reads.pop();
        let next: Vec<_> = destinations.iter().filter_map(|one| memory_for(one, 1)).collect();
        assert_eq!(next.len(), 1, "that one is done");
        drop((reads, next));
        let read = memory_for(&destinations[0], 2).unwrap();
        assert_eq!((read.bytes(), bytes_to_keep(&destinations[0], &read, 2)), (24 * MIB, 8 * MIB));
    }

    #[test]
    fn a_destination_without_a_claim_check_always_gets_enough_for_a_message() {
        let budget = MemoryBudget::new(8 * MIB);
        let full = budget.share().reserve(8 * MIB);
        let destinations: Vec<_> = (0..20).map(|_| destination(&budget, 0)).collect();
        assert_eq!(destinations.iter().filter_map(|one| memory_for(one, 1)).count(), 20);
        drop(full);
    }
}
