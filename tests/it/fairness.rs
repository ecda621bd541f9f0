//! Several relays on a busy outbox: each gets its share, whatever the speed of the machine. How much faster they are
//! together is measured by `CASE=replicas make bench`.
//!
//! Every request takes some time in the proxy and few are in flight, so waiting determines the rate, not the machine.

use std::time::Duration;

use anyhow::{Result, ensure};

use support::eventually;
use support::proxy::{Fault, Proxy};
use support::relay::Relay;
use support::test_bed::TestBed;

/// A relay behind its own proxy, which makes it slow and counts what it sends.
async fn slow_relay(bed: &TestBed) -> Result<(Relay, Proxy)> {
    let proxy = bed.proxy().await?;
    proxy.set(Fault::Delay(Duration::from_millis(200)));
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "1").start().await?;
    Ok((relay, proxy))
}

/// How many entries each relay sends until both have sent this many.
const SHARE: usize = 300;

#[tokio::test]
async fn a_second_busy_relay_gets_its_share_of_the_work() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    // So few groups that a lane can be read completely while the rest of each group stays in the table.
    bed.enqueue_many("tickets", 4000, 40).await?;
    let (first, first_proxy) = slow_relay(&bed).await?;
    first_proxy.wait_for_requests(5).await?;
    let (second, second_proxy) = slow_relay(&bed).await?;
    second_proxy.wait_for_requests(1).await?;
    let proxies = [&first_proxy, &second_proxy];
    let before = proxies.map(|proxy| proxy.entries_seen());
    let sent = || [0, 1].map(|at: usize| proxies[at].entries_seen() - before[at]);
    eventually("both relays send", || async { Ok(sent().iter().all(|sent| *sent >= SHARE)) }).await?;
    // Entries are counted, not seconds: how fast the machine is does not matter.
    let shares = sent();
    ensure!(shares.iter().all(|share| *share * 5 >= shares.iter().sum()), "the shares are {shares:?}");
    first_proxy.clear();
    second_proxy.clear();
    bed.until_nothing_is_pending().await?;
    first.stop().await?;
    second.stop().await?;
    bed.ensure_arrived_in_order(&queue, 4000).await
}

#[tokio::test]
async fn three_and_four_busy_relays_all_get_lanes_send_nothing_twice_and_keep_the_order() -> Result<()> {
    for count in [3, 4] {
        let bed = TestBed::new().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 4000, 40).await?;
        let mut crew = Vec::new();
        for _ in 0..count {
            crew.push(slow_relay(&bed).await?);
        }
        for (_, proxy) in &crew {
            proxy.wait_for_requests(1).await?;
        }
        crew.iter().for_each(|(_, proxy)| proxy.clear());
        bed.until_nothing_is_pending().await?;
        let sent: usize = crew.iter().map(|(_, proxy)| proxy.entries_seen()).sum();
        ensure!(sent == 4000, "{count} relays sent {sent} entries");
        for (relay, _) in crew {
            relay.stop().await?;
        }
        bed.ensure_arrived_in_order(&queue, 4000).await?;
    }
    Ok(())
}
