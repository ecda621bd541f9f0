//! Hot groups: what the FIFO mode limits is told, with the groups, the rate and the mode that lifts it; what something
//! else limits is not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use support::eventually;
use support::proxy::{Fault, Rule};
use support::relay::Relay;
use support::test_bed::TestBed;

/// The line of the log.
const LINE: &str = "groups are hot: the FIFO mode limits them, and their messages wait";

/// What SQS takes for a request: a group gets ten messages a second in strict mode, a hundred in batched mode.
const ROUND_TRIP: Duration = Duration::from_millis(100);

fn hot_groups(destination: &str) -> String {
    format!("hot_groups{{destination=\"{destination}\"}}")
}

/// Commits this many messages of one group.
async fn enqueue(bed: &TestBed, destination: &str, group: &str, count: i64) -> Result<()> {
    let sql = "SELECT outbox.enqueue($1, 'Event', jsonb_build_object('n', n), group_id => $2)
        FROM generate_series(1, $3::bigint) AS n";
    bed.client.execute(sql, &[&destination, &group, &count]).await?;
    Ok(())
}

/// What `outbox-relay status` says beside this relay: the text, and the JSON of each destination.
async fn status(bed: &TestBed, relay: &Relay) -> Result<(String, Vec<Value>)> {
    let here = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    let (text, json) = (here.output(&["status"]).await?, here.output(&["status", "--json"]).await?);
    text.ensure_success()?;
    json.ensure_success()?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    Ok((text.stdout, json["destinations"].as_array().cloned().unwrap_or_default()))
}

fn of<'a>(destinations: &'a [Value], name: &str) -> Result<&'a Value> {
    destinations.iter().find(|one| one["destination"] == name).with_context(|| format!("no {name}"))
}

#[tokio::test]
async fn hot_groups_are_told_with_their_rate_and_the_mode_that_lifts_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.fifo("sales").await?;
    proxy.set(Fault::Delay(ROUND_TRIP));
    enqueue(&bed, "tickets", "draw-7", 500).await?;
    enqueue(&bed, "tickets", "draw-8", 400).await?;
    // A group that has nothing to wait for.
    enqueue(&bed, "tickets", "draw-9", 3).await?;
    enqueue(&bed, "sales", "draw-7", 6000).await?;
    bed.relay().output(&["set", "fifo-mode=batched", "--destination", "sales"]).await?.ensure_success()?;
    let relay = bed.relay().start().await?;

    relay.wait_for_metric(&hot_groups("tickets"), 2.0).await?;
    relay.wait_for_metric(&hot_groups("sales"), 1.0).await?;
    let metrics = relay.metrics().await?;
    let rate = |name: &str| metrics.get(&format!("hot_group_messages_per_second{{destination=\"{name}\"}}"));
    // At most one message per round trip, and at most ten. On a slow machine a round trip takes longer.
    ensure!(rate("tickets")? > 0.5 && rate("tickets")? <= 10.5, "{}", rate("tickets")?);
    ensure!(rate("sales")? > rate("tickets")? && rate("sales")? <= 105.0, "{}", rate("sales")?);

    let line = relay.wait_for_log(&format!("{LINE} destination=tickets")).await?;
    for said in ["WARN", "mode=\"strict\"", "hot_groups=2", "draw-7", "draw-8", "OUTBOX_RELAY_FIFO_MODE=batched"] {
        ensure!(line.contains(said), "{said} is not in {line}");
    }
    ensure!(!line.contains("draw-9"), "{line}");
    let line = relay.wait_for_log(&format!("{LINE} destination=sales")).await?;
    ensure!(line.contains("mode=\"batched\"") && line.contains("only more groups help"), "{line}");

    let (text, destinations) = status(&bed, &relay).await?;
    let line = text.lines().find(|line| line.starts_with("tickets: ")).with_context(|| text.clone())?;
    ensure!(line.contains("OUTBOX_RELAY_FIFO_MODE=strict limits 2 hot groups to "), "{line}");
    ensure!(line.contains("draw-7 (") && line.contains("draw-8 (") && line.contains("MODE=batched"), "{line}");
    let hot = &of(&destinations, "tickets")?["hot"];
    ensure!(hot["groups"] == 2 && hot["fifo_mode"] == "strict", "{hot}");
    ensure!(hot["longest"][0]["group"] == "draw-7" && hot["longest"][1]["group"] == "draw-8", "{hot}");
    ensure!(
        of(&destinations, "sales")?["hot"]["remedy"].as_str().is_some_and(|text| text.starts_with("only more groups"))
    );
    for path in ["/", "/status.json", "/metrics"] {
        let (_, page) = relay.get(path).await?;
        ensure!(page.contains("hot"), "{path} says nothing");
        ensure!(!page.contains("draw-7"), "{path} names a group, and everybody may read it");
    }

    bed.relay().output(&["set", "fifo-mode=batched"]).await?.ensure_success()?;
    relay.wait_for_metric(&hot_groups("tickets"), 0.0).await?;
    let left = "SELECT count(*) FROM outbox.messages_pending WHERE destination = 'tickets'";
    eventually("the backlog is worked off", || async { Ok(bed.count(left).await? == 0) }).await?;
    eventually("nothing is told of it any more", || async {
        let (text, destinations) = status(&bed, &relay).await?;
        Ok(!text.contains("tickets: ") && of(&destinations, "tickets")?["hot"].is_null())
    })
    .await?;
    let log = relay.stop().await?;
    let is_told = |line: &&str| line.contains(LINE) && line.contains("destination=tickets mode=\"strict\"");
    ensure!(log.lines().filter(is_told).count() == 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn what_something_else_holds_up_is_not_hot() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    // The first one is hot, and shows that the relay would have noticed the others by now.
    let others = ["halted", "paused", "full", "held"];
    bed.fifo("hot").await?;
    let mut urls = Vec::new();
    for name in others {
        urls.push(bed.fifo(name).await?);
    }
    proxy.script([Rule::new(Fault::queue_missing()).queue(&urls[0]), Rule::new(Fault::Delay(ROUND_TRIP))]);
    for name in ["hot", "halted", "paused"] {
        enqueue(&bed, name, "draw-7", 600).await?;
    }
    // More groups than fit into the one request that may be under way.
    bed.enqueue_many("full", 6000, 30).await?;
    enqueue(&bed, "held", "draw-7", 600).await?;
    let hold_back = "UPDATE outbox.messages SET available_at = 'infinity'
        WHERE id = (SELECT min(id) FROM outbox.messages WHERE destination = 'held') AND status = 'pending'";
    bed.client.execute(hold_back, &[]).await?;
    bed.relay().output(&["pause", "paused"]).await?.ensure_success()?;
    bed.relay().output(&["set", "max-in-flight=1", "--destination", "full"]).await?.ensure_success()?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(&hot_groups("hot"), 1.0).await?;
    for name in others {
        ensure!(
            bed.count(&format!("SELECT count(*) FROM outbox.messages_pending WHERE destination = '{name}'")).await? > 0
        );
        let hot = relay.metrics().await?.get(&hot_groups(name))?;
        ensure!(hot == 0.0, "{name}: {hot}");
    }
    // The queue of the hot one goes away as well.
    proxy.set(Fault::queue_missing());
    relay.wait_for_metric(&hot_groups("hot"), 0.0).await?;
    let log = relay.stop().await?;
    ensure!(log.matches(LINE).count() == 1, "{log}");
    Ok(())
}
