//! Tests of the test fixtures: the environment that the other tests use does what it claims.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use tokio_postgres::NoTls;

use support::emulator::{Depth, Emulator, Queues};
use support::postgres::{Cluster, Options, PASSWORD, StopMode};
use support::proxy::{Choice, Fault, Proxy, Rule};
use support::{chosen_major, cluster, emulator, eventually};

fn own_cluster() -> Result<Cluster> {
    Cluster::start(&Options { major: chosen_major(), ..Options::default() })
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A proxy, a client that sends through it without retries, and a standard queue.
async fn proxied() -> Result<(Proxy, Client, Queues, String)> {
    let proxy = Proxy::start(emulator()?.endpoint()).await?;
    let queues = Queues::new(emulator()?.endpoint());
    let queue_url = queues.create_standard("ground").await?;
    let through_proxy = Queues::new(&proxy.endpoint()).client().config().to_builder();
    let client = Client::from_conf(through_proxy.retry_config(RetryConfig::disabled()).build());
    Ok((proxy, client, queues, queue_url))
}

type Sent = Result<SendMessageBatchOutput, aws_sdk_sqs::Error>;

async fn send(client: &Client, queue_url: &str, bodies: &[&str]) -> Sent {
    let mut request = client.send_message_batch().queue_url(queue_url);
    for (index, body) in bodies.iter().enumerate() {
        let mut entry = SendMessageBatchRequestEntry::builder().id(index.to_string()).message_body(*body);
        if queue_url.ends_with(".fifo") {
            entry = entry.message_group_id("group").message_deduplication_id(*body);
        }
        request = request.entries(entry.build().map_err(aws_sdk_sqs::Error::from)?);
    }
    Ok(request.send().await?)
}

async fn bodies(queues: &Queues, queue_url: &str) -> Result<Vec<String>> {
    Ok(queues.drain(queue_url).await?.into_iter().map(|message| message.body).collect())
}

#[tokio::test]
async fn a_cluster_accepts_its_password_and_no_other() -> Result<()> {
    let client = connect(&cluster()?.url("postgres")).await?;
    let version: String = client.query_one("SELECT version()", &[]).await?.get(0);
    if let Some(major) = chosen_major() {
        ensure!(version.starts_with(&format!("PostgreSQL {major}.")), "{version}");
    }
    let refused = connect(&cluster()?.url("postgres").replace(PASSWORD, "wrong")).await;
    let error = refused.err().context("a wrong password was let in")?;
    ensure!(format!("{error:?}").contains("password authentication failed"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_is_a_copy_of_its_template() -> Result<()> {
    cluster()?.create_database("ground_template").await?;
    let client = connect(&cluster()?.url("ground_template")).await?;
    client.batch_execute("CREATE TABLE tickets AS SELECT generate_series(1, 7) AS id").await?;
    drop(client);
    cluster()?.create_database_from_template("ground_copy", "ground_template").await?;
    let client = connect(&cluster()?.url("ground_copy")).await?;
    let tickets: i64 = client.query_one("SELECT count(*) FROM tickets", &[]).await?.get(0);
    ensure!(tickets == 7);
    drop(client);
    cluster()?.drop_database("ground_copy").await
}

#[tokio::test]
async fn a_cluster_keeps_what_was_committed_over_an_immediate_restart() -> Result<()> {
    let cluster = own_cluster()?;
    let client = connect(&cluster.url("postgres")).await?;
    client.batch_execute("CREATE TABLE tickets AS SELECT 42 AS id").await?;
    cluster.restart(StopMode::Immediate)?;
    ensure!(client.batch_execute("SELECT 1").await.is_err(), "the old session outlived the server");
    let client = connect(&cluster.url("postgres")).await?;
    let ticket: i32 = client.query_one("SELECT id FROM tickets", &[]).await?.get(0);
    ensure!(ticket == 42);
    let log = std::fs::read_to_string(cluster.log_path())?;
    ensure!(log.contains("was not properly shut down"), "no recovery in the log");
    cluster.stop(StopMode::Fast)?;
    ensure!(connect(&cluster.url("postgres")).await.is_err(), "a stopped cluster answers");
    cluster.start_again()?;
    connect(&cluster.url("postgres")).await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_cluster_leaves_nothing() -> Result<()> {
    let cluster = own_cluster()?;
    let (folder, port) = (cluster.socket_folder().to_owned(), cluster.port());
    drop(cluster);
    ensure!(!folder.exists(), "{} is still there", folder.display());
    ensure!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} still answers");
    Ok(())
}

/// Set in the process that will be killed.
const OWNER: &str = "OUTBOX_TEST_OWNER";

#[tokio::test]
async fn cluster_and_emulator_end_when_their_owner_is_killed() -> Result<()> {
    if std::env::var_os(OWNER).is_some() {
        return own_until_killed();
    }
    // The owner is this very test in another process.
    let mut owner = Command::new(std::env::current_exe()?);
    let own_name = "ground::cluster_and_emulator_end_when_their_owner_is_killed";
    owner.args(["--exact", own_name, "--nocapture"]).env(OWNER, "1");
    let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let said = BufReader::new(owner.stdout.take().context("no output")?).lines();
    let said = said.map_while(Result::ok).find(|line| line.contains("OWNS ")).context("it owns nothing")?;
    let owned: Vec<_> = said.split_whitespace().skip_while(|word| *word != "OWNS").skip(1).collect();
    let &[folder, cluster_port, emulator_port] = &owned[..] else { anyhow::bail!("{said}") };
    ensure!(Path::new(folder).exists(), "no folder {folder}");
    owner.kill()?;
    owner.wait()?;
    eventually("the folder is gone", || async { Ok(!Path::new(folder).exists()) }).await?;
    for port in [cluster_port, emulator_port] {
        let address = format!("127.0.0.1:{port}");
        eventually("the port is closed", || async { Ok(TcpStream::connect(&address).is_err()) }).await?;
    }
    Ok(())
}

/// The test runs this in a separate process: it owns a cluster and an emulator until it is killed.
fn own_until_killed() -> Result<()> {
    let (cluster, emulator) = (own_cluster()?, Emulator::start()?);
    let emulator_port = emulator.endpoint().rsplit(':').next().unwrap_or_default();
    let owned = format!("OWNS {} {} {emulator_port}\n", cluster.socket_folder().display(), cluster.port());
    std::io::stdout().write_all(owned.as_bytes())?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[tokio::test]
async fn messages_pass_the_proxy_with_all_they_carry() -> Result<()> {
    let (proxy, client, queues, _) = proxied().await?;
    let queue_url = queues.create_fifo("ground").await?;
    let attribute = MessageAttributeValue::builder().data_type("String").string_value("ticket").build()?;
    let entry = SendMessageBatchRequestEntry::builder()
        .id("0")
        .message_body("{\"draw\": \"🎲 \u{10FFFF}\"}")
        .message_group_id("draw-1")
        .message_deduplication_id("m1")
        .message_attributes("event_type", attribute);
    client.send_message_batch().queue_url(&queue_url).entries(entry.build()?).send().await?;
    let seen = proxy.requests();
    ensure!(seen.len() == 1 && seen[0].queue_url == queue_url && seen[0].answered == Some(200), "{seen:?}");
    ensure!(seen[0].entries[0].deduplication_id.as_deref() == Some("m1"), "{seen:?}");
    let received = queues.drain(&queue_url).await?;
    ensure!(received.len() == 1, "{received:?}");
    ensure!(received[0].body == "{\"draw\": \"🎲 \u{10FFFF}\"}", "{received:?}");
    ensure!(received[0].attributes["event_type"] == "ticket", "{received:?}");
    ensure!(received[0].group_id.as_deref() == Some("draw-1"), "{received:?}");
    ensure!(received[0].deduplication_id.as_deref() == Some("m1"), "{received:?}");
    ensure!(received[0].sequence_number.is_some(), "{received:?}");
    Ok(())
}

#[tokio::test]
async fn a_drained_fifo_queue_shows_the_order_of_its_group() -> Result<()> {
    let queues = Queues::new(emulator()?.endpoint());
    let queue_url = queues.create_fifo("ground").await?;
    let sent: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    for request in sent.chunks(10) {
        let request: Vec<_> = request.iter().map(String::as_str).collect();
        send(queues.client(), &queue_url, &request).await?;
    }
    ensure!(queues.depth(&queue_url).await? == Depth { visible: 100, in_flight: 0 });
    let seen: Vec<_> = queues.contents(&queue_url).await?.into_iter().map(|message| message.body).collect();
    ensure!(seen == sent, "{seen:?}");
    ensure!(bodies(&queues, &queue_url).await? == sent);
    Ok(())
}

#[tokio::test]
async fn the_emulator_remembers_more_than_ten_thousand_deduplication_ids() -> Result<()> {
    let queues = Queues::new(emulator()?.endpoint());
    let queue_url = queues.create_fifo("ground").await?;
    for first in (0..10_100).step_by(10) {
        let request: Vec<_> = (first..first + 10).map(|number: usize| number.to_string()).collect();
        let request: Vec<_> = request.iter().map(String::as_str).collect();
        send(queues.client(), &queue_url, &request).await?;
    }
    send(queues.client(), &queue_url, &["0"]).await?;
    ensure!(queues.depth(&queue_url).await?.visible == 10_100);
    Ok(())
}

#[tokio::test]
async fn held_requests_wait_for_their_release() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    for (fault, waiting) in [(Fault::Hold, 0), (Fault::HoldAnswer, 3)] {
        proxy.set(fault);
        let senders = ["a", "b", "c"].map(|body| {
            let (client, queue_url) = (client.clone(), queue_url.clone());
            tokio::spawn(async move { send(&client, &queue_url, &[body]).await })
        });
        proxy.wait_for_held(3).await?;
        ensure!(proxy.most_in_flight() == 3 && proxy.in_flight() == 3);
        ensure!(queues.depth(&queue_url).await?.visible == waiting);
        proxy.release();
        for sender in senders {
            sender.await??;
        }
        proxy.wait_until_quiet().await?;
        ensure!(bodies(&queues, &queue_url).await?.len() == 3);
    }
    Ok(())
}

#[tokio::test]
async fn cut_connections_are_errors_and_only_the_late_cut_delivers() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    proxy.set(Fault::CutBeforeForward);
    ensure!(send(&client, &queue_url, &["a"]).await.is_err());
    ensure!(bodies(&queues, &queue_url).await?.is_empty());
    proxy.set(Fault::CutAfterForward);
    ensure!(send(&client, &queue_url, &["b"]).await.is_err());
    ensure!(bodies(&queues, &queue_url).await? == ["b"]);
    let fates: Vec<_> = proxy.requests().iter().map(|seen| (seen.forwarded, seen.answered)).collect();
    ensure!(fates == [(false, None), (true, None)], "{fates:?}");
    Ok(())
}

#[tokio::test]
async fn error_answers_reach_the_sender_with_their_code() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    let faults = [
        (Fault::throttle(), Some("RequestThrottled")),
        (Fault::key_throttle(), Some("KMS.ThrottlingException")),
        (Fault::queue_missing(), Some("AWS.SimpleQueueService.NonExistentQueue")),
        (Fault::access_denied(), Some("AccessDenied")),
        (Fault::expired_token(), Some("ExpiredToken")),
        (Fault::status(503), None),
        (Fault::Garble(200, "<html>"), None),
    ];
    for (fault, code) in faults {
        let name = format!("{fault:?}");
        proxy.set(fault);
        let error = send(&client, &queue_url, &["a"]).await.err().with_context(|| name.clone())?;
        ensure!(error.code() == code, "{name}: {:?}", error.code());
    }
    ensure!(bodies(&queues, &queue_url).await? == ["a"], "only the garbled answer's request was forwarded");
    Ok(())
}

#[tokio::test]
async fn chosen_entries_fail_and_the_others_are_sent() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    let fail = |which| Fault::FailEntries { which, code: "InternalError", sender_fault: false };
    proxy.script([
        Rule::new(fail(Choice::at([1]))).times(1).and_more(),
        Rule::new(fail(Choice::body_contains("c"))).times(1),
        Rule::new(fail(Choice::every())).times(1),
    ]);
    let answer = send(&client, &queue_url, &["a", "b", "c", "d"]).await?;
    let successful: Vec<_> = answer.successful.iter().map(|entry| entry.id.as_str()).collect();
    let failed: Vec<_> = answer.failed.iter().map(|entry| (entry.id.as_str(), entry.code.as_str())).collect();
    ensure!(successful == ["0", "3"], "{successful:?}");
    ensure!(failed == [("1", "InternalError"), ("2", "InternalError")], "{failed:?}");
    ensure!(send(&client, &queue_url, &["e", "f"]).await?.failed.len() == 2);
    ensure!(send(&client, &queue_url, &["g"]).await?.successful.len() == 1);
    ensure!(bodies(&queues, &queue_url).await? == ["a", "d", "g"]);
    ensure!(proxy.entries_per_request() == [4, 2, 1] && proxy.entries_seen() == 7);
    Ok(())
}

#[tokio::test]
async fn an_answer_can_omit_what_was_delivered() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    proxy.script([Rule::new(Fault::DropFromAnswer(Choice::at([0]))).times(1), Rule::new(Fault::EmptyAnswer)]);
    let answer = send(&client, &queue_url, &["a", "b"]).await?;
    ensure!(answer.failed.is_empty() && answer.successful.len() == 1 && answer.successful[0].id == "1");
    let answer = send(&client, &queue_url, &["c"]).await?;
    ensure!(answer.failed.is_empty() && answer.successful.is_empty());
    ensure!(bodies(&queues, &queue_url).await? == ["a", "b", "c"]);
    Ok(())
}

#[tokio::test]
async fn rules_keep_to_their_queue_their_action_and_their_number() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    let other_url = queues.create_standard("other").await?;
    proxy.script([
        Rule::new(Fault::throttle()).queue(&other_url).times(2),
        Rule::new(Fault::status(500)).action("GetQueueUrl"),
        Rule::new(Fault::status(500)).chance(0.5, 7).queue("nowhere"),
    ]);
    ensure!(send(&client, &queue_url, &["a"]).await.is_ok());
    ensure!(send(&client, &other_url, &["a"]).await.is_err());
    ensure!(send(&client, &other_url, &["a"]).await.is_err());
    ensure!(send(&client, &other_url, &["a"]).await.is_ok());
    ensure!(client.get_queue_url().queue_name("any").send().await.is_err());
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let before = std::time::Instant::now();
    ensure!(send(&client, &queue_url, &["b"]).await.is_ok() && before.elapsed() >= Duration::from_millis(50));
    Ok(())
}

#[tokio::test]
async fn a_refusing_proxy_comes_back_on_the_same_port() -> Result<()> {
    let (proxy, client, queues, queue_url) = proxied().await?;
    send(&client, &queue_url, &["a"]).await?;
    proxy.refuse_connections().await?;
    ensure!(send(&client, &queue_url, &["b"]).await.is_err());
    let port: u16 = proxy.endpoint().rsplit(':').next().context("no port")?.parse()?;
    ensure!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the listener is open");
    proxy.accept_connections().await?;
    send(&client, &queue_url, &["c"]).await?;
    ensure!(bodies(&queues, &queue_url).await? == ["a", "c"]);
    Ok(())
}
