//! Every way to credentials that the AWS SDK knows, against services with the documented wire formats.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use support::credential_services::CredentialServices;
use support::eventually;
use support::relay::Command;
use support::test_bed::{TestBed, enqueue, ensure_each_once, numbers};
use tokio_util::task::AbortOnDropHandle;

const ROLE: &str = "arn:aws:iam::123456789012:role/relay";

/// `sha1` of `company`, the name of the session, as the AWS CLI names its cache.
const SESSION_FILE: &str = ".aws/sso/cache/71b21161ffa1e6516bcc072aaf5ef38cbe85b511.json";

/// A kind of credentials: its name, which service it asks if any, and how a relay is told about it.
type Kind = (&'static str, Option<&'static str>, fn(Command, &CredentialServices, &Path) -> Result<Command>);

fn profile(relay: Command, home: &Path, text: &str) -> Result<Command> {
    let path = home.join("config");
    std::fs::write(&path, text)?;
    Ok(relay.env("AWS_CONFIG_FILE", path.to_string_lossy()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    Ok(std::fs::write(path, text)?)
}

fn in_an_hour() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3600)).to_string()
}

const KINDS: [Kind; 11] = [
    ("environment", None, |relay, _, _| {
        Ok(relay.env("AWS_ACCESS_KEY_ID", "AKIA").env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws"))
    }),
    ("profile with keys", None, |relay, _, home| {
        let text = "[profile relay]\naws_access_key_id = AKIA\naws_secret_access_key = the-secret-of-aws\n";
        Ok(profile(relay, home, text)?.env("AWS_PROFILE", "relay"))
    }),
    ("role with source_profile and external id", Some("sts"), |relay, services, home| {
        let text = format!(
            "[profile base]\naws_access_key_id = AKIA\naws_secret_access_key = the-secret-of-aws\n\
             [default]\nrole_arn = {ROLE}\nsource_profile = base\nexternal_id = the-external-id\n"
        );
        Ok(profile(relay, home, &text)?.env("AWS_ENDPOINT_URL_STS", services.url()))
    }),
    ("role with credential_source", Some("sts"), |relay, services, home| {
        let text = format!("[profile relay]\nrole_arn = {ROLE}\ncredential_source = EcsContainer\n");
        Ok(profile(relay, home, &text)?
            .env("AWS_PROFILE", "relay")
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", services.url()))
            .env("AWS_ENDPOINT_URL_STS", services.url()))
    }),
    ("web identity", Some("sts"), |relay, services, home| {
        write(&home.join("token"), "the-token")?;
        Ok(relay
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", home.join("token").to_string_lossy())
            .env("AWS_ROLE_ARN", ROLE)
            .env("AWS_ENDPOINT_URL_STS", services.url()))
    }),
    ("ECS", Some("container"), |relay, services, _| {
        Ok(relay.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", services.url())))
    }),
    ("EKS Pod Identity", Some("container"), |relay, services, home| {
        write(&home.join("token"), "the-token")?;
        Ok(relay
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", services.url()))
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", home.join("token").to_string_lossy()))
    }),
    ("IMDSv2", Some("imds"), |relay, services, _| {
        Ok(relay.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", services.url()).without("AWS_EC2_METADATA_DISABLED"))
    }),
    ("credential_process", None, |relay, _, home| {
        let json = format!(
            r#"{{"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "the-secret-of-aws", "SessionToken": "t", "Expiration": "{}"}}"#,
            in_an_hour()
        );
        write(&home.join("answer.json"), &json)?;
        let text = format!("[default]\ncredential_process = cat {}\n", home.join("answer.json").display());
        profile(relay, home, &text)
    }),
    ("aws login", None, |relay, _, home| {
        let session = "arn:aws:iam::123456789012:user/Admin";
        let name: String = Sha256::digest(session.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let json = format!(
            r#"{{"accessToken": {{"accessKeyId": "ASIA", "secretAccessKey": "the-secret-of-aws", "sessionToken": "t",
                "accountId": "123456789012", "expiresAt": "{}"}}, "tokenType": "urn:aws:params:oauth:token-type:access_token_sigv4",
                "refreshToken": "r", "idToken": "i", "clientId": "arn:aws:signin:::devtools/same-device",
                "dpopKey": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIFDZHUzOG1Pzq+6F0mjMlOSp1syN9LRPBuHMoCFXTcXhoAoGCCqGSM49\nAwEHoUQDQgAE9qhj+KtcdHj1kVgwxWWWw++tqoh7H7UHs7oXh8jBbgF47rrYGC+t\ndjiIaHK3dBvvdE7MGj5HsepzLm3Kj91bqA==\n-----END EC PRIVATE KEY-----\n"}}"#,
            in_an_hour()
        );
        write(&home.join(format!(".aws/login/cache/{name}.json")), &json)?;
        profile(relay, home, &format!("[default]\nlogin_session = {session}\n"))
    }),
    ("role of the destination", Some("sts"), |relay, services, _| {
        Ok(relay
            .env("AWS_ACCESS_KEY_ID", "AKIA")
            .env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws")
            .env("AWS_ENDPOINT_URL_STS", services.url())
            .append("OUTBOX_RELAY_DESTINATIONS", &format!(";role={ROLE};external-id=the-external-id")))
    }),
];

/// The profile of Identity Center, with a token that somebody got by `aws sso login`.
fn sso(relay: Command, services: &CredentialServices, home: &Path) -> Result<Command> {
    let json = format!(
        r#"{{"accessToken": "the-token-of-sso", "expiresAt": "{}", "region": "eu-west-1", "startUrl": "https://company.awsapps.com/start"}}"#,
        in_an_hour()
    );
    write(&home.join(SESSION_FILE), &json)?;
    let text = "[default]\nsso_session = company\nsso_account_id = 123456789012\nsso_role_name = relay\n\
        [sso-session company]\nsso_region = eu-west-1\nsso_start_url = https://company.awsapps.com/start\n";
    Ok(profile(relay, home, text)?.env("AWS_ENDPOINT_URL_SSO", services.url()))
}

/// Without keys in the environment, because those take precedence.
fn command(bed: &TestBed, home: &TempDir) -> Command {
    let relay = bed.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    relay.env("HOME", home.path().to_string_lossy())
}

#[tokio::test]
async fn every_kind_of_credentials_delivers() -> Result<()> {
    let all = KINDS.into_iter().chain([("Identity Center", Some("sso"), sso as _)]);
    for (name, service, prepare) in all {
        let bed = TestBed::new().await?;
        let queue = bed.fifo("tickets").await?;
        let (services, home) = (CredentialServices::start(Duration::from_secs(3600)).await?, tempfile::tempdir()?);
        let relay = prepare(command(&bed, &home), &services, home.path())?;
        bed.enqueue_many("tickets", 20, 5).await?;
        let ended = relay.until_empty().await?;
        ensure!(ended.code == Some(0), "{name}: {}", ended.stderr);
        ensure!(!ended.stderr.contains("the-secret-of-aws"), "{name} shows a secret: {}", ended.stderr);
        if let Some(service) = service {
            ensure!(services.asked() > 0, "{name} did not ask {service}");
        }
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20).context(name)?;
        match name {
            "role with source_profile and external id" | "role of the destination" => {
                ensure!(services.last("sts").contains("ExternalId=the-external-id"), "{}", services.last("sts"));
            }
            "web identity" => {
                ensure!(services.last("sts").contains("WebIdentityToken=the-token"), "{}", services.last("sts"));
            }
            "EKS Pod Identity" => ensure!(services.last("container") == "the-token"),
            "Identity Center" => ensure!(services.last("sso").contains("the-token-of-sso"), "{}", services.last("sso")),
            _ => {}
        }
    }
    Ok(())
}

/// Credentials that expire all the time, from a service that fails for longer than they are valid.
async fn renews(name: &str, prepare: fn(Command, &CredentialServices, &Path) -> Result<Command>) -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (services, home) = (CredentialServices::start(Duration::from_secs(20)).await?, tempfile::tempdir()?);
    let relay = prepare(command(&bed, &home), &services, home.path())?.start().await?;
    let client = bed.connect().await?;
    let trickle = AbortOnDropHandle::new(tokio::spawn(async move {
        for n in 1.. {
            let (payload, group) = (format!("{{\"n\": {n}}}"), format!("g{}", n % 5));
            if enqueue(&client, "tickets", &payload, Some(&group)).await.is_err() {
                break;
            }
            // Time is the subject: messages come at a pace, so that they need credentials all the time.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }));
    eventually("credentials were given twice", || async { Ok(services.asked() >= 2) })
        .await
        .context(name.to_owned())?;
    services.set_down(true);
    // Time is the subject: the service fails for longer than its credentials are valid.
    tokio::time::sleep(Duration::from_secs(25)).await;
    services.set_down(false);
    for given in services.asked()..services.asked() + 2 {
        eventually("credentials are given again", || async { Ok(services.asked() > given) }).await?;
    }
    drop(trickle);
    bed.until_nothing_is_pending().await.with_context(|| format!("{name}: {}", relay.log()))?;
    relay.stop().await?;
    let count = bed.delivered().await?;
    ensure!(count > 100, "{name}: only {count} messages");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, count).context(name.to_owned())
}

#[tokio::test]
async fn credentials_that_expire_are_renewed_while_messages_flow_though_their_service_fails_for_a_while() -> Result<()>
{
    let kinds = KINDS.into_iter().filter(|(_, service, _)| service.is_some());
    let all = kinds.chain([("Identity Center", Some("sso"), sso as _)]);
    let all: Vec<_> = all.map(|(name, _, prepare)| renews(name, prepare)).collect();
    for result in futures_util::future::join_all(all).await {
        result?;
    }
    Ok(())
}

#[tokio::test]
async fn a_role_is_assumed_in_the_region_of_the_queue_if_nothing_else_names_one() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let (services, home) = (CredentialServices::start(Duration::from_secs(3600)).await?, tempfile::tempdir()?);
    let (_, _, assume_role) = KINDS[2];
    let relay = assume_role(command(&bed, &home), &services, home.path())?
        .without("AWS_REGION")
        .env("OUTBOX_RELAY_DESTINATIONS", "tickets=https://sqs.us-west-2.amazonaws.com/1/tickets.fifo");
    // The emulator does not know this queue; the role is assumed before it is asked.
    relay.output(&["check"]).await?;
    ensure!(services.last("sts").contains("/us-west-2/sts/"), "{}", services.last("sts"));
    Ok(())
}

#[tokio::test]
async fn missing_credentials_are_reported_with_every_provider_that_was_asked_and_the_remedy() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.enqueue("tickets", "{}", Some("g")).await?;
    let home = tempfile::tempdir()?;
    let checked = command(&bed, &home).output(&["check"]).await?;
    let lines: Vec<&str> = checked.stdout.lines().filter(|line| line.starts_with("✗ credentials")).collect();
    let asked = ["Environment", "Profile", "WebIdentityToken", "EcsContainer", "Ec2InstanceMetadata"];
    ensure!(lines.len() == 1 + asked.len() && lines[0] == "✗ credentials: no provider has any", "{}", checked.stdout);
    for (line, provider) in lines[1..].iter().zip(asked) {
        ensure!(line.starts_with(&format!("✗ credentials, {provider}: ")), "{}", checked.stdout);
    }
    ensure!(checked.stdout.contains("→ set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"));
    // A running relay says it in one line.
    let relay = command(&bed, &home).start().await?;
    let line = relay.wait_for_log("give keys, a profile or a role; tried Environment (").await?;
    ensure!(asked.iter().all(|provider| line.contains(&format!("{provider} ("))), "{line}");
    relay.stop().await?;
    Ok(())
}
