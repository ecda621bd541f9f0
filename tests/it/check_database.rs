//! `outbox-relay check` walks the way to PostgreSQL and says at which step it ends.

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::net::TcpListener;

use support::postgres::{Options, PASSWORD};
use support::relay::{Command, Finished};
use support::test_bed::{TestBed, migrate};

use crate::tls::Ground;

/// A check of this database; the queue does not matter here.
fn check(url: &str) -> Command {
    Command::new()
        .env("DATABASE_URL", url)
        .env("OUTBOX_RELAY_DESTINATIONS", "audit=http://127.0.0.1:1/1/audit")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws")
}

/// The findings about PostgreSQL, each with its remedy in one line.
fn about_postgresql(output: &Finished) -> Vec<String> {
    let joined = output.stdout.replace("\n    → ", " → ");
    joined
        .lines()
        .filter(|line| line.contains("PostgreSQL, ") || line.contains("PostgreSQL: "))
        .map(str::to_owned)
        .collect()
}

/// The findings must be these, each as its beginning and a later part.
async fn ensure_finds(url: &str, expected: &[(&str, &str)]) -> Result<()> {
    let output = check(url).output(&["check"]).await?;
    let found = about_postgresql(&output);
    ensure!(found.len() == expected.len(), "{url}: {found:#?}");
    for (line, (beginning, part)) in found.iter().zip(expected) {
        ensure!(line.starts_with(beginning) && line.contains(part), "{url}: not {beginning} … {part}: {found:#?}");
    }
    ensure!(!output.stdout.contains(PASSWORD), "{url}: {}", output.stdout);
    Ok(())
}

#[tokio::test]
async fn the_whole_way_is_told_step_by_step() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    migrate(&ground.cluster.url("postgres")).await?;
    let (port, roots) = (ground.cluster.port(), ground.folder.path().join("trusted.pem"));
    let url = |options: &str| format!("postgres://postgres:{PASSWORD}@localhost:{port}/postgres?{options}");
    let (name, connection) = ("✓ PostgreSQL, name of localhost: resolves to", "✓ PostgreSQL, connection to localhost:");
    let login = "asks postgres for a password by SCRAM-SHA-256";
    ensure_finds(
        &url(&format!("sslmode=verify-full&sslrootcert={}", roots.display())),
        &[
            (name, "127.0.0.1"),
            (connection, "accepts it"),
            ("✓ PostgreSQL, TLS of localhost:", "TLS 1.3, certificate for localhost, valid until"),
            ("✓ PostgreSQL, login to localhost:", login),
            ("✓ PostgreSQL: ", "localhost"),
        ],
    )
    .await?;
    ensure_finds(
        &url("sslmode=require"),
        &[
            (name, "127.0.0.1"),
            (connection, "accepts it"),
            ("✓ PostgreSQL, TLS of localhost:", "not verified (sslmode)"),
            ("✓ PostgreSQL, login to localhost:", "SCRAM-SHA-256-PLUS"),
            ("✓ PostgreSQL: ", "localhost"),
        ],
    )
    .await?;
    ensure_finds(
        &url("sslmode=disable"),
        &[
            (name, "127.0.0.1"),
            (connection, "accepts it"),
            ("✓ PostgreSQL, TLS of localhost:", "not asked for (sslmode)"),
            ("✓ PostgreSQL, login to localhost:", login),
            ("✓ PostgreSQL: ", "localhost"),
        ],
    )
    .await?;
    let socket = format!("host={} port={port} user=postgres", ground.cluster.socket_folder().display());
    ensure_finds(
        &socket,
        &[
            ("✓ PostgreSQL, socket /", "accepts a connection"),
            ("✓ PostgreSQL, login to /", "lets postgres in without a password"),
            ("✓ PostgreSQL: ", ""),
        ],
    )
    .await?;
    let json = check(&url("sslmode=require")).output(&["check", "--json"]).await?;
    let findings: Vec<Value> = serde_json::from_str(&json.stdout)?;
    let steps =
        findings.iter().filter(|one| one["check"].as_str().is_some_and(|what| what.starts_with("PostgreSQL, ")));
    ensure!(steps.count() == 4, "{}", json.stdout);
    Ok(())
}

#[tokio::test]
async fn the_way_ends_at_the_first_step_that_fails_with_the_remedy() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    ground.cluster.authenticate("host all refused 127.0.0.1/32 reject")?;
    let (port, folder) = (ground.cluster.port(), ground.folder.path().display().to_string());
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = silent.local_addr()?;
    let at = |place: &str, options: &str| format!("postgres://postgres:{PASSWORD}@{place}/postgres?{options}");
    let here = format!("localhost:{port}");
    let name = ("✓ PostgreSQL, name of localhost", "");
    let connection = ("✓ PostgreSQL, connection to localhost", "accepts it");
    ensure_finds(&at("nowhere.invalid:1", ""), &[("✗ PostgreSQL, name of nowhere.invalid", "DNS of this host")])
        .await?;
    let refused = ("✗ PostgreSQL, connection to localhost:1", "→ check host and port");
    ensure_finds(&at("localhost:1", ""), &[name, refused]).await?;
    ensure_finds(
        &at(&silent.to_string(), "sslmode=require"),
        &[
            ("✓ PostgreSQL, connection to 127.0.0.1:", "accepts it"),
            ("✗ PostgreSQL, TLS of 127.0.0.1:", "no answer within 5s"),
        ],
    )
    .await?;
    let stranger = format!("sslmode=verify-full&sslrootcert={folder}/stranger.pem");
    let tls = ("✗ PostgreSQL, TLS of localhost:", "unknown issuer: certificate for localhost");
    ensure_finds(&at(&here, &stranger), &[name, connection, tls]).await?;
    let trusted = format!("sslmode=verify-full&sslrootcert={folder}/trusted.pem");
    ensure_finds(
        &at(&format!("127.0.0.1:{port}"), &trusted),
        &[
            ("✓ PostgreSQL, connection to 127.0.0.1", "accepts it"),
            ("✗ PostgreSQL, TLS of 127.0.0.1:", "use its name as the host"),
        ],
    )
    .await?;
    let login = ("✗ PostgreSQL, login to 127.0.0.1", "pg_hba.conf");
    let rejected = format!("postgres://refused@127.0.0.1:{port}/postgres?sslmode=disable");
    ensure_finds(
        &rejected,
        &[
            ("✓ PostgreSQL, connection to 127.0.0.1", "accepts it"),
            ("✓ PostgreSQL, TLS of 127.0.0.1", "not asked for"),
            login,
        ],
    )
    .await?;
    // What only the password shows is the last step.
    let wrong = format!("postgres://postgres:wrong@127.0.0.1:{port}/postgres?sslmode=disable");
    ensure_finds(
        &wrong,
        &[
            ("✓ PostgreSQL, connection to 127.0.0.1", "accepts it"),
            ("✓ PostgreSQL, TLS of 127.0.0.1", "not asked for"),
            ("✓ PostgreSQL, login to 127.0.0.1", "a password by SCRAM-SHA-256; it is from DATABASE_URL"),
            ("✗ PostgreSQL: cannot connect", "password authentication failed"),
        ],
    )
    .await
}

/// RDS asks members of rds_iam for a password in clear text, and others for SCRAM.
#[tokio::test]
async fn a_role_that_may_not_log_in_with_a_token_is_named() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let roots = ground.folder.path().join("trusted.pem");
    let port = ground.cluster.port();
    let url =
        format!("postgres://postgres@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}", roots.display());
    let output = check(&url).env("OUTBOX_RELAY_DATABASE_AUTH", "rds-iam").output(&["check"]).await?;
    let last = about_postgresql(&output).pop().unwrap_or_default();
    ensure!(last.contains("not for a token of IAM → GRANT rds_iam TO postgres"), "{}", output.stdout);
    Ok(())
}

#[tokio::test]
async fn one_of_several_servers_may_be_away() -> Result<()> {
    let bed = TestBed::new().await?;
    let url = bed.url().replacen("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:", 1);
    let output = check(&url).output(&["check"]).await?;
    let found = about_postgresql(&output);
    ensure!(found[0].starts_with("! PostgreSQL, connection to 127.0.0.1:1: not possible"), "{found:#?}");
    ensure!(found.last().is_some_and(|line| line.starts_with("✓ PostgreSQL: ")), "{found:#?}");
    Ok(())
}
