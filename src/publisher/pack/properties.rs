//! For any sizes: no request exceeds a limit, nothing is left over, and no request could have held the next entry.

use proptest::prelude::*;

use super::*;
use crate::message::{MAX_MESSAGE_BYTES as MAX_BYTES, MAX_TOPIC_MESSAGE_BYTES};

/// Small entries, the largest ones, and sizes of which a few fill a request.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![1..1000_usize, 90_000..120_000_usize, 1..=MAX_BYTES, Just(MAX_BYTES), Just(MAX_BYTES / 2)];
    prop::collection::vec(size, 0..60)
}

/// Packs entries into requests one after the other, as the schedule does.
fn pack(sizes: &[usize], most_entries: usize, most_bytes: usize) -> Vec<Vec<usize>> {
    let mut requests: Vec<Vec<usize>> = Vec::new();
    let mut load = Load::new(most_entries, most_bytes);
    for size in sizes {
        if requests.is_empty() || load.is_full() || !load.fits(Size { bytes: *size, offloaded: 0 }) {
            requests.push(Vec::new());
            load = Load::new(most_entries, most_bytes);
        }
        load.add(Size { bytes: *size, offloaded: 0 });
        requests.last_mut().unwrap().push(*size);
        assert_eq!(load.entries(), requests.last().unwrap().len());
    }
    requests
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_exceeds_a_limit_and_each_is_as_full_as_the_next_entry_allows(
        sizes in sizes(),
        most_entries in 1..=10_usize,
        is_topic in any::<bool>(),
    ) {
        let most_bytes = if is_topic { MAX_TOPIC_MESSAGE_BYTES } else { MAX_BYTES };
        let sizes: Vec<usize> = sizes.into_iter().map(|size| size.min(most_bytes)).collect();
        let requests = pack(&sizes, most_entries, most_bytes);
        prop_assert_eq!(requests.concat(), sizes, "nothing is dropped and the order is kept");
        for request in &requests {
            prop_assert!(request.len() <= most_entries && request.iter().sum::<usize>() <= most_bytes, "{:?}", request);
        }
        for pair in requests.windows(2) {
            let with_the_next = pair[0].iter().sum::<usize>() + pair[1][0];
            prop_assert!(pair[0].len() == most_entries || with_the_next > most_bytes, "{:?}", pair);
        }
    }
}
