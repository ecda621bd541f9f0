//! The status page says what the relay does, from what it knows anyway; it reveals no secret, and no client can harm it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use support::eventually;
use support::postgres::{Cluster, Options, StopMode};
use support::relay::Relay;
use support::roles::Roles;
use support::test_bed::TestBed;

/// Refuses to record what belongs to the group `odd`.
const REFUSE: &str =
    "ALTER TABLE outbox.messages_delivered ADD CONSTRAINT refuse CHECK (group_id IS DISTINCT FROM 'odd')";

/// The page as JSON.
pub async fn status(relay: &Relay) -> Result<Value> {
    let (status, text) = relay.get("/status.json").await?;
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// A destination on the page.
async fn row(relay: &Relay, name: &str) -> Result<Value> {
    let page = status(relay).await?;
    let rows = page["destinations"].as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["destination"] == name).with_context(|| format!("no {name} in {page}"))
}

/// Waits until a member of a destination has this value.
pub async fn wait_for(relay: &Relay, name: &str, member: &str, value: impl Into<Value>) -> Result<()> {
    let value = value.into();
    let what = format!("{member} of {name} is {value}");
    eventually(&what, || async { Ok(row(relay, name).await?[member] == value) }).await
}

/// The page as a browser gets it, text as people read it.
async fn page(relay: &Relay) -> Result<String> {
    let (status, text) = relay.get("/").await?;
    ensure!(status == 200, "{status}: {text}");
    Ok(text)
}

/// A URL of a queue that does not exist.
pub fn missing_queue(url: &str) -> String {
    url.replace(url.rsplit('/').next().unwrap_or_default(), "missing.fifo")
}

#[tokio::test]
async fn every_condition_is_said_in_words_with_its_section_of_the_runbook() -> Result<()> {
    let bed = TestBed::new().await?;
    let tickets = bed.fifo("tickets").await?;
    bed.add_destination("missing", &missing_queue(&tickets));
    bed.standard("audit").await?;
    bed.client.batch_execute(REFUSE).await?;
    bed.enqueue("missing", "{\"n\": 1}", Some("g")).await?;
    bed.enqueue("tickets", &format!("{{\"n\": \"{}\"}}", "x".repeat(1_100_000)), Some("g")).await?;
    bed.enqueue("tickets", "{\"n\": 2}", Some("odd")).await?;
    let relay = bed.relay().start().await?;
    bed.client.batch_execute("SELECT outbox.pause('audit', NULL, 'it <moves>', 'ada & co')").await?;
    wait_for(&relay, "missing", "state", "halted").await?;
    wait_for(&relay, "audit", "state", "paused").await?;
    wait_for(&relay, "tickets", "dead", 1).await?;
    wait_for(&relay, "tickets", "quarantined", 1).await?;
    wait_for(&relay, "missing", "pending", 1).await?;
    let text = page(&relay).await?;
    for words in [
        "NonExistentQueue: The specified queue does not exist",
        "1 message pending, not lost",
        "by ada &amp; co, until resumed: it &lt;moves&gt;",
        "has 1 dead message, which wait",
        "has 1 message in quarantine",
        "since start: 1 message_<wbr>permanent",
        "(3 problems) outbox-relay",
    ] {
        ensure!(text.contains(words), "{words:?} is not on the page:\n{text}");
    }
    let sections =
        ["a-destination-is-halted", "a-destination-is-paused", "a-message-is-dead", "a-message-is-in-quarantine"];
    let (code, runbook) = relay.get("/docs/operations.md").await?;
    ensure!(code == 200);
    for section in sections {
        ensure!(text.contains(&format!("href=\"docs/operations.md#{section}\"")), "no link to {section}:\n{text}");
        ensure!(runbook.contains(&format!("<section id=\"{section}\">")), "{section} is not in the served runbook");
    }
    bed.relay().output(&["resume", "audit"]).await?.ensure_success()?;
    wait_for(&relay, "audit", "state", "idle").await
}

#[tokio::test]
async fn the_page_agrees_with_the_metrics() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    wait_for(&relay, "tickets", "pending", 0).await?;
    // The rate is over ten to fifteen seconds that lie behind, so the page has to be that old first.
    eventually("a rate is known", || async { Ok(row(&relay, "tickets").await?["delivered_per_second"] == 0.0) })
        .await?;
    bed.enqueue_many("tickets", 1000, 50).await?;
    bed.enqueue("tickets", &format!("{{\"n\": \"{}\"}}", "x".repeat(1_100_000)), Some("g")).await?;
    wait_for(&relay, "tickets", "delivered_since_start", 1000).await?;
    wait_for(&relay, "tickets", "dead", 1).await?;
    // The memory of the page gets a new moment every few seconds.
    eventually("the rate is known", || async {
        let rate = row(&relay, "tickets").await?["delivered_per_second"].as_f64().context("no rate")?;
        ensure!(rate <= 1000.0, "{rate} a second, of 1000 messages");
        Ok(rate > 0.0)
    })
    .await?;
    // Nothing moves any more, so both show the same moment.
    wait_for(&relay, "tickets", "pending", 0).await?;
    let (metrics, row_now) = (relay.metrics().await?, row(&relay, "tickets").await?);
    for (member, series) in [
        ("delivered_since_start", "delivered_messages_total"),
        ("pending", "backlog_messages"),
        ("lag_seconds", "lag_seconds"),
        ("dead", "dead_messages"),
        ("quarantined", "quarantined_messages"),
        ("in_flight_limit", "in_flight_limit"),
        ("requests_in_flight", "requests_in_flight"),
    ] {
        let value = metrics.get(&format!("{series}{{destination=\"tickets\"}}"))?;
        ensure!(row_now[member].as_f64() == Some(value), "{member} is {}, {series} is {value}", row_now[member]);
    }
    let died = metrics.get(r#"dead_lettered_total{destination="tickets",reason="message_permanent"}"#)?;
    ensure!(row_now["died_since_start"]["message_permanent"].as_f64() == Some(died), "{row_now}");
    // What is delivered no more has no rate.
    wait_for(&relay, "tickets", "delivered_per_second", 0.0).await
}

#[tokio::test]
async fn a_view_needs_no_database_and_says_that_it_is_down() -> Result<()> {
    let cluster = Cluster::start(&Options::default())?;
    let bed = TestBed::on(&cluster).await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    let relay = bed.relay().start().await?;
    wait_for(&relay, "tickets", "delivered_since_start", 20).await?;
    cluster.stop(StopMode::Immediate)?;
    relay.wait_for_metric("database_up", 0.0).await?;
    wait_for(&relay, "tickets", "state", "waiting for the database").await?;
    let text = page(&relay).await?;
    ensure!(text.contains("The database cannot be used for ") && text.contains("does not answer"), "{text}");
    ensure!(text.contains("href=\"docs/operations.md#the-database-cannot-be-used\""), "{text}");
    ensure!(text.contains("total 20"), "counters are known without the database:\n{text}");
    cluster.start_again()?;
    wait_for(&relay, "tickets", "state", "idle").await?;
    ensure!(page(&relay).await?.contains("Nothing that this relay knows of."));
    Ok(())
}

#[tokio::test]
async fn no_secret_is_served() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let password = support::postgres::PASSWORD;
    let relay = bed
        .relay()
        .append(
            "OUTBOX_RELAY_DESTINATIONS",
            ";role=arn:aws:iam::222222222222:role/publisher;external-id=the-external-id",
        )
        .env("AWS_SESSION_TOKEN", "the-session-token")
        .env("HTTPS_PROXY", "http://user:the-secret-of-the-proxy@127.0.0.1:9")
        .env("PGOPTIONS", "-c app.jwt_secret=the-key-of-the-application -c geqo=off")
        .start()
        .await?;
    bed.enqueue("audit", "{\"secret\": \"of the payload\"}", None).await?;
    relay.wait_for_log("destination halted").await?;
    wait_for(&relay, "audit", "state", "halted").await?;
    let secrets = [
        password,
        "the-external-id",
        "the-secret-of-aws",
        "the-session-token",
        "the-secret-of-the-proxy",
        "the-key-of-the-application",
        "of the payload",
    ];
    for path in ["/", "/status.json", "/docs/operations.md", "/readyz", "/livez", "/metrics"] {
        let (_, text) = relay.get(path).await?;
        for secret in secrets {
            ensure!(!text.contains(secret), "{path} shows {secret:?}");
        }
    }
    let text = page(&relay).await?;
    for shown in [
        "external-id=(not shown)",
        "role=arn:aws:iam::222222222222:role/publisher",
        "(set, not shown)",
        "-c app.jwt_secret=(not shown) -c geqo=off",
    ] {
        ensure!(text.contains(shown), "{shown} is not shown, so the place of the secret is not: {text}");
    }
    Ok(())
}

/// Sends a request as it is; returns the whole answer.
async fn exchange(relay: &Relay, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(relay.address()).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn the_page_can_only_be_read_and_its_headers_keep_it_to_itself() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    for path in ["/", "/status.json", "/status.css", "/status.js", "/icon.svg", "/docs/operations.md"] {
        let answer = exchange(&relay, &request("GET", path)).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        let head = head.to_lowercase();
        for line in [
            "cache-control: no-store",
            "content-security-policy: default-src 'none'; style-src 'self'; script-src 'self';",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            ensure!(head.contains(line), "{path} lacks {line}:\n{head}");
        }
        ensure!(!head.contains("unsafe"), "{head}");
        ensure!(
            !body.contains(" style=") && !body.contains("<script>") && !body.contains("<style"),
            "{path} has inline parts"
        );
        let only_head = exchange(&relay, &request("HEAD", path)).await?;
        ensure!(only_head.starts_with("HTTP/1.1 200") && only_head.ends_with("\r\n\r\n"), "HEAD {path}: {only_head}");
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let refused = exchange(&relay, &request(method, path)).await?.to_lowercase();
            ensure!(
                refused.starts_with("http/1.1 405") && refused.contains("allow: get,head"),
                "{method} {path}: {refused}"
            );
        }
    }
    ensure!(relay.get("/docs/architecture.md").await?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn clients_that_say_nothing_or_too_much_cost_little_and_keep_nobody_out() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let files = || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", relay.process_id()?))?.count()) };
    relay.wait_for_status("/readyz", 200).await?;
    let before = files()?;
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(relay.address()).await?;
        // Some say nothing, the others begin and do not end.
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: ").await?;
        }
        silent.push(stream);
        if number % 50 == 0 {
            ensure!(relay.get("/livez").await?.0 == 200, "after {number} silent clients");
        }
    }
    ensure!(relay.get("/livez").await?.0 == 200);
    // All of them were accepted before that answer. Without a limit they would be open for half a minute.
    let open = files()?.saturating_sub(before);
    ensure!(open <= 32 + 8, "{open} more files are open than before");
    let large = format!("GET / HTTP/1.1\r\nhost: relay\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    // The relay may close before it has read all of it.
    let refused = exchange(&relay, &large).await.unwrap_or_default();
    ensure!(refused.is_empty() || refused.starts_with("HTTP/1.1 4"), "{refused}");
    drop(silent);
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn relays_and_replays_are_shown_where_the_role_may_see_them() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.client
        .batch_execute(
            "SELECT outbox.replay_begin('tickets', 'tickets', false, NULL, NULL, NULL, NULL, NULL, NULL, 'ada')",
        )
        .await
        .context("a replay")?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
    let process = format!("/{}", relay.process_id()?);
    let is_shown = |page: &Value| {
        let relays = page["relays"].as_array().cloned().unwrap_or_default();
        relays.iter().any(|relay| relay.as_str().is_some_and(|relay| relay.ends_with(&process)))
    };
    eventually("the relay is shown", || async { Ok(is_shown(&status(&relay).await?)) }).await?;
    let page_now = status(&relay).await?;
    ensure!(page_now["replays"][0]["actor"] == "ada" && page_now["replays"][0]["source"] == "tickets", "{page_now}");
    ensure!(page(&relay).await?.contains("Unfinished replays"));
    relay.stop().await?;
    bed.client
        .batch_execute(&format!(
            "REVOKE ALL ON outbox.replays FROM {}",
            roles.relay.replace("relay_of_", "rights_of_relay_")
        ))
        .await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
    eventually("relays are shown", || async { Ok(status(&relay).await?["relays"].is_array()) }).await?;
    ensure!(status(&relay).await?["replays"].is_null());
    ensure!(page(&relay).await?.contains("may not see replays"));
    ensure!(!relay.stop().await?.contains("permission denied"), "it tries what it may not do");
    Ok(())
}

#[tokio::test]
async fn the_status_command_shows_why_a_destination_is_halted() -> Result<()> {
    let bed = TestBed::new().await?;
    let tickets = bed.fifo("tickets").await?;
    bed.add_destination("missing", &missing_queue(&tickets));
    bed.enqueue("missing", "{\"n\": 1}", Some("g")).await?;
    let relay = bed.relay().start().await?;
    wait_for(&relay, "missing", "state", "halted").await?;
    wait_for(&relay, "tickets", "state", "idle").await?;
    let here = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    let text = here.output(&["status"]).await?.stdout;
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    ensure!(line("missing").contains("halted since ") && line("missing").contains("NonExistentQueue"), "{text}");
    ensure!(line("tickets").ends_with("idle"), "{text}");
    let json: Value = serde_json::from_str(&here.output(&["status", "--json"]).await?.stdout)?;
    let missing =
        json["destinations"].as_array().and_then(|all| all.iter().find(|one| one["destination"] == "missing"));
    ensure!(missing.is_some_and(|one| one["here"]["state"] == "halted" && one["here"]["since"].is_string()), "{json}");
    let address = relay.address().to_owned();
    relay.kill().await?;
    let text = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", address).output(&["status"]).await?.stdout;
    ensure!(!text.contains("halted"), "nobody knows that now: {text}");
    Ok(())
}

#[tokio::test]
async fn the_server_in_use_is_shown_if_there_are_several() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let port = support::cluster()?.port();
    let closed = support::postgres::free_port()?;
    let place = format!("127.0.0.1:{port}/");
    let both = bed.url().replace(&place, &format!("127.0.0.1:{closed},127.0.0.1:{port}/"));
    ensure!(both != bed.url(), "{} is written in another way", bed.url());
    let relay = bed.relay().env("DATABASE_URL", both).start().await?;
    let server = format!("127.0.0.1:{port}");
    eventually("the server is known", || async { Ok(status(&relay).await?["database"]["server"] == server.as_str()) })
        .await?;
    ensure!(page(&relay).await?.contains(&format!("in use: {server}")));
    Ok(())
}
