//! `outbox-relay check` says at which step the way to a queue ends: name, connection, TLS, credentials, identity.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use support::credential_services::{CALLER, CredentialServices};
use support::emulator;
use support::http_proxy::HttpProxy;
use support::proxy::Fault;
use support::relay::{Command, Finished};
use support::test_bed::TestBed;
use support::tls_front::TlsFront;

const ROLE: &str = "arn:aws:iam::222222222222:role/publisher";

/// What the checks of one run say of the way to the queues: (what, verdict, says, remedy).
struct Way(Vec<[String; 4]>);

impl Way {
    async fn of(relay: &Command) -> Result<Way> {
        let checked = relay.output(&["check", "--json"]).await?;
        Way::read(&checked)
    }

    fn read(checked: &Finished) -> Result<Way> {
        ensure!(!checked.stdout.contains("the-secret"), "a secret is shown: {}", checked.stdout);
        let found: Vec<Value> = serde_json::from_str(&checked.stdout).with_context(|| checked.stderr.clone())?;
        let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let way = found.iter().map(|one| ["check", "verdict", "says", "remedy"].map(|name| text(one, name)));
        let is_of_the_way = |what: &str| {
            ["name ", "connection ", "tunnel ", "TLS ", "credentials", "identity", "queue "]
                .iter()
                .any(|start| what.starts_with(start))
        };
        Ok(Way(way.filter(|[what, ..]| is_of_the_way(what)).collect()))
    }

    /// The good steps, and then the one that fails.
    fn ensure_ends(&self, good: &[&str], bad: &str, says: &str, remedy: &str) -> Result<()> {
        let Way(steps) = self;
        let (last, before) = steps
            .iter()
            .position(|[_, verdict, ..]| verdict == "bad")
            .map_or_else(|| anyhow::bail!("nothing is bad: {steps:?}"), |at| Ok((&steps[at], &steps[..at])))?;
        let seen: Vec<&str> = before.iter().map(|[what, ..]| what.as_str()).collect();
        ensure!(seen == good, "good are {seen:?}, not {good:?}: {steps:?}");
        ensure!(last[0] == bad && last[2].contains(says) && last[3].contains(remedy), "{last:?}");
        // What follows is only that the queue was not asked.
        let rest = &steps[before.len() + 1..];
        ensure!(
            rest.iter().all(|[what, _, says, _]| what == "queue of audit" && says.starts_with("not asked")),
            "{rest:?}"
        );
        for [what, _, says, remedy] in steps {
            let is_short = says.len() < 200 && remedy.len() < 200 && !says.contains('\n') && !remedy.contains('\n');
            ensure!(is_short, "{what}: {says} → {remedy}");
        }
        Ok(())
    }
}

/// A test bed with one queue, and SQS behind TLS with a certificate for these names.
async fn behind_tls(names: &[&str], valid_until: i32) -> Result<(TestBed, TlsFront, TempDir, Command)> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let front = TlsFront::until(emulator()?.endpoint(), names, valid_until).await?;
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("authority.pem");
    std::fs::write(&bundle, front.authority())?;
    let relay = bed
        .relay()
        .env("AWS_ENDPOINT_URL_SQS", format!("https://localhost:{}", front.port()))
        .env("AWS_CA_BUNDLE", bundle.to_string_lossy());
    Ok((bed, front, folder, relay))
}

async fn at(endpoint: &str) -> Result<(TestBed, Command)> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let relay = bed.relay().env("AWS_ENDPOINT_URL_SQS", endpoint);
    Ok((bed, relay))
}

#[tokio::test]
async fn a_good_way_is_shown_step_by_step_and_shared_steps_are_said_once() -> Result<()> {
    let (bed, front, _folder, _) = behind_tls(&["localhost", "sqs.test"], 2100).await?;
    bed.fifo("tickets").await?;
    let relay = bed
        .relay()
        .env("AWS_ENDPOINT_URL_SQS", format!("https://localhost:{}", front.port()))
        .env("AWS_CA_BUNDLE", _folder.path().join("authority.pem").to_string_lossy());
    let checked = relay.output(&["check"]).await?;
    checked.ensure_success().with_context(|| checked.stdout.clone())?;
    let port = front.port();
    for line in [
        "✓ name of localhost: resolves to ".to_owned(),
        format!("✓ connection to localhost:{port}: 127.0.0.1 accepts it"),
        format!(
            "✓ TLS of localhost:{port}: TLS 1.3, certificate for localhost, sqs.test, valid until 2100-01-01T00:00:00Z, \
             issued by CN=Authority of a test"
        ),
        "✓ credentials: from the environment (AWS_ACCESS_KEY_ID), they do not expire".to_owned(),
        "✓ queue of audit: this relay may send".to_owned(),
        "✓ queue of tickets: this relay may send".to_owned(),
    ] {
        ensure!(checked.stdout.matches(&line).count() == 1, "{line}\nis not once in\n{}", checked.stdout);
    }
    ensure!(!checked.stdout.contains("identity"), "{}", checked.stdout);
    let Way(steps) = Way::of(&relay).await?;
    let seen: Vec<&str> = steps.iter().map(|[what, ..]| what.as_str()).collect();
    let expected = [
        "name of localhost".to_owned(),
        format!("connection to localhost:{port}"),
        format!("TLS of localhost:{port}"),
        "credentials".to_owned(),
        "queue of audit".to_owned(),
        "queue of audit".to_owned(),
        "queue of tickets".to_owned(),
        "queue of tickets".to_owned(),
    ];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_has_no_address_is_named() -> Result<()> {
    let (_bed, relay) = at("http://sqs.invalid:9324").await?;
    let says = "cannot be resolved";
    Way::of(&relay).await?.ensure_ends(
        &[],
        "name of sqs.invalid",
        says,
        "AWS_ENDPOINT_URL_SQS, and the DNS of this host",
    )
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_named() -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let (_bed, relay) = at(&format!("http://127.0.0.1:{port}")).await?;
    let (what, says) = (format!("connection to 127.0.0.1:{port}"), format!("refused by 127.0.0.1:{port}"));
    Way::of(&relay).await?.ensure_ends(&[], &what, &says, "nothing listens there")
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_after_five_seconds() -> Result<()> {
    // A listener whose backlog is full does not answer.
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let full = socket.listen(0)?;
    let address = full.local_addr()?;
    let _waiting = TcpStream::connect(address).await?;
    let (_bed, relay) = at(&format!("http://{address}")).await?;
    let says = format!("no answer from {address} within 5s");
    Way::of(&relay).await?.ensure_ends(&[], &format!("connection to {address}"), &says, "security group")
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_named_whether_it_is_silent_or_not() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = silent.local_addr().map(|address| (silent, address))?;
    let plain = emulator()?.endpoint().trim_start_matches("http://").to_owned();
    for (address, says) in [(silent.1.to_string(), "no answer within 5s"), (plain, "no handshake")] {
        let (_bed, relay) = at(&format!("https://{address}")).await?;
        let connected = format!("connection to {address}");
        let tls = format!("TLS of {address}");
        Way::of(&relay).await?.ensure_ends(&[&connected], &tls, says, "check that the port speaks TLS")?;
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_shown_with_the_reason() -> Result<()> {
    let table = [
        (&["localhost"][..], 2100, Some("system"), "(UnknownIssuer)", "AWS_CA_BUNDLE"),
        (&["localhost"][..], 2100, Some("namesake"), "(BadSignature)", "AWS_CA_BUNDLE"),
        (&["localhost"][..], 2020, None, "expired: certificate for localhost, valid until 2020-01-01T", "renewed"),
        (&["sqs.test", "10.1.2.3"][..], 2100, None, "not for localhost: certificate for sqs.test, 10.1.2.3", "host of"),
    ];
    for (names, year, trusted, says, remedy) in table {
        let (_bed, front, folder, relay) = behind_tls(names, year).await?;
        let relay = match trusted {
            None => relay,
            Some("system") => relay.without("AWS_CA_BUNDLE"),
            Some(_) => {
                let other = TlsFront::before(emulator()?.endpoint(), &["localhost"]).await?;
                std::fs::write(folder.path().join("authority.pem"), other.authority())?;
                relay
            }
        };
        let port = front.port();
        let good = ["name of localhost".to_owned(), format!("connection to localhost:{port}")];
        let good: Vec<&str> = good.iter().map(String::as_str).collect();
        let way = Way::of(&relay).await?;
        way.ensure_ends(&good, &format!("TLS of localhost:{port}"), says, remedy)?;
        ensure!(way.0.iter().any(|[_, _, says, _]| says.contains("issued by CN=Authority of a test")), "{:?}", way.0);
    }
    Ok(())
}

#[tokio::test]
async fn through_a_proxy_the_steps_are_those_to_the_proxy_and_tls_is_seen_in_its_tunnel() -> Result<()> {
    let (_bed, front, _folder, relay) = behind_tls(&["sqs.internal.test"], 2100).await?;
    let proxy = HttpProxy::start(Some("Basic dXNlcjp0aGUtc2VjcmV0")).await?;
    let (port, through) = (front.port(), proxy.port());
    let relay = relay.env("AWS_ENDPOINT_URL_SQS", format!("https://sqs.internal.test:{port}"));
    let good = relay.clone().env("HTTPS_PROXY", format!("http://user:the-secret@localhost:{through}"));
    let Way(steps) = Way::of(&good).await?;
    let seen: Vec<&str> = steps.iter().map(|[what, ..]| what.as_str()).collect();
    let expected = [
        "queue of audit".to_owned(),
        "name of the proxy localhost".to_owned(),
        format!("connection to the proxy localhost:{through}"),
        format!("tunnel to sqs.internal.test:{port}"),
        format!("TLS of sqs.internal.test:{port}"),
        "credentials".to_owned(),
        "queue of audit".to_owned(),
        "queue of audit".to_owned(),
    ];
    ensure!(seen == expected && steps.iter().all(|[_, verdict, ..]| verdict == "good"), "{steps:?}");
    ensure!(steps[0][2] == format!("goes through the proxy localhost:{through}"), "{steps:?}");
    ensure!(steps[4][2].contains("certificate for sqs.internal.test"), "{steps:?}");
    let wrong = relay.env("HTTPS_PROXY", format!("http://user:the-secret-but-wrong@127.0.0.1:{through}"));
    let good = ["queue of audit".to_owned(), format!("connection to the proxy 127.0.0.1:{through}")];
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let what = format!("tunnel to sqs.internal.test:{port}");
    Way::of(&wrong).await?.ensure_ends(&good, &what, "(407)", "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT")
}

#[tokio::test]
async fn credentials_that_have_expired_are_reported_with_who_gave_them() -> Result<()> {
    let (_bed, relay) = at(emulator()?.endpoint()).await?;
    let home = tempfile::tempdir()?;
    let config = home.path().join("config");
    let json = r#"{"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "the-secret-of-aws", "SessionToken": "t", "Expiration": "2020-02-03T04:05:06Z"}"#;
    std::fs::write(home.path().join("answer.json"), json)?;
    let text = format!("[profile relay]\ncredential_process = cat {}\n", home.path().join("answer.json").display());
    std::fs::write(&config, text)?;
    let relay = relay.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY").env("AWS_PROFILE", "relay");
    let relay = relay.env("AWS_CONFIG_FILE", config.to_string_lossy());
    let connected = format!("connection to {}", emulator()?.endpoint().trim_start_matches("http://"));
    let says = "from credential_process of profile relay, but they expired at 2020-02-03T04:05:06Z";
    Way::of(&relay).await?.ensure_ends(&[&connected], "credentials", says, "repair the process")
}

#[tokio::test]
async fn credentials_that_sqs_refuses_are_reported_with_the_remedy() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    proxy.set(Fault::expired_token());
    let checked = bed.relay().output(&["check"]).await?;
    let wanted = "✗ queue of audit: this relay cannot send: ";
    ensure!(checked.code == Some(1) && checked.stdout.contains(wanted), "{}", checked.stdout);
    ensure!(checked.stdout.contains("\n    → the credentials have expired, whatever they say"), "{}", checked.stdout);
    Ok(())
}

#[tokio::test]
async fn the_identity_is_shown_if_it_is_wanted_for_the_relay_and_for_each_role() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let url = bed.queues.create_standard("tickets").await?;
    bed.add_destination("tickets", &format!("{url};role={ROLE}"));
    let services = CredentialServices::start(Duration::from_secs(3600)).await?;
    let relay = bed.relay().env("AWS_ENDPOINT_URL_STS", services.url());
    let checked = relay.output(&["check", "--identity"]).await?;
    checked.ensure_success().with_context(|| checked.stdout.clone())?;
    let identity = format!("account 111111111111, {CALLER}");
    for line in [
        format!("✓ identity: {identity}"),
        format!("✓ credentials of the role {ROLE}: from STS for this role, they expire at 2"),
        format!("✓ identity of the role {ROLE}: {identity}"),
    ] {
        ensure!(checked.stdout.contains(&line), "{line}\nis not in\n{}", checked.stdout);
    }
    let key = services.keys_of(ROLE).pop().context("no key of the role")?;
    ensure!(services.last("sts").contains(&format!("Credential={key}/")), "{}", services.last("sts"));
    services.revoke("test");
    let refused = relay.output(&["check", "--identity"]).await?;
    let says = "✗ identity: STS does not accept the credentials: InvalidClientTokenId";
    ensure!(refused.code == Some(1) && refused.stdout.contains(says), "{}", refused.stdout);
    ensure!(!refused.stdout.contains("may send"), "{}", refused.stdout);
    // Without STS the relay can work all the same.
    let alone = bed.relay().env("OUTBOX_RELAY_DESTINATIONS", format!("audit={url}"));
    let alone = alone.env("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1").output(&["check", "--identity"]).await?;
    let says = "! identity: STS cannot be asked: ";
    ensure!(alone.code == Some(0) && alone.stdout.contains(says), "{}", alone.stdout);
    Ok(())
}

#[tokio::test]
async fn a_role_that_is_denied_ends_the_way_of_its_queue_only() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let url = bed.queues.create_standard("tickets").await?;
    bed.add_destination("tickets", &format!("{url};role={ROLE}"));
    let services = CredentialServices::start(Duration::from_secs(3600)).await?;
    services.deny(ROLE);
    let checked = bed.relay().env("AWS_ENDPOINT_URL_STS", services.url()).output(&["check"]).await?;
    ensure!(checked.code == Some(1), "{}", checked.stdout);
    for part in [
        "✓ queue of audit: this relay may send".to_owned(),
        format!(
            "✗ credentials of the role {ROLE}: {CALLER} may not assume {ROLE} (AccessDenied)\n    → allow it sts:AssumeRole"
        ),
        "✗ queue of tickets: not asked, because there are no credentials".to_owned(),
    ] {
        ensure!(checked.stdout.contains(&part), "{part}\nis not in\n{}", checked.stdout);
    }
    Ok(())
}
