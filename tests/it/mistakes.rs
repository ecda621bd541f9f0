//! What `outbox-relay check` says about mistakes that people make: one line each, with what, where and the remedy, in under
//! 200 characters. `docs/mistakes.md` is the table; `UPDATE=1 cargo test --test it -- mistakes::` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use support::postgres::{Options, PASSWORD};
use support::relay::Command;
use support::test_bed::{TestBed, migrate};

use crate::tls::Ground;

/// The longest line.
const MAX_CHARACTERS: usize = 199;

/// A mistake: what is done, and the variables that are set for it. `PORT`, `FOLDER` and `EMULATOR` stand for what they say.
type Mistake = (&'static str, &'static [(&'static str, &'static str)]);

const URL: &str = "DATABASE_URL";
const DESTINATIONS: &str = "OUTBOX_RELAY_DESTINATIONS";
const GOOD: &str = "audit=EMULATOR";

const MISTAKES: &[Mistake] = &[
    ("no database", &[(URL, "")]),
    ("the URL of another database system", &[(URL, "mysql://app:secret@db/lottery")]),
    ("no scheme", &[(URL, "db.example/lottery")]),
    ("an @ in the password", &[(URL, "postgres://app:se@cret@db/lottery")]),
    ("a % in the password", &[(URL, "postgres://app:50%off@db/lottery")]),
    ("a port in words", &[(URL, "postgres://app@db:postgres/lottery")]),
    ("a misspelt option", &[(URL, "postgres://app@db/lottery?ssl_mode=require")]),
    ("an option of another driver", &[(URL, "postgres://app@db/lottery?schema=public")]),
    ("an sslmode that does not exist", &[(URL, "postgres://app@db/lottery?sslmode=on")]),
    ("a standby is asked for", &[(URL, "postgres://app@db/lottery?target_session_attrs=prefer-standby")]),
    ("Kerberos is asked for", &[(URL, "postgres://app@db/lottery?gssencmode=require")]),
    ("a protection that is not supported", &[(URL, "postgres://app@db/lottery?require_auth=scram-sha-256")]),
    (
        "a root certificate that is not there",
        &[(URL, "postgres://app@db/lottery?sslmode=verify-full&sslrootcert=/missing.pem")],
    ),
    ("a certificate without its key", &[(URL, "postgres://app@db/lottery?sslcert=/client.crt")]),
    (
        "a key with a password",
        &[(URL, "postgres://app@localhost:PORT/lottery?sslcert=FOLDER/trusted.pem&sslkey=FOLDER/locked.key")],
    ),
    ("both the URL and its file", &[("DATABASE_URL_FILE", "/run/secrets/url")]),
    ("a file that is not there", &[(URL, ""), ("DATABASE_URL_FILE", "/run/secrets/url")]),
    ("an empty file", &[(URL, ""), ("DATABASE_URL_FILE", "FOLDER/empty")]),
    ("a service that is defined nowhere", &[(URL, ""), ("PGSERVICE", "lottery"), ("PGSERVICEFILE", "FOLDER/empty")]),
    ("a password and a command for it", &[("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", "cat /run/secrets/password")]),
    (
        "a token of IAM without verify-full",
        &[(URL, "postgres://app@db/lottery"), ("OUTBOX_RELAY_DATABASE_AUTH", "rds-iam")],
    ),
    ("a host that has no address", &[(URL, "postgres://app@db.invalid/lottery")]),
    ("a port where nothing listens", &[(URL, "postgres://app@localhost:1/lottery")]),
    ("a socket that is not there", &[(URL, "host=/missing user=app")]),
    ("a wrong password", &[(URL, "postgres://postgres:wrong@localhost:PORT/postgres")]),
    ("no password", &[(URL, "postgres://postgres@localhost:PORT/postgres?sslmode=require")]),
    ("a database that does not exist", &[(URL, "postgres://postgres:PASSWORD@localhost:PORT/lottery")]),
    ("an address that pg_hba.conf refuses", &[(URL, "postgres://refused@localhost:PORT/postgres?sslmode=require")]),
    (
        "a certificate of a stranger",
        &[(URL, "postgres://postgres@localhost:PORT/postgres?sslmode=verify-full&sslrootcert=FOLDER/stranger.pem")],
    ),
    (
        "a certificate for another name",
        &[(URL, "postgres://postgres@127.0.0.1:PORT/postgres?sslmode=verify-full&sslrootcert=FOLDER/trusted.pem")],
    ),
    ("a database without the schema", &[(URL, "postgres://postgres:PASSWORD@localhost:PORT/empty")]),
    (
        "a password command that fails",
        &[
            (URL, "postgres://postgres@localhost:PORT/postgres?sslmode=require"),
            ("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", "cat /missing"),
        ],
    ),
    ("a destination without a URL", &[(DESTINATIONS, "audit")]),
    (
        "a destination named twice",
        &[(
            DESTINATIONS,
            "audit=https://sqs.eu-west-1.amazonaws.com/1/a,audit=https://sqs.eu-west-1.amazonaws.com/1/b",
        )],
    ),
    ("an ARN instead of a URL", &[(DESTINATIONS, "audit=arn:aws:sqs:eu-west-1:1:audit")]),
    ("a role that is no ARN", &[(DESTINATIONS, "audit=https://sqs.eu-west-1.amazonaws.com/1/a;role=publisher")]),
    ("a queue without a region", &[(DESTINATIONS, "audit=https://queue.example/1/audit"), ("AWS_REGION", "")]),
    ("an endpoint without its scheme", &[("AWS_ENDPOINT_URL_SQS", "localhost:9324")]),
    (
        "FIPS, and a queue URL without",
        &[
            (DESTINATIONS, "audit=https://sqs.us-east-1.api.aws/1/audit"),
            ("AWS_USE_FIPS_ENDPOINT", "true"),
            ("AWS_ENDPOINT_URL_SQS", ""),
        ],
    ),
    ("a proxy by SOCKS", &[("HTTPS_PROXY", "socks5://proxy:1080")]),
    ("a bundle that is not there", &[("AWS_CA_BUNDLE", "/missing.pem")]),
    ("no credentials", &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")]),
    ("a queue that does not exist", &[(DESTINATIONS, "audit=EMULATOR-missing")]),
    ("a number that is too large", &[("OUTBOX_RELAY_REQUEST_SIZE", "100")]),
    ("a duration without its unit", &[("OUTBOX_RELAY_POLL_INTERVAL", "20")]),
    ("a misspelt variable", &[("OUTBOX_RELAY_MAX_INFLIGHT", "64")]),
    ("too little memory", &[("OUTBOX_RELAY_MEMORY", "32MiB")]),
    ("a name where an address belongs", &[("OUTBOX_RELAY_HTTP_LISTEN", "localhost:9595")]),
    ("an unknown format of log lines", &[("OUTBOX_RELAY_LOG_FORMAT", "logfmt")]),
];

/// A database, an emulator with a queue, and files.
struct World {
    ground: Ground,
    bed: TestBed,
    queue: String,
}

impl World {
    async fn start() -> Result<World> {
        let ground = Ground::start(Options::default()).await?;
        let bed = TestBed::new().await?;
        let queue = bed.standard("audit").await?;
        ground.cluster.create_database("empty").await?;
        migrate(&ground.cluster.url("postgres")).await?;
        ground.cluster.authenticate("host all refused all reject")?;
        ground.file("empty", "")?;
        ground
            .file("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n")?;
        Ok(World { ground, bed, queue })
    }

    fn filled(&self, text: &str) -> String {
        text.replace("PORT", &self.ground.cluster.port().to_string())
            .replace("FOLDER", &self.ground.folder.path().display().to_string())
            .replace("PASSWORD", PASSWORD)
            .replace("EMULATOR", &self.queue)
    }

    /// What differs from run to run, taken out again.
    fn emptied(&self, text: &str) -> String {
        let queue = self.queue.trim_start_matches("http://");
        let (place, name) = (queue.split('/').next().unwrap_or_default(), queue.rsplit('/').next().unwrap_or_default());
        text.replace(&self.ground.cluster.port().to_string(), "5432")
            .replace(&self.ground.folder.path().display().to_string(), "/run/secrets")
            .replace(place, "localhost:9324")
            .replace(name, "audit")
            // PostgreSQL 13 says it so.
            .replace("SSL on →", "SSL encryption →")
    }

    /// The first line about something bad, with its remedy.
    async fn line_about(&self, variables: &[(&str, &str)]) -> Result<String> {
        let mut command: Command =
            self.bed.relay().env(URL, self.ground.cluster.url("postgres")).env(DESTINATIONS, self.filled(GOOD));
        for (name, value) in variables {
            command = if value.is_empty() { command.without(name) } else { command.env(name, self.filled(value)) };
        }
        let output = command.env("HOME", self.ground.folder.path().to_string_lossy()).output(&["check"]).await?;
        ensure!(output.code != Some(0), "check is content: {}", output.stdout);
        ensure!(!output.stdout.contains("secret@") && !output.stdout.contains(PASSWORD), "{}", output.stdout);
        let joined = output.stdout.replace("\n    → ", " → ");
        let bad: Vec<&str> = joined.lines().filter_map(|line| line.strip_prefix("✗ ")).collect();
        Ok(self.emptied(bad.first().with_context(|| joined.clone())?))
    }
}

#[tokio::test]
async fn each_mistake_gets_one_line_and_the_table_of_them_is_true() -> Result<()> {
    let world = World::start().await?;
    let mut table = String::from(
        "# Mistakes, and what `outbox-relay check` says about them\n\n\
         Made by [`each_mistake_gets_one_line_and_the_table_of_them_is_true`](../tests/it/mistakes.rs). All mistakes in the \
         configuration are\nreported at once, by every command and before anything starts; the others by `check`, and by a running \
         relay in its log.\n\n| mistake | what it says |\n|---|---|\n",
    );
    let mut long = Vec::new();
    for (mistake, variables) in MISTAKES {
        let line = world.line_about(variables).await.context(*mistake)?;
        if line.chars().count() > MAX_CHARACTERS || !(line.contains("; ") || line.contains(" → ")) {
            long.push(format!("{mistake} ({} characters): {line}", line.chars().count()));
        }
        writeln!(table, "| {mistake} | {} |", line.replace('|', "\\|"))?;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mistakes.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &table)?;
    }
    ensure!(long.is_empty(), "too long, or without a remedy: {long:#?}");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = table.lines().zip(written.lines()).find(|(now, then)| now != then);
    ensure!(table == written, "docs/mistakes.md is not true: {differing:?}; write it with UPDATE=1");
    Ok(())
}
