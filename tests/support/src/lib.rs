//! What tests, benches and the lottery example run against: PostgreSQL, an SQS emulator, and a proxy that injects
//! faults.
//!
//! Cluster and emulator start once for the whole run, when the first test needs them, and end with the process. Tests
//! share them without affecting each other: each has its own database and its own queues.

pub mod cgroup;
pub mod collector;
pub mod credential_services;
pub mod emulator;
pub mod group_batches;
pub mod http_proxy;
pub mod lottery;
pub mod pgbouncer;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod rds;
pub mod relay;
mod rewriting;
pub mod roles;
/// The relay's own file: it rewrites SQL for a schema of another name. It is included, because a dependency on the relay
/// would compile the relay once more for each run of its unit tests.
#[path = "../../../src/schema.rs"]
pub mod schema;
mod server_home;
pub mod test_bed;
pub mod tls_front;
pub mod wire_cut;

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use emulator::{Emulator, Product};
use pgbouncer::PgBouncer;
use postgres::{Cluster, Options};
use schema::Schema;

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// How long a test waits for a state, on the usual emulator.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster that all tests share. `PG_MAJOR` chooses the version; the default is the installed one.
pub fn cluster() -> Result<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let started = CLUSTER.get_or_init(|| {
        let options = Options { major: chosen_major(), ..Options::default() };
        Cluster::start(&options).map_err(|error| format!("{error:#}"))
    });
    started.as_ref().map_err(|error| anyhow!("no PostgreSQL to test with: {error}"))
}

/// PgBouncer in front of that cluster, if `THROUGH_PGBOUNCER=1` is set. Then the relays of all tests connect through
/// it.
pub fn pgbouncer() -> Result<Option<&'static PgBouncer>> {
    static PGBOUNCER: OnceLock<Result<PgBouncer, String>> = OnceLock::new();
    if std::env::var("THROUGH_PGBOUNCER").is_ok_and(|wanted| wanted == "1") {
        let start = || cluster().and_then(PgBouncer::start).map_err(|error| format!("{error:#}"));
        let started = PGBOUNCER.get_or_init(start);
        return started.as_ref().map(Some).map_err(|error| anyhow!("no PgBouncer to test with: {error}"));
    }
    Ok(None)
}

/// The version that `PG_MAJOR` asks for, for tests that start a cluster of their own.
pub fn chosen_major() -> Option<String> {
    std::env::var("PG_MAJOR").ok().filter(|major| !major.is_empty())
}

/// The schema of the outbox in all tests; `TEST_SCHEMA` names another one than `outbox`. Then relays and commands are given
/// that name, and the sessions of tests rewrite their SQL for it, so that tests are written for the schema `outbox`.
pub fn chosen_schema() -> Result<&'static Schema> {
    static SCHEMA: OnceLock<Result<Schema, String>> = OnceLock::new();
    let read = || match std::env::var("TEST_SCHEMA") {
        Ok(name) if !name.is_empty() => {
            Schema::parse(&name).map_err(|why| format!("TEST_SCHEMA={name:?} is not {why}"))
        }
        _ => Ok(Schema::OUTBOX),
    };
    SCHEMA.get_or_init(read).as_ref().map_err(|error| anyhow!("{error}"))
}

/// The emulator that all tests share.
pub fn emulator() -> Result<&'static Emulator> {
    static EMULATOR: OnceLock<Result<Emulator, String>> = OnceLock::new();
    let started = EMULATOR.get_or_init(|| Emulator::start().map_err(|error| format!("{error:#}")));
    started.as_ref().map_err(|error| anyhow!("no SQS emulator to test with: {error}"))
}

/// Asks until the answer is true. Fails after [`PATIENCE`] with `what`, the state that was awaited.
pub async fn eventually<F>(what: &str, reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    within(PATIENCE, Duration::from_millis(5), what, reached).await
}

/// The same for a state that takes minutes on a busy machine, with an expensive question.
pub async fn eventually_within_minutes<F>(what: &str, reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    within(PATIENCE * 8, Duration::from_millis(250), what, reached).await
}

async fn within<F>(patience: Duration, pause: Duration, what: &str, mut reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let patience = patience * Product::chosen()?.slowness();
    let deadline = Instant::now() + patience;
    while !reached().await? {
        if Instant::now() > deadline {
            bail!("waited {patience:?}, but this did not happen: {what}");
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
