//! What the README and the pages for users tell to type is typed here, word by word.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use support::test_bed::TestBed;

fn page(name: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))?)
}

/// The blocks of code in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&fence as &str).skip(1).filter_map(|text| text.split("```").next()).collect()
}

#[tokio::test]
async fn the_statements_of_the_page_on_testing_find_what_they_say() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let page = page("docs/testing.md")?;
    let statements = blocks(&page, "sql");
    let [written, disorder, load] = &statements[..] else { anyhow::bail!("{} statements", statements.len()) };
    let append = "SELECT outbox.append('draw-7', 0, '[{\"event_type\": \"A\", \"payload\": {}}, {\"event_type\": \"B\", \"payload\": {}}]', '{audit}')";
    bed.client.batch_execute(append).await?;
    let rows = bed.client.query(*written, &[]).await?;
    ensure!(rows.iter().map(|row| row.get::<_, String>("event_type")).collect::<Vec<_>>() == ["A", "B"]);
    ensure!(bed.client.query(*disorder, &[]).await?.is_empty());
    // A writer that does not wait for the other one.
    let event = "INSERT INTO outbox.events (stream_id, stream_version, event_type, payload) VALUES ('draw-8', $1, 'A', '{}') RETURNING position";
    for version in [2_i64, 1] {
        let position: i64 = bed.client.query_one(event, &[&version]).await?.get(0);
        let message =
            "INSERT INTO outbox.messages (destination, event_position, group_id) VALUES ('audit', $1, 'draw-8')";
        bed.client.execute(message, &[&position]).await?;
    }
    let rows = bed.client.query(*disorder, &[]).await?;
    ensure!(rows.len() == 1 && rows[0].get::<_, String>("group_id") == "draw-8", "disorder is not found");
    ensure!(bed.client.query_one(*load, &[]).await?.get::<_, i64>(0) == 1000);
    // Everything is delivered, and then a second time.
    for line in
        blocks(&page, "sh").concat().lines().filter(|line| line.contains("replay") || line.contains("run --until"))
    {
        let words = line.split('#').next().unwrap_or_default().split_whitespace().skip(1).collect::<Vec<_>>();
        bed.relay().output(&words).await?.ensure_success().with_context(|| line.to_owned())?;
    }
    // Two events do not say where they went, so they are not replayed.
    ensure!(bed.pending().await? == 0 && bed.delivered().await? == 2006, "{}", bed.delivered().await?);
    Ok(())
}

#[tokio::test]
async fn the_transaction_and_the_commands_of_the_readme_work() -> Result<()> {
    let bed = TestBed::empty().await?;
    let queue = bed.fifo("tickets").await?;
    bed.client.batch_execute("CREATE TABLE accounts (player text, balance int)").await?;
    let readme = page("README.md")?;
    ensure!(readme.lines().count() < 150, "the README has {} lines", readme.lines().count());
    let running = blocks(&readme, "sh").into_iter().find(|block| block.contains("outbox-relay migrate"));
    let commands = running.context("no commands")?.lines().filter_map(|line| line.strip_prefix("outbox-relay "));
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(commands == ["migrate", "check", "run"], "{commands:?}");
    for command in &commands[..2] {
        bed.relay().output(&[*command]).await?.ensure_success()?;
    }
    let relay = bed.relay().start().await?;
    let [transaction] = blocks(&readme, "sql")[..] else { anyhow::bail!("not one transaction") };
    bed.client.batch_execute(transaction).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    let [message] = &arrived[..] else { anyhow::bail!("{} messages arrived", arrived.len()) };
    ensure!(message.body == r#"{"player": "p-1", "numbers": [3, 17, 21]}"#, "{message:?}");
    Ok(())
}

#[tokio::test]
async fn the_statements_of_the_page_on_writing_write() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("CREATE TABLE accounts (player text, balance int)").await?;
    let page = page("docs/writing.md")?;
    let statements = blocks(&page, "sql");
    let [transaction, call, batch, others, many_others, later, plain, cancel, _event_sourcing] = &statements[..] else {
        anyhow::bail!("{} blocks", statements.len())
    };
    bed.client.batch_execute(transaction).await?;
    bed.client.batch_execute(call).await?;
    bed.client.batch_execute(batch).await?;
    let targets = "SELECT count(*) FROM outbox.messages_pending WHERE destination = 'tickets' AND group_id IN ('draw-7', 'draw-8')
        OR (destination = 'audit' AND group_id IS NULL)";
    ensure!(bed.count(targets).await? == 5);
    bed.client.batch_execute(others).await?;
    bed.client.batch_execute(many_others).await?;
    let bodies = "SELECT string_agg(coalesce(e.body, encode(e.body_bytes, 'base64')), ' ' ORDER BY m.id)
        FROM outbox.messages_pending AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.destination = 'invoices'";
    let bodies: String = bed.client.query_one(bodies, &[]).await?.get(0);
    ensure!(bodies == "<invoice id=\"c-7\">Grüße</invoice> CgNjLTc= <invoice id=\"c-8\"/> CgNjLTg=", "{bodies}");
    let scheduled = "SELECT count(*) FROM outbox.messages WHERE destination = 'mails' AND status = 'scheduled'";
    let id: i64 = bed.client.query_one(*later, &[]).await?.get(0);
    bed.client.batch_execute(plain).await?;
    ensure!(bed.count(scheduled).await? == 2);
    let (cancel, hurry) = cancel.split_once(';').context("not two statements")?;
    ensure!(bed.client.execute(&hurry.replace("4712", &id.to_string()), &[]).await? == 1);
    ensure!(bed.client.execute(&cancel.replace("4712", &id.to_string()), &[]).await? == 1);
    ensure!(bed.count(scheduled).await? == 1);
    Ok(())
}
