//! The ground the tests stand on: PostgreSQL, an SQS emulator, and a proxy that breaks things on purpose.
//!
//! Cluster and emulator are started once for the whole run, when the first test asks, and end with the
//! process. Tests share them without meeting: each has its own database and its own queues.

pub mod bed;
pub mod cgroup;
pub mod emulator;
pub mod group_batches;
pub mod pgbouncer;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod relay;
pub mod roles;
pub mod wire_cut;

use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use emulator::Emulator;
use pgbouncer::PgBouncer;
use postgres::{Cluster, Options};

/// The longest that a state may keep a test waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster that all tests share. `PG_MAJOR` chooses the version; unset, the installed one serves.
pub fn cluster() -> Result<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let started = CLUSTER.get_or_init(|| {
        let options = Options { major: chosen_major(), ..Options::default() };
        Cluster::start(&options).map_err(|error| format!("{error:#}"))
    });
    started.as_ref().map_err(|error| anyhow!("no PostgreSQL to test with: {error}"))
}

/// PgBouncer before that cluster, if `THROUGH_PGBOUNCER=1` asks for it: then the relays of all tests go through it.
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

/// The emulator that all tests share.
pub fn emulator() -> Result<&'static Emulator> {
    static EMULATOR: OnceLock<Result<Emulator, String>> = OnceLock::new();
    let started = EMULATOR.get_or_init(|| Emulator::start().map_err(|error| format!("{error:#}")));
    started.as_ref().map_err(|error| anyhow!("no SQS emulator to test with: {error}"))
}

/// Asks again and again until the answer is yes; what was awaited is named when it never is.
pub async fn eventually<F>(what: &str, reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    within(PATIENCE, Duration::from_millis(5), what, reached).await
}

/// The same for what takes long on a busy machine, and asks a question that is not cheap.
pub async fn at_last<F>(what: &str, reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    within(PATIENCE * 8, Duration::from_millis(250), what, reached).await
}

async fn within<F>(patience: Duration, pause: Duration, what: &str, mut reached: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let deadline = Instant::now() + patience;
    while !reached().await? {
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain until {what}");
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
