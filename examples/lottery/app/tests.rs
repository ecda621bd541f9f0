//! The store and the audit on a real database.

use anyhow::{Context as _, Result, ensure};
use outbox_relay::outbox::script;
use outbox_relay::schema::Schema;
use serde_json::json;
use tokio_postgres::Client;

use super::audit;
use super::draw::{Fact, Wish};
use super::store::{Granted, Store, Stored, pool};
use super::views;
use support::lottery::shop::connect;
use support::postgres::{Cluster, Options};

async fn database() -> Result<(Cluster, String, Client)> {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&Options::default())).await??;
    let url = cluster.url("postgres");
    let client = connect(&url).await?;
    client.batch_execute(&script(&Schema::OUTBOX)).await?;
    client.batch_execute(views::TABLES).await?;
    Ok((cluster, url, client))
}

/// The number of events it caused.
async fn grant(store: &Store, wish: &Wish) -> Result<usize> {
    let nothing =
        |_: Vec<Stored>| -> futures_util::future::BoxFuture<'static, Result<()>> { Box::pin(async { Ok(()) }) };
    match store.grant("draw-01", wish, true, nothing).await? {
        Granted::Stored(stored) => Ok(stored.len()),
        Granted::Refused(refusal) => Err(refusal.into()),
    }
}

fn buy(number: u8) -> Wish {
    let ticket = format!("00000000-0000-4000-8000-0000000000{number:02}");
    Wish::Buy { ticket, player: "p-1".to_owned(), numbers: vec![1, 2, 3, 4, 5, 6] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_repeated_at_an_outdated_instance_leaves_both_correct() -> Result<()> {
    let (_cluster, url, client) = database().await?;
    let (one, other) = (Store::open(&url, 2)?, Store::open(&url, 2)?);
    ensure!(grant(&one, &Wish::Open { price: 5 }).await? == 1 && grant(&other, &buy(1)).await? == 1);
    for number in 2..=9 {
        ensure!(grant(&one, &buy(number)).await? == 1);
    }
    ensure!(grant(&other, &buy(9)).await? == 0, "it was sold a second time");
    ensure!(grant(&other, &Wish::Draw { numbers: vec![1, 2, 3, 4, 5, 6] }).await? == 1);
    // An instance that missed the tickets in between would not pay for them.
    ensure!(grant(&other, &Wish::PayOut).await? == 9, "not every winner was paid");
    ensure!(audit::broken_by_events(&client).await?.is_empty(), "{:?}", audit::broken_by_events(&client).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_notices_every_violation() -> Result<()> {
    let (_cluster, url, client) = database().await?;
    let store = Store::open(&url, 2)?;
    let Wish::Buy { ticket, .. } = buy(1) else { anyhow::bail!("no purchase") };
    let wishes = [
        Wish::Open { price: 5 },
        buy(1),
        buy(2),
        Wish::Cancel { ticket: ticket.clone() },
        Wish::Draw { numbers: vec![1, 2, 3, 4, 5, 6] },
        Wish::PayOut,
    ];
    for wish in &wishes {
        ensure!(grant(&store, wish).await? == 1);
    }
    ensure!(audit::broken_by_events(&client).await?.is_empty(), "{:?}", audit::broken_by_events(&client).await?);
    let again = json!({"draw": "draw-01", "ticket": ticket, "player": "p-1", "price": 5, "numbers": [1, 2, 3, 4, 5, 6], "amount": 10});
    for (event_type, part) in [
        ("TicketCancelled", "given back once"),
        ("TicketPurchased", "after the draw"),
        ("NumbersDrawn", "drawn once"),
        ("PrizePaid", "nobody else"),
    ] {
        client.batch_execute("BEGIN").await?;
        let append = "SELECT outbox.append('draw-01', NULL, jsonb_build_array(
            jsonb_build_object('event_type', $1::text, 'payload', $2::text::jsonb)))";
        client.execute(append, &[&event_type, &again.to_string()]).await?;
        let broken = audit::broken_by_events(&client).await?;
        ensure!(broken.iter().any(|broken| broken.contains(part)), "{event_type}: {broken:?}");
        client.batch_execute("ROLLBACK").await?;
    }
    audit::broken(&client).await?.first().context("empty read models pass for what the events say")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_read_models_are_the_same_in_whatever_order_the_events_of_a_draw_arrive() -> Result<()> {
    let (_cluster, url, client) = database().await?;
    let pool = pool(&url, 1)?;
    let (player, price) = ("p-1".to_owned(), 5);
    let bought = |ticket: &str| Fact::Purchased {
        ticket: ticket.to_owned(),
        player: player.clone(),
        numbers: vec![1, 2, 3, 4, 5, 6],
        price,
    };
    let facts = [
        Fact::Opened { price },
        bought("t-1"),
        bought("t-2"),
        Fact::Cancelled { ticket: "t-1".to_owned(), player: player.clone(), price },
        Fact::Drawn { numbers: vec![1, 2, 3, 4, 5, 6] },
        Fact::Paid { ticket: "t-2".to_owned(), player: player.clone(), amount: 10 },
    ];
    let models = "SELECT (SELECT jsonb_agg(t ORDER BY ticket) FROM views.tickets AS t)::text
        || (SELECT jsonb_agg(s) FROM views.sales AS s)::text || (SELECT jsonb_agg(p) FROM views.payouts AS p)::text";
    let mut seen = Vec::new();
    for begin in 0..facts.len() {
        for is_reversed in [false, true] {
            let mut order: Vec<&Fact> = facts.iter().cycle().skip(begin).take(facts.len()).collect();
            if is_reversed {
                order.reverse();
            }
            client.batch_execute("TRUNCATE views.tickets, views.sales, views.payouts").await?;
            let mut connection = pool.get().await?;
            let transaction = connection.transaction().await?;
            for fact in order {
                for view in ["tickets", "sales", "payouts"] {
                    views::apply(view, &transaction, "draw-01", fact).await?;
                }
            }
            transaction.commit().await?;
            seen.push(client.query_one(models, &[]).await?.get::<_, String>(0));
        }
    }
    ensure!(seen.iter().all(|models| *models == seen[0]), "{seen:#?}");
    ensure!(seen[0].contains("cancelled") && seen[0].contains("paid"), "{}", seen[0]);
    Ok(())
}
