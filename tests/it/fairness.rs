//! Several relays on a busy outbox: each gets its part, and together they are faster than one.
//!
//! Every request takes a while in the proxy and few are in flight, so that what counts is waiting and not the machine.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::support::bed::Bed;
use crate::support::proxy::{Fault, Proxy};
use crate::support::relay::Relay;

/// A relay behind a proxy of its own, which makes it slow and counts what it sends.
async fn slow_relay(bed: &Bed) -> Result<(Relay, Proxy)> {
    let proxy = bed.proxy().await?;
    proxy.set(Fault::Delay(Duration::from_millis(200)));
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "1").start().await?;
    Ok((relay, proxy))
}

/// How many entries a second each proxy sees during some seconds.
async fn rates(proxies: &[&Proxy], seconds: u64) -> Vec<f64> {
    let before: Vec<_> = proxies.iter().map(|proxy| proxy.entries_seen()).collect();
    let started = Instant::now();
    // Time is the subject: a rate is what comes in a span of it.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let seconds = started.elapsed().as_secs_f64();
    proxies.iter().zip(before).map(|(proxy, before)| (proxy.entries_seen() - before) as f64 / seconds).collect()
}

#[tokio::test]
async fn two_busy_relays_share_the_work_and_are_faster_than_one() -> Result<()> {
    let bed = Bed::new().await?;
    let queue = bed.fifo("tickets").await?;
    // So few groups that all of a lane can be read and the rest of each group left in the table.
    bed.enqueue_many("tickets", 3000, 40).await?;
    let (first, first_proxy) = slow_relay(&bed).await?;
    first_proxy.wait_for_requests(5).await?;
    let alone = rates(&[&first_proxy], 4).await[0];
    let (second, second_proxy) = slow_relay(&bed).await?;
    let proxies = [&first_proxy, &second_proxy];
    rates(&proxies, 10).await;
    let shares = rates(&proxies, 5).await;
    ensure!(bed.pending().await? > 500, "too little is left to have kept both busy");
    let together: f64 = shares.iter().sum();
    println!("alone {alone:.0} a second, then {:.0} and {:.0}", shares[0], shares[1]);
    ensure!(shares.iter().all(|share| *share >= together * 0.3), "the shares are {shares:?}");
    ensure!(together >= alone * 1.3, "one alone sent {alone} a second, two together {together}");
    first_proxy.clear();
    second_proxy.clear();
    bed.until_nothing_is_pending().await?;
    first.stop().await?;
    second.stop().await?;
    bed.ensure_arrived_in_order(&queue, 3000).await
}

#[tokio::test]
async fn three_and_four_busy_relays_all_get_lanes_send_nothing_twice_and_keep_the_order() -> Result<()> {
    for count in [3, 4] {
        let bed = Bed::new().await?;
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
