//! Destinations that are used under a role of their own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use tokio::net::TcpListener;

use support::credential_services::{CALLER, CredentialServices};
use support::http_proxy::HttpProxy;
use support::proxy::{Fault, Rule};
use support::relay::Command;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};
use support::tls_front::TlsFront;

const PUBLISHER: &str = "arn:aws:iam::222222222222:role/publisher";
const AUDITOR: &str = "arn:aws:iam::333333333333:role/teams/audit/writer";
const HOUR: Duration = Duration::from_secs(3600);

/// Adds a destination with these options and a standard queue; returns the queue's URL.
async fn add(bed: &TestBed, name: &str, options: &str) -> Result<String> {
    let url = bed.queues.create_standard(name).await?;
    bed.add_destination(name, &format!("{url}{options}"));
    Ok(url)
}

fn command(bed: &TestBed, services: &CredentialServices) -> Command {
    bed.relay().env("AWS_ENDPOINT_URL_STS", services.url())
}

#[tokio::test]
async fn each_queue_is_used_under_its_own_role_and_queues_with_the_same_role_share_its_credentials() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let services = CredentialServices::start(HOUR).await?;
    let publisher = format!(";role={PUBLISHER};external-id=the-external-id");
    let queues = [
        ("tickets", add(&bed, "tickets", &publisher).await?, Some(PUBLISHER)),
        ("draws", add(&bed, "draws", &publisher).await?, Some(PUBLISHER)),
        ("audit", add(&bed, "audit", &format!(";role={AUDITOR}")).await?, Some(AUDITOR)),
        ("own", add(&bed, "own", "").await?, None),
    ];
    for (name, ..) in &queues {
        bed.enqueue_many(name, 20, 0).await?;
    }
    let ended = command(&bed, &services).until_empty().await?;
    ensure!(ended.code == Some(0) && !ended.stderr.contains("the-secret-of-aws"), "{}", ended.stderr);
    let (publisher, auditor) = (services.keys_of(PUBLISHER), services.keys_of(AUDITOR));
    ensure!(publisher.len() == 1 && auditor.len() == 1, "given were {publisher:?} and {auditor:?}");
    for (name, queue, role) in &queues {
        let expected = role.map_or_else(|| "test".to_owned(), |role| services.keys_of(role).concat());
        let requests = proxy.requests();
        let signed: Vec<&str> =
            requests.iter().filter(|one| one.queue_url == *queue).map(|one| one.key.as_str()).collect();
        ensure!(!signed.is_empty() && signed.iter().all(|key| *key == expected), "{name}: {signed:?}, not {expected}");
        ensure_each_once(numbers(&bed.queues.contents(queue).await?)?, 20).context(*name)?;
    }
    let asked = services.last_of_role(PUBLISHER);
    let wanted = ["ExternalId=the-external-id", "RoleSessionName=outbox-relay", "Credential=test/", "/us-east-1/sts/"];
    ensure!(wanted.iter().all(|wanted| asked.contains(wanted)), "{asked}");
    ensure!(!services.last_of_role(AUDITOR).contains("ExternalId"), "{}", services.last_of_role(AUDITOR));
    Ok(())
}

#[tokio::test]
async fn a_role_that_is_denied_halts_its_destination_only_and_says_what_to_allow() -> Result<()> {
    let bed = TestBed::new().await?;
    let services = CredentialServices::start(HOUR).await?;
    let tickets = add(&bed, "tickets", &format!(";role={PUBLISHER}")).await?;
    let audit = add(&bed, "audit", &format!(";role={AUDITOR}")).await?;
    services.deny(AUDITOR);
    let relay = command(&bed, &services).env("OUTBOX_RELAY_RETRY_MAX", "2s").start().await?;
    bed.enqueue_many("audit", 20, 0).await?;
    let line = relay.wait_for_log("destination halted").await?;
    for part in ["audit", "RoleNotAssumed", AUDITOR, CALLER, "allow it sts:AssumeRole", "trust it"] {
        ensure!(line.contains(part), "{part} is not in: {line}");
    }
    bed.enqueue_many("tickets", 20, 0).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 20.0).await?;
    relay.wait_for_metric(r#"destination_up{destination="tickets"}"#, 1.0).await?;
    relay.wait_for_metric(r#"destination_up{destination="audit"}"#, 0.0).await?;
    ensure!(bed.pending().await? == 20, "nothing of the other destination goes");
    services.allow(AUDITOR);
    bed.until_nothing_is_pending().await?;
    relay.wait_for_log("destination is back").await?;
    let log = relay.stop().await?;
    ensure!(log.matches("may not assume").count() == 1, "a refusal is logged once:\n{log}");
    ensure!(!log.contains("STS refused"), "the SDK repeats it:\n{log}");
    for queue in [tickets, audit] {
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)?;
    }
    Ok(())
}

#[tokio::test]
async fn credentials_of_a_role_that_sqs_refuses_are_replaced_at_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let services = CredentialServices::start(HOUR).await?;
    let queue = add(&bed, "tickets", &format!(";role={PUBLISHER}")).await?;
    let relay = command(&bed, &services).start().await?;
    bed.enqueue_many("tickets", 20, 0).await?;
    bed.until_nothing_is_pending().await?;
    let first = services.keys_of(PUBLISHER).concat();
    proxy.script([Rule::new(Fault::expired_token()).signed_with(&first)]);
    enqueue_range(&bed.client, "tickets", 21..=40, 0).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(services.keys_of(PUBLISHER).len() == 2, "given were {:?}", services.keys_of(PUBLISHER));
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn new_keys_in_a_mounted_file_assume_the_role_when_sts_refuses_the_old_ones() -> Result<()> {
    let bed = TestBed::new().await?;
    let services = CredentialServices::start(HOUR).await?;
    let queue = add(&bed, "tickets", &format!(";role={PUBLISHER}")).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("credentials");
    let write = |key: &str| {
        let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = the-secret-of-aws\n");
        std::fs::write(&path, text)
    };
    write("AKIAOLD")?;
    services.revoke("AKIAOLD");
    let relay = command(&bed, &services).without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let relay = relay.env("AWS_SHARED_CREDENTIALS_FILE", path.to_string_lossy());
    let relay = relay.env("OUTBOX_RELAY_RETRY_MAX", "2s").start().await?;
    bed.enqueue_many("tickets", 20, 0).await?;
    let line = relay.wait_for_log("destination halted").await?;
    ensure!(line.contains("STS does not accept the relay's own credentials"), "{line}");
    write("AKIANEW")?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn an_sts_that_is_silent_or_broken_is_named_as_such() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = (format!("http://{}", silent.local_addr()?), silent);
    let broken = CredentialServices::start(HOUR).await?;
    broken.set_down(true);
    for (url, reason) in [(silent.0.as_str(), "STS cannot be asked"), (broken.url(), "HTTP 503")] {
        let bed = TestBed::new().await?;
        add(&bed, "tickets", &format!(";role={PUBLISHER}")).await?;
        bed.enqueue_many("tickets", 5, 0).await?;
        let relay = bed.relay().env("AWS_ENDPOINT_URL_STS", url).start().await?;
        let line = relay.wait_for_log("destination halted").await?;
        ensure!(line.contains("RoleNotAssumed") && line.contains(PUBLISHER) && line.contains(reason), "{line}");
        relay.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn sts_is_asked_through_the_proxy_and_with_the_certificates_that_are_trusted_for_aws() -> Result<()> {
    let bed = TestBed::new().await?;
    let services = CredentialServices::start(HOUR).await?;
    let queue = add(&bed, "tickets", &format!(";role={PUBLISHER}")).await?;
    let front = TlsFront::before(services.url(), &["sts.internal.test"]).await?;
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("authority.pem");
    std::fs::write(&bundle, front.authority())?;
    let proxy = HttpProxy::start(None).await?;
    let relay = bed
        .relay()
        .env("AWS_ENDPOINT_URL_STS", format!("https://sts.internal.test:{}", front.port()))
        .env("AWS_CA_BUNDLE", bundle.to_string_lossy())
        .env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port()));
    bed.enqueue_many("tickets", 20, 0).await?;
    relay.deliver_all().await?;
    let asked = proxy.asked();
    ensure!(asked == [format!("CONNECT sts.internal.test:{} HTTP/1.1", front.port())], "{asked:?}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)?;
    relay.output(&["check", "--identity"]).await?.ensure_success()
}

#[tokio::test]
async fn a_role_is_assumed_in_the_region_of_its_queue_if_nothing_else_names_one() -> Result<()> {
    let bed = TestBed::new().await?;
    let services = CredentialServices::start(HOUR).await?;
    let urls = ["us-west-2", "eu-central-1"].map(|region| format!("https://sqs.{region}.amazonaws.com/1/tickets"));
    bed.add_destination("west", &format!("{};role={PUBLISHER}", urls[0]));
    bed.add_destination("central", &format!("{};role={AUDITOR}", urls[1]));
    // The emulator does not know these queues; the roles are assumed before it is asked.
    command(&bed, &services).without("AWS_REGION").env("AWS_ENDPOINT_URL", "").output(&["check"]).await?;
    for (role, region) in [(PUBLISHER, "/us-west-2/sts/"), (AUDITOR, "/eu-central-1/sts/")] {
        ensure!(services.last_of_role(role).contains(region), "{}", services.last_of_role(role));
    }
    Ok(())
}
